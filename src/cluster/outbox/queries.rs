//! What is asked of the outbox: which publishes are open, for whom, and what they wait for.

use super::entry::{Entry, Stage};
use super::machine::Machine;
use crate::broker::promise::Promise;
use crate::mqtt::Message;
use crate::ports::{Incarnation, MemberId, MessageId, Recipient, Seq, SessionNo};
use std::sync::Arc;

impl Machine {
    /// The numbers of the publishes of an incarnation that are open, ascending: at most `max`, and the next one, if there are more.
    pub fn open_of(&self, origin: Incarnation, max: usize) -> (Vec<u64>, Option<u64>) {
        let from = MessageId { origin, seq: 0 };
        let mut open = self.entries.range(from..).map(|(id, _)| id.seq);
        let listed: Vec<u64> = open.by_ref().take(max).collect();
        (listed, open.next())
    }

    /// Earlier incarnations of this node whose publishes are all done with.
    pub fn retired(&self) -> Vec<Incarnation> {
        let open = |origin: Incarnation| {
            let range = MessageId { origin, seq: 0 }..=MessageId { origin, seq: u64::MAX };
            self.entries.range(range).next().is_some()
        };
        self.earlier.iter().copied().filter(|i| !open(*i)).collect()
    }

    /// The packet identifiers of a session's QoS 2 publishes whose outcome is open.
    pub fn under_way(&self, session: SessionNo) -> Vec<u16> {
        if !self.exactly_once.contains_key(&session) {
            return Vec::new();
        }
        let of_session = self.entries.values().filter(|e| e.counts_for == Some(session));
        of_session.filter_map(|e| e.inbound).collect()
    }

    /// The promise that tells the outcome of the publish that came under this packet identifier, if it is open. There are two if the first
    /// one was answered right before a restart that did not know: the newer counts.
    pub fn promise(&self, session: SessionNo, packet_id: u16) -> Option<Arc<Promise>> {
        let came = |e: &&Entry| e.counts_for == Some(session) && e.inbound == Some(packet_id);
        self.entries.values().rev().find(came)?.promise.clone()
    }

    /// Whether the caller has to match what is unmatched from now on: there is something to match, and nobody does.
    pub fn attend_unmatched(&mut self) -> bool {
        let first = self.unmatched.front().and_then(|id| self.entries.get(id));
        let ready = first.map_or(!self.unmatched.is_empty(), Entry::is_recorded);
        ready && !std::mem::replace(&mut self.attended, true)
    }

    /// The nodes that have not answered publishes.
    pub fn asked_nodes(&self) -> Vec<Arc<str>> {
        let mut nodes: Vec<Arc<str>> = self.entries.values().flat_map(|e| e.asked().cloned()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Processes that may have served a shared subscription and cannot be asked, and the nodes that are waited for.
    pub fn awaited(&self) -> Vec<(MemberId, Arc<str>)> {
        let groups = self.entries.values().flat_map(|e| &e.groups).filter(|g| g.away);
        let mut all: Vec<_> = groups.filter_map(|g| Some((g.process.clone()?, g.at.clone()?))).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Gives the record of a duty a new number: the message, the number that it had, and what the record has to say. `None` if the publish
    /// is at its end, or no duty.
    pub fn renumber(&mut self, id: MessageId, seq: Seq) -> Option<(Message, Seq, Recipient)> {
        let e = self.entries.get_mut(&id)?;
        let recipient = e.duty_recipient()?;
        let old = e.duty.replace(seq)?;
        Some((e.message.clone(), old, recipient))
    }

    /// Takes publishes that are open for too long and wait for no node that is away, with what they wait for: at most `max`, each of them
    /// once.
    pub fn take_overdue(&mut self, max: usize) -> Vec<(MessageId, String)> {
        let mut overdue = Vec::new();
        while overdue.len() < max {
            let Some(id) = self.overdue.pop_first() else { break };
            let waits = |e: &&mut Entry| !e.told && !e.orphaned() && e.stage != Stage::Settling;
            if let Some(e) = self.entries.get_mut(&id).filter(waits) {
                e.told = true;
                overdue.push((id, e.waits_in_words()));
            }
        }
        overdue
    }

    /// How many publishes there are by what they wait for: (not matched, to be matched again, other nodes, there or gone).
    pub fn counts(&self) -> (usize, usize, usize) {
        let again = self.entries.values().filter(|e| e.due_at().is_some()).count();
        let asked = self.entries.values().filter(|e| e.orphaned() || e.asked().next().is_some()).count();
        (self.unmatched.len(), again, asked)
    }
}
