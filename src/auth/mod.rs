//! Who may do what. Accounts are still to come; what whoever is let in may do is in [`acl`].

pub mod acl;
pub mod bans;
mod network;

pub use network::Network;

use crate::broker::ports::{Authorizer, Credentials, EnhancedAuth};
use crate::mqtt::Reason;
use std::net::IpAddr;

/// Lets clients in without accounts, as far as the configuration allows it.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous {
    /// From any address (`auth.allow_anonymous: true`), not just loopback.
    pub anywhere: bool,
    /// From nowhere (`auth.allow_anonymous: false`).
    pub nowhere: bool,
}

impl Authorizer for Anonymous {
    fn connect(&self, who: &Credentials<'_>) -> Result<(), Reason> {
        let loopback = match who.door.peer.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
        };
        if !self.nowhere && (self.anywhere || loopback) { Ok(()) } else { Err(Reason::NotAuthorized) }
    }

    fn enhanced(&self, _: &str) -> Result<Box<dyn EnhancedAuth>, Reason> {
        Err(Reason::BadAuthenticationMethod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::ports::Door;

    #[test]
    fn who_is_let_in_without_an_account() {
        let cases = [
            (Anonymous { anywhere: false, nowhere: false }, "127.0.0.1:5", true),
            (Anonymous { anywhere: false, nowhere: false }, "[::1]:5", true),
            (Anonymous { anywhere: false, nowhere: false }, "[::ffff:127.0.0.1]:5", true),
            (Anonymous { anywhere: false, nowhere: false }, "192.0.2.1:5", false),
            (Anonymous { anywhere: true, nowhere: false }, "192.0.2.1:5", true),
            (Anonymous { anywhere: false, nowhere: true }, "127.0.0.1:5", false),
        ];
        for (auth, peer, allowed) in cases {
            let door = Door::tcp(peer.parse().unwrap());
            let version = crate::mqtt::Version::V5;
            let who = Credentials { version, client_id: "c", username: None, password: None, door: &door };
            assert_eq!(auth.connect(&who).is_ok(), allowed, "{auth:?} {peer}");
        }
    }
}
