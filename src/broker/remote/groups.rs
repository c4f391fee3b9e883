//! Which node serves a shared subscription for one publish: one with members, by weight, each once; when nobody is online
//! anywhere, one with a persistent member, to queue it (MQTT 5.0 section 4.8.2).

use super::origin::entry::OpenGroup;
use crate::broker::ports::Revision;
use crate::broker::router::Group;
use crate::broker::{mailbox::Rank, remote::RemoteShare};
use std::cmp::Reverse;
use std::sync::Arc;

/// A node with members of a shared subscription.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The node.
    pub node: &'a Arc<str>,
    /// Its members.
    pub weight: u32,
    /// Whether one of them is persistent.
    pub persistent: bool,
    /// Whether it cannot answer now.
    pub away: bool,
}

/// Which node is asked next, and whether to queue.
pub type Choice<'a> = Option<(&'a Arc<str>, bool)>;

/// The nodes with members: those of the index, and this one.
pub fn candidates<'a>(
    me: &'a Arc<str>,
    here: Option<&Arc<Group>>,
    there: &'a [RemoteShare],
) -> Vec<Candidate<'a>> {
    let here = here.map(|g| {
        let (weight, persistent) = g.weight();
        Candidate { node: me, weight, persistent, away: false }
    });
    let there = there.iter().map(|s| Candidate {
        node: &s.node,
        weight: s.weight,
        persistent: s.persistent,
        away: s.orphaned,
    });
    here.into_iter().chain(there).collect()
}

/// Chooses among `candidates` for `open`, those who have declined left out; `turn` is any number, different each time.
pub fn choose<'a>(candidates: &[Candidate<'a>], open: &OpenGroup, turn: u64) -> Choice<'a> {
    let untried =
        |c: &&Candidate<'_>| !c.away && !open.tried.contains(c.node) && !open.without.contains(c.node);
    if let Some(node) = weighted(candidates.iter().filter(untried), turn) {
        return Some((node, false));
    }
    let persistent = |c: &&Candidate<'_>| c.persistent && !open.without.contains(c.node);
    weighted(candidates.iter().filter(persistent).filter(|c| !c.away), turn)
        .or_else(|| weighted(candidates.iter().filter(persistent), turn))
        .map(|node| (node, true))
}

fn weighted<'c, 'a: 'c>(
    among: impl Iterator<Item = &'c Candidate<'a>> + Clone,
    turn: u64,
) -> Option<&'a Arc<str>> {
    let all: u64 = among.clone().map(|c| u64::from(c.weight)).sum();
    let mut at = turn.checked_rem(all)?;
    for c in among {
        let weight = u64::from(c.weight);
        if at < weight {
            return Some(c.node);
        }
        at -= weight;
    }
    None
}

/// How a member picked for a shared subscription takes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It gets it.
    Yes,
    /// It may be about to leave this node: its answer has to be waited for.
    Moving,
    /// It is with another node since then, which the publish was matched too early to know.
    Moved(Revision),
    /// It cannot have it.
    No,
}

/// Whether a member of rank `rank` may have a message that was matched at revision `matched_at`; `queue` = also if no client
/// is there.
pub fn fit(rank: Rank, durable: bool, queue: bool, matched_at: Revision) -> Fit {
    match rank {
        Rank::Online => Fit::Yes,
        Rank::Dormant if queue && durable => Fit::Yes,
        Rank::Moving if queue => Fit::Moving,
        Rank::Left(Reverse(at)) if queue && matched_at < at => Fit::Moved(at),
        Rank::Dormant | Rank::Moving | Rank::Left(_) | Rank::Gone => Fit::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn names() -> [Arc<str>; 3] {
        ["a", "b", "c"].map(Arc::from)
    }

    fn candidate(node: &Arc<str>, weight: u32, persistent: bool, away: bool) -> Candidate<'_> {
        Candidate { node, weight, persistent, away }
    }

    #[test]
    fn nodes_are_chosen_by_weight_each_once_then_one_with_a_persistent_member_queues() {
        let n = names();
        let c = [
            candidate(&n[0], 1, false, false),
            candidate(&n[1], 3, true, false),
            candidate(&n[2], 4, true, true),
        ];
        let mut counts: HashMap<&str, u32> = HashMap::new();
        let open = |tried: &[Arc<str>], without: &[Arc<str>]| OpenGroup {
            tried: tried.into(),
            without: without.into(),
            ..OpenGroup::new("$share/g/t".into())
        };
        for turn in 0..400 {
            let (node, queue) = choose(&c, &open(&[], &[]), turn).unwrap();
            assert!(!queue);
            *counts.entry(node).or_default() += 1;
        }
        assert_eq!(counts, HashMap::from([("a", 100), ("b", 300)]));
        assert_eq!(choose(&c, &open(&n[1..2], &[]), 5), Some((&n[0], false)));
        assert_eq!(choose(&c, &open(&n[..2], &[]), 5), Some((&n[1], true)), "c is away");
        assert_eq!(
            choose(&c, &open(&n[..2], &n[1..2]), 5),
            Some((&n[2], true)),
            "b has no persistent member after all"
        );
        assert_eq!(choose(&c, &open(&n[..1], &n[1..]), 5), None, "nobody has one");
        assert_eq!(choose(&c[2..], &open(&[], &[]), 5), Some((&n[2], true)), "nobody else has members");
        assert_eq!(choose(&c[..1], &open(&n[..1], &[]), 5), None);
        assert_eq!(choose(&[], &open(&[], &[]), 5), None);
    }

    #[test]
    fn a_member_that_left_is_looked_for_where_it_is() {
        let left = |at| Rank::Left(Reverse(at));
        assert!(Rank::Moving < left(9) && left(9) < left(5) && left(5) < Rank::Gone);
        assert_eq!(fit(left(9), true, true, 8), Fit::Moved(9));
        assert_eq!(fit(left(9), true, true, 9), Fit::No, "whoever matched it knows the new node");
        assert_eq!(fit(left(9), true, false, 8), Fit::No, "another one may be online");
    }
}
