//! Clients that exchange messages and must not notice what happens beside them.

use crate::broker::Broker;
use crate::client::{Client, Dial};
use crate::wait;
use berth::mqtt::QoS;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Rounds in which each QoS had its turn.
const ROUNDS: usize = 6;

/// Pairs of clients: one sends, the other receives, one message after the other, for as long as they are watched.
pub struct Bystanders {
    stop: AtomicBool,
    /// How many messages of each pair have come.
    rounds: Vec<AtomicUsize>,
}

impl Bystanders {
    /// Runs `hostile` beside two clients of a broker.
    pub fn watch<R>(broker: &Broker, hostile: impl FnOnce() -> R) -> R {
        let sender = Dial::v4("bystander-out").connect(broker.mqtt);
        let receiver = Dial::v5("bystander-in").persistent().connect(broker.mqtt);
        Bystanders::watch_pairs(vec![(sender, receiver)], |_| hostile())
    }

    /// Runs `beside` beside these senders and receivers.
    pub fn watch_pairs<R>(pairs: Vec<(Client, Client)>, beside: impl FnOnce(&Bystanders) -> R) -> R {
        let rounds = pairs.iter().map(|_| AtomicUsize::new(0)).collect();
        let shared = Bystanders { stop: AtomicBool::new(false), rounds };
        std::thread::scope(|scope| {
            let exchange = |(pair, (sender, receiver))| {
                let shared = &shared;
                scope.spawn(move || shared.exchange(pair, sender, receiver))
            };
            let exchanges: Vec<_> = pairs.into_iter().enumerate().map(exchange).collect();
            let result = catch_unwind(AssertUnwindSafe(|| beside(&shared)));
            shared.stop.store(true, Ordering::Release);
            exchanges.into_iter().for_each(|e| e.join().unwrap());
            result.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Until it is told to stop, and at least [`ROUNDS`] rounds.
    fn exchange(&self, pair: usize, mut sender: Client, mut receiver: Client) {
        let topic = format!("bystanders/{pair}");
        receiver.subscribe(&[(&topic, QoS::ExactlyOnce)]);
        for round in 0.. {
            if round >= ROUNDS && self.stop.load(Ordering::Acquire) {
                return;
            }
            let qos = QoS::from_bits((round % 3) as u8).unwrap();
            sender.publish(&topic, &round.to_string(), qos);
            let p = receiver.receive();
            assert_eq!((p.text(), p.qos, p.dup), (&*round.to_string(), qos, false));
            self.rounds[pair].store(round + 1, Ordering::Release);
        }
    }

    /// Waits until each pair has exchanged messages of each QoS from now on.
    pub fn go_on(&self) {
        let rounds = || self.rounds.iter().map(|r| r.load(Ordering::Acquire));
        let wanted: Vec<usize> = rounds().map(|r| r + ROUNDS).collect();
        wait::until_true("all bystanders go on", || rounds().zip(&wanted).all(|(r, wanted)| r >= *wanted));
    }
}
