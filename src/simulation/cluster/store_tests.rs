//! What the store in memory keeps of what the port promises.

use super::*;
use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::ports::{
    Claim, ClaimOutcome, Coordinator, Expected, Index, IndexEvent, MessageId, Retain, RetainOutcome,
    Revision, RouteChange,
};
use crate::user::SessionUser;
use parking_lot::Mutex;
use std::sync::Arc;

pub(super) fn message(payload: &str) -> Message {
    Message::new(Parts {
        topic: "t",
        payload: payload.as_bytes(),
        properties: &[],
        qos: QoS::AtLeastOnce,
        retain: false,
        expires_at: None,
    })
}

#[derive(Default)]
struct Seen {
    events: Vec<IndexEvent>,
    applied: Revision,
    fresh: Time,
    snapshots: usize,
}

#[derive(Default)]
struct Watcher(Mutex<Seen>);

impl Index for Watcher {
    fn begin_snapshot(&self) {
        self.0.lock().events.clear();
    }

    fn apply(&self, events: Vec<IndexEvent>, revision: Option<Revision>) {
        let mut seen = self.0.lock();
        seen.events.extend(events);
        if let Some(revision) = revision {
            assert!(revision > seen.applied, "{revision} after {}", seen.applied);
            seen.applied = revision;
        }
    }

    fn end_snapshot(&self, revision: Revision) {
        let mut seen = self.0.lock();
        (seen.applied, seen.snapshots) = (revision, seen.snapshots + 1);
    }

    fn fresh_at(&self, at: Time) {
        let mut seen = self.0.lock();
        seen.fresh = seen.fresh.max(at);
    }
}

struct Node {
    process: Arc<SimProcess>,
    coordinator: Arc<MemoryCoordinator>,
    seen: Arc<Watcher>,
}

struct Stage {
    sim: SimTasks,
    store: Store,
}

impl Stage {
    fn new(seed: u64) -> Stage {
        let sim = SimTasks::new(seed, Time(1_000_000));
        let store = Store::new(sim.process(), seed);
        Stage { sim, store }
    }

    fn start(&self, node: &str, journal: u64) -> Node {
        let process = self.sim.process();
        let registration = Registration { node: node.into(), journal };
        let coordinator = self.store.register(&registration, process.clone()).unwrap();
        let seen = Arc::new(Watcher::default());
        coordinator.connect(seen.clone());
        self.sim.run_until_idle();
        Node { process, coordinator, seen }
    }

    fn crash(&self, node: &Node) {
        node.process.kill();
        self.store.crash(&node.coordinator.me().node);
    }

    fn claim(&self, node: &Node, client: &str, expected: Expected, epoch: u64) -> Option<ClaimOutcome> {
        let claim = Claim {
            client_id: client.into(),
            expected,
            epoch,
            expiry_s: 60,
            user: SessionUser::Unknown,
            evict: None,
        };
        self.sim.wait(node.coordinator.claim(claim), 60_000).unwrap().ok()
    }

    fn retain(&self, node: &Node, text: &str, seq: u64, known: Revision) -> Option<RetainOutcome> {
        let message = message(text);
        let id = MessageId { origin: node.coordinator.me().incarnation, seq };
        let update =
            Retain { topic: "t".into(), message: Some(message), id, known, since: known, kept: false };
        self.sim.wait(node.coordinator.retain(update), 60_000)
    }
}

#[test]
fn one_claim_of_two_wins_and_the_loser_learns_of_the_winner() {
    for seed in 0..50 {
        let stage = Stage::new(seed);
        let (a, b) = (stage.start("a", 1), stage.start("b", 2));
        stage.store.latency(20);
        let claim = |n: &Node| {
            let claim = Claim {
                client_id: "c".into(),
                expected: Expected::Absent,
                epoch: 1,
                expiry_s: 0,
                user: SessionUser::Unknown,
                evict: None,
            };
            n.coordinator.claim(claim)
        };
        let both = futures_util::future::join(claim(&a), claim(&b));
        let (first, second) = stage.sim.wait(both, 10_000).unwrap();
        let owner = stage.store.owner("c").unwrap();
        let (winner, loser) =
            if owner.holder.node.as_ref() == "a" { (first, second) } else { (second, first) };
        assert_eq!(winner.unwrap(), ClaimOutcome::Granted(owner.revision), "seed {seed}");
        assert_eq!(loser.unwrap(), ClaimOutcome::Found(Some(owner)), "seed {seed}");
        stage.sim.run_until_idle();
        assert_eq!(a.seen.0.lock().events.last(), b.seen.0.lock().events.last());
    }
}

