//! Who may do what.

use crate::mqtt::Reason;
use std::sync::Arc;

/// Who a client says it is.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// Client identifier; empty if one is still to be assigned.
    pub client_id: &'a str,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// The peer's address.
    pub peer: std::net::SocketAddr,
}

/// What a client is, once let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Client identifier.
    pub client_id: Arc<str>,
    /// User name.
    pub username: Option<Box<str>>,
}

/// Decides who may connect, publish and subscribe.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether the client may connect.
    ///
    /// # Errors
    /// The reason for CONNACK.
    fn connect(&self, who: &Credentials<'_>) -> Result<(), Reason>;

    /// Whether `who` may publish to `topic`.
    fn publish(&self, who: &Identity, topic: &str) -> bool;

    /// Whether `who` may subscribe to `filter` (without its `$share/<group>/`).
    fn subscribe(&self, who: &Identity, filter: &str) -> bool;

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
