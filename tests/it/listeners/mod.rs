//! Listeners as clients meet them: TLS, WebSocket, proxies, limits.

mod cluster;
mod haproxy;
mod limits;
pub mod pki;
mod proxy;
mod reload;
mod rotation;
mod slow;
mod tls;
mod websocket;

use crate::broker::{Broker, Setup, free_address};
use crate::client::{Client, Dial, In};
use berth::mqtt::{Reason, Version};
use pki::Pem;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

/// A broker and the address of its listener `x`, which has these options besides.
fn listen(kind: &str, options: &[(&str, &str)]) -> (Broker, SocketAddr) {
    let (setup, address) = with_listener(Setup::new(), kind, options);
    (setup.start(), address)
}

/// Adds the listener `x`.
fn with_listener(setup: Setup, kind: &str, options: &[(&str, &str)]) -> (Setup, SocketAddr) {
    let address = free_address();
    let setup = setup.set("listeners.x.type", kind).set("listeners.x.address", &address.to_string());
    let set = |setup: Setup, (key, value): &(&str, &str)| setup.set(&format!("listeners.x.{key}"), value);
    (options.iter().fold(setup, set), address)
}

/// How a client does TLS: whom it trusts, and what it shows.
pub fn tls_config(ca: &Pem, own: Option<&(Pem, Pem)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&ca.file).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match own {
        Some((cert, key)) => {
            let chain = CertificateDer::pem_file_iter(&cert.file).unwrap().map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&key.file).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    Arc::new(config)
}

pub type Secure = StreamOwned<ClientConnection, TcpStream>;

/// A TLS connection to the host `name` after its handshake.
pub fn secure(to: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> io::Result<(Secure, TcpStream)> {
    let socket = TcpStream::connect(to)?;
    socket.set_read_timeout(Some(crate::wait::PATIENCE))?;
    let copy = socket.try_clone()?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok((stream, copy))
}

/// A client over TLS, and the broker's answer to its CONNECT.
fn connect_tls(dial: &Dial, to: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<(Client, In)> {
    let (stream, socket) = secure(to, config, "localhost")?;
    dial.try_connect_over(Client::over(socket, dial.version)?.under(Box::new(stream)))
}

/// Whether a client over TLS is let in: who is refused by TLS 1.3 may learn it after its own part of the handshake, or lose the connection.
fn let_in_tls(dial: &Dial, to: SocketAddr, config: &Arc<ClientConfig>) -> bool {
    matches!(connect_tls(dial, to, config), Ok((_, In::ConnAck { reason: Reason::Success, .. })))
}

/// A client over TLS that is let in.
fn connected_tls(dial: &Dial, to: SocketAddr, config: &Arc<ClientConfig>) -> Client {
    let (client, answer) = connect_tls(dial, to, config).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::Success, .. }), "{answer:?}");
    client
}

/// MQTT's bytes in messages of tungstenite.
struct Messages<S> {
    socket: WebSocket<S>,
    left: Vec<u8>,
}

impl<S: Read + Write> Read for Messages<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => self.left = bytes.to_vec(),
                Ok(Message::Close(_)) => return Ok(0),
                Ok(_) => {}
                Err(tungstenite::Error::Io(e)) => return Err(e),
                Err(_) => return Ok(0),
            }
        }
        let n = self.left.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.left[..n]);
        self.left.drain(..n);
        Ok(n)
    }
}

impl<S: Read + Write> Write for Messages<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Packets may be cut anywhere (MQTT 5.0 section 6).
        let n = bytes.len().min(1000);
        self.socket.send(Message::Binary(bytes[..n].to_vec().into())).map_err(io::Error::other)?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush().map_err(io::Error::other)
    }
}

/// The upgrade of a connection.
fn upgrade<S: Read + Write>(
    stream: S,
    url: &str,
    headers: &[(&'static str, &str)],
) -> Result<WebSocket<S>, String> {
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tungstenite::client(request, stream) {
        Ok((socket, response)) => {
            assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
            Ok(socket)
        }
        Err(tungstenite::HandshakeError::Failure(e)) => Err(e.to_string()),
        Err(e) => panic!("{e}"),
    }
}

const MQTT: (&str, &str) = ("Sec-WebSocket-Protocol", "mqtt");

/// A client over WebSocket.
fn connect_ws(dial: &Dial, to: SocketAddr) -> Client {
    let socket = TcpStream::connect(to).unwrap();
    let copy = socket.try_clone().unwrap();
    let socket = upgrade(socket, &format!("ws://{to}/mqtt"), &[MQTT]).unwrap();
    over_ws(dial, copy, socket)
}

/// A client over WebSocket and TLS.
fn connect_wss(dial: &Dial, to: SocketAddr, config: &Arc<ClientConfig>) -> Client {
    let (stream, copy) = secure(to, config, "localhost").unwrap();
    let socket = upgrade(stream, &format!("ws://localhost:{}/mqtt", to.port()), &[MQTT]).unwrap();
    over_ws(dial, copy, socket)
}

fn over_ws<S: Read + Write + Send + 'static>(dial: &Dial, copy: TcpStream, socket: WebSocket<S>) -> Client {
    let cover = Messages { socket, left: Vec::new() };
    let client = Client::over(copy, dial.version).unwrap().under(Box::new(cover));
    let (client, answer) = dial.try_connect_over(client).unwrap();
    assert!(matches!(answer, In::ConnAck { reason: Reason::Success, .. }), "{answer:?}");
    client
}

/// The versions that every transport is tried with.
const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];
