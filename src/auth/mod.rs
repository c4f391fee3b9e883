//! Who a client is: methods that know accounts, asked in order (docs/decisions/0026-accounts.md). What a client may do once it is let in is
//! still to come: everyone may do everything.

pub mod anonymous;
pub mod certificate;
pub mod chain;
pub mod http;
pub mod jwt;
pub mod method;
pub mod passwd;
pub mod password;
pub mod scram;
pub mod secret;

pub use anonymous::Anonymous;
pub use chain::{Accounts, OpenError, Reloaded};
