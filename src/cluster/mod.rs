//! Who owns what. Only the coordinator of a node that is alone is built yet.

mod standalone;

pub use standalone::Standalone;
