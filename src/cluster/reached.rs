//! Whether the other nodes reach this one, by what they say themselves: a wrong `cluster.advertise_peer` does not show in a node's own
//! links.

use super::Cluster;
use super::Remote;
use crate::clock::Time;
use crate::ports::{LinkState, LinkStatus};
use std::sync::{Arc, Weak};

/// Between two looks, milliseconds.
const LOOK_MS: u64 = 1_000;

/// The nodes that cannot reach this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreached {
    /// The address that this node has registered, where the others try.
    pub address: String,
    /// The nodes that cannot reach this one, each with its reason.
    pub by: Vec<(Arc<str>, String)>,
    /// How many other nodes are registered.
    pub others: usize,
}

impl Unreached {
    /// Whether every other node says so.
    pub fn by_all(&self) -> bool {
        !self.by.is_empty() && self.by.len() >= self.others
    }

    fn said(&self) -> String {
        let each: Vec<String> = self.by.iter().map(|(node, why)| format!("{node}: {why}")).collect();
        each.join("; ")
    }
}

impl Remote {
    /// Who cannot reach this node now, as they said last.
    pub fn unreached(&self) -> Unreached {
        let live = self.members.live();
        let others: Vec<Arc<str>> =
            live.iter().map(|m| &m.id.node).filter(|n| **n != self.me.node).cloned().collect();
        let mine = live.into_iter().find(|m| m.id == self.me);
        let by = unreached_by(&others, self.ports.peers.links());
        Unreached { address: mine.map(|m| m.peer_address).unwrap_or_default(), by, others: others.len() }
    }
}

fn unreached_by(others: &[Arc<str>], links: Vec<LinkStatus>) -> Vec<(Arc<str>, String)> {
    // What was said over a link that is down may have changed.
    let says = links.into_iter().filter(|l| l.state == LinkState::Up && others.contains(&l.node));
    let mut by: Vec<_> = says.filter_map(|l| Some((l.node, l.back?))).collect();
    by.sort();
    by
}

/// What is said of it in the log.
#[derive(Debug, PartialEq, Eq)]
enum News {
    None,
    Some,
    All,
    Over,
}

/// Since when somebody cannot reach this node, and whom of them the log has named.
#[derive(Debug, Default)]
struct Watched {
    since: Option<Time>,
    told: Option<(Vec<Arc<str>>, bool)>,
}

impl Watched {
    /// A look at `now`. News are told once they have lasted `patience_ms`: links break and are made again.
    fn look(&mut self, unreached: &Unreached, now: Time, patience_ms: u64) -> News {
        if unreached.by.is_empty() {
            self.since = None;
            return if self.told.take().is_some() { News::Over } else { News::None };
        }
        let since = *self.since.get_or_insert(now);
        let told = (unreached.by.iter().map(|(node, _)| node.clone()).collect(), unreached.by_all());
        if now.since_ms(since) < patience_ms || self.told.as_ref() == Some(&told) {
            return News::None;
        }
        let all = told.1;
        self.told = Some(told);
        if all { News::All } else { News::Some }
    }
}

/// Looks again and again whether the others reach this node, for as long as the cluster is there.
pub(super) async fn watch(cluster: Weak<Cluster>) {
    let mut watched = Watched::default();
    loop {
        let pause = {
            let Some(remote) = cluster.upgrade().map(|b| b.remote.clone()) else { return };
            let unreached = remote.unreached();
            remote.metrics.peer_unreached_by.set(unreached.by.len() as u64);
            let address = &unreached.address;
            match watched.look(&unreached, remote.now(), remote.limits.stale_after_ms) {
                News::None => {}
                News::Some => tracing::warn!(
                    address,
                    nodes = unreached.by.len(),
                    they_say = unreached.said(),
                    "some nodes cannot reach this one: check the network between, and cluster.advertise_peer here"
                ),
                News::All => tracing::warn!(
                    address,
                    nodes = unreached.by.len(),
                    they_say = unreached.said(),
                    "no other node can reach this one: what their clients publish does not come here. Check cluster.advertise_peer \
                     here, and the network to it"
                ),
                News::Over => tracing::info!(address, "the other nodes reach this one again"),
            }
            remote.ports.tasks.sleep(LOOK_MS)
        };
        pause.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::LinkClock;

    fn unreached(by: &[&str], others: usize) -> Unreached {
        let by = by.iter().map(|n| (Arc::from(*n), "no".to_owned())).collect();
        Unreached { address: "x:1".to_owned(), by, others }
    }

    #[test]
    fn only_those_that_are_registered_and_linked_have_a_say() {
        let link = |node: &str, state, back: Option<&str>| LinkStatus {
            node: node.into(),
            state,
            error: None,
            back: back.map(str::to_owned),
            unanswered: 0,
            queued: 0,
            rtt_us: None,
            clock: LinkClock::default(),
        };
        let links = vec![
            link("d", LinkState::Up, Some("refused")),
            link("b", LinkState::Up, Some("refused")),
            link("c", LinkState::Up, None),
            link("e", LinkState::Down, Some("refused")),
            link("gone", LinkState::Up, Some("refused")),
        ];
        let others: Vec<Arc<str>> = ["b", "c", "d", "e"].map(Arc::from).to_vec();
        let by: Vec<_> = unreached_by(&others, links).into_iter().map(|(node, _)| node).collect();
        assert_eq!(by, ["b".into(), "d".into()]);
    }

    #[test]
    fn it_is_said_once_it_lasts_and_again_when_it_is_others_or_over() {
        let mut watched = Watched::default();
        // At a time: who says so, of how many, and what is said.
        let looks: &[(u64, &[&str], usize, News)] = &[
            (0, &[], 2, News::None),
            (1_000, &["b"], 2, News::None),
            (2_000, &[], 2, News::None),
            (3_000, &["b"], 2, News::None),
            (7_999, &["b"], 2, News::None),
            (8_000, &["b"], 2, News::Some),
            (9_000, &["b"], 2, News::None),
            (10_000, &["b", "c"], 2, News::All),
            (11_000, &["b", "c"], 2, News::None),
            (12_000, &["b"], 1, News::All),
            (13_000, &[], 1, News::Over),
            (14_000, &[], 1, News::None),
        ];
        for (at, by, others, news) in looks {
            assert_eq!(watched.look(&unreached(by, *others), Time(*at), 5_000), *news, "at {at}");
        }
    }
}
