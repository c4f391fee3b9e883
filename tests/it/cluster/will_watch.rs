//! An observer of wills for histories.

use crate::client::{Client, Dial};
use crate::history::{History, Will};
use berth::mqtt::QoS;
use std::net::SocketAddr;
use std::sync::Arc;

/// A session that gets every will.
pub struct WillWatch {
    client: Client,
    history: Arc<History>,
}

impl WillWatch {
    pub fn start(to: SocketAddr, history: &Arc<History>) -> WillWatch {
        let mut client = Dial::v5("watches wills").persistent().connect(to);
        assert_eq!(client.subscribe(&[("wills/#", QoS::ExactlyOnce)]), [2]);
        WillWatch { client, history: history.clone() }
    }

    /// Writes down `n` wills, and then whatever these nodes have sent besides. The clients have left.
    pub fn finish(mut self, n: usize, nodes: &[SocketAddr]) {
        (0..n).for_each(|_| assert!(self.take(), "a marker before the wills"));
        // What a node sends, it sends in order.
        for to in nodes {
            Dial::v5("marker").connect(*to).publish("wills/marker", "marker", QoS::ExactlyOnce);
        }
        let mut markers = 0;
        while markers < nodes.len() {
            markers += usize::from(!self.take());
        }
    }

    /// Writes down the next will; false if it is a marker.
    fn take(&mut self) -> bool {
        let p = self.client.receive();
        let seen = Will::seen(p.text());
        seen.map(|seen| self.history.add(seen)).is_some()
    }
}
