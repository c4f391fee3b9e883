//! The outside of a clustered node: the coordinator on etcd and the links to other nodes on gRPC.

pub mod certificate;
pub mod etcd;
pub mod history;
pub mod memory;
pub mod older;
pub mod peers;
mod tasks;

pub use tasks::TokioTasks;
