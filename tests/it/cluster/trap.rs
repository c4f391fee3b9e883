//! Stops the traffic between two processes at just one step of what they do: the connection on which a text comes by is held
//! there, all others go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// How soon after a trap's text its second one must come, bytes.
const NEAR: usize = 256;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    then: String,
    way: Way,
    nth: usize,
    holds: Way,
}

impl Trap {
    /// Waits for `text` in clear, and holds what was read with its end and what comes after it.
    pub fn at(way: Way, text: &str) -> Trap {
        Trap { text: text.to_owned(), then: String::new(), way, nth: 1, holds: way }
    }

    /// Waits for the text with this one soon after it.
    #[must_use]
    pub fn then(mut self, then: &str) -> Trap {
        then.clone_into(&mut self.then);
        self
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

    /// How often what it waits for ends in `bytes` after the first `old` of them.
    fn ends(&self, bytes: &[u8], old: usize) -> usize {
        let places = |bytes: &[u8], text: &str| -> Vec<usize> {
            let found = bytes.windows(text.len()).enumerate().filter(|(_, w)| *w == text.as_bytes());
            found.map(|(at, _)| at + text.len()).collect()
        };
        let mut ends = places(bytes, &self.text);
        if !self.then.is_empty() {
            let near = |end: &usize| {
                let after = &bytes[*end..bytes.len().min(end + NEAR + self.then.len())];
                places(after, &self.then).first().map(|n| end + n)
            };
            ends = ends.iter().filter_map(near).collect();
            ends.dedup();
        }
        ends.retain(|end| *end > old);
        ends.len()
    }

    /// Of what came by, so much may be the beginning of what it waits for.
    fn memory(&self) -> usize {
        let more = if self.then.is_empty() { 0 } else { NEAR + self.then.len() };
        self.text.len() + more - 1
    }
}

#[derive(Clone, Default)]
struct State {
    trap: Option<Trap>,
    seen: usize,
    /// The last that came by on each connection.
    tails: HashMap<(u64, Way), Vec<u8>>,
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
        self.state.send_if_modified(|s| {
            let Some(trap) = s.trap.as_ref().filter(|t| s.held.is_none() && t.way == way) else {
                return false;
            };
            let tail = s.tails.entry((connection, way)).or_default();
            let old = tail.len();
            tail.extend_from_slice(bytes);
            s.seen += trap.ends(tail, old);
            tail.drain(..tail.len().saturating_sub(trap.memory()));
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

#[test]
fn a_text_is_found_wherever_the_reads_cut_it_and_counted_once() {
    let bytes = b"key, key: value, key";
    for size in 1..=bytes.len() {
        for (trap, caught) in [
            (Trap::at(Way::There, "key").nth(3), true),
            (Trap::at(Way::There, "key").nth(4), false),
            (Trap::at(Way::There, "key: ").then("value"), true),
            (Trap::at(Way::There, "value").then("key: "), false),
            (Trap::at(Way::Back, "key"), false),
        ] {
            let traps = Traps::default();
            traps.set(Some(trap.clone()));
            bytes.chunks(size).for_each(|read| traps.look(0, Way::There, read));
            assert_eq!(traps.caught(), caught, "{trap:?} in reads of {size}");
        }
    }
}
