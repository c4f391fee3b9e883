//! Stops the traffic between two processes at just one step of what they do: the connection on which a text comes by is held
//! there, all others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the proxy's target: what is asked of it.
    There,
    /// From the target: its answers.
    Back,
}

/// See the module. Springs once.
#[derive(Clone, Debug)]
pub struct Trap {
    text: String,
    way: Way,
    nth: usize,
    holds: Way,
}

impl Trap {
    /// Waits for `text`, in clear in what is written at once, and holds it and what comes after it.
    pub fn at(way: Way, text: &str) -> Trap {
        Trap { text: text.to_owned(), way, nth: 1, holds: way }
    }

    /// Not the first time that the text comes by, but the `n`th.
    #[must_use]
    pub fn nth(mut self, n: usize) -> Trap {
        self.nth = n;
        self
    }

    /// Lets the text itself pass, but nothing in the other direction.
    #[must_use]
    pub fn answer(mut self) -> Trap {
        self.holds = match self.way {
            Way::There => Way::Back,
            Way::Back => Way::There,
        };
        self
    }
}

#[derive(Clone, Default)]
struct State {
    trap: Option<Trap>,
    seen: usize,
    /// The direction of the connection that it holds.
    held: Option<(u64, Way)>,
}

/// What a proxy's connections know of its trap.
#[derive(Clone, Default)]
pub struct Traps {
    state: Arc<watch::Sender<State>>,
    connections: Arc<AtomicU64>,
}

impl Traps {
    /// The number of a new connection.
    pub fn connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Replaces the trap; what one holds passes.
    pub fn set(&self, trap: Option<Trap>) {
        self.state.send_replace(State { trap, ..State::default() });
    }

    /// Whether it has sprung.
    pub fn caught(&self) -> bool {
        self.state.borrow().held.is_some()
    }

    /// Looks at what comes by.
    pub fn look(&self, connection: u64, way: Way, bytes: &[u8]) {
        let finds = |trap: &Trap| {
            let text = trap.text.as_bytes();
            if trap.way == way { bytes.windows(text.len()).filter(|w| *w == text).count() } else { 0 }
        };
        self.state.send_if_modified(|s| {
            let Some(trap) = s.trap.as_ref().filter(|_| s.held.is_none()) else { return false };
            s.seen += finds(trap);
            s.held = (s.seen >= trap.nth).then_some((connection, trap.holds));
            s.held.is_some()
        });
    }

    /// Completes when nothing holds this direction of the connection.
    pub async fn pass(&self, connection: u64, way: Way) {
        let mut state = self.state.subscribe();
        // It ends with the proxy.
        let _ = state.wait_for(|s| s.held != Some((connection, way))).await;
    }
}
