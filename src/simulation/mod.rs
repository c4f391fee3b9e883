//! Several brokers of one cluster in one process and in virtual time: production brokers on a coordination store, links and
//! journals in memory, and clients without sockets. For tests; a seed replays everything.

#[cfg(test)]
mod choices;
#[cfg(test)]
mod claims;
mod client;
pub mod cluster;
#[cfg(test)]
mod cluster_figures;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod forgotten;
#[cfg(test)]
mod frozen_long;
#[cfg(test)]
mod gone_sessions;
#[cfg(test)]
mod group_faults;
#[cfg(test)]
mod large_sessions;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod left_rows;
#[cfg(test)]
mod mixed_faults;
#[cfg(test)]
mod moves_interrupted;
#[cfg(test)]
mod moves_under_load;
#[cfg(test)]
mod moves_with_crashes;
#[cfg(test)]
mod moving_members;
#[cfg(test)]
mod publish_tests;
#[cfg(test)]
mod records;
#[cfg(test)]
mod repeated_publishes;
#[cfg(test)]
mod restored;
#[cfg(test)]
mod retained_limits;
#[cfg(test)]
mod retained_overlaps;
#[cfg(test)]
mod roamers;
#[cfg(test)]
mod stalls;
#[cfg(test)]
mod subacks;
#[cfg(test)]
mod takeovers;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod uneven;
#[cfg(test)]
mod wills_void;
mod wire;

pub use client::{Got, SimClient};
pub use wire::Wire;

use crate::auth::Anonymous;
use crate::broker::delivery::Scratch;
use crate::clock::Time;
use crate::cluster::ClusterPorts;
use crate::node::{self, Limits, Ports};
use crate::ports::{
    ClusterTime, Coordinator, Journal, Member, MemberId, NoBans, NoDirectory, Recovered, Tasks, Unrestricted,
};
use crate::simulation::cluster::{
    MemoryCoordinator, MemoryPeers, Network, Registration, SimProcess, SimTasks, Store,
};
use crate::storage::{MemoryJournal, MemoryOptions};
use crate::telemetry::Metrics;
#[cfg(test)]
use choices::seeds;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

/// When every simulation begins: 2026-01-01.
pub const START: Time = Time(1_767_225_600_000);

/// How long a condition may take to come true, milliseconds of virtual time.
pub const PATIENCE_MS: u64 = 120_000;

/// A node of a simulated cluster.
pub struct Node {
    /// Its name: `n0`, `n1`, ….
    pub name: Arc<str>,
    /// Its disk.
    pub journal: Arc<MemoryJournal>,
    /// Names its disk.
    disk: u64,
    /// The process, while it runs.
    running: Option<Running>,
}

/// A process of a node.
pub struct Running {
    /// Its tasks.
    pub process: Arc<SimProcess>,
    /// The node.
    pub node: Arc<node::Node>,
    /// Its end of the store.
    pub coordinator: Arc<MemoryCoordinator>,
    /// Its end of the network.
    pub peers: Arc<MemoryPeers>,
}

/// Several brokers of one cluster in one process and in virtual time.
pub struct Cluster {
    /// Time, and who works when.
    pub sim: SimTasks,
    /// The coordination store, and what can go wrong with it.
    pub store: Store,
    /// The links between nodes, and what can go wrong with them.
    pub net: Network,
    /// The limits that processes start with.
    pub limits: Limits,
    nodes: Vec<Node>,
    disks: u64,
}

impl Cluster {
    /// `n` running nodes that know each other.
    pub fn new(n: usize, seed: u64) -> Cluster {
        Cluster::with(n, seed, Limits::default())
    }

    /// As [`Cluster::new`], with these limits.
    pub fn with(n: usize, seed: u64, limits: Limits) -> Cluster {
        eprintln!("simulated with seed {seed}");
        let sim = SimTasks::new(seed, START);
        let store = Store::new(sim.process(), seed.wrapping_add(1));
        let net = Network::new(seed.wrapping_add(2));
        let mut cluster = Cluster { sim, store, net, limits, nodes: Vec::new(), disks: 0 };
        for no in 0..n {
            let journal = MemoryJournal::new(MemoryOptions::default());
            let disk = cluster.new_disk();
            let name = format!("n{no}").into();
            cluster.nodes.push(Node { name, journal, disk, running: None });
            cluster.start(no, Recovered::default());
        }
        cluster.sim.run_until_idle();
        cluster
    }

    fn new_disk(&mut self) -> u64 {
        self.disks += 1;
        self.disks
    }

    /// How many nodes there are, dead ones too.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Node `no`'s name.
    pub fn name(&self, no: usize) -> Arc<str> {
        self.nodes[no].name.clone()
    }

    /// Node `no`'s disk.
    pub fn journal(&self, no: usize) -> &MemoryJournal {
        &self.nodes[no].journal
    }

    /// The running process of node `no`; `None` while it is dead.
    pub fn running(&self, no: usize) -> Option<&Running> {
        self.nodes[no].running.as_ref()
    }

    /// The node of node `no`; `None` while it is dead.
    pub fn node(&self, no: usize) -> Option<&Arc<node::Node>> {
        self.running(no).map(|r| &r.node)
    }