#[test]
fn a_restarted_process_speaks_for_its_incarnations_unless_its_disk_was_wiped() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    assert!(matches!(stage.claim(&a, "c", Expected::Absent, 1), Some(ClaimOutcome::Granted(_))));
    let before = stage.store.owner("c").unwrap();
    stage.crash(&a);
    let wiped = stage.start("a", 7);
    assert_eq!(stage.store.owner("c").unwrap().holder, before.holder);
    stage.crash(&wiped);
    let back = stage.start("a", 1);
    let owner = stage.store.owner("c").unwrap();
    assert_eq!((&owner.session, &owner.holder), (&before.session, &back.coordinator.me()));
    // A claim that followed an older custody record is void.
    let stale = stage.claim(&b, "c", Expected::Read(before), 2).unwrap();
    assert_eq!(stale, ClaimOutcome::Found(Some(owner.clone())));
    assert!(matches!(stage.claim(&b, "c", Expected::Read(owner), 2), Some(ClaimOutcome::Granted(_))));
    assert_eq!(stage.store.members().len(), 2);
    let wiped = wiped.coordinator.me();
    assert!(
        stage.store.custody().iter().any(|(of, c)| *of == wiped && c.holder == wiped),
        "adopted by another journal"
    );
}

#[test]
fn only_a_dead_node_is_forgotten_and_all_it_owns_with_it() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    stage.claim(&a, "c", Expected::Absent, 1);
    stage.claim(&b, "d", Expected::Absent, 1);
    let add = RouteChange { filter: "f".into(), route: Some((true, 1)) };
    stage.sim.wait(a.coordinator.routes(vec![add]), 1000).unwrap();
    stage.store.forget("a");
    assert!(stage.store.owner("c").is_some());
    stage.crash(&a);
    stage.sim.advance(10_000);
    assert_eq!((stage.store.members().len(), stage.store.leader()), (1, Some(b.coordinator.me())));
    stage.store.forget("a");
    stage.sim.run_until_idle();
    assert_eq!((stage.store.owner("c"), stage.store.sessions().len()), (None, 1));
    assert!(stage.store.routes(&a.coordinator.me()).is_empty() && stage.store.custody().len() == 1);
    let seen = b.seen.0.lock();
    assert!(seen.events.contains(&IndexEvent::Custody { of: a.coordinator.me(), custody: None }));
    let over = |e: &IndexEvent| matches!(e, IndexEvent::Session { client_id, session: None, .. } if **client_id == *"c");
    assert!(seen.events.iter().any(over));
}

#[test]
fn who_is_cut_off_waits_and_comes_back_as_the_same_process() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    let lease = a.coordinator.lease_until();
    stage.store.cut_from_store("a", true);
    assert_eq!(stage.claim(&a, "c", Expected::Absent, 1), None);
    assert!(a.coordinator.lease_until() <= lease && !a.coordinator.reachable());
    let add = RouteChange { filter: "f".into(), route: Some((false, 3)) };
    let routes = a.coordinator.routes(vec![add]);
    stage.sim.advance(10_000);
    assert_eq!((stage.store.members().len(), a.coordinator.lease_until()), (1, Time(0)));
    let missed = a.seen.0.lock().applied;
    assert!(missed < stage.store.revision() && b.seen.0.lock().applied == stage.store.revision());
    stage.store.cut_from_store("a", false);
    let written = stage.sim.wait(routes, 1000).unwrap();
    assert_eq!(stage.store.routes(&a.coordinator.me())[0].weight, 3);
    stage.sim.run_until_idle();
    assert!(a.seen.0.lock().applied >= written && a.seen.0.lock().snapshots == 1);
    assert_eq!(stage.store.members()[0].id, a.coordinator.me());
}

#[test]
fn a_lagging_node_gets_its_events_one_by_one() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    stage.store.lag("b", true);
    let began = stage.store.revision();
    for client in ["c", "d", "e"] {
        stage.claim(&a, client, Expected::Absent, 1);
    }
    stage.sim.run_until_idle();
    assert_eq!(b.seen.0.lock().applied, began);
    stage.store.deliver("b", 2);
    stage.sim.run_until_idle();
    assert_eq!(b.seen.0.lock().applied, began + 2);
    let fresh = b.seen.0.lock().fresh;
    stage.sim.advance(5000);
    assert_eq!(b.seen.0.lock().fresh, fresh);
    stage.store.lag("b", false);
    stage.sim.run_until_idle();
    assert_eq!(b.seen.0.lock().applied, began + 3);
    assert_eq!(b.seen.0.lock().fresh, stage.sim.now());
}

