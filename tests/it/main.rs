//! The integration tests: one binary, one module a subject.

mod arbitrary;
mod architecture;
mod codec;
mod docs;
mod tree;