    /// The process of node `no`; `None` while it is dead.
    pub fn id(&self, no: usize) -> Option<MemberId> {
        self.running(no).map(|r| r.coordinator.me())
    }

    fn start(&mut self, no: usize, recovered: Recovered) {
        let process = self.sim.process();
        let node = &self.nodes[no];
        let who = Registration { node: node.name.clone(), journal: node.disk };
        let coordinator = match self.store.register(&who, process.clone()) {
            Ok(coordinator) => coordinator,
            Err(why) => return tracing::error!(node = %node.name, %why, "cannot register"),
        };
        let peers = self.net.join(coordinator.me(), process.clone());
        let ports = Ports {
            journal: node.journal.clone(),
            authorizer: Arc::new(Anonymous { anywhere: true, nowhere: false }),
            permissions: Arc::new(Unrestricted),
            bans: Arc::new(NoBans),
            cluster: Some(ClusterPorts {
                coordinator: coordinator.clone(),
                peers: peers.clone(),
                tasks: process.clone(),
                directory: Arc::new(NoDirectory),
                time: Arc::new(ClusterTime::unknown()),
            }),
        };
        let known = recovered.store;
        let registered = coordinator.known(known.revision).unwrap_or_default();
        let anew = known.revision > 0 && known.timeline != registered.timeline;
        let recovered = Recovered { journal: node.disk, ..recovered };
        let node = node::Node::new(self.limits, ports, Arc::new(Metrics::new()), recovered, self.sim.now());
        if let Some(cluster) = &node.cluster {
            coordinator.connect(cluster.clone());
        }
        peers.connect(node.clone());
        process.spawn(node.reconcile(anew));
        process.spawn(Box::pin(timers(node.clone(), process.clone())));
        self.nodes[no].running = Some(Running { process, node, coordinator, peers });
    }

    /// Node `no`'s process dies as by `kill -9`: connections break without a goodbye, its lease runs out later.
    pub fn crash(&mut self, no: usize) {
        if let Some(running) = self.nodes[no].running.take() {
            running.process.kill();
            let name = self.name(no);
            self.store.crash(&name);
            self.net.crash(&name);
        }
    }

    /// Node `no` stops as by SIGTERM: it hands over what it can, serves nobody any more, says goodbye, and ends.
    pub fn stop(&mut self, no: usize) {
        let Some(node) = self.node(no).cloned() else { return };
        node.drain();
        let leaving = async move {
            node.hand_over().await;
            node.say_goodbye(1_000).await;
        };
        self.sim.wait(leaving, PATIENCE_MS);
        let name = self.name(no);
        self.crash(no);
        if self.store.answers() {
            self.store.expire_lease(&name);
        }
    }

    /// Starts node `no` again with its disk.
    pub fn restart(&mut self, no: usize) {
        self.crash(no);
        let (journal, recovered) = self.nodes[no].journal.reopen();
        self.nodes[no].journal = journal;
        self.start(no, recovered);
    }

    /// Starts node `no` again with an empty disk.
    pub fn wipe(&mut self, no: usize) {
        self.crash(no);
        self.nodes[no].disk = self.new_disk();
        self.nodes[no].journal = MemoryJournal::new(MemoryOptions::default());
        self.start(no, Recovered::default());
    }

    /// Parts two nodes, or joins them again.
    pub fn partition(&self, a: usize, b: usize, parted: bool) {
        self.net.partition(&self.nodes[a].name, &self.nodes[b].name, parted);
    }

    /// Cuts node `no` off from the store, or connects it again.
    pub fn cut_from_store(&self, no: usize, cut: bool) {
        self.store.cut_from_store(&self.nodes[no].name, cut);
    }

    /// The members as the store has them.
    pub fn members(&self) -> Vec<Member> {
        self.store.members()
    }

    /// Works until nothing is left to do at this time.
    pub fn settle(&self) {
        self.sim.run_until_idle();
    }

    /// Lets time pass.
    pub fn advance(&self, ms: u64) {
        self.sim.advance(ms);
    }

    /// Lets time pass until `holds`; false if it does not within [`PATIENCE_MS`].
    #[must_use]
    pub fn until(&self, holds: impl FnMut() -> bool) -> bool {
        self.sim.until(PATIENCE_MS, holds)
    }

    /// Opens a client's connection to node `no`. To a dead one it is closed at once.
    pub fn open(&self, no: usize) -> Arc<Wire> {
        match self.running(no) {
            Some(r) => Wire::open(r.node.clone(), r.process.clone()),
            None => Wire::refused(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A process and its node hold each other.
        for no in 0..self.nodes.len() {
            self.crash(no);
            self.nodes[no].journal.close();
        }
    }
}

/// Runs the timers of a node's dormant sessions.
async fn timers(node: Arc<node::Node>, tasks: Arc<dyn Tasks>) {
    let mut armed = None;
    poll_fn(|cx| {
        loop {
            let mut scratch = Scratch::default();
            node.on_timeout(tasks.now(), &mut scratch);
            scratch.wakes.flush();
            let Some(next) = node.next_timeout(cx.waker()) else { return Poll::<()>::Pending };
            let sleep = armed.insert(tasks.sleep(next.since_ms(tasks.now())));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}
