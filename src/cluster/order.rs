//! Order across a move or a restart (G3), at the node that sessions came to: what a process sends straight here waits until everything
//! that it sent elsewhere before has found its way ([`OrderHold`], docs/decisions/0022-order-waits-without-circles.md).
//!
//! A process whose record went, and that no link leads to, is not waited for: it may be dead. But it may come back as the same process with
//! publishes that nobody has answered. What it sends then waits as if the session had come only now.

use super::{Cluster, Remote};
use crate::broker::mailbox::OrderHold;
use crate::ports::{MemberId, Revision};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// A session, or all of a start, that came here, and what its order depends on.
#[derive(Clone)]
struct Came<H> {
    hold: H,
    /// The owner before; nobody, if that may be any node.
    old: Option<MemberId>,
    /// The revision at which it came.
    at: Revision,
}

/// Sessions that came here while a process was away.
#[derive(Default)]
pub(super) struct AwayAtMoves(Mutex<Away>);

#[derive(Default)]
struct Away {
    all: Vec<(MemberId, Came<Weak<OrderHold>>)>,
    /// Above this many, those whose session has ended are looked for.
    prune_at: usize,
}

/// Fewer are not looked through for sessions that have ended.
const PRUNE_MIN: usize = 64;

impl AwayAtMoves {
    fn add(&self, process: MemberId, came: Came<Weak<OrderHold>>) {
        let mut away = self.0.lock();
        if away.all.len() >= away.prune_at {
            away.all.retain(|(_, came)| came.hold.strong_count() > 0);
            away.prune_at = PRUNE_MIN.max(2 * away.all.len());
        }
        away.all.push((process, came));
    }

    /// Takes out what waits for processes of which `back` says that they are back, or will not come.
    fn take(&self, back: impl Fn(&MemberId) -> bool) -> Vec<(MemberId, Came<Arc<OrderHold>>)> {
        let mut away = self.0.lock();
        let taken: Vec<_> = away.all.extract_if(.., |(process, _)| back(process)).collect();
        drop(away);
        let held = taken.into_iter().filter_map(|(process, Came { hold, old, at })| {
            Some((process, Came { hold: hold.upgrade()?, old, at }))
        });
        held.collect()
    }
}

impl Cluster {
    /// Lets messages that came straight to the new owner pass once those that went to the old one before are here. `old` is
    /// the old owner; nobody, if that may be any node.
    pub(super) fn put_in_order(
        &self,
        remote: &Arc<Remote>,
        hold: Arc<OrderHold>,
        old: Option<MemberId>,
        at: Revision,
    ) {
        hold.begin(at);
        // What was matched before that has to be matched again.
        self.moved_at(remote, at);
        self.take_deferred_soon(remote);
        self.wait_for_order(remote, Came { hold, old, at }, None);
    }

    /// Processes that were away when sessions came here may be back, or never come back.
    pub(super) fn go_on_with_order(&self, remote: &Arc<Remote>) {
        let taken = remote.away_at_moves.take(|process| !remote.members.is_away(process));
        if taken.is_empty() {
            return;
        }
        for (process, came) in taken {
            match remote.members.present(process.incarnation) {
                Some(_) => self.wait_for_order(remote, came, Some(process)),
                // Another start of its node is there, or all it owned was given up. There may be very many of these.
                None => came.hold.release(process.incarnation),
            }
        }
        self.take_deferred_soon(remote);
    }

