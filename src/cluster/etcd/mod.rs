//! The coordinator on etcd: membership, custody, election, claims, routes, retained messages, and the watch that tells this
//! node what all others did.

pub mod applier;
pub mod batch;
pub mod claims;
pub mod client;
pub mod coordinator;
pub mod currency;
pub mod custody;
pub mod decode;
pub mod directory;
pub mod election;
pub mod error;
pub mod eviction;
pub mod fence;
pub mod holders;
pub mod journals;
pub mod keys;
pub mod leader;
pub mod member;
pub mod members;
pub mod page;
pub mod pagelog;
pub mod reads;
pub mod records;
pub mod register;
pub mod restored;
pub mod retained;
pub mod retained_value;
pub mod ring;
pub mod routes;
mod scan;
pub mod snapshot;
pub mod sweep;
pub mod tls;
mod trouble;
pub mod watch;
