//! Shared groups, plain subscriptions and late ones on the same topics while nodes die, one or two at once, and come back with their
//! disks: at a subscription each publisher's messages never go back (G3), also if it came late; all of them come (G2); and a message
//! at QoS 2 reaches one member of a group (MQTT 5.0 section 4.8.2).

use super::choices::Choices;
use super::publish_tests::start_routes;
use super::roamers::{Listener, Sender};
use super::uneven::Halts;
use super::*;
use crate::mqtt::QoS;
use std::collections::BTreeMap;

pub(super) const NODES: usize = 3;

const TOPIC: &str = "t/x";

/// Publishes of a sender that are not over, at most: fewer than the receive maximum.
const WINDOW: usize = 1_000;

/// A cluster with a plain subscriber and a member of a group on each node.
pub(super) struct Run {
    pub cluster: Cluster,
    what: String,
    pub senders: Vec<Sender>,
    pub plain: Vec<Listener>,
    pub members: Vec<Listener>,
    pub late: Vec<Listener>,
    /// When dead nodes start again.
    pub down: BTreeMap<usize, Time>,
    /// Watches and journals that stand still now and then, if there are any.
    pub halts: Option<Halts>,
}

impl Run {
    pub fn new(seed: u64, qos: QoS, senders: &[usize]) -> Run {
        let limits = Limits::waiting(120_000);
        Run::with(seed, qos, senders, limits)
    }

    pub fn with(seed: u64, qos: QoS, senders: &[usize], limits: Limits) -> Run {
        let what = format!("seed {seed}, QoS {}", qos as u8);
        let cluster = Cluster::with(NODES, seed, limits);
        start_routes(&cluster, 0..NODES);
        cluster.net.latency(5);
        cluster.store.latency(3);
        let listener =
            |name: &str, at, filter| Listener::new(&cluster, &format!("{name}{at}"), at, filter, qos);
        let plain = (0..NODES).map(|at| listener("s", at, "t/#")).collect();
        let members = (0..NODES).map(|at| listener("g", at, "$share/g/t/#")).collect();
        let senders =
            senders.iter().enumerate().map(|(no, at)| Sender::new(&cluster, no, *at, qos)).collect();
        Run { cluster, what, senders, plain, members, late: Vec::new(), down: BTreeMap::new(), halts: None }
    }

    pub fn hear(&mut self) {
        let all = self.plain.iter_mut().chain(&mut self.members).chain(&mut self.late);
        all.for_each(|l| {
            l.hear();
        });
    }

    pub fn tend(&mut self) {
        if let Some(halts) = &mut self.halts {
            halts.tend(&self.cluster);
        }
        let now = self.cluster.sim.now();
        let due: Vec<usize> = self.down.iter().filter(|(_, at)| **at <= now).map(|(no, _)| *no).collect();
        for no in due {
            self.down.remove(&no);
            self.cluster.restart(no);
            if self.cluster.node(no).is_none() {
                self.down.insert(no, now.plus_ms(100)); // the store is away
            }
        }
        self.senders.iter_mut().for_each(|p| p.tend(&self.cluster, TOPIC));
        let all = self.plain.iter_mut().chain(&mut self.members).chain(&mut self.late);
        all.for_each(|l| l.tend(&self.cluster));
    }

    pub fn advance(&mut self, ms: u64) {
        for _ in 0..ms {
            self.cluster.advance(1);
            self.tend();
        }
    }

    pub fn publish(&mut self) {
        let has_room = |s: &&mut Sender| s.open.len() < WINDOW;
        self.senders.iter_mut().filter(has_room).for_each(|s| s.publish(TOPIC));
    }

    pub fn crash(&mut self, no: usize, down_ms: u64) {
        self.hear();
        eprintln!("{} ms: n{no} dies for {down_ms} ms", self.cluster.sim.now().since_ms(START));
        self.cluster.crash(no);
        self.down.insert(no, self.cluster.sim.now().plus_ms(down_ms));
    }

    fn subscribe_late(&mut self, at: usize, qos: QoS) {
        let name = format!("late{}", self.late.len());
        eprintln!("{} ms: {name} subscribes at n{at}", self.cluster.sim.now().since_ms(START));
        self.late.push(Listener::begin(&self.cluster, &name, at, "t/#", qos));
    }

    fn until(&mut self, holds: impl Fn(&Run) -> bool) -> bool {
        for _ in 0..PATIENCE_MS / 10 {
            if holds(self) {
                return true;
            }
            self.cluster.advance(10);
            self.tend();
        }
        false
    }

