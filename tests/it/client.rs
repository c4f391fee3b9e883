//! A small blocking MQTT client on the broker's own codec: typed packets, everything visible, nothing automatic but what is
//! asked for.

mod dial;
mod received;

use berth::mqtt::client::{self, AckKind, ServerPacket};
use berth::mqtt::packet::{RetainHandling, SubscribeOptions};
use berth::mqtt::{Property, QoS, Reason, Version, frame_len};
pub use dial::{Dial, Will};
use received::owned;
use socket2::{Domain, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// No test waits longer for a packet that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A PUBLISH from the broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: QoS,
    pub retain: bool,
    pub dup: bool,
    pub packet_id: u16,
    /// Properties as `Debug` shows them.
    pub properties: Vec<String>,
}

impl Received {
    /// The payload as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

/// A packet from the broker.
#[derive(Clone, Debug, PartialEq)]
pub enum In {
    ConnAck {
        present: bool,
        reason: Reason,
        properties: Vec<String>,
    },
    Publish(Received),
    PubAck(u16, Reason),
    PubRec(u16, Reason),
    PubRel(u16),
    PubComp(u16, Reason),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<u8>),
    PingResp,
    Disconnect(Reason),
    /// With the data of its method.
    Auth(Reason, Vec<u8>),
    /// The broker closed the connection.
    Closed,
}

/// What lies between MQTT and the socket, such as TLS.
pub trait Cover: Read + Write + Send {}

impl<T: Read + Write + Send> Cover for T {}

/// A connection.
pub struct Client {
    stream: TcpStream,
    cover: Option<Box<dyn Cover>>,
    version: Version,
    buffer: Vec<u8>,
    /// Packets that came while another was waited for.
    stash: VecDeque<In>,
    next_id: u16,
    /// Session present, from CONNACK.
    pub present: bool,
    /// Where to go instead, from DISCONNECT.
    pub server_reference: Option<String>,
}

