//! One seat per node for its publishes: its newest connection has it, and older ones deliver nothing more.

use super::answers::StreamAnswers;
use crate::hashing::HashMap;
use crate::ports::MemberId;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// Nodes that have, or had, a connection to this one.
pub(super) const SLOTS_MAX: usize = 1024;

struct Current {
    incarnation: u64,
    attempt: u64,
    seat: u64,
    answers: Weak<StreamAnswers>,
}

/// One seat per node for its publishes: its newest connection has it, and older ones deliver nothing more.
#[derive(Default)]
pub(super) struct Slots(Mutex<HashMap<Arc<str>, Arc<Mutex<Current>>>>);

/// The right to deliver, until a newer connection of the node takes it.
pub(super) struct Seat {
    slot: Arc<Mutex<Current>>,
    seat: u64,
}

impl Slots {
    /// Gives the seat of `from`'s node to its connection number `attempt`. When this returns, no older connection is
    /// delivering, nor will again.
    pub(super) fn enter(
        &self,
        from: &MemberId,
        attempt: u64,
        answers: &Arc<StreamAnswers>,
    ) -> Result<Seat, String> {
        let slot = self.slot(from)?;
        let mut current = slot.lock();
        if current.incarnation == from.incarnation && attempt <= current.attempt {
            return Err(format!("a newer connection of process {from} is there"));
        }
        current.incarnation = from.incarnation;
        current.attempt = attempt;
        current.seat += 1;
        let before = std::mem::replace(&mut current.answers, Arc::downgrade(answers));
        let seat = current.seat;
        drop(current);
        if let Some(before) = before.upgrade() {
            before.close(Ok(()));
            before.end();
        }
        Ok(Seat { slot, seat })
    }

    fn slot(&self, from: &MemberId) -> Result<Arc<Mutex<Current>>, String> {
        let mut slots = self.0.lock();
        if slots.len() >= SLOTS_MAX && !slots.contains_key(&from.node) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
            if slots.len() >= SLOTS_MAX {
                return Err(format!("{SLOTS_MAX} nodes are connected already"));
            }
        }
        let fresh = || {
            let none = Current { incarnation: 0, attempt: 0, seat: 0, answers: Weak::new() };
            Arc::new(Mutex::new(none))
        };
        Ok(slots.entry(from.node.clone()).or_insert_with(fresh).clone())
    }
}

impl Seat {
    /// Runs `deliver` unless the seat is lost; nobody else delivers for the node meanwhile.
    pub(super) fn deliver<R>(&self, deliver: impl FnOnce() -> R) -> Option<R> {
        let current = self.slot.lock();
        (current.seat == self.seat).then(deliver)
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::Hello;
    use super::*;

    fn enter(slots: &Slots, incarnation: u64, attempt: u64) -> Result<Seat, String> {
        let from = MemberId { node: "a".into(), incarnation };
        slots.enter(&from, attempt, &StreamAnswers::new(Hello::default()))
    }

    #[test]
    fn the_newest_connection_has_the_seat() {
        let slots = Slots::default();
        let first = enter(&slots, 5, 1).unwrap();
        assert_eq!(first.deliver(|| 1), Some(1));
        let second = enter(&slots, 5, 3).unwrap();
        assert_eq!(first.deliver(|| 1), None);
        assert!(enter(&slots, 5, 2).is_err(), "came late");
        assert_eq!(second.deliver(|| 2), Some(2));
        let restarted = enter(&slots, 9, 1).unwrap();
        assert_eq!(second.deliver(|| 2), None);
        assert_eq!(restarted.deliver(|| 3), Some(3));
    }

    #[test]
    fn seats_that_nobody_has_make_room() {
        let slots = Slots::default();
        let named = |n: usize| MemberId { node: n.to_string().into(), incarnation: 1 };
        let take = |n| slots.enter(&named(n), 1, &StreamAnswers::new(Hello::default()));
        let held: Vec<_> = (1..SLOTS_MAX).map(|n| take(n).unwrap()).collect();
        drop(take(0).unwrap());
        let last = take(SLOTS_MAX).unwrap();
        assert!(take(SLOTS_MAX + 1).is_err());
        drop((held, last));
        assert!(take(SLOTS_MAX + 1).is_ok());
    }
}
