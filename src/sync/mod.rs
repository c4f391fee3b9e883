//! What parts of a program wait for each other with, whatever runtime drives them.

pub mod lanes;
pub mod level;

mod once;

pub use once::Once;
