//! Nodes whose indexes are behind the store by different amounts, and whose journals take their time, while sessions and members of a
//! group change places all the time, and links break: what [`super::group_faults`] checks holds. No node fails here; in
//! [`super::mixed_faults`] nodes do as well.

use super::choices::Choices;
use super::group_faults::{NODES, Run, checked};
use super::roamers::Listener;
use super::*;
use crate::cluster::RemoteLimits;
use crate::mqtt::QoS;

/// How long a run publishes, milliseconds.
const LASTS_MS: u64 = 4_000;

/// For how long a link is broken, milliseconds, at most.
const BROKEN_MS: u64 = 20;

/// Which watches and journals stand still, and which go on, and until when.
pub(super) struct Halts {
    choices: Choices,
    /// How long a node's watch stands still at a time, milliseconds, at most.
    watch_stands: u64,
    /// How long a node's journal does.
    journal_stands: u64,
    /// How long they go on in between.
    goes_on: u64,
    nodes: [[Halting; 2]; NODES],
    /// From each node to the next one; none if links hold.
    links: Option<[Halting; NODES]>,
}

/// A node's watch or journal, or a link.
#[derive(Clone, Copy, Default)]
struct Halting {
    stands: bool,
    until: Time,
}

impl Halting {
    /// Whether it stands still now, if that has just changed.
    fn look(&mut self, now: Time, stands_ms: u64, goes_ms: u64, choices: &mut Choices) -> Option<bool> {
        if now < self.until {
            return None;
        }
        self.stands = !self.stands;
        self.until = now.plus_ms(1 + choices.below(if self.stands { stands_ms } else { goes_ms }));
        Some(self.stands)
    }
}

impl Halts {
    /// All go on at first; a seed decides how long they stand and go.
    pub fn new(seed: u64) -> Halts {
        let mut choices = Choices(seed);
        let watch_stands = choices.one_of(&[10, 20, 20, 60, 200]);
        let journal_stands = choices.one_of(&[5, 20, 20, 60]);
        let goes_on = choices.one_of(&[10, 20, 80]);
        Halts { choices, watch_stands, journal_stands, goes_on, nodes: Default::default(), links: None }
    }

    /// Links break as well, for a moment.
    fn with_links(self) -> Halts {
        Halts { links: Some(Default::default()), ..self }
    }

    /// Halts what is to stand still now, and lets go on what is to go on.
    pub fn tend(&mut self, cluster: &Cluster) {
        let now = cluster.sim.now();
        for (no, [watch, journal]) in self.nodes.iter_mut().enumerate() {
            if let Some(stands) = watch.look(now, self.watch_stands, self.goes_on, &mut self.choices) {
                cluster.store.lag(&cluster.name(no), stands);
            }
            if let Some(stands) = journal.look(now, self.journal_stands, self.goes_on, &mut self.choices) {
                cluster.journal(no).stall(stands);
            }
        }
        for (no, link) in self.links.iter_mut().flatten().enumerate() {
            if let Some(broken) = link.look(now, BROKEN_MS, 10 * self.goes_on, &mut self.choices) {
                cluster.partition(no, (no + 1) % NODES, broken);
            }
        }
    }

    /// All go on.
    pub fn end(cluster: &Cluster) {
        for no in 0..NODES {
            cluster.store.lag(&cluster.name(no), false);
            cluster.journal(no).stall(false);
            cluster.partition(no, (no + 1) % NODES, false);
        }
    }
}

fn some_move(run: &mut Run, at_once: u64, choices: &mut Choices) {
    let mut node = || usize::try_from(choices.below(NODES as u64)).unwrap();
    let chosen: Vec<_> = (0..at_once).map(|_| (node(), node(), node())).collect();
    for (who, to, of) in chosen {
        let one = if of == 0 { &mut run.plain[who] } else { &mut run.members[who] };
        one.hear();
        if one.resident.connected && one.resident.at != to {
            one.resident.go(&run.cluster, to);
        }
    }
}

fn uneven(seed: u64, qos: QoS, links_break: bool) -> Result<(), String> {
    let mut choices = Choices(seed);
    let remote = RemoteLimits { order_wait_ms: 60_000, ..RemoteLimits::default() };
    let limits = Limits { remote, ..Limits::waiting(120_000) };
    let mut run = Run::with(seed, qos, &[0, 1, 2], limits);
    for at in 0..NODES {
        // Subscriptions that stay: frames go to every node.
        run.plain.push(Listener::new(&run.cluster, &format!("r{at}"), at, "t/#", qos));
    }
    run.cluster.net.latency(choices.one_of(&[2, 5, 5, 20]));
    let (publish_every, move_every) = (choices.one_of(&[4, 6, 6, 10]), choices.one_of(&[15, 20, 20, 40]));
    let at_once = choices.one_of(&[1, 4, 4]);
    let halts = Halts::new(seed);
    run.halts = Some(if links_break { halts.with_links() } else { halts });
    let end = run.cluster.sim.now().plus_ms(LASTS_MS);
    while run.cluster.sim.now() < end {
        if choices.below(publish_every) == 0 {
            run.publish();
        }
        if choices.below(move_every) == 0 {
            let at_once = 1 + choices.below(at_once);
            some_move(&mut run, at_once, &mut choices);
        }
        run.advance(1);
    }
    run.finish(qos)
}

#[test]
fn sessions_that_move_are_in_order_though_nodes_are_unevenly_behind_at_qos_2() {
    checked(seeds(0..8).map(|seed| uneven(seed, QoS::ExactlyOnce, false)));
}

#[test]
fn sessions_that_move_are_in_order_though_nodes_are_unevenly_behind_at_qos_1() {
    checked(seeds(0..4).map(|seed| uneven(seed, QoS::AtLeastOnce, false)));
}

#[test]
fn sessions_that_move_are_in_order_though_links_break_and_nodes_are_unevenly_behind_at_qos_2() {
    checked(seeds(0..8).map(|seed| uneven(seed, QoS::ExactlyOnce, true)));
}

#[test]
fn sessions_that_move_are_in_order_though_links_break_and_nodes_are_unevenly_behind_at_qos_1() {
    checked(seeds(0..4).map(|seed| uneven(seed, QoS::AtLeastOnce, true)));
}