    /// What a plain subscription had and no member of the group, with the members that had what was published right before and after.
    fn lost_for_the_group(&self) -> Vec<String> {
        let had = |m: &&Listener, payload: &str| m.got.iter().any(|got| got == payload);
        let who = |payload: &str| {
            let m = self.members.iter().find(|m| had(m, payload));
            m.map_or("nobody", |m| &*m.resident.client.client_id)
        };
        let near = |payload: &str, by: i64| {
            let (publisher, n) = payload.split_once(':')?;
            let n = n.parse::<i64>().ok()? + by;
            Some(who(&format!("{publisher}:{n:04}")))
        };
        let all = self.plain[0].distinct();
        let lost = all.into_iter().filter(|payload| who(payload) == "nobody");
        lost.map(|payload| format!("{payload} between {:?} and {:?}", near(payload, -1), near(payload, 1)))
            .collect()
    }

    pub fn finish(&mut self, qos: QoS) -> Result<(), String> {
        if self.halts.take().is_some() {
            Halts::end(&self.cluster);
        }
        let acknowledged = |r: &Run| r.down.is_empty() && r.senders.iter().all(|p| p.open.is_empty());
        if !self.until(acknowledged) {
            let open: Vec<_> = self.senders.iter().map(|s| s.open.len()).collect();
            return Err(format!("{}: not all is acknowledged: {open:?}", self.what));
        }
        let sent: usize = self.senders.iter().map(|s| s.next).sum();
        let shared = |r: &Run| {
            r.members.iter().flat_map(|m| m.distinct()).collect::<std::collections::BTreeSet<_>>().len()
        };
        let all = |r: &Run| r.plain.iter().all(|s| s.distinct().len() == sent) && shared(r) == sent;
        if !self.until(all) {
            let got: Vec<_> = self.plain.iter().map(|r| r.distinct().len()).collect();
            let lost = self.lost_for_the_group();
            return Err(format!(
                "{}: lost: of {sent}: {got:?}, shared {}: {lost:?}",
                self.what,
                shared(self)
            ));
        }
        self.advance(2_000);
        let repeated = |payload: &str| self.senders.iter().any(|s| s.repeated.contains(payload));
        let mut wrong: Vec<String> = self.plain.iter().filter_map(|l| l.went_back(|_| false)).collect();
        wrong.extend(self.late.iter().filter_map(|l| l.went_back(repeated)));
        if qos == QoS::ExactlyOnce {
            let mut by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for m in &self.members {
                for payload in &m.got {
                    by.entry(payload).or_default().push(&m.resident.client.client_id);
                }
            }
            wrong.extend(
                by.iter().filter(|(_, by)| by.len() > 1).map(|(p, by)| format!("{p} reached {by:?}")),
            );
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("{}: {wrong:#?}", self.what)) }
    }
}

pub(super) fn checked(runs: impl Iterator<Item = Result<(), String>>) {
    let wrong: Vec<String> = runs.filter_map(Result::err).inspect(|why| eprintln!("{why}")).collect();
    assert!(wrong.is_empty(), "{} runs went wrong: {}", wrong.len(), wrong[0]);
}

/// Two of three nodes die at once, again and again, under the publishes of the third one's clients.
fn two_die_at_once(seed: u64, qos: QoS) -> Result<(), String> {
    let mut run = Run::new(seed, qos, &[0, 0]);
    let mut choices = Choices(seed);
    for _ in 0..3 {
        for _ in 0..10 {
            run.publish();
            run.advance(choices.below(12));
        }
        for no in [1, 2] {
            let down_ms = 100 + choices.below(if seed.is_multiple_of(3) { 14_000 } else { 3_000 });
            run.crash(no, down_ms);
            run.advance(choices.below(5));
        }
        while !run.down.is_empty() {
            run.publish();
            run.advance(20 + choices.below(300));
        }
        for _ in 0..10 {
            run.publish();
            run.advance(choices.below(50));
        }
    }
    run.finish(qos)
}

/// As [`two_die_at_once`], and clients that are not served try the next node: sessions move as soon as their nodes are back.
fn clients_hunt(seed: u64, qos: QoS) -> Result<(), String> {
    let mut run = Run::new(seed, qos, &[0, 0]);
    let mut choices = Choices(seed);
    run.plain.iter_mut().chain(&mut run.members).for_each(|l| l.resident.hunts = true);
    for _ in 0..3 {
        for _ in 0..10 {
            run.publish();
            run.advance(choices.below(12));
        }
        for no in [1, 2] {
            run.crash(no, 200 + choices.below(if seed.is_multiple_of(2) { 14_000 } else { 3_000 }));
            run.advance(choices.below(5));
        }
        while !run.down.is_empty() {
            run.publish();
            run.advance(20 + choices.below(200));
        }
        for _ in 0..30 {
            run.publish();
            run.advance(choices.below(50));
        }
    }
    run.finish(qos)
}

