//! G8 across nodes: a will fires once per lost connection and never after a goodbye or a return in time, wherever its session
//! goes and whatever becomes of its node.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial};
use crate::operate::ctl;
use crate::random::Random;
use berth::mqtt::{QoS, Reason};
use std::collections::BTreeMap;

/// The node whose clients have wills, and the one that they may go to. Observers are on every node that stays up.
const HOME: usize = 1;
const ELSEWHERE: usize = 2;

/// A will delay that does not pass during a test, seconds.
const LONG: u32 = 600;

/// The will delay of those that come back in time, and of the fences, which are lost after them: when the wills of the
/// fences have come, those of the others would have been due as well.
const SHORT: u32 = 6;

/// What becomes of a client; may leave a connection to be kept open.
type End = fn(&BerthCluster, &Dial, Client) -> Option<Client>;

/// A client, its will delay, what becomes of it, and whether its will fires.
type Case = (&'static str, Dial, u32, End, bool);

/// How often each will came.
type Seen = BTreeMap<String, usize>;

fn v5() -> Dial {
    Dial::v5("")
}

fn v4() -> Dial {
    Dial::v4("")
}

/// A client that names itself in its will.
fn named(name: &str, dial: &Dial, delay_s: u32, qos: usize) -> Dial {
    let mut dial = dial.clone().will(&format!("wills/{name}"), name, delay_s);
    dial.client_id = name.to_owned();
    dial.will.as_mut().unwrap().qos = QoS::from_bits(qos as u8).unwrap();
    dial
}

/// The same client without its will, to continue its session, or to start over.
fn back(dial: &Dial, clean: bool) -> Dial {
    Dial { will: None, clean, ..dial.clone() }
}

/// Sessions that see every will, with the nodes they are on.
struct Watch {
    observers: Vec<(usize, Client)>,
    /// What has come to each.
    seen: Vec<Seen>,
    rounds: usize,
}

impl Watch {
    fn start(cluster: &BerthCluster, nodes: &[usize]) -> Watch {
        let observer = |&i: &usize| {
            let mut client = cluster.connect(i, &Dial::v5(&format!("observer{i}")).persistent());
            assert_eq!(client.subscribe(&[("wills/#", QoS::ExactlyOnce)]), [2]);
            (i, client)
        };
        let observers = nodes.iter().map(observer).collect();
        Watch { observers, seen: vec![Seen::new(); nodes.len()], rounds: 0 }
    }

    /// Lets `n` wills come to the first observer.
    fn take(&mut self, n: usize) {
        for _ in 0..n {
            let text = self.observers[0].1.receive().text().to_owned();
            *self.seen[0].entry(text).or_default() += 1;
        }
    }

    /// What has come since the last time, the same to all observers. Ends when the wills of clients have come that `fences` lose
    /// last of all, and whatever these nodes had sent before.
    fn seen(&mut self, cluster: &BerthCluster, fences: &[usize]) -> Seen {
        self.rounds += 1;
        let name = |i: &usize| format!("fence {} {i}", self.rounds);
        for i in fences {
            drop(cluster.connect(*i, &named(&name(i), &v5().persistent(), SHORT, 2)));
        }
        let names: Vec<String> = fences.iter().map(name).collect();
        let mut all = vec![Seen::new(); self.seen.len()];
        std::mem::swap(&mut all, &mut self.seen);
        for ((_, observer), seen) in self.observers.iter_mut().zip(&mut all) {
            while !names.iter().all(|n| seen.contains_key(n)) {
                *seen.entry(observer.receive().text().to_owned()).or_default() += 1;
            }
        }
        // What a node sends, it sends in order.
        for i in fences {
            cluster.connect(*i, &Dial::v5("marker")).publish("wills/marker", "marker", QoS::ExactlyOnce);
        }
        for ((node, observer), seen) in self.observers.iter_mut().zip(&mut all) {
            while seen.get("marker") != Some(&fences.len()) {
                *seen.entry(observer.receive().text().to_owned()).or_default() += 1;
            }
            seen.remove("marker");
            for name in &names {
                assert_eq!(seen.remove(name), Some(1), "{name} at node {node}");
            }
        }
        assert!(all.iter().all(|seen| *seen == all[0]), "the nodes do not agree: {all:?}");
        all.swap_remove(0)
    }
}

fn fired(cases: &[Case]) -> Seen {
    cases.iter().filter(|c| c.4).map(|c| (c.0.to_owned(), 1)).collect()
}

/// Connects the clients of all cases to [`HOME`], with wills of these QoS by turns.
fn connect(cluster: &BerthCluster, cases: &[Case], qos: &[usize]) -> Vec<(Dial, Client)> {
    let each = cases.iter().zip(qos.iter().cycle());
    let dials = each.map(|((name, dial, delay_s, ..), qos)| named(name, dial, *delay_s, *qos));
    dials.map(|dial| (dial.clone(), cluster.connect(HOME, &dial))).collect()
}

/// What becomes of them, one after the other; the connections that stay.
fn end(cluster: &BerthCluster, cases: &[Case], clients: Vec<(Dial, Client)>) -> Vec<Client> {
    let each = cases.iter().zip(clients);
    each.filter_map(|((.., ends, _), (dial, client))| ends(cluster, &dial, client)).collect()
}

fn lost(_: &BerthCluster, _: &Dial, client: Client) -> Option<Client> {
    drop(client);
    None
}

fn goodbye(_: &BerthCluster, _: &Dial, client: Client) -> Option<Client> {
    client.disconnect();
    None
}

/// Sends bytes after which the broker closes.
fn sends(mut client: Client, bytes: &[u8]) -> Option<Client> {
    client.send(bytes).unwrap();
    client.expect_closed();
    None
}

/// Goes on, or starts over, on another node while the old connection is open.
fn taken_over(cluster: &BerthCluster, dial: &Dial, mut client: Client, clean: bool) -> Option<Client> {
    let new = cluster.connect(ELSEWHERE, &back(dial, clean));
    client.expect_closed();
    Some(new)
}

fn resumed(cluster: &BerthCluster, dial: &Dial, client: Client) -> Option<Client> {
    taken_over(cluster, dial, client, false)
}

fn replaced(cluster: &BerthCluster, dial: &Dial, client: Client) -> Option<Client> {
    taken_over(cluster, dial, client, true)
}

fn comes_back(cluster: &BerthCluster, dial: &Dial, client: Client) -> Option<Client> {
    drop(client);
    let new = cluster.connect(ELSEWHERE, &back(dial, false));
    assert!(new.present, "{}", dial.client_id);
    Some(new)
}

fn comes_back_anew(cluster: &BerthCluster, dial: &Dial, client: Client) -> Option<Client> {
    drop(client);
    Some(cluster.connect(ELSEWHERE, &back(dial, true)))
}

fn stays(_: &BerthCluster, _: &Dial, client: Client) -> Option<Client> {
    Some(client)
}

#[test]
fn a_will_fires_once_on_all_nodes_or_never() {
    let cluster = BerthCluster::start(3);
    let mut watch = Watch::start(&cluster, &[0, 1, 2]);
    let asked: End = |_, _, c| sends(c, &[0xE0, 2, 4, 0]);
    let ends: End = |_, _, c| sends(c, &[0xE0, 7, 4, 5, 0x11, 0, 0, 0, 0]);
    let broken: End = |_, _, c| sends(c, &[0xF0, 0]);
    let kicked: End = |cluster, dial, mut c| {
        ctl(cluster.http(0), &["sessions", "kick", &dial.client_id]).ok();
        assert!(matches!(c.expect_closed(), Some(Reason::AdministrativeAction) | None));
        None
    };
    let lost_again: End = |cluster, dial, c| {
        drop(c);
        drop(cluster.connect(ELSEWHERE, dial));
        None
    };
    let goodbye_elsewhere: End = |cluster, dial, c| {
        drop(c);
        goodbye(cluster, dial, cluster.connect(ELSEWHERE, dial))
    };
    let lost_without: End = |cluster, dial, c| {
        drop(comes_back(cluster, dial, c));
        None
    };
    let cases: &[Case] = &[
        ("lost", v5(), 0, lost, true),
        ("lost 4", v4(), 0, lost, true),
        ("lost, persistent", v5().persistent(), 0, lost, true),
        ("lost 4, persistent", v4().persistent(), 0, lost, true),
        ("lost, delay without a session", v5(), LONG, lost, true),
        ("lost, later", v5().persistent(), 1, lost, true),
        ("lost, at the end of the session", v5().expiry(1), LONG, lost, true),
        ("lost, not yet", v5().persistent(), LONG, lost, false),
        ("goodbye", v5(), 0, goodbye, false),
        ("goodbye 4", v4().persistent(), 0, goodbye, false),
        ("goodbye, later", v5().persistent(), 1, goodbye, false),
        ("goodbye, session ends", v5().expiry(1), 1, goodbye, false),
        ("asked", v5(), 0, asked, true),
        ("asked, later", v5().persistent(), 1, asked, true),
        ("asked, session ends", v5().persistent(), LONG, ends, true),
        ("broken", v4().persistent(), 0, broken, true),
        ("kicked", v5().persistent(), 0, kicked, true),
        ("kicked, later", v5().persistent(), 1, kicked, true),
        ("resumed", v5().persistent(), 0, resumed, true),
        ("resumed 4", v4().persistent(), 0, resumed, true),
        ("resumed in time", v5().persistent(), SHORT, resumed, false),
        ("resumed without a session", v5(), LONG, resumed, true),
        ("replaced", v5().persistent(), 0, replaced, true),
        ("replaced 4", v4(), 0, replaced, true),
        ("replaced, session ends", v5().persistent(), LONG, replaced, true),
        ("replaced without a session", v5(), LONG, replaced, true),
        ("back in time", v5().persistent(), SHORT, comes_back, false),
        ("back anew", v5().persistent(), LONG, comes_back_anew, true),
        ("back, lost without it", v5().persistent(), SHORT, lost_without, false),
        ("back, lost again", v5().persistent(), 1, lost_again, true),
        ("back, goodbye", v5().persistent(), SHORT, goodbye_elsewhere, false),
        ("stays", v5(), 0, stays, false),
    ];
    let clients = connect(&cluster, cases, &[0, 1, 2]);
    let _open = end(&cluster, cases, clients);
    assert_eq!(watch.seen(&cluster, &[HOME, ELSEWHERE]), fired(cases));
}

#[test]
fn a_retained_will_is_found_on_all_nodes() {
    let cluster = BerthCluster::start(3);
    let mut watch = Watch::start(&cluster, &[0, 1, 2]);
    let mut dial = named("kept", &v5().persistent(), 0, 2);
    dial.will.as_mut().unwrap().retain = true;
    drop(cluster.connect(HOME, &dial));
    assert_eq!(watch.seen(&cluster, &[HOME]), Seen::from([("kept".to_owned(), 1)]));
    for i in 0..3 {
        let mut late = cluster.connect(i, &Dial::v5("late"));
        assert_eq!(late.subscribe(&[("wills/#", QoS::ExactlyOnce)]), [2]);
        let p = late.receive();
        assert_eq!((p.text(), p.retain, p.qos), ("kept", true, QoS::ExactlyOnce), "node {i}");
        late.ping();
    }
}

#[test]
fn the_wills_of_a_killed_node_fire_once_when_it_is_back() {
    let mut cluster = BerthCluster::start(3);
    let mut watch = Watch::start(&cluster, &[0, 2]);
    let moves: End = |cluster, dial, mut c| {
        let new = cluster.connect(ELSEWHERE, dial);
        c.expect_closed();
        Some(new)
    };
    let before: &[Case] = &[
        ("dies", v5(), 0, stays, true),
        ("dies 4", v4().persistent(), 0, stays, true),
        ("dies, later", v5().persistent(), 1, stays, true),
        ("dies without a session", v5(), LONG, stays, true),
        ("dies, at the end of the session", v5().expiry(1), LONG, stays, true),
        ("dies, not yet", v5().persistent(), LONG, stays, false),
        ("waits", v5().persistent(), SHORT, lost, true),
        ("goodbye", v5().persistent(), 0, goodbye, false),
        ("goodbye 4", v4(), 0, goodbye, false),
        // Its first will is still to come when it moves, and is gone then.
        ("moved", v5().persistent(), SHORT, moves, false),
    ];
    // Of these another node hears while theirs is dead: what they say there is not followed by a will of before.
    let meanwhile: &[Case] = &[
        ("replaced", v5().persistent(), LONG, comes_back_anew, false),
        ("replaced, no session", v5(), LONG, comes_back_anew, false),
        (
            "resumed, no session",
            v4(),
            0,
            |cluster, dial, _| Some(cluster.connect(2, &back(dial, false))),
            false,
        ),
    ];
    let clients = connect(&cluster, before, &[1, 2]);
    let waiting = connect(&cluster, meanwhile, &[1, 2]);
    let returning = named("back in time", &v5().persistent(), SHORT, 1);
    let gone = cluster.connect(HOME, &returning);
    let _open = end(&cluster, before, clients);
    cluster.kill(HOME);
    drop(gone);
    let _more = end(&cluster, meanwhile, waiting);
    let to = cluster.mqtt(ELSEWHERE);
    // It has to wait for its session's node.
    let returned = std::thread::spawn(move || back(&returning, false).connect(to));
    cluster.restart(HOME);
    let mut returned = returned.join().unwrap();
    assert!(returned.present);
    let mut due = fired(before);
    due.extend(fired(meanwhile));
    assert_eq!(watch.seen(&cluster, &[HOME, ELSEWHERE]), due);
    returned.ping();
    cluster.kill(HOME);
    cluster.restart(HOME);
    assert_eq!(watch.seen(&cluster, &[HOME, ELSEWHERE]), Seen::new(), "again after another restart");
}

#[test]
fn a_node_that_leaves_fires_no_will_of_its_clients() {
    let mut cluster = BerthCluster::start(3);
    let mut watch = Watch::start(&cluster, &[0, 2]);
    let cases: &[Case] = &[
        ("moves", v5().persistent(), 0, comes_back, false),
        ("moves 4", v4().persistent(), 0, comes_back, false),
        ("moves, later", v5().persistent(), 1, comes_back, false),
        ("ends", v5(), 0, lost, false),
        ("ends 4", v4(), 0, lost, false),
        ("ends, comes again", v5(), 0, comes_back_anew, false),
        // Nobody ended its session but its client.
        ("stays away", v5().expiry(2), 0, lost, true),
    ];
    let clients = connect(&cluster, cases, &[1, 2]);
    let early: &[Case] =
        &[("waits", v5().persistent(), SHORT, lost, true), ("goodbye", v5().persistent(), 0, goodbye, false)];
    let gone = connect(&cluster, early, &[1, 2]);
    let _none = end(&cluster, early, gone);
    cluster.term(HOME);
    let _open = end(&cluster, cases, clients);
    let mut due = fired(cases);
    due.extend(fired(early));
    assert_eq!(watch.seen(&cluster, &[0, ELSEWHERE]), due);
    cluster.restart(HOME);
    assert_eq!(watch.seen(&cluster, &[0, HOME, ELSEWHERE]), Seen::new(), "after the node came back");
}

#[test]
fn a_node_killed_while_wills_fire_goes_on_where_it_was() {
    const WILLS: usize = 60;
    let mut random = Random::seeded("BERTH_WILLS_SEED");
    let mut cluster = BerthCluster::start(3);
    let mut watch = Watch::start(&cluster, &[0, 2]);
    for round in 0..3 {
        let name = |n: usize| format!("{round} {n}");
        let dial = |n: usize| {
            let dial = if n.is_multiple_of(2) { v5().persistent() } else { v5() };
            named(&name(n), &dial, 0, 1 + n / 2 % 2)
        };
        let clients: Vec<Client> = (0..WILLS).map(|n| cluster.connect(HOME, &dial(n))).collect();
        drop(clients);
        watch.take(random.index(WILLS / 2));
        cluster.kill(HOME);
        cluster.restart(HOME);
        let due: Seen = (0..WILLS).map(|n| (name(n), 1)).collect();
        assert_eq!(watch.seen(&cluster, &[HOME]), due);
    }
}
