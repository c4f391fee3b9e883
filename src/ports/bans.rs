//! Who may not connect, whatever else it may.

use super::Identity;
use crate::clock::Time;

/// Knows who is banned.
pub trait Bans: Send + Sync + 'static {
    /// Why a client is banned `now`, in words; `None` if it is not.
    fn banned(&self, who: &Identity, now: Time) -> Option<String>;

    /// A client that is let in connects: why that was once too often, in words. It is banned then.
    fn connects(&self, who: &Identity, now: Time) -> Option<String>;
}

/// Bans by which nobody is banned.
#[derive(Clone, Copy, Debug)]
pub struct NoBans;

impl Bans for NoBans {
    fn banned(&self, _: &Identity, _: Time) -> Option<String> {
        None
    }

    fn connects(&self, _: &Identity, _: Time) -> Option<String> {
        None
    }
}
