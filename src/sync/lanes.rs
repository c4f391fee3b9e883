//! One procedure at a time per client identifier on this node: claims, takeovers both ways and evictions come one after the
//! other, in the order in which they came.

use super::Once;
use crate::hashing::HashMap;
use crate::ports::BoxFuture;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

type Turn = Arc<Once<()>>;

/// Turns by client identifier: one procedure at a time on this node, in the order in which they came.
#[derive(Debug, Default)]
pub struct Lanes(Mutex<HashMap<Arc<str>, VecDeque<Turn>>>);

/// A place in the row of one client identifier. Whoever is first goes on; dropped, it lets the next one.
#[derive(Debug)]
pub struct Lane {
    lanes: Arc<Lanes>,
    client_id: Arc<str>,
    turn: Turn,
}

impl Lanes {
    /// Joins the row; [`Lane::first`] says when it is the caller's turn.
    pub fn join(self: &Arc<Lanes>, client_id: &Arc<str>) -> Lane {
        let turn = Once::new();
        let mut rows = self.0.lock();
        let row = rows.entry(client_id.clone()).or_default();
        if row.is_empty() {
            turn.set(());
        }
        row.push_back(turn.clone());
        Lane { lanes: self.clone(), client_id: client_id.clone(), turn }
    }
}

impl Lanes {
    /// Whether no procedure is under way.
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl Lane {
    /// Completes when all who joined before have left.
    pub async fn first(&self) {
        self.turn.wait().await;
    }

    /// The same as a future of its own.
    pub fn turn(&self) -> BoxFuture<()> {
        self.turn.wait()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut rows = self.lanes.0.lock();
        let Some(row) = rows.get_mut(&self.client_id) else { return };
        row.retain(|turn| !Arc::ptr_eq(turn, &self.turn));
        let next = row.front().cloned();
        if next.is_none() {
            rows.remove(&self.client_id);
        }
        drop(rows);
        if let Some(next) = next {
            next.set(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn one_at_a_time_and_in_order_even_if_somebody_leaves_the_row() {
        let lanes = Arc::new(Lanes::default());
        let client: Arc<str> = "c".into();
        let (first, second, third) = (lanes.join(&client), lanes.join(&client), lanes.join(&client));
        let other = lanes.join(&"d".into());
        assert!(first.first().now_or_never().is_some());
        assert!(other.first().now_or_never().is_some());
        drop(second);
        assert!(third.first().now_or_never().is_none());
        drop(first);
        assert!(third.first().now_or_never().is_some());
        drop((third, other));
        assert!(lanes.0.lock().is_empty());
    }
}
