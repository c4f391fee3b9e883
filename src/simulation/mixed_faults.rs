//! Faults of every kind, one after another and two at once, under publishes: nodes die or stop, are parted from each other and from the
//! store, and the store goes away, while members of a group move of their own will and clients subscribe late, again and again until
//! SUBACK comes. What [`super::group_faults`] checks holds.

use super::choices::Choices;
use super::group_faults::{NODES, Run, checked};
use super::roamers::Listener;
use super::uneven::Halts;
use super::*;
use crate::cluster::RemoteLimits;
use crate::hashing::State;
use crate::mqtt::QoS;
use std::hash::BuildHasher;

/// Faults of a run.
const FAULTS: u64 = 5;

/// How long a fault lasts, milliseconds, at most.
const LASTS_MS: u64 = 9_000;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Crash,
    Stop,
    Part,
    PartFromAll,
    Stall,
    CutFromStore,
    Outage,
    Lag,
    SlowStore,
}

const ALL: [Fault; 9] = [
    Fault::Crash,
    Fault::Stop,
    Fault::Part,
    Fault::PartFromAll,
    Fault::Stall,
    Fault::CutFromStore,
    Fault::Outage,
    Fault::Lag,
    Fault::SlowStore,
];

struct Mix {
    run: Run,
    choices: Choices,
    qos: QoS,
    restless: bool,
}

impl Mix {
    /// What came to each of those who listen.
    fn got(&self) -> Vec<Vec<String>> {
        let all = self.run.plain.iter().chain(&self.run.members).chain(&self.run.late);
        all.map(|l| l.got.clone()).collect()
    }

    fn node(&mut self) -> usize {
        usize::try_from(self.choices.below(NODES as u64)).unwrap()
    }

    /// Publishes for about `ms` milliseconds; who moves moves, and who comes late comes.
    fn load(&mut self, ms: u64) {
        let end = self.run.cluster.sim.now().plus_ms(ms);
        while self.run.cluster.sim.now() < end {
            self.run.publish();
            let most = if self.choices.below(10) == 0 { 400 } else { 40 };
            let pause = 1 + self.choices.below(most);
            self.run.advance(pause);
            if self.choices.below(12) == 0 && self.run.late.len() < 12 {
                let (at, no) = (self.node(), self.run.late.len());
                eprintln!("{} ms: late{no} comes to n{at}", self.run.cluster.sim.now().since_ms(START));
                let mut late = Listener::late(&self.run.cluster, &format!("late{no}"), at, "t/#", self.qos);
                late.resident.hunts = true;
                self.run.late.push(late);
            }
            if self.restless && self.choices.below(8) == 0 {
                let (who, step) = (self.node(), 1 + usize::from(self.choices.below(2) == 1));
                let moving = self.choices.below(3) > 0;
                let member = if moving { &mut self.run.members[who] } else { &mut self.run.plain[who] };
                member.hear();
                let to = (member.resident.at + step) % NODES;
                member.resident.go(&self.run.cluster, to);
            }
        }
    }

    fn set(&mut self, fault: Fault, one: usize, two: usize, on: bool, lasts_ms: u64) {
        let c = &self.run.cluster;
        let (first, third) = (c.name(one), (0..NODES).find(|n| *n != one && *n != two).unwrap());
        match fault {
            Fault::Crash if on => self.run.crash(one, lasts_ms),
            Fault::Stop if on && self.run.down.is_empty() => {
                self.run.hear();
                if self.run.halts.is_some() {
                    // Nobody tends them before the node has ended.
                    Halts::end(&self.run.cluster);
                }
                self.run.cluster.stop(one);
                self.run.down.insert(one, self.run.cluster.sim.now().plus_ms(lasts_ms));
            }
            Fault::Crash | Fault::Stop => {}
            Fault::Part => c.partition(one, two, on),
            Fault::PartFromAll => {
                c.partition(one, two, on);
                c.partition(one, third, on);
            }
            Fault::Stall => c.net.stall(&first, &c.name(two), on),
            Fault::CutFromStore => c.cut_from_store(one, on),
            Fault::Outage => c.store.outage(on),
            Fault::Lag => c.store.lag(&first, on),
            Fault::SlowStore => c.store.latency(if on { 400 } else { 3 }),
        }
    }
}

