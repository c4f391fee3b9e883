//! Nodes whose indexes are behind the store by different amounts, and whose journals take their time, while sessions and members of a
//! group change places all the time: what [`super::group_faults`] checks holds. No node fails and no link breaks.

use super::choices::Choices;
use super::group_faults::{NODES, Run, checked};
use super::roamers::Listener;
use super::*;
use crate::cluster::RemoteLimits;
use crate::mqtt::QoS;

/// How long a run publishes, milliseconds.
const LASTS_MS: u64 = 4_000;

/// What a seed decides for a whole run.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// How long a node's watch stands still at a time, milliseconds, at most.
    watch_stands: u64,
    /// How long a node's journal does.
    journal_stands: u64,
    /// How long they go on in between.
    goes_on: u64,
    /// How long a frame or report takes, milliseconds, at most.
    network: u64,
    /// Publishers publish once in so many milliseconds.
    publish_every: u64,
    /// Sessions move once in so many milliseconds.
    move_every: u64,
    /// So many of them at once, at most.
    at_once: u64,
}

impl Pace {
    fn of(choices: &mut Choices) -> Pace {
        let mut one_of = |of: &[u64]| of[usize::try_from(choices.below(of.len() as u64)).unwrap()];
        Pace {
            watch_stands: one_of(&[10, 20, 20, 60, 200]),
            journal_stands: one_of(&[5, 20, 20, 60]),
            goes_on: one_of(&[10, 20, 80]),
            network: one_of(&[2, 5, 5, 20]),
            publish_every: one_of(&[4, 6, 6, 10]),
            move_every: one_of(&[15, 20, 20, 40]),
            at_once: one_of(&[1, 4, 4]),
        }
    }
}

/// A node's watch or journal, which stands still or goes on until a time.
#[derive(Clone, Copy, Default)]
struct Halting {
    stands: bool,
    until: Time,
}

impl Halting {
    /// Whether it stands still now, if that has just changed.
    fn look(&mut self, now: Time, (stands_ms, goes_ms): (u64, u64), choices: &mut Choices) -> Option<bool> {
        if now < self.until {
            return None;
        }
        self.stands = !self.stands;
        self.until = now.plus_ms(1 + choices.below(if self.stands { stands_ms } else { goes_ms }));
        Some(self.stands)
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

fn uneven(seed: u64, qos: QoS) -> Result<(), String> {
    let mut choices = Choices(seed);
    let pace = Pace::of(&mut choices);
    let remote = RemoteLimits { order_wait_ms: 60_000, ..RemoteLimits::default() };
    let limits = Limits { remote, ..Limits::waiting(120_000) };
    let mut run = Run::with(seed, qos, &[0, 1, 2], limits);
    for at in 0..NODES {
        // Subscriptions that stay: frames go to every node.
        run.plain.push(Listener::new(&run.cluster, &format!("r{at}"), at, "t/#", qos));
    }
    run.cluster.net.latency(pace.network);
    let mut halting = [[Halting::default(); 2]; NODES];
    let end = run.cluster.sim.now().plus_ms(LASTS_MS);
    while run.cluster.sim.now() < end {
        let now = run.cluster.sim.now();
        for (no, [watch, journal]) in halting.iter_mut().enumerate() {
            if let Some(stands) = watch.look(now, (pace.watch_stands, pace.goes_on), &mut choices) {
                run.cluster.store.lag(&run.cluster.name(no), stands);
            }
            if let Some(stands) = journal.look(now, (pace.journal_stands, pace.goes_on), &mut choices) {
                run.cluster.journal(no).stall(stands);
            }
        }
        if choices.below(pace.publish_every) == 0 {
            run.publish();
        }
        if choices.below(pace.move_every) == 0 {
            let at_once = 1 + choices.below(pace.at_once);
            some_move(&mut run, at_once, &mut choices);
        }
        run.advance(1);
    }
    for no in 0..NODES {
        run.cluster.store.lag(&run.cluster.name(no), false);
        run.cluster.journal(no).stall(false);
    }
    run.finish(qos)
}

#[test]
fn sessions_that_move_are_in_order_though_nodes_are_unevenly_behind_at_qos_2() {
    checked(seeds(0..8).map(|seed| uneven(seed, QoS::ExactlyOnce)));
}

#[test]
fn sessions_that_move_are_in_order_though_nodes_are_unevenly_behind_at_qos_1() {
    checked(seeds(0..4).map(|seed| uneven(seed, QoS::AtLeastOnce)));
}
