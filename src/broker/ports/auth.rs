//! Who may do what.

use crate::mqtt::{Reason, Version};
use std::net::SocketAddr;
use std::sync::Arc;

/// The way by which a client has come: what is known of it before its CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// The listener's name.
    pub listener: Arc<str>,
    /// The client's address; behind a proxy that is trusted, the one that the proxy tells.
    pub peer: SocketAddr,
    /// The names in its certificate, if it came with one that was verified.
    pub certificate: Option<Box<CertificateNames>>,
}

impl Door {
    /// A client of the listener `tcp` without a certificate.
    pub fn tcp(peer: SocketAddr) -> Arc<Door> {
        Arc::new(Door { listener: Arc::from("tcp"), peer, certificate: None })
    }
}

/// The names by which a client's certificate, verified at the handshake, calls it (RFC 5280 sections 4.1.2.6 and 4.2.1.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// The whole subject, as RFC 4514 writes it.
    pub subject: String,
    /// The subject's common name.
    pub common_name: Option<String>,
    /// DNS names of the alternative names.
    pub dns: Vec<String>,
    /// URIs of the alternative names.
    pub uri: Vec<String>,
}

/// Who a client says it is.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// Version of its protocol.
    pub version: Version,
    /// Client identifier; empty if one is still to be assigned.
    pub client_id: &'a str,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// How it came.
    pub door: &'a Door,
}

/// What a client is, once let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Client identifier.
    pub client_id: Arc<str>,
    /// User name.
    pub username: Option<Box<str>>,
    /// Groups that the user belongs to.
    pub groups: Arc<[Box<str>]>,
    /// How it came.
    pub door: Arc<Door>,
}

/// Decides who may connect.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether the client may connect.
    ///
    /// # Errors
    /// The reason for CONNACK.
    fn connect(&self, who: &Credentials<'_>) -> Result<(), Reason>;

    /// Starts enhanced authentication (MQTT 5.0 section 4.12) with the method a CONNECT names.
    ///
    /// # Errors
    /// 0x8C if there is no such method.
    fn enhanced(&self, method: &str) -> Result<Box<dyn EnhancedAuth>, Reason>;
}

/// One exchange of an enhanced authentication method.
pub trait EnhancedAuth: Send {
    /// Takes the client's data and says how to go on.
    fn step(&mut self, data: Option<&[u8]>) -> AuthStep;
}

/// How an exchange goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthStep {
    /// Send AUTH 0x18 with this data and wait for the client's.
    Continue(Vec<u8>),
    /// The client is who it says; this data goes into CONNACK or AUTH 0x00.
    Accept(Vec<u8>),
    /// Refused.
    Refuse(Reason),
}
