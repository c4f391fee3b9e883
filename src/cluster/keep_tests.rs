//! Which links are kept while membership changes, on several threads at once too, and what becomes of frames whose answers nobody waits
//! for.

use super::outbox::entry::{Asked, Entry, Plan};
use super::testing::{FakeStore, Manual};
use super::*;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::ports::{
    ClusterTime, Frame, LinkStatus, Member, MessageId, NoDirectory, PeerError, Peers, Report, Request,
    Response,
};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// How long the second change has time to overtake the first. It must not, so this is how long the test waits for it.
const OVERTAKING: Duration = Duration::from_millis(300);

/// Links whose first change takes effect only when the test says so.
struct Slow {
    begun: Sender<()>,
    go_on: Mutex<Option<Receiver<()>>>,
    kept: Mutex<Vec<Arc<str>>>,
    cancelled: Mutex<Vec<(Arc<str>, MessageId)>>,
}

impl Slow {
    /// Links whose changes take effect at once.
    fn at_once() -> Arc<Slow> {
        Slow::held(channel().0, None)
    }

    fn held(begun: Sender<()>, go_on: Option<Receiver<()>>) -> Arc<Slow> {
        let go_on = Mutex::new(go_on);
        Arc::new(Slow { begun, go_on, kept: Mutex::default(), cancelled: Mutex::default() })
    }

    fn kept(&self) -> Vec<Arc<str>> {
        self.kept.lock().clone()
    }
}

impl Peers for Slow {
    fn keep(&self, members: Vec<Member>) {
        let first = self.go_on.lock().take();
        if let Some(go_on) = first {
            self.begun.send(()).unwrap();
            go_on.recv().unwrap();
        }
        *self.kept.lock() = members.into_iter().map(|m| m.id.node).collect();
    }

    fn send(&self, _: &Arc<str>, _: Frame) {}

    fn cancel(&self, node: &Arc<str>, id: MessageId) {
        self.cancelled.lock().push((node.clone(), id));
    }

    fn report(&self, _: Report) {}

    fn request(&self, node: &Arc<str>, _: Request) -> BoxFuture<Result<Response, PeerError>> {
        Box::pin(std::future::ready(Err(PeerError::Unreachable(node.clone()))))
    }

    fn links(&self) -> Vec<LinkStatus> {
        Vec::new()
    }
}

fn registered(remote: &Remote, node: &str, incarnation: u64) {
    let member = Member {
        id: MemberId { node: node.into(), incarnation },
        peer_address: String::new(),
        mqtt_address: String::new(),
        http_address: None,
        zone: String::new(),
        version: String::new(),
        started_ms: 0,
        draining: false,
    };
    remote.members.set_member(&node.into(), Some(member), Time(1));
}

fn linked_by(peers: Arc<Slow>) -> Remote {
    let ports = ClusterPorts {
        coordinator: Arc::new(FakeStore::default()),
        peers,
        tasks: Arc::new(Manual::default()),
        directory: Arc::new(NoDirectory),
        time: Arc::new(ClusterTime::own_clock()),
    };
    Remote::new(ports, RemoteLimits::default(), Arc::new(Metrics::new()))
}

/// Node `b` is registered and linked, and has been asked to take a publish.
fn asked_of(remote: &Remote, b: &MemberId) -> MessageId {
    registered(remote, &b.node, b.incarnation);
    remote.members.link(&b.node, Some(b.clone()));
    remote.membership_changed();
    let (payload, properties) = (&[][..], &[][..]);
    let (topic, qos, retain, expires_at) = ("t", QoS::ExactlyOnce, false, None);
    let message = Message::new(Parts { topic, payload, properties, qos, retain, expires_at });
    let asked = Asked { direct: true, ..Asked::default() };
    let plan = Plan {
        matched_at: 3,
        direct: true,
        ask: [(b.node.clone(), asked)].into_iter().collect(),
        ..Plan::default()
    };
    let id = remote.outbox.next_id();
    remote.outbox.begin(id, Entry::new(message, 0, Time(1)), plan);
    remote.membership_changed();
    assert!(!remote.outbox.has_unmatched(), "nobody is lost");
    id
}

/// What is asked of a node goes with its link.
#[test]
fn publishes_that_a_node_has_not_answered_are_matched_again_when_its_link_is_given_up() {
    let peers = Slow::at_once();
    let remote = linked_by(peers.clone());
    let b = MemberId { node: "b".into(), incarnation: 2 };
    asked_of(&remote, &b);
    assert_eq!(peers.kept(), std::slice::from_ref(&b.node));
    // Its record goes, and there is no custody of what it owned; its link still works.
    remote.members.set_member(&b.node, None, Time(2));
    remote.membership_changed();
    assert_eq!((peers.kept(), remote.outbox.has_unmatched()), (Vec::new(), true));
}

/// A node that comes back is asked anew, perhaps for a shared subscription as well, and an answer to the first frame says nothing of that.
#[test]
fn frames_to_a_node_that_leaves_are_cancelled_once_its_link_is_down_although_that_is_kept() {
    let peers = Slow::at_once();
    let remote = linked_by(peers.clone());
    let b = MemberId { node: "b".into(), incarnation: 2 };
    let id = asked_of(&remote, &b);
    remote.members.report(&b, Report { leaving: true, ..Report::default() }, 3, Time(2));
    remote.membership_changed();
    assert_eq!((peers.cancelled.lock().len(), remote.outbox.has_unmatched()), (0, false), "it may answer");
    remote.members.link(&b.node, None);
    remote.membership_changed();
    assert_eq!((peers.kept(), remote.outbox.has_unmatched()), (vec![b.node.clone()], true));
    assert_eq!(*peers.cancelled.lock(), [(b.node.clone(), id)]);
}

#[test]
fn an_older_list_of_nodes_never_replaces_a_newer_one() {
    let (begun, has_begun) = channel();
    let (go, go_on) = channel();
    let (done, is_done) = channel();
    let peers = Slow::held(begun, Some(go_on));
    let remote = linked_by(peers.clone());
    registered(&remote, "b", 2);
    std::thread::scope(|threads| {
        threads.spawn(|| remote.membership_changed());
        has_begun.recv().unwrap();
        registered(&remote, "c", 3);
        let remote = &remote;
        threads.spawn(move || {
            remote.membership_changed();
            done.send(()).unwrap();
        });
        let _ = is_done.recv_timeout(OVERTAKING);
        go.send(()).unwrap();
    });
    let mut kept = peers.kept();
    kept.retain(|node| **node != *"a");
    assert_eq!(kept, ["b".into(), "c".into()]);
}
