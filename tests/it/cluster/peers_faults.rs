//! Links between nodes when the network or the other side is not what it should be.

use super::peers::{Got, Node, frame, pair, quick};
use super::proxy::Proxy;
use crate::random::Random;
use crate::wait::{becomes_true, chaos};
use berth::peers::PeerOptions;
use berth::ports::{LinkState, MemberId, Peers, Request};
use std::collections::HashSet;
use std::time::Duration;

/// Frames of one random run.
const FRAMES: u64 = 4000;

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_is_answered_once_and_in_order_whatever_the_network_does() {
    let mut random = Random::seeded("BERTH_PEERS_SEED");
    let (a, b, proxy) = pair(quick()).await;
    let mut sent = 0;
    while sent < FRAMES {
        for _ in 0..=random.below(200) {
            sent += 1;
            a.send(&b, sent);
            if random.chance(10) {
                a.send(&b, 0);
            }
        }
        match random.below(12) {
            0..=3 => proxy.cut(),
            4 => {
                proxy.refuse(true);
                chaos(random.below(30)).await;
                proxy.refuse(false);
            }
            5 => {
                proxy.stall(true);
                chaos(random.below(60)).await;
                proxy.stall(false);
            }
            _ => chaos(random.below(10)).await,
        }
    }
    becomes_true("all are answered", || a.inbox.answered.lock().len() as u64 == sent).await;
    assert!(a.inbox.answered.lock().values().all(|answers| answers.len() == 1), "one answer each");
    // A repetition may go back, but never past the first frame not seen: whoever drops what it has seen gets all in order.
    let mut next = 1;
    for got in b.inbox.got() {
        let Got::Frame(seq) = got else { continue };
        assert!(seq <= next, "{seq} came before {next}");
        next = next.max(seq + 1);
    }
    assert_eq!(next, sent + 1);
    let resent = a.metrics.peer_frames_resent.get();
    let received = b.inbox.got().iter().filter(|g| matches!(g, Got::Frame(1..))).count() as u64;
    println!("{sent} frames, {resent} sent again, {received} received");
    assert!(received <= sent + resent);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_noticed_and_survived() {
    let impatient = PeerOptions { peer_timeout: Duration::from_millis(900), ..quick() };
    let (a, b, proxy) = pair(impatient).await;
    proxy.stall(true);
    a.send(&b, 1);
    becomes_true("the silence is noticed", || a.status().state == LinkState::Down).await;
    println!("{}", a.status().error.unwrap());
    proxy.stall(false);
    becomes_true("the frame is answered", || a.inbox.answers() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_gets_what_its_last_process_did_not_answer() {
    let (a, mut b) = (Node::start("a", 1, quick()).await, Node::start("b", 2, quick()).await);
    a.keep(&[(&b, b.address)]);
    a.up().await;
    b.inbox.hold.store(true, std::sync::atomic::Ordering::SeqCst);
    a.send(&b, 1);
    becomes_true("it came", || b.inbox.got().len() == 1).await;
    b.stop();
    becomes_true("the link is down", || a.status().state != LinkState::Up).await;
    a.send(&b, 2);
    let again = Node::start("b", 9, quick()).await;
    a.keep(&[(&again, again.address)]);
    becomes_true("both are answered", || a.inbox.answers() == 2).await;
    assert_eq!(again.inbox.got(), [Got::Frame(1), Got::Frame(2)]);
    let links = a.inbox.links.lock().clone();
    assert_eq!(links, [Some(b.me.clone()), None, Some(again.me.clone())]);
    a.keep(&[]);
    becomes_true("the link is closed", || a.inbox.links.lock().len() == 4).await;
    assert!(a.peers.links().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_for_a_node_that_is_not_known_yet_is_kept() {
    let (a, b) = (Node::start("a", 1, quick()).await, Node::start("b", 2, quick()).await);
    a.send(&b, 0);
    a.send(&b, 1);
    assert_eq!(a.status().queued, 1);
    a.keep(&[(&b, b.address)]);
    becomes_true("it is answered", || a.inbox.answers() == 1).await;
    assert_eq!(b.inbox.got(), [Got::Frame(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_who_it_should_be_is_refused_and_told_why() {
    let b = Node::start("b", 2, quick()).await;
    let any = "127.0.0.1:0";
    let other = Node::with("a", 1, quick(), None, "other", any).await;
    other.keep(&[(&b, b.address)]);
    let error = other.error(LinkState::Refused).await;
    assert!(error.contains("cluster \"other\"") && error.contains("cluster.name"), "{error}");

    let a = Node::start("a", 1, quick()).await;
    let c = MemberId { node: "c".into(), incarnation: 3 };
    a.peers.keep(vec![super::peers::member(&c, b.address)]);
    let error = a.error(LinkState::Refused).await;
    assert!(error.contains("looks for node \"c\", but node \"b\" answers"), "{error}");

    let twin = Node::start("b", 7, quick()).await;
    twin.peers.keep(vec![super::peers::member(&c, b.address)]);
    let error = twin.error(LinkState::Refused).await;
    assert!(error.contains("two processes have the node ID \"b\""), "{error}");

    b.inbox.superseded.lock().push(a.me.clone());
    a.keep(&[(&b, b.address)]);
    becomes_true("it is refused for being superseded", || {
        a.peers.links().iter().any(|l| l.error.as_ref().is_some_and(|e| e.contains("a@1 is superseded")))
    })
    .await;
    let asked = a.peers.request(&b.me.node, Request::Events { after: 1 }).await;
    assert!(asked.is_err());
    assert!(b.metrics.peer_refusals.get() >= 4);
    assert!(b.inbox.got().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_superseded_later_is_refused_from_then_on() {
    let (a, b, _proxy) = pair(quick()).await;
    a.send(&b, 1);
    becomes_true("it is answered", || a.inbox.answers() == 1).await;
    b.inbox.superseded.lock().push(a.me.clone());
    a.send(&b, 2);
    let error = a.error(LinkState::Refused).await;
    assert!(error.contains("superseded"), "{error}");
    assert_eq!(b.inbox.got(), [Got::Frame(1)]);
    b.inbox.superseded.lock().clear();
    becomes_true("it is answered after all", || a.inbox.answers() == 2).await;

    a.inbox.superseded.lock().push(b.me.clone());
    a.send(&b, 3);
    let error = a.error(LinkState::Refused).await;
    assert!(error.contains("b@12 is superseded"), "{error}");
    assert_eq!(a.inbox.answers(), 2, "what it says does not count");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_an_error_that_names_the_key() {
    let a = Node::start("a", 1, quick()).await;
    let error = berth::peers::PeerServer::bind(&a.address.to_string()).await.err().unwrap();
    let text = error.to_string();
    assert!(text.contains("cluster.peer_address") && text.contains(&a.address.to_string()), "{text}");
    let gone = Proxy::start(a.address).await;
    let b = MemberId { node: "b".into(), incarnation: 2 };
    let address = gone.address();
    drop(gone);
    a.peers.keep(vec![super::peers::member(&b, address)]);
    let error = a.error(LinkState::Down).await;
    assert!(error.contains(&address.to_string()) && error.contains("refused"), "{error}");
    a.peers.send(&b.node, frame(1, 1));
    a.peers.keep(Vec::new());
    assert!(a.peers.links().is_empty(), "what nobody keeps is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_are_told_apart() {
    let (a, b, proxy) = pair(quick()).await;
    let asks: Vec<_> = (0..2000u64)
        .map(|after| tokio::spawn(a.peers.request(&b.me.node, Request::Events { after })))
        .collect();
    let mut seen = HashSet::new();
    for ask in asks {
        let reply = ask.await.unwrap().unwrap();
        let berth::ports::Response::Events(Some((_, after))) = reply else { panic!("{reply:?}") };
        assert!(seen.insert(after));
    }
    b.inbox.mute.store(true, std::sync::atomic::Ordering::SeqCst);
    let ask = tokio::spawn(a.peers.request(&b.me.node, Request::Events { after: 1 }));
    becomes_true("it is under way", || !ask.is_finished()).await;
    proxy.cut();
    assert!(ask.await.unwrap().is_err(), "a broken link ends it");
}