#[test]
fn two_nodes_die_at_once_and_order_holds_though_clients_hunt_at_qos_1() {
    checked(seeds(0..5).map(|seed| clients_hunt(seed, QoS::AtLeastOnce)));
}

#[test]
fn two_nodes_die_at_once_and_order_holds_though_clients_hunt_at_qos_2() {
    checked(seeds(0..5).map(|seed| clients_hunt(seed, QoS::ExactlyOnce)));
}

#[test]
fn two_nodes_die_at_once_and_order_holds_at_qos_1() {
    checked(seeds(0..12).map(|seed| two_die_at_once(seed, QoS::AtLeastOnce)));
}

#[test]
fn two_nodes_die_at_once_and_order_holds_at_qos_2() {
    checked(seeds(0..12).map(|seed| two_die_at_once(seed, QoS::ExactlyOnce)));
}

/// Clients subscribe while publishes wait for a dead node.
fn late_subscriptions(seed: u64, qos: QoS) -> Result<(), String> {
    let mut run = Run::new(seed, qos, &[0, 2]);
    let mut choices = Choices(seed);
    run.crash(1, 8_000 + choices.below(6_000));
    let mut n = 0;
    while !run.down.is_empty() {
        run.publish();
        run.advance(20 + choices.below(300));
        n += 1;
        if n % 7 == 3 {
            let at = [0, 2][usize::from(choices.below(2) == 1)];
            run.subscribe_late(at, qos);
        }
    }
    for _ in 0..10 {
        run.publish();
        run.advance(choices.below(50));
    }
    run.finish(qos)
}

#[test]
fn a_late_subscription_never_goes_back_at_qos_1() {
    checked(seeds(0..12).map(|seed| late_subscriptions(seed, QoS::AtLeastOnce)));
}

#[test]
fn a_late_subscription_never_goes_back_at_qos_2() {
    checked(seeds(0..12).map(|seed| late_subscriptions(seed, QoS::ExactlyOnce)));
}

/// Any node dies, one or two at once, also those of publishers.
fn any_die(seed: u64, qos: QoS) -> Result<(), String> {
    let mut run = Run::new(seed, qos, &[0, 1, 2]);
    let mut choices = Choices(seed);
    for _ in 0..4 {
        for _ in 0..8 {
            run.publish();
            run.advance(choices.below(30));
        }
        for _ in 0..1 + choices.below(2) {
            let no = usize::try_from(choices.below(NODES as u64)).unwrap();
            if !run.down.contains_key(&no) {
                run.crash(no, 100 + choices.below(if seed.is_multiple_of(3) { 14_000 } else { 2_000 }));
            }
            run.advance(choices.below(40));
        }
        for _ in 0..8 {
            run.publish();
            run.advance(choices.below(100));
            let at = usize::try_from(choices.below(NODES as u64)).unwrap();
            if choices.below(6) == 0 && run.cluster.node(at).is_some_and(|b| b.may_serve().is_ok()) {
                run.subscribe_late(at, qos);
            }
        }
    }
    run.finish(qos)
}

#[test]
fn any_nodes_die_and_order_holds_and_groups_share_at_qos_2() {
    checked(seeds(0..16).map(|seed| any_die(seed, QoS::ExactlyOnce)));
}

#[test]
fn any_nodes_die_and_order_holds_at_qos_1() {
    checked(seeds(0..12).map(|seed| any_die(seed, QoS::AtLeastOnce)));
}

/// The publish is held for a dead node's session when its own node dies: its group has had it.
#[test]
fn a_shared_publish_that_is_held_reaches_one_member_though_its_node_dies() {
    checked(seeds(0..24).map(|seed| {
        let qos = QoS::ExactlyOnce;
        let mut run = Run::new(seed, qos, &[1]);
        let mut choices = Choices(seed);
        run.crash(0, 20_000);
        run.advance(choices.below(12_000));
        for _ in 0..12 {
            run.publish();
            run.advance(10 + choices.below(30));
        }
        run.advance(choices.below(100));
        run.crash(1, 50 + choices.below(1_000));
        run.finish(qos)
    }));
}

/// A member's node dies at any moment of the way of a publish to it.
#[test]
fn a_shared_publish_reaches_one_member_though_a_members_node_dies() {
    checked(seeds(0..24).map(|seed| {
        let qos = QoS::ExactlyOnce;
        let mut run = Run::new(seed, qos, &[0]);
        let mut choices = Choices(seed);
        for _ in 0..12 {
            run.publish();
        }
        run.advance(choices.below(30));
        run.crash(1, 50 + choices.below(14_000));
        run.advance(choices.below(30));
        if seed.is_multiple_of(2) {
            run.crash(2, 50 + choices.below(14_000));
        }
        run.finish(qos)
    }));
}
