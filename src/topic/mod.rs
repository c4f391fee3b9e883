//! Topic names and filters, the two indexes over them, and topic aliases.
//!
//! Pure single-threaded data structures. This module never locks, never does I/O, never reads a clock and knows
//! neither sessions nor packets: callers validate with [`validate_name`] and [`Filter::parse`] first, and the
//! indexes then take the text as it is (an unchecked text is stored and found again, it is never a panic).

mod alias;
mod arena;
mod level;
mod name;
mod retained;
mod table;
mod tree;
mod trie;

#[cfg(test)]
mod model_tests;

pub use alias::{AliasError, AliasUse, InboundAliases, OutboundAliases};
pub use name::{Filter, MAX_LEVELS, OwnedFilter, TopicError, matches, validate_name};
pub use retained::RetainedTrie;
pub use trie::Trie;
