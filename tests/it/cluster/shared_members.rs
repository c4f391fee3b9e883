//! A shared subscription with members on every node, some of which leave under load: every message goes to one of them, and to
//! another only if who had it left without acknowledging it.

use super::nodes::BerthCluster;
use crate::client::{Client, Dial, In};
use crate::wait;
use berth::mqtt::client::AckKind;
use berth::mqtt::{QoS, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const GROUP: &str = "$share/g/w/+";

/// Messages of each publisher in a round.
const ROUND: usize = 30;

/// Messages of which each node gets its share.
const MANY: usize = 900;

const OPTIONS: &[(&str, &str)] =
    &[("cluster.lease", "3s"), ("cluster.stale_after", "2s"), ("cluster.suback_wait", "3s")];

/// One that works for the group.
struct Member {
    dial: Dial,
    client: Client,
    /// It acknowledges nothing.
    idle: bool,
    /// What it has not acknowledged.
    held: BTreeMap<String, u16>,
    /// What comes again, as its session has gone on elsewhere.
    again: BTreeSet<String>,
}

impl Member {
    fn acknowledge_all(&mut self) {
        for packet_id in std::mem::take(&mut self.held).into_values() {
            self.client.ack(AckKind::PubAck, packet_id).unwrap();
        }
    }

    /// Its session goes on with this connection; the old one.
    fn go_on(&mut self, mut client: Client) -> Client {
        assert!(client.present);
        client.patience(Duration::from_millis(1));
        self.again.extend(std::mem::take(&mut self.held).into_keys());
        self.idle = false;
        let mut old = std::mem::replace(&mut self.client, client);
        old.patience(wait::PATIENCE);
        old
    }
}

/// The members and publishers, and what they have seen.
struct Group {
    cluster: BerthCluster,
    members: BTreeMap<&'static str, Member>,
    publishers: Vec<(usize, Client)>,
    round: usize,
    sent: Vec<String>,
    open: Vec<(usize, u16)>,
    /// How often each message has come; a repetition to the same session does not count.
    got: BTreeMap<String, Vec<&'static str>>,
}

impl Group {
    fn start() -> Group {
        let cluster = BerthCluster::with(3, 1, OPTIONS);
        let (members, round) = (BTreeMap::new(), 0);
        let publishers = [0, 2].map(|i| (i, cluster.connect(i, &Dial::v5(&format!("pub{i}"))))).into();
        let (sent, open, got) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut group = Group { cluster, members, publishers, round, sent, open, got };
        for (i, [kept, passing]) in
            [["kept0", "passing0"], ["kept1", "passing1"], ["kept2", "passing2"]].into_iter().enumerate()
        {
            group.join(i, kept, Dial::v5(kept).persistent());
            group.join(i, passing, Dial::v5(passing));
        }
        group
    }

    fn join(&mut self, node: usize, id: &'static str, dial: Dial) {
        let mut client = self.cluster.connect(node, &dial);
        assert_eq!(client.subscribe(&[(GROUP, QoS::AtLeastOnce)]), [1]);
        client.patience(Duration::from_millis(1));
        self.members
            .insert(id, Member { dial, client, idle: false, held: BTreeMap::new(), again: BTreeSet::new() });
    }

    fn member(&mut self, id: &str) -> &mut Member {
        self.members.get_mut(id).unwrap()
    }

    /// A member gets the next messages, and acknowledges none.
    fn idle(&mut self, id: &str) {
        self.member(id).idle = true;
    }

    /// Publishes without waiting.
    fn publish(&mut self) {
        self.round += 1;
        for n in 0..ROUND {
            for (at, (i, publisher)) in self.publishers.iter_mut().enumerate() {
                let text = format!("round {} of {i}: {n}", self.round);
                let id = publisher.send_publish("w/x", text.as_bytes(), QoS::AtLeastOnce, false).unwrap();
                self.open.push((at, id));
                self.sent.push(text);
            }
        }
    }

    /// Waits for PUBACK of everything.
    fn acknowledged(&mut self) {
        for (at, id) in std::mem::take(&mut self.open) {
            self.publishers[at].1.wait_for("PUBACK", |i| match i {
                In::PubAck(of, reason) if *of == id => {
                    assert!(matches!(reason, Reason::Success), "{reason:?}");
                    Some(())
                }
                _ => None,
            });
        }
    }

    /// Reads what there is.
    fn look(&mut self) {
        for (id, member) in &mut self.members {
            while let Ok(packet) = member.client.try_recv() {
                let In::Publish(p) = packet else { panic!("{id}: {packet:?}") };
                let text = p.text().to_owned();
                let again = member.again.remove(&text);
                let twice = member.held.insert(text.clone(), p.packet_id).is_some();
                assert!(!twice && (p.dup || !again), "{id} got {text:?} twice");
                if !again {
                    self.got.entry(text).or_default().push(id);
                }
            }
            if !member.idle {
                member.acknowledge_all();
            }
        }
    }

    /// Reads until every message has come, and has come to somebody else than `left` if it is among `again`.
    fn collect(&mut self, left: &[&str], again: &[String]) {
        wait::until_true("every message comes", || {
            self.look();
            let there = |text: &String| self.got[text].iter().any(|id| !left.contains(id));
            self.got.len() == self.sent.len() && again.iter().all(there)
        });
    }

    /// Every message has come to one member, but those in `again` to one more.
    fn once(&mut self, again: &[String]) {
        // What is under way to anybody comes before the answer.
        for member in self.members.values_mut() {
            member.client.patience(wait::PATIENCE);
            member.client.send(&[0xC0, 0]).unwrap();
            let answer = member.client.recv();
            assert_eq!(answer, In::PingResp, "{:?}", member.dial);
            member.client.patience(Duration::from_millis(1));
        }
        for text in &self.sent {
            let wanted = if again.contains(text) { 2 } else { 1 };
            assert_eq!(self.got[text].len(), wanted, "{text:?} came to {:?}", self.got[text]);
        }
        self.got.clear();
        self.sent.clear();
    }

    /// Waits until it has something that it has not acknowledged.
    fn wait_held(&mut self, id: &str) {
        wait::until_true("it has work", || {
            self.look();
            !self.held(id).is_empty()
        });
    }

    fn held(&self, id: &str) -> Vec<String> {
        self.members[id].held.keys().cloned().collect()
    }
}

#[test]
fn every_message_goes_to_one_member_whoever_leaves() {
    let mut group = Group::start();
    group.publish();
    group.collect(&[], &[]);
    group.acknowledged();
    for id in group.members.keys() {
        assert!(group.got.values().any(|to| to.contains(id)), "{id} got nothing");
    }
    group.once(&[]);

    // Sessions that end with their connection, closed or lost; what they have not acknowledged goes to others.
    group.idle("passing0");
    group.idle("passing1");
    group.publish();
    group.collect(&[], &[]);
    let again = [group.held("passing0"), group.held("passing1")].concat();
    assert!(!again.is_empty());
    let mut passing = group.members.remove("passing0").unwrap().client;
    passing.patience(wait::PATIENCE);
    passing.disconnect();
    drop(group.members.remove("passing1"));
    group.publish();
    group.collect(&["passing0", "passing1"], &again);
    group.acknowledged();
    group.once(&again);

    // Who unsubscribes keeps what it has.
    group.idle("passing2");
    group.publish();
    group.wait_held("passing2");
    let leaver = group.member("passing2");
    leaver.client.patience(wait::PATIENCE);
    leaver.client.unsubscribe(&[GROUP]);
    leaver.client.patience(Duration::from_millis(1));
    group.acknowledged();
    group.collect(&[], &[]);
    group.member("passing2").idle = false;
    group.look();
    group.once(&[]);
    group.publish();
    group.collect(&[], &[]);
    group.acknowledged();
    assert!(group.got.values().flatten().all(|id| *id != "passing2"));
    group.once(&[]);

    // A member goes to another node: it is still one, and has what it had.
    group.idle("kept0");
    group.publish();
    group.wait_held("kept0");
    let dial = group.member("kept0").dial.clone();
    let client = group.cluster.connect(2, &dial);
    let mut old = group.member("kept0").go_on(client);
    assert_eq!(old.expect_closed(), Some(Reason::SessionTakenOver));
    group.publish();
    group.collect(&[], &[]);
    group.acknowledged();
    group.once(&[]);

    // A node dies with its members. Their sessions are there again when it is.
    group.idle("kept1");
    group.publish();
    group.wait_held("kept1");
    group.cluster.kill(1);
    group.publish();
    group.cluster.restart(1);
    let dial = group.member("kept1").dial.clone();
    let client = group.cluster.connect(0, &dial);
    drop(group.member("kept1").go_on(client));
    group.acknowledged();
    group.collect(&[], &[]);
    group.once(&[]);
}

#[test]
fn every_node_gets_as_much_as_it_has_members_and_each_message_once() {
    let cluster = BerthCluster::start(3);
    let mut publisher = cluster.connect(2, &Dial::v5("pub"));
    let mut members: Vec<(usize, Client)> = [0, 1, 1, 1]
        .into_iter()
        .enumerate()
        .map(|(n, node)| {
            let mut client = cluster.connect(node, &Dial::v5(&format!("member{n}")));
            assert_eq!(client.subscribe(&[(GROUP, QoS::ExactlyOnce)]), [2]);
            client.patience(Duration::from_millis(1));
            (node, client)
        })
        .collect();
    // Others are told how many members a node has when that has held for a moment.
    wait::until_true("the publisher's node knows the members", || {
        let page = cluster.get_json(2, "/api/v1/routes?topic=w/x");
        let nodes = page["groups"][0]["nodes"].as_array();
        nodes.is_some_and(|all| all.iter().any(|n| n["node"] == "n1" && n["weight"] == 3))
    });
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut got = BTreeMap::<usize, Vec<String>>::new();
        for n in 0..MANY {
            publisher.publish("w/x", &n.to_string(), qos);
            if n.is_multiple_of(ROUND) {
                members.iter_mut().for_each(|(node, client)| take(client, got.entry(*node).or_default()));
            }
        }
        wait::until_true("every message comes", || {
            members.iter_mut().for_each(|(node, client)| take(client, got.entry(*node).or_default()));
            got.values().map(Vec::len).sum::<usize>() == MANY
        });
        let all: BTreeSet<&String> = got.values().flatten().collect();
        assert_eq!(all.len(), MANY, "some came twice, others not");
        for (node, share) in [(0, MANY / 4), (1, MANY * 3 / 4)] {
            let (few, many) = (share * 3 / 4, share * 5 / 4);
            assert!(
                (few..=many).contains(&got[&node].len()),
                "node {node} got {}, not about {share}",
                got[&node].len()
            );
        }
        for (_, client) in &mut members {
            client.patience(wait::PATIENCE);
            client.ping();
            client.patience(Duration::from_millis(1));
        }
    }
}

/// Takes what there is, each to the end.
fn take(client: &mut Client, got: &mut Vec<String>) {
    while let Ok(packet) = client.try_recv() {
        match packet {
            In::Publish(p) => {
                let kind = if p.qos == QoS::ExactlyOnce { AckKind::PubRec } else { AckKind::PubAck };
                client.ack(kind, p.packet_id).unwrap();
                got.push(p.text().to_owned());
            }
            In::PubRel(id) => client.ack(AckKind::PubComp, id).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}
