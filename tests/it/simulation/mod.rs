//! Random dialogues: three clients publish, subscribe, break off, say goodbye, come back, take over from themselves, a
//! fourth observes their wills and shares with a fifth, a sixth looks at what is retained; the journal falls behind and the broker dies. What they saw goes to the checker. The seed of a failure replays it exactly:
//! `BERTH_SEED=<seed>`; `BERTH_SEEDS=<n>` tries more.

mod peer;

use crate::checker;
use crate::history::Event;
use crate::random::Random;
use crate::transcript::world::World;
use berth::mqtt::Version;
use berth::node::Limits;
use peer::{ALL, Peer, SHARED, WILLS, elapsed, look};

/// Seeds tried.
const SEEDS: u64 = 300;

/// Steps of one dialogue.
const STEPS: usize = 400;

/// What one dialogue was, for whoever has to find out why it went wrong.
struct Played {
    history: Vec<Event>,
    steps: Vec<String>,
    received: usize,
    wills: usize,
}

fn play(seed: u64) -> Played {
    let mut rng = Random(seed);
    let mut limits = Limits::default();
    // Small ones, so that every queue runs over into the next.
    limits.broker.mailbox.messages = 4;
    limits.broker.session.max_inflight = 6;
    let mut world = World::new(limits, None);
    let kinds: [(Version, &[&str]); 3] =
        [(Version::V5, &[ALL, SHARED]), (Version::V311, &[ALL]), (Version::V5, &[ALL])];
    let new = |(no, (version, filters)): (usize, (Version, _))| Peer::new(no, version, filters, &mut world);
    let mut peers: Vec<Peer> = kinds.into_iter().enumerate().map(new).collect();
    let mut history = Vec::new();
    let mut steps = Vec::new();
    for filters in [&[WILLS, SHARED][..], &[SHARED]] {
        let mut observer = Peer::observer(peers.len(), filters, &mut world);
        observer.connect(false, &mut rng, &mut world, &mut history);
        while observer.hear_out(&mut world, &mut history) {}
        peers.push(observer);
    }
    for _ in 0..STEPS {
        let who = rng.below(peers.len() as u64) as usize;
        let peer = &mut peers[who];
        let step = match rng.below(100) {
            0..36 => peer.publish(&mut rng, &mut world, &mut history),
            36..69 => peer.listen(1 + rng.below(6) as usize, &mut world, &mut history),
            69..71 => look(&mut world, &mut history),
            71..80 => peer.connect(rng.chance(8), &mut rng, &mut world, &mut history),
            80..83 => peer.lose(&mut world, &mut history),
            83..86 => peer.leave(rng.chance(25), &mut world, &mut history),
            86..89 => {
                world.journal.hold();
                "journal hold".to_owned()
            }
            89..92 => {
                world.journal.release(Some(1 + rng.below(3) as usize));
                world.settle();
                "journal release some".to_owned()
            }
            92..94 => {
                world.journal.release(None);
                world.settle();
                "journal release".to_owned()
            }
            94..99 => {
                world.advance(rng.below(4000));
                history.push(Event::Now(elapsed(&world)));
                "time passes".to_owned()
            }
            _ => {
                world.restart();
                peers.iter_mut().for_each(|p| p.bereave(&world, &mut history));
                "restart".to_owned()
            }
        };
        peers.iter_mut().for_each(|p| p.look_after(&world, &mut history));
        steps.push(format!("[{}] {who}: {step}", history.len()));
    }
    // In the end everybody is back and hears everything out.
    world.journal.release(None);
    world.settle();
    for round in 0..1000 {
        let mut quiet = true;
        for peer in &mut peers {
            if !peer.connected() {
                peer.connect(false, &mut rng, &mut world, &mut history);
                quiet = false;
            }
            quiet &= !peer.hear_out(&mut world, &mut history);
        }
        if quiet {
            break;
        }
        assert!(round < 999, "seed {seed}: no end to it");
    }
    let received = history.iter().filter(|e| matches!(e, Event::Received { .. })).count();
    look(&mut world, &mut history);
    let wills = history.iter().filter(|e| matches!(e, Event::WillSeen { .. })).count();
    Played { history, steps, received, wills }
}

#[test]
fn promises_hold_in_random_dialogues() {
    let number = |name| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match number("BERTH_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("BERTH_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let (mut received, mut wills) = (0, 0);
    for &seed in &seeds {
        let played = match std::panic::catch_unwind(|| play(seed)) {
            Ok(played) => played,
            Err(_) => panic!("seed {seed} panicked; replay with BERTH_SEED={seed}"),
        };
        let broken = checker::check(&played.history);
        if !broken.is_empty() {
            let events: Vec<String> =
                played.history.iter().enumerate().map(|(at, e)| format!("{at}: {e:?}")).collect();
            panic!(
                "seed {seed}; replay with BERTH_SEED={seed}\nsteps ([events before]):\n{}\nevents:\n{}\nbroken:\n{}",
                played.steps.join("\n"),
                events.join("\n"),
                broken.join("\n")
            );
        }
        received += played.received;
        wills += played.wills;
    }
    // A load that moves nothing would show nothing.
    assert!(received >= seeds.len() * 20, "only {received} messages in {} dialogues", seeds.len());
    assert!(wills >= seeds.len(), "only {wills} wills in {} dialogues", seeds.len());
}
