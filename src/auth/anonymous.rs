//! Clients without an account: who of them is let in.

use crate::mqtt::Reason;
use crate::ports::{Account, Authorizer, Credentials, Decision, Door, EnhancedAuth};
use std::net::IpAddr;
use std::sync::Arc;

/// Lets clients in without accounts, as far as the configuration allows it.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous {
    /// From any address (`auth.allow_anonymous: true`), not just loopback.
    pub anywhere: bool,
    /// From nowhere (`auth.allow_anonymous: false`).
    pub nowhere: bool,
}

impl Anonymous {
    /// Whether a client that came by this door is let in.
    pub fn lets_in(&self, door: &Door) -> bool {
        let loopback = match door.peer.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
        };
        !self.nowhere && (self.anywhere || loopback)
    }
}

impl Authorizer for Anonymous {
    fn connect(&self, who: &Credentials<'_>) -> Decision {
        let account = || Arc::new(Account::default());
        Decision::Now(if self.lets_in(who.door) { Ok(account()) } else { Err(Reason::NotAuthorized) })
    }

    fn enhanced(&self, _: &str, _: &Credentials<'_>) -> Result<Box<dyn EnhancedAuth>, Reason> {
        Err(Reason::BadAuthenticationMethod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let Decision::Now(verdict) = auth.connect(&who) else { panic!("waits") };
            assert_eq!(verdict.is_ok(), allowed, "{auth:?} {peer}");
        }
    }
}