fn mixed(seed: u64, qos: QoS, restless: bool) -> Result<(), String> {
    judged(seed, qos, restless, None)
}

fn judged(seed: u64, qos: QoS, restless: bool, halts: Option<Halts>) -> Result<(), String> {
    let mut mix = struck(seed, qos, restless, halts);
    let outcome = mix.run.finish(qos);
    let history = State::default().hash_one((mix.got(), mix.run.cluster.sim.now()));
    eprintln!("seed {seed}, {qos:?}, restless {restless}: history {history:016x}");
    outcome
}

/// A run with its faults over.
fn struck(seed: u64, qos: QoS, restless: bool, halts: Option<Halts>) -> Mix {
    // Order is given up after `order_wait`, so it is longer than any fault here.
    let remote = RemoteLimits { order_wait_ms: 60_000, suback_wait_ms: 6_000, ..RemoteLimits::default() };
    let limits = Limits { remote, ..Limits::waiting(120_000) };
    let mut run = Run::with(seed, qos, &[0, 1, 2], limits);
    run.senders.iter_mut().for_each(|s| s.resident.hunts = true);
    run.plain.iter_mut().chain(&mut run.members).for_each(|l| l.resident.hunts = true);
    run.halts = halts;
    let mut mix = Mix { run, choices: Choices(seed), qos, restless };
    mix.load(200);
    for _ in 0..FAULTS {
        let mut struck = Vec::new();
        for _ in 0..1 + mix.choices.below(2) {
            let fault = ALL[usize::try_from(mix.choices.below(ALL.len() as u64)).unwrap()];
            let one = mix.node();
            let two = (one + 1 + usize::from(mix.choices.below(2) == 1)) % NODES;
            let lasts_ms = 50 + mix.choices.below(LASTS_MS);
            if mix.run.down.contains_key(&one) {
                continue;
            }
            let at = mix.run.cluster.sim.now().since_ms(START);
            eprintln!("{at} ms: {fault:?} of n{one} (n{two}) for {lasts_ms} ms");
            mix.set(fault, one, two, true, lasts_ms);
            struck.push((fault, one, two));
            let ms = if struck.len() == 1 { mix.choices.below(300) } else { lasts_ms };
            mix.load(ms);
        }
        let ms = mix.choices.below(LASTS_MS);
        mix.load(ms);
        for (fault, one, two) in struck {
            mix.set(fault, one, two, false, 0);
        }
        let ms = mix.choices.below(3_000);
        mix.load(ms);
    }
    mix
}

#[test]
fn mixed_faults_break_no_promise_at_qos_2() {
    // At 73 a node stops out of etcd's reach with publishes unanswered; at 115 each node declines a message of the group while
    // its members are elsewhere.
    checked(seeds(0..4).chain([73, 115]).map(|seed| mixed(seed, QoS::ExactlyOnce, seed % 3 > 0)));
}

#[test]
fn mixed_faults_break_no_promise_at_qos_1() {
    checked(seeds(0..3).chain([73]).map(|seed| mixed(seed, QoS::AtLeastOnce, seed % 3 > 0)));
}

/// The same while nodes are unevenly behind the store, and their journals take their time.
#[test]
fn mixed_faults_break_no_promise_while_nodes_are_unevenly_behind() {
    let qos = |seed: u64| if seed.is_multiple_of(3) { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
    // At 159 sessions move while a node is away from all, without its lease, and it comes back with publishes for them.
    checked(seeds(0..6).chain([159]).map(|seed| judged(seed, qos(seed), true, Some(Halts::new(seed)))));
}

/// Whoever looks for a fault finds it again by its seed: not only the choices are the same, but all that comes of them.
#[test]
fn a_seed_replays_every_message() {
    let heard = || {
        let mut mix = struck(136, QoS::ExactlyOnce, true, None);
        // At this seed a breach that README's G4 names is near; what came is what matters here.
        let outcome = mix.run.finish(QoS::ExactlyOnce);
        (outcome, mix.got(), mix.run.cluster.sim.now())
    };
    let (first, second) = (heard(), heard());
    assert!(first.1.iter().all(|got| got.len() > 100), "too little came");
    assert!(first == second, "two runs of one seed differ");
}