    /// Waits until all processes have settled what they sent before a session came here, or `only` one of them has.
    fn wait_for_order(&self, remote: &Arc<Remote>, came: Came<Arc<OrderHold>>, only: Option<MemberId>) {
        let (cluster, remote) = (self.me.clone(), remote.clone());
        let tasks = remote.ports.tasks.clone();
        tasks.spawn(Box::pin(async move {
            let deadline = remote.now().plus_ms(remote.limits.order_wait_ms);
            let mut settled: Vec<MemberId> = Vec::new();
            loop {
                let reports = remote.sessions.reports();
                let mut open = remote.senders(only.as_ref());
                // Who started later has sent nothing to the old owner.
                open.retain(|sender| sender.registered_at() < came.at && !settled.contains(sender));
                let before = settled.len();
                open.retain(|sender| {
                    let is_settled = remote.settled_by(sender, came.old.as_ref()) >= came.at;
                    if is_settled {
                        came.hold.release(sender.incarnation);
                        settled.push(sender.clone());
                    }
                    !is_settled
                });
                if open.is_empty() {
                    break;
                }
                if let Some(cluster) = cluster.upgrade().filter(|_| before < settled.len()) {
                    cluster.take_deferred_soon(&remote);
                }
                if remote.until(deadline, reports).await.is_none() {
                    remote.metrics.order_timeouts.inc();
                    let waited_for: Vec<String> = open.iter().map(ToString::to_string).collect();
                    tracing::warn!(
                        ?waited_for,
                        "messages of these nodes may reach sessions that came here out of order"
                    );
                    break;
                }
            }
            if let Some(cluster) = cluster.upgrade() {
                cluster.end_wait(&remote, &came, only, &settled);
            }
        }));
    }

    /// Nothing is waited for any more but processes that are away.
    fn end_wait(
        &self,
        remote: &Arc<Remote>,
        came: &Came<Arc<OrderHold>>,
        only: Option<MemberId>,
        settled: &[MemberId],
    ) {
        let mut away = remote.members.away();
        away.retain(|process| process.registered_at() < came.at && !settled.contains(process));
        match only {
            None => came.hold.end(away.iter().map(|process| process.incarnation)),
            Some(process) => {
                away.retain(|other| *other == process);
                if away.is_empty() {
                    came.hold.release(process.incarnation);
                }
            }
        }
        for process in away {
            let Came { hold, old, at } = came.clone();
            remote.away_at_moves.add(process, Came { hold: Arc::downgrade(&hold), old, at });
        }
        // One of them may have come back just now.
        self.go_on_with_order(remote);
        self.take_deferred_soon(remote);
        remote.sessions.reported();
    }
}

impl Remote {
    /// Processes whose publishes may come to this node: those registered or linked, and this one; or `only` one of them.
    fn senders(&self, only: Option<&MemberId>) -> Vec<MemberId> {
        let mut senders: Vec<MemberId> = self.members.to_keep().into_iter().map(|m| m.id).collect();
        senders.push(self.me.clone());
        senders.retain(|sender| only.is_none_or(|only| only == sender));
        senders
    }

    /// The revision up to which every publish of process `sender` that was matched for the node of `old`, or for any, is answered, or was
    /// matched again since; and all its frames to this node are answered.
    fn settled_by(&self, sender: &MemberId, old: Option<&MemberId>) -> Revision {
        let Some(old) = old else { return self.members.settled_everywhere(sender) };
        // A node's publishes for its own sessions are its own frames to itself.
        let (past, settled) = match *sender == self.me {
            true => {
                let applied = self.applied();
                let past = self.outbox.past_watermark(&old.node, applied);
                (past, self.outbox.settled_watermark(&self.me.node, applied))
            }
            false => (self.members.past(sender, &old.node), self.members.settled(sender, &self.me.node)),
        };
        // What moved may have to wait until this node has answered an earlier frame of the same publish.
        past.min(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(node: &str) -> MemberId {
        MemberId { node: node.into(), incarnation: 7 }
    }

    #[test]
    fn sessions_that_have_ended_are_not_kept_for_a_process_that_stays_away() {
        let away = AwayAtMoves::default();
        let add = |node, hold: &Arc<OrderHold>| {
            away.add(process(node), Came { hold: Arc::downgrade(hold), old: None, at: 1 });
        };
        let here = Arc::new(OrderHold::default());
        add("n1", &here);
        for _ in 0..10 * PRUNE_MIN {
            add("n1", &Arc::default());
        }
        assert!(away.0.lock().all.len() <= PRUNE_MIN);
        assert!(away.take(|p| p.node == "n2".into()).is_empty());
        let taken = away.take(|p| p.node == "n1".into());
        assert_eq!((taken.len(), away.0.lock().all.len()), (1, 0));
        assert!(Arc::ptr_eq(&taken[0].1.hold, &here));
    }
}