impl Client {
    /// Opens a connection and says nothing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn raw(to: SocketAddr, version: Version) -> io::Result<Client> {
        Client::over(TcpStream::connect(to)?, version)
    }

    /// As [`Client::raw`], from an address of this machine.
    pub fn raw_from(from: IpAddr, to: SocketAddr, version: Version) -> io::Result<Client> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect(&to.into())?;
        Client::over(socket.into(), version)
    }

    /// A client over a connection on which nothing was said; an error if its options cannot be set.
    pub fn over(stream: TcpStream, version: Version) -> io::Result<Client> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (buffer, stash) = (Vec::new(), VecDeque::new());
        let (cover, next_id, present, server_reference) = (None, 0, false, None);
        Ok(Client { stream, cover, version, buffer, stash, next_id, present, server_reference })
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.cover {
            Some(cover) => cover.write_all(bytes).and_then(|()| cover.flush()),
            None => self.stream.write_all(bytes),
        }
    }

    /// With something between MQTT and the socket.
    pub fn under(mut self, cover: Box<dyn Cover>) -> Client {
        self.cover = Some(cover);
        self
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// How long [`Client::try_recv`] waits before it fails with `WouldBlock`.
    pub fn patience(&mut self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).unwrap();
    }

    fn read_packet(&mut self) -> io::Result<In> {
        loop {
            match frame_len(&self.buffer, u32::MAX) {
                Ok(Some(len)) => {
                    let packet = client::decode(self.version, &self.buffer[..len]);
                    let packet = packet
                        .unwrap_or_else(|e| panic!("berth sent nonsense: {e}: {:02x?}", &self.buffer[..len]));
                    if let ServerPacket::Disconnect(d) = &packet {
                        self.server_reference = d.properties.iter().find_map(|p| match p {
                            Property::ServerReference(to) => Some(to.to_owned()),
                            _ => None,
                        });
                    }
                    let packet = owned(packet);
                    self.buffer.drain(..len);
                    return Ok(packet);
                }
                Ok(None) => {}
                Err(e) => panic!("berth sent nonsense: {e}"),
            }
            let mut chunk = [0; 16 * 1024];
            let read = match &mut self.cover {
                Some(cover) => cover.read(&mut chunk),
                None => self.stream.read(&mut chunk),
            };
            match read {
                Ok(0) => return Ok(In::Closed),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                // Also if TLS ended without close_notify.
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                    return Ok(In::Closed);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The next packet, stashed ones first.
    ///
    /// # Errors
    /// `WouldBlock` if none comes in time.
    pub fn try_recv(&mut self) -> io::Result<In> {
        match self.stash.pop_front() {
            Some(packet) => Ok(packet),
            None => self.read_packet(),
        }
    }

    /// The broker's end of the connection.
    ///
    /// # Errors
    /// If it is lost.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// The next packet, which must come.
    pub fn recv(&mut self) -> In {
        self.try_recv().unwrap_or_else(|e| panic!("no packet: {e}"))
    }

    /// The next packet that `wanted` takes; others are kept for later.
    pub fn wait_for<T>(&mut self, what: &str, wanted: impl Fn(&In) -> Option<T>) -> T {
        if let Some(at) = self.stash.iter().position(|p| wanted(p).is_some()) {
            return self.stash.remove(at).and_then(|p| wanted(&p)).unwrap();
        }
        loop {
            let packet = self.read_packet().unwrap_or_else(|e| panic!("no {what}: {e}"));
            if let Some(found) = wanted(&packet) {
                return found;
            }
            assert!(packet != In::Closed, "closed while waiting for {what}; before: {:?}", self.stash);
            self.stash.push_back(packet);
        }
    }

    /// A packet identifier that was not used lately.
    pub fn packet_id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    /// Subscribes and returns the codes.
    pub fn subscribe(&mut self, filters: &[(&str, QoS)]) -> Vec<u8> {
        let id = self.packet_id();
        let bytes = subscribe_bytes(self.version, id, filters);
        self.send(&bytes).unwrap();
        self.wait_for("SUBACK", |p| match p {
            In::SubAck(of, codes) if *of == id => Some(codes.clone()),
            _ => None,
        })
    }

    /// Unsubscribes and returns the codes (none in MQTT 3).
    pub fn unsubscribe(&mut self, filters: &[&str]) -> Vec<u8> {
        let id = self.packet_id();
        let mut out = Vec::new();
        client::unsubscribe(&mut out, self.version, id, &[], filters);
        self.send(&out).unwrap();
        self.wait_for("UNSUBACK", |p| match p {
            In::UnsubAck(of, codes) if *of == id => Some(codes.clone()),
            _ => None,
        })
    }

    /// Sends a PUBLISH and returns its packet identifier (0 at QoS 0).
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn send_publish(&mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool) -> io::Result<u16> {
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { self.packet_id() };
        let bytes = publish_bytes(self.version, &Out { topic, payload, qos, retain, dup: false, packet_id });
        self.send(&bytes)?;
        Ok(packet_id)
    }

    /// As [`Client::send_publish`] at QoS 1, of a message to be retained that expires (MQTT 5).
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn send_expiring(&mut self, topic: &str, payload: &[u8], seconds: u32) -> io::Result<u16> {
        let mut properties = Vec::new();
        client::put_property(&mut properties, &Property::MessageExpiryInterval(seconds));
        let packet_id = self.packet_id();
        let (qos, properties) = (QoS::AtLeastOnce, &properties[..]);
        let publish =
            client::Publish { topic, payload, qos, retain: true, dup: false, packet_id, properties };
        let mut out = Vec::new();
        client::publish(&mut out, self.version, &publish);
        self.send(&out)?;
        Ok(packet_id)
    }

    /// Publishes and sees it through to the last acknowledgement; returns the reason of the first one.
    pub fn publish_with(&mut self, topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Reason {
        let id = self.send_publish(topic, payload, qos, retain).unwrap();
        match qos {
            QoS::AtMostOnce => Reason::Success,
            QoS::AtLeastOnce => self.wait_for("PUBACK", |p| match p {
                In::PubAck(of, reason) if *of == id => Some(*reason),
                _ => None,
            }),
            QoS::ExactlyOnce => {
                let reason = self.wait_for("PUBREC", |p| match p {
                    In::PubRec(of, reason) if *of == id => Some(*reason),
                    _ => None,
                });
                if !reason.is_error() {
                    self.ack(AckKind::PubRel, id).unwrap();
                    self.wait_for("PUBCOMP", |p| (*p == In::PubComp(id, Reason::Success)).then_some(()));
                }
                reason
            }
        }
    }

    /// Publishes text; the broker must accept it.
    pub fn publish(&mut self, topic: &str, payload: &str, qos: QoS) {
        let reason = self.publish_with(topic, payload.as_bytes(), qos, false);
        assert!(!reason.is_error(), "{reason:?}");
    }

    /// Sends an acknowledgement.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn ack(&mut self, kind: AckKind, packet_id: u16) -> io::Result<()> {
        let mut out = Vec::new();
        client::ack(&mut out, self.version, kind, packet_id, Reason::Success, None);
        self.send(&out)
    }

    /// The next PUBLISH, without an acknowledgement.
    pub fn receive_only(&mut self) -> Received {
        self.wait_for("PUBLISH", |p| match p {
            In::Publish(p) => Some(p.clone()),
            _ => None,
        })
    }

    /// The next PUBLISH, acknowledged to the end.
    pub fn receive(&mut self) -> Received {
        let p = self.receive_only();
        match p.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.ack(AckKind::PubAck, p.packet_id).unwrap(),
            QoS::ExactlyOnce => {
                self.ack(AckKind::PubRec, p.packet_id).unwrap();
                self.wait_for("PUBREL", |i| (*i == In::PubRel(p.packet_id)).then_some(()));
                self.ack(AckKind::PubComp, p.packet_id).unwrap();
            }
        }
        p
    }

    /// The payloads of the next `n` PUBLISH packets.
    pub fn receive_texts(&mut self, n: usize) -> Vec<String> {
        (0..n).map(|_| self.receive().text().to_owned()).collect()
    }

    /// Asks and waits for the answer: what was sent before has been handled.
    pub fn ping(&mut self) {
        self.send(&[0xC0, 0]).unwrap();
        self.wait_for("PINGRESP", |p| (*p == In::PingResp).then_some(()));
    }

    /// Nothing has been sent to it, and nothing comes before the answer to a PINGREQ.
    pub fn expect_silence(&mut self) {
        self.send(&[0xC0, 0]).unwrap();
        assert_eq!(self.recv(), In::PingResp);
    }

    /// Says goodbye and waits until the broker has closed.
    pub fn disconnect(mut self) {
        self.send(&[0xE0, 0]).unwrap();
        self.expect_closed();
    }

    /// Reads until the broker closes; returns the reason of a DISCONNECT before that.
    pub fn expect_closed(&mut self) -> Option<Reason> {
        let mut told = None;
        loop {
            match self.recv() {
                In::Closed => return told,
                In::Disconnect(reason) => told = Some(reason),
                In::ConnAck { reason, .. } => told = Some(reason),
                _ => {}
            }
        }
    }
}

/// A PUBLISH to send.
#[derive(Clone, Copy, Debug)]
pub struct Out<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub qos: QoS,
    pub retain: bool,
    pub dup: bool,
    pub packet_id: u16,
}

/// PUBLISH as bytes.
pub fn publish_bytes(version: Version, p: &Out<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let Out { topic, payload, qos, retain, dup, packet_id } = *p;
    let publish = client::Publish { topic, payload, qos, retain, dup, packet_id, properties: &[] };
    client::publish(&mut out, version, &publish);
    out
}

/// SUBSCRIBE as bytes.
pub fn subscribe_bytes(version: Version, packet_id: u16, filters: &[(&str, QoS)]) -> Vec<u8> {
    let filters: Vec<_> = filters.iter().map(|(filter, qos)| (*filter, options(*qos))).collect();
    let mut out = Vec::new();
    client::subscribe(&mut out, version, packet_id, &[], &filters);
    out
}

fn options(qos: QoS) -> SubscribeOptions {
    SubscribeOptions {
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Send,
    }
}
