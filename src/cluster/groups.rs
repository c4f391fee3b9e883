//! Which node serves a shared subscription for one publish: one with members, by weight, each once; when nobody is online
//! anywhere, one with a persistent member, to queue it (MQTT 5.0 section 4.8.2).

use super::RemoteShare;
use super::outbox::entry::OpenGroup;
use crate::broker::mailbox::Rank;
use crate::broker::router::Group;
use crate::ports::Revision;
use std::cmp::Reverse;
use std::sync::Arc;

/// A node with members of a shared subscription.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The node.
    pub node: &'a Arc<str>,
    /// How many members it has.
    pub weight: u32,
    /// Whether a member of it is a persistent session.
    pub persistent: bool,
    /// Whether the node cannot answer now.
    pub away: bool,
}

/// The node that is to serve a shared subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The node.
    pub node: &'a Arc<str>,
    /// Whether the node is asked to queue the message for a persistent member.
    pub queue: bool,
    /// Whether the node cannot be asked now.
    pub away: bool,
}

/// The nodes with members of a shared subscription: those of the index, and this one.
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

/// Chooses among `candidates`, as of revision `at` of the index, for `open`, those who have declined left out; `draw` is any number,
/// different each time. If all have declined, those count that have done so at this revision: members move, and each node may have
/// been asked while none was there, though the group was never without one.
pub fn choose<'a>(
    candidates: &[Candidate<'a>],
    open: &OpenGroup,
    draw: u64,
    at: Revision,
) -> Option<Choice<'a>> {
    let declined = |c: &Candidate<'_>, since: Revision| {
        open.without.iter().any(|(node, at)| node == c.node && *at >= since)
    };
    let there = candidates.iter().filter(|c| !c.away && !declined(c, 0));
    if let Some(node) = weighted(there.clone().filter(|c| !open.tried.contains(c.node)), draw) {
        return Some(Choice { node, queue: false, away: false });
    }
    let anew = candidates.iter().filter(|c| !c.away && !declined(c, at));
    let persistent = weighted(there.filter(|c| c.persistent), draw);
    if let Some(node) = persistent.or_else(|| weighted(anew.filter(|c| c.persistent), draw)) {
        return Some(Choice { node, queue: true, away: false });
    }
    // What another process of that node has declined does not count.
    weighted(candidates.iter().filter(|c| c.away && c.persistent), draw).map(|node| Choice {
        node,
        queue: true,
        away: true,
    })
}

fn weighted<'c, 'a: 'c>(
    among: impl Iterator<Item = &'c Candidate<'a>> + Clone,
    draw: u64,
) -> Option<&'a Arc<str>> {
    let all: u64 = among.clone().map(|c| u64::from(c.weight)).sum();
    let mut at = draw.checked_rem(all)?;
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
    /// The member gets the message.
    Yes,
    /// The member may be about to leave this node: its answer has to be waited for.
    Moving,
    /// The member is with another node since this revision, and the publish was matched too early to know.
    Moved(Revision),
    /// The member cannot have the message.
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
            without: without.iter().map(|node| (node.clone(), 10)).collect(),
            ..OpenGroup::new("$share/g/t".into())
        };
        for draw in 0..400 {
            let choice = choose(&c, &open(&[], &[]), draw, 10).unwrap();
            assert!(!choice.queue && !choice.away);
            *counts.entry(choice.node).or_default() += 1;
        }
        assert_eq!(counts, HashMap::from([("a", 100), ("b", 300)]));
        let chosen = |among: &[Candidate<'_>], open: &OpenGroup| {
            choose(among, open, 5, 10).map(|c| (c.node.to_string(), c.queue, c.away))
        };
        let named = |node: &Arc<str>, queue, away| Some((node.to_string(), queue, away));
        assert_eq!(chosen(&c, &open(&n[1..2], &[])), named(&n[0], false, false));
        assert_eq!(chosen(&c, &open(&n[..2], &[])), named(&n[1], true, false), "c is away");
        let without_b = open(&n[..2], &n[1..2]);
        assert_eq!(chosen(&c, &without_b), named(&n[2], true, true), "b has no persistent member after all");
        assert_eq!(chosen(&c[..2], &open(&n[..1], &n[1..])), None, "nobody has one");
        assert_eq!(chosen(&c[2..], &open(&[], &[])), named(&n[2], true, true), "nobody else has members");
        let both = [candidate(&n[2], 1, false, false), c[2]];
        let declined = open(&n[2..], &n[2..]);
        assert_eq!(chosen(&both, &declined), named(&n[2], true, true), "another process of c is waited for");
        assert_eq!(chosen(&c[..1], &open(&n[..1], &[])), None);
        let all = open(&n[..2], &n[..2]);
        assert_eq!(chosen(&c[..2], &all), None);
        let later = choose(&c[..2], &all, 5, 11).map(|c| (c.node.to_string(), c.queue, c.away));
        assert_eq!(later, named(&n[1], true, false), "its persistent member may have come since");
        assert_eq!(chosen(&[], &open(&[], &[])), None);
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
