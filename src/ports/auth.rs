//! Who may do what.

use super::tasks::BoxFuture;
use crate::clock::Time;
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
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// Version of its protocol.
    pub version: Version,
    /// Client identifier; empty if one is still to be assigned.
    pub client_id: &'a str,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// How the client came.
    pub door: &'a Arc<Door>,
}

impl std::fmt::Debug for Credentials<'_> {
    /// Without the password, and without the user name, which may be a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// What is known of a client that was let in, besides its client identifier and its door.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The client's user; `None` = it was let in anonymously, whatever user name it gave.
    pub user: Option<Arc<str>>,
    /// The groups that the user is in.
    pub groups: Box<[Arc<str>]>,
    /// What the client's token says it may do.
    pub claims: Option<Box<AccessClaims>>,
    /// Until when the account holds; `None` = without end.
    pub expires_at: Option<Time>,
    /// What let the client in, and which state of that: nothing but the authorizer knows what it means.
    pub mark: AccountMark,
}

/// What an authorizer keeps with an account, to know later whether it still holds ([`Authorizer::holds`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccountMark {
    /// What let the client in; 0 = nothing that can change.
    pub source: u32,
    /// Which state of that.
    pub version: u64,
}

/// Topic filters in a client's token: what it may do, and nothing else. `None` = the token does not speak of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessClaims {
    /// Where the client may publish.
    pub publish: Option<Vec<Arc<str>>>,
    /// To what the client may subscribe.
    pub subscribe: Option<Vec<Arc<str>>>,
}

/// What a client is, once let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Client identifier.
    pub client_id: Arc<str>,
    /// The client's user: the name that was verified, never one that an anonymous client only claims.
    pub username: Option<Arc<str>>,
    /// How the client came.
    pub door: Arc<Door>,
    /// What else is known of the client.
    pub account: Arc<Account>,
}

/// Whether a client may connect: its account, or the reason for CONNACK. Why it was refused is in the authorizer's log, never in the answer.
pub type Verdict = Result<Arc<Account>, Reason>;

/// The answer to a CONNECT.
pub enum Decision {
    /// The verdict is there at once.
    Now(Verdict),
    /// The verdict is there when this has completed.
    Later(BoxFuture<Verdict>),
}

/// Decides who may connect.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether the client may connect.
    fn connect(&self, who: &Credentials<'_>) -> Decision;

    /// Whether what let a client in still does.
    fn holds(&self, _account: &Account) -> bool {
        true
    }

    /// Starts enhanced authentication (MQTT 5.0 section 4.12) with the method that a CONNECT names.
    ///
    /// # Errors
    /// 0x8C if there is no such method.
    fn enhanced(&self, method: &str, who: &Credentials<'_>) -> Result<Box<dyn EnhancedAuth>, Reason>;
}

/// An exchange of an enhanced authentication method.
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
    Accept(Vec<u8>, Arc<Account>),
    /// Refused.
    Refuse(Reason),
}
