//! Who a client is: methods that know accounts, asked in order (docs/decisions/0026-accounts.md); and what it may do once it is let in:
//! rules in [`acl`], and who may not come at all in [`bans`].

pub mod acl;
pub mod anonymous;
pub mod bans;
pub mod certificate;
pub mod chain;
pub mod directory;
pub mod http;
pub mod jwt;
pub mod method;
pub mod passwd;
pub mod password;
pub mod scram;

pub use anonymous::Anonymous;
pub use chain::{Accounts, OpenError, Reloaded};
pub use directory::Directory;

#[cfg(test)]
mod tests;
