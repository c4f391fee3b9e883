//! Which links are kept while membership changes on several threads at once.

use super::testing::{FakeStore, Manual};
use super::*;
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

    fn cancel(&self, _: &Arc<str>, _: MessageId) {}

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

#[test]
fn an_older_list_of_nodes_never_replaces_a_newer_one() {
    let (begun, has_begun) = channel();
    let (go, go_on) = channel();
    let (done, is_done) = channel();
    let peers = Arc::new(Slow { begun, go_on: Mutex::new(Some(go_on)), kept: Mutex::default() });
    let ports = ClusterPorts {
        coordinator: Arc::new(FakeStore::default()),
        peers: peers.clone(),
        tasks: Arc::new(Manual::default()),
        directory: Arc::new(NoDirectory),
        time: Arc::new(ClusterTime::own_clock()),
    };
    let remote = Remote::new(ports, RemoteLimits::default(), Arc::new(Metrics::new()));
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
    let mut kept = peers.kept.lock().clone();
    kept.retain(|node| **node != *"a");
    assert_eq!(kept, ["b".into(), "c".into()]);
}
