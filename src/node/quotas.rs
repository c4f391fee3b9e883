//! Quotas of users: how many connections one may have at a time on this node, whatever client identifiers they have.

use crate::hashing::HashMap;
use crate::telemetry::Repeats;
use parking_lot::Mutex;
use std::sync::Arc;

/// Connections by user.
#[derive(Debug, Default)]
pub(super) struct Users {
    connections: Mutex<HashMap<Arc<str>, usize>>,
    /// Users that are refused more, as the log has told them.
    pub(super) refused: Repeats,
}

/// The place of a connection among those of its user, until this is dropped.
#[derive(Debug)]
pub(super) struct UserPlace {
    users: Arc<Users>,
    user: Arc<str>,
}

impl Users {
    /// Lets one connection more of a user in that may have `max`; `None` = it has as many.
    pub fn enter(self: &Arc<Users>, user: &Arc<str>, max: usize) -> Option<UserPlace> {
        let mut connections = self.connections.lock();
        let count = connections.entry(user.clone()).or_insert(0);
        if *count >= max {
            if *count == 0 {
                connections.remove(user);
            }
            return None;
        }
        *count += 1;
        Some(UserPlace { users: self.clone(), user: user.clone() })
    }
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        let mut connections = self.users.connections.lock();
        if let Some(count) = connections.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_user_and_given_back() {
        let users = Arc::new(Users::default());
        let (alice, bob): (Arc<str>, Arc<str>) = ("alice".into(), "bob".into());
        let first = users.enter(&alice, 2).unwrap();
        let second = users.enter(&alice, 2).unwrap();
        assert!(users.enter(&alice, 2).is_none());
        let other = users.enter(&bob, 2).unwrap();
        drop(first);
        let third = users.enter(&alice, 2).unwrap();
        assert!(users.enter(&alice, 1).is_none(), "the limit may have become less");
        drop((second, third, other));
        assert!(users.connections.lock().is_empty());
        assert!(users.enter(&alice, 0).is_none() && users.connections.lock().is_empty());
    }
}