#[test]
fn a_late_retained_message_overwrites_only_what_was_known() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    let Some(RetainOutcome::Written(first)) = stage.retain(&a, "1", 1, 0) else { panic!("not written") };
    stage.store.cut_from_store("a", true);
    let update = |text: &str, seq| {
        let id = MessageId { origin: a.coordinator.me().incarnation, seq };
        Retain {
            topic: "t".into(),
            message: Some(message(text)),
            id,
            known: first,
            since: first,
            kept: false,
        }
    };
    let spooled = [a.coordinator.retain(update("2", 2)), a.coordinator.retain(update("3", 3))];
    stage.retain(&b, "of b", 1, first).unwrap();
    stage.store.cut_from_store("a", false);
    let outcomes = stage.sim.wait(futures_util::future::join_all(spooled), 5000).unwrap();
    assert_eq!(outcomes, [RetainOutcome::Overtaken; 2]);
    assert_eq!(stage.store.retained("t").unwrap().message.payload(), b"of b");
    let late = a.coordinator.retain(update("4", 4));
    assert!(
        matches!(stage.sim.wait(late, 5000), Some(RetainOutcome::Written(_))),
        "in time it needs not know"
    );
}

#[test]
fn a_lost_answer_does_not_mean_that_nothing_happened() {
    let stage = Stage::new(1);
    let a = stage.start("a", 1);
    stage.store.lose_answers("a", 1);
    assert_eq!(stage.claim(&a, "c", Expected::Absent, 1), None);
    assert_eq!(stage.store.owner("c").unwrap().holder, a.coordinator.me());
    drop(a.coordinator.release("c", 2));
    stage.sim.run_until_idle();
    assert!(stage.store.owner("c").is_some(), "released under another epoch");
    drop(a.coordinator.release("c", 1));
    stage.sim.run_until_idle();
    assert_eq!(stage.store.owner("c"), None);
}

#[test]
fn without_the_store_leases_live_on_and_nothing_is_written() {
    let stage = Stage::new(1);
    let a = stage.start("a", 1);
    stage.store.outage(true);
    assert_eq!(stage.sim.wait(a.coordinator.read_revision(), 10_000).unwrap().ok(), None);
    stage.sim.advance(60_000);
    stage.store.outage(false);
    stage.sim.advance(200);
    assert_eq!(stage.store.members().len(), 1);
    assert_eq!(stage.sim.wait(a.coordinator.read_revision(), 10_000).unwrap(), Ok(stage.store.revision()));
    stage.store.expire_lease("a");
    assert!(stage.store.members().is_empty() && stage.claim(&a, "c", Expected::Absent, 1).is_some());
    assert_eq!(stage.store.members()[0].id, a.coordinator.me());
}

#[test]
fn a_lagging_node_catches_up_by_another() {
    let stage = Stage::new(1);
    let (a, b) = (stage.start("a", 1), stage.start("b", 2));
    let began = stage.store.revision();
    stage.store.cut_from_store("b", true);
    for client in ["c", "d"] {
        stage.claim(&a, client, Expected::Absent, 1);
    }
    assert_eq!(b.seen.0.lock().applied, began);
    let (events, to) = a.coordinator.events_after(began).unwrap();
    stage.sim.wait(b.coordinator.apply_from_peer(events.clone()), 1000).unwrap().unwrap();
    assert_eq!((b.seen.0.lock().applied, to), (began + 2, began + 2));
    stage.sim.wait(b.coordinator.apply_from_peer(events), 1000).unwrap().unwrap();
    stage.claim(&a, "e", Expected::Absent, 1);
    let (later, _) = a.coordinator.events_after(began + 3).unwrap();
    assert!(stage.sim.wait(b.coordinator.apply_from_peer(later), 1000).unwrap().is_err(), "a gap");
    stage.store.forget_events("a");
    assert_eq!(a.coordinator.events_after(began), None);
    stage.store.cut_from_store("b", false);
    stage.sim.run_until_idle();
    assert_eq!(b.seen.0.lock().applied, began + 3);
}
