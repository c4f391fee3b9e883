//! CONNECT, and the answer.

use super::{Client, In};
use berth::mqtt::{Property, QoS, Reason, Version, client};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};

/// A will to leave.
#[derive(Clone, Debug)]
pub struct Will {
    pub topic: String,
    pub payload: String,
    pub qos: QoS,
    pub retain: bool,
    pub delay_s: u32,
}

/// The content of a CONNECT.
#[derive(Clone, Debug)]
pub struct Dial {
    pub version: Version,
    pub client_id: String,
    /// Says in MQTT 3 that it is a bridge.
    pub bridge: bool,
    pub clean: bool,
    pub expiry_s: u32,
    pub receive_maximum: u16,
    pub keep_alive_s: u16,
    pub will: Option<Will>,
    pub username: Option<String>,
    pub password: Option<Vec<u8>>,
    /// User properties (MQTT 5).
    pub properties: Vec<(String, String)>,
    /// A method of enhanced authentication and its first data (MQTT 5).
    pub method: Option<(&'static str, Vec<u8>)>,
}

impl Dial {
    /// A clean session.
    pub fn new(version: Version, client_id: &str) -> Dial {
        Dial {
            version,
            client_id: client_id.to_owned(),
            bridge: false,
            clean: true,
            expiry_s: 0,
            receive_maximum: u16::MAX,
            keep_alive_s: 0,
            will: None,
            username: None,
            password: None,
            properties: Vec::new(),
            method: None,
        }
    }

    /// MQTT 5, clean start.
    pub fn v5(client_id: &str) -> Dial {
        Dial::new(Version::V5, client_id)
    }

    /// MQTT 3.1.1, clean session.
    pub fn v4(client_id: &str) -> Dial {
        Dial::new(Version::V311, client_id)
    }

    /// As a bridge.
    #[must_use]
    pub fn bridge(mut self) -> Dial {
        self.bridge = true;
        self
    }

    /// A session that outlives connections, continued if there is one.
    #[must_use]
    pub fn persistent(mut self) -> Dial {
        self.clean = false;
        self.expiry_s = u32::MAX;
        self
    }

    /// Starts over, whatever was there.
    #[must_use]
    pub fn clean(mut self) -> Dial {
        self.clean = true;
        self
    }

    #[must_use]
    pub fn expiry(mut self, seconds: u32) -> Dial {
        self.expiry_s = seconds;
        self
    }

    #[must_use]
    pub fn keep_alive(mut self, seconds: u16) -> Dial {
        self.keep_alive_s = seconds;
        self
    }

    #[must_use]
    pub fn receive_maximum(mut self, n: u16) -> Dial {
        self.receive_maximum = n;
        self
    }

    #[must_use]
    pub fn will(mut self, topic: &str, payload: &str, delay_s: u32) -> Dial {
        let (topic, payload) = (topic.to_owned(), payload.to_owned());
        self.will = Some(Will { topic, payload, qos: QoS::AtLeastOnce, retain: false, delay_s });
        self
    }

    /// With this user name and password.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Dial {
        (self.username, self.password) = (Some(name.to_owned()), Some(password.as_bytes().to_vec()));
        self
    }

    /// With this user property.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Dial {
        self.properties.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this method of enhanced authentication.
    #[must_use]
    pub fn method(mut self, name: &'static str, data: &[u8]) -> Dial {
        self.method = Some((name, data.to_vec()));
        self
    }

    /// CONNECT as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut properties = Vec::new();
        if self.expiry_s > 0 {
            client::put_property(&mut properties, &Property::SessionExpiryInterval(self.expiry_s));
        }
        if self.receive_maximum < u16::MAX {
            client::put_property(&mut properties, &Property::ReceiveMaximum(self.receive_maximum));
        }
        for (name, value) in &self.properties {
            client::put_property(&mut properties, &Property::UserProperty(name, value));
        }
        if let Some((name, data)) = &self.method {
            client::put_property(&mut properties, &Property::AuthenticationMethod(name));
            client::put_property(&mut properties, &Property::AuthenticationData(data));
        }
        let mut will_properties = Vec::new();
        if let Some(will) = self.will.as_ref().filter(|w| w.delay_s > 0) {
            client::put_property(&mut will_properties, &Property::WillDelayInterval(will.delay_s));
        }
        let mut out = Vec::new();
        let will = self.will.as_ref().map(|w| client::Will {
            topic: &w.topic,
            payload: w.payload.as_bytes(),
            qos: w.qos,
            retain: w.retain,
            properties: &will_properties,
        });
        let connect = client::Connect {
            version: self.version,
            bridge: self.bridge,
            clean_start: self.clean,
            keep_alive_s: self.keep_alive_s,
            properties: &properties,
            client_id: &self.client_id,
            will,
            username: self.username.as_deref(),
            password: self.password.as_deref(),
        };
        client::connect(&mut out, &connect);
        out
    }

    /// Connects and returns the broker's answer with the connection.
    ///
    /// # Errors
    /// If the connection cannot be made or is lost.
    pub fn try_connect(&self, to: SocketAddr) -> io::Result<(Client, In)> {
        self.try_connect_over(Client::raw(to, self.version)?)
    }

    /// As [`Dial::try_connect`], over a connection on which nothing was said.
    ///
    /// # Errors
    /// If it is lost.
    pub fn try_connect_over(&self, mut client: Client) -> io::Result<(Client, In)> {
        client.send(&self.bytes())?;
        let answer = client.try_recv()?;
        if let In::ConnAck { present, .. } = &answer {
            client.present = *present;
        }
        Ok((client, answer))
    }

    /// As [`Dial::connect`], from an address of this machine.
    pub fn connect_from(&self, from: IpAddr, to: SocketAddr) -> Client {
        self.accepted(
            Client::raw_from(from, to, self.version).and_then(|client| self.try_connect_over(client)),
        )
    }

    /// As [`Dial::connect`], with a receive buffer of about so many bytes: what is sent faster than it is read waits at the
    /// broker, not in this machine's kernel.
    pub fn connect_narrow(&self, to: SocketAddr, receive_bytes: usize) -> Client {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(receive_bytes).unwrap();
        socket.connect(&to.into()).unwrap();
        self.accepted(self.try_connect_over(Client::over(socket.into(), self.version).unwrap()))
    }

    /// Connects; the broker must accept.
    pub fn connect(&self, to: SocketAddr) -> Client {
        self.accepted(self.try_connect(to))
    }

    fn accepted(&self, answered: io::Result<(Client, In)>) -> Client {
        let (client, answer) = answered.unwrap();
        assert!(matches!(answer, In::ConnAck { reason: Reason::Success, .. }), "{answer:?} to {self:?}");
        client
    }
}
