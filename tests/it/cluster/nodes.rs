//! A cluster of real broker processes on a real etcd, on loopback, whose processes and connections fail on demand.

use super::etcd::Etcd;
use super::proxy::Proxy;
use super::trap::Trap;
use crate::broker::{Broker, Setup, free_address};
use crate::client::{Client, Dial};
use crate::wait;
use serde_json::Value;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Room for one cluster of real brokers, given back when it is dropped.
pub struct Room(());

/// How many clusters run now.
static RUNNING: Mutex<usize> = Mutex::new(0);

/// A cluster has ended.
static ENDED: Condvar = Condvar::new();

impl Room {
    /// Waits until there is room for one more cluster beside those of this process: one for each core, since more take each other's times.
    pub fn take() -> Room {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // That a test failed says nothing about the next one.
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running =
            ENDED.wait_while(running, |running| *running >= cores).unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Room(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// How node `to` is linked from a broker, by its own word: `Null` if it does not say.
pub fn link(from: &Broker, to: usize) -> Value {
    let page =
        from.try_get("/cluster/status").and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
    let name = format!("n{to}");
    let members = page.as_ref().and_then(|p| p["cluster"]["members"].as_array());
    let member = members.and_then(|all| all.iter().find(|m| m["node"] == *name));
    member.map_or(Value::Null, |m| m["link"]["state"].clone())
}

/// A node: its process and what lies between it and the others.
pub struct Node {
    /// The process, dead or alive.
    pub broker: Broker,
    /// Between it and each etcd member.
    etcd: Vec<Proxy>,
    /// Between the other nodes and it.
    peers: Proxy,
}

/// See the module. Node `i` is called `n<i>`. Everything is killed and removed when it is dropped; what the processes logged
/// is shown if the test fails.
pub struct BerthCluster {
    nodes: Vec<Node>,
    /// Its etcd.
    pub etcd: Etcd,
    dir: TempDir,
    options: Vec<(String, String)>,
    /// What a node's first process runs, if not the program that was just built.
    first: Option<PathBuf>,
    /// By how much clocks are wrong, as faketime takes it; empty = right.
    clocks: Vec<String>,
    /// Runs the proxies; goes last but one.
    runtime: Runtime,
    _room: Room,
}

impl BerthCluster {
    /// `n` brokers that are ready and know each other, and one etcd member.
    pub fn start(n: usize) -> BerthCluster {
        BerthCluster::with(n, 1, &[])
    }

    /// As [`BerthCluster::start`], but the processes run an earlier program until they are restarted: the one that
    /// `BERTH_PREVIOUS_BIN` names, if it is set (`scripts/test --upgrade-from` does).
    pub fn of_previous(n: usize) -> BerthCluster {
        let first = std::env::var_os("BERTH_PREVIOUS_BIN").map(PathBuf::from);
        BerthCluster::build(first, || Etcd::start(1), n, &[], &[])
    }

    /// As [`BerthCluster::with`], with one etcd member, and a node for each of these clocks: by how much it is wrong, such as `+30s`;
    /// empty = it is right.
    pub fn with_clocks(clocks: &[&str], options: &[(&str, &str)]) -> BerthCluster {
        BerthCluster::build(None, || Etcd::start(1), clocks.len(), options, clocks)
    }

    /// As [`BerthCluster::start`] with this many etcd members and these options for every broker.
    pub fn with(n: usize, etcds: usize, options: &[(&str, &str)]) -> BerthCluster {
        BerthCluster::on(|| Etcd::start(etcds), n, options)
    }

    /// As [`BerthCluster::with`], on this etcd.
    pub fn on(etcd: impl FnOnce() -> Etcd, n: usize, options: &[(&str, &str)]) -> BerthCluster {
        BerthCluster::build(None, etcd, n, options, &[])
    }

    fn build(
        first: Option<PathBuf>,
        etcd: impl FnOnce() -> Etcd,
        n: usize,
        options: &[(&str, &str)],
        clocks: &[&str],
    ) -> BerthCluster {
        let room = Room::take();
        let etcd = etcd();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("berth-cluster-").tempdir_in(parent).unwrap();
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let clocks = clocks.iter().map(|c| (*c).to_owned()).collect();
        let mut cluster =
            BerthCluster { nodes: Vec::new(), etcd, dir, options, first, clocks, runtime, _room: room };
        (0..n).for_each(|_| cluster.spawn());
        (0..n).for_each(|i| cluster.nodes[i].broker.wait_ready());
        cluster.wait_formed();
        cluster
    }

    /// Starts one more node without waiting.
    fn spawn(&mut self) {
        let name = format!("n{}", self.nodes.len());
        let own = free_address();
        let proxy = |to| self.runtime.block_on(Proxy::start(to));
        let peers = proxy(own);
        let links: Vec<Proxy> = self.etcd.endpoints().iter().map(|e| proxy(address(e))).collect();
        let endpoints: Vec<String> = links.iter().map(|p| format!("http://{}", p.address())).collect();
        let setup = Setup::new()
            .dir(&self.dir.path().join(&name))
            .set("node.id", &name)
            .set("cluster.enabled", "true")
            .set("cluster.peer_address", &own.to_string())
            .set("cluster.advertise_peer", &peers.address().to_string())
            .set("etcd.endpoints", &endpoints.join(","));
        let mut setup = self.options.iter().fold(setup, |s, (key, value)| s.set(key, value));
        if let Some(program) = &self.first {
            setup = setup.program(program.clone());
        }
        if let Some(clock) = self.clocks.get(self.nodes.len()) {
            setup = faked(clock).into_iter().fold(setup, |s, (name, value)| s.env(name, &value));
        }
        self.nodes.push(Node { broker: setup.spawn(), etcd: links, peers });
    }

    /// Adds a node; its number. Completes when it is ready.
    pub fn join(&mut self) -> usize {
        self.spawn();
        let i = self.nodes.len() - 1;
        self.nodes[i].broker.wait_ready();
        i
    }

    /// How many nodes there are, dead ones included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Node `i`'s process.
    pub fn broker(&mut self, i: usize) -> &mut Broker {
        &mut self.nodes[i].broker
    }

    /// Where node `i` serves MQTT.
    pub fn mqtt(&self, i: usize) -> SocketAddr {
        self.nodes[i].broker.mqtt
    }

    /// Where the nodes serve MQTT.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.len()).map(|i| self.mqtt(i)).collect()
    }

    /// Where node `i` serves admin HTTP.
    pub fn http(&self, i: usize) -> SocketAddr {
        self.nodes[i].broker.http
    }

    /// JSON of admin HTTP of node `i`.
    pub fn get_json(&self, i: usize, path: &str) -> Value {
        self.nodes[i].broker.get_json(path)
    }

    /// A number from `/metrics` of node `i`.
    pub fn metric(&self, i: usize, name: &str) -> f64 {
        self.nodes[i].broker.metric(name)
    }

    /// A client on node `i`.
    pub fn connect(&self, i: usize, dial: &Dial) -> Client {
        dial.connect(self.mqtt(i))
    }

    /// SIGKILL.
    pub fn kill(&mut self, i: usize) {
        self.nodes[i].broker.sigkill();
    }

    /// SIGTERM, and waits for the end.
    pub fn term(&mut self, i: usize) {
        let status = self.nodes[i].broker.stop();
        assert!(status.success(), "node {i} ended with {status}");
    }

    /// SIGSTOP: it hangs, its connections stay open.
    pub fn stop(&self, i: usize) {
        self.nodes[i].broker.signal("STOP");
        wait::until_stopped(self.nodes[i].broker.pid());
    }

    /// SIGCONT.
    pub fn cont(&self, i: usize) {
        self.nodes[i].broker.signal("CONT");
    }

    /// Starts a node again that has ended, and waits until it is ready.
    pub fn restart(&mut self, i: usize) {
        self.nodes[i].broker.restart();
    }

    /// The clock of node `i` is wrong by so much from its next start on; empty = right.
    pub fn set_clock(&mut self, i: usize, clock: &str) {
        self.nodes[i].broker.set_env(faked(clock));
    }

    /// Starts a killed node again with an empty disk, and waits until it is ready.
    pub fn wipe(&mut self, i: usize) {
        self.kill(i);
        std::fs::remove_dir_all(self.dir.path().join(format!("n{i}"))).unwrap();
        self.restart(i);
    }

    /// Breaks node `i`'s connections to etcd and refuses new ones, or lets it connect again.
    pub fn cut_from_etcd(&self, i: usize, cut: bool) {
        self.nodes[i].etcd.iter().for_each(|p| p.refuse(cut));
    }

    /// Lets no byte pass between node `i` and etcd, while connections stay, or lets them pass again.
    pub fn stall_etcd(&self, i: usize, stalled: bool) {
        self.nodes[i].etcd.iter().for_each(|p| p.stall(stalled));
    }

    /// Breaks the links that other nodes have made to node `i` and refuses new ones, or allows them again. Node `i`'s own
    /// links to the others stay.
    pub fn cut_links_to(&self, i: usize, cut: bool) {
        self.nodes[i].peers.refuse(cut);
    }

    /// As [`BerthCluster::cut_links_to`], but the links stay, and nothing passes.
    pub fn stall_links_to(&self, i: usize, stalled: bool) {
        self.nodes[i].peers.stall(stalled);
    }

    /// Sets a trap on the links that other nodes have made to node `i`.
    pub fn trap_links_to(&self, i: usize, trap: Trap) {
        self.nodes[i].peers.trap(trap);
    }

    /// Sets a trap between node `i` and etcd.
    pub fn trap_etcd(&self, i: usize, trap: &Trap) {
        self.nodes[i].etcd.iter().for_each(|p| p.trap(trap.clone()));
    }

    /// Waits until a trap at node `i` holds something.
    pub fn wait_caught(&self, i: usize, what: &str) {
        let node = &self.nodes[i];
        wait::until_true(what, || node.peers.caught() || node.etcd.iter().any(Proxy::caught));
    }

    /// Removes all traps, and lets pass what they hold.
    pub fn release(&self) {
        self.nodes.iter().for_each(|n| {
            n.peers.release();
            n.etcd.iter().for_each(Proxy::release);
        });
    }

    /// The nodes that say they have the session of a client.
    pub fn homes(&self, client_id: &str) -> Vec<usize> {
        let path = format!("/api/v1/sessions?prefix={client_id}");
        let lists = |i: &usize| {
            let page = self.nodes[*i].broker.try_get(&path);
            page.is_some_and(|(_, body)| body.contains(&format!("\"client_id\":\"{client_id}\"")))
        };
        (0..self.len()).filter(lists).collect()
    }

    /// A session's record in etcd.
    pub fn owner(&self, client_id: &str) -> Value {
        let key = format!("/berth/berth/v1/sessions/{client_id}");
        let value = self.etcd.ctl(&["get", &key, "--print-value-only"]);
        serde_json::from_str(&value).unwrap_or(Value::Null)
    }

    /// `/cluster/status` of node `i`; `Null` while it does not answer.
    pub fn status(&self, i: usize) -> Value {
        let answer = self.nodes[i].broker.try_get("/cluster/status");
        answer.and_then(|(_, body)| serde_json::from_str(&body).ok()).unwrap_or(Value::Null)
    }

    /// Whether node `i` says that it is ready.
    pub fn ready(&self, i: usize) -> bool {
        self.nodes[i].broker.try_get("/ready").is_some_and(|(code, _)| code == 200)
    }

    /// Waits until `/cluster/status` of node `i` is as wanted.
    pub fn wait_status(&self, i: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let last = RefCell::new(Value::Null);
        let ask = || {
            last.replace(self.status(i));
            Some(last.borrow().clone()).filter(&wanted)
        };
        wait::until_or(ask, || format!("{what} at node {i}, whose status is {}", last.borrow()))
    }

    /// The nodes that are registered in etcd.
    pub fn members(&self) -> Vec<String> {
        let keys = self.etcd.ctl(&["get", "--prefix", "/berth/berth/v1/members/", "--keys-only"]);
        keys.lines()
            .filter_map(|k| k.rsplit('/').next().filter(|n| !n.is_empty()).map(str::to_owned))
            .collect()
    }

    /// The node that leads: the oldest candidate, as etcd's election has it.
    pub fn leader(&self) -> Option<usize> {
        let prefix = "/berth/berth/v1/leader";
        let args = [
            "get",
            "--prefix",
            prefix,
            "--sort-by=CREATE",
            "--order=ASCEND",
            "--limit=1",
            "--print-value-only",
        ];
        let (value, ok) = self.etcd.try_ctl(&args);
        (0..self.len()).find(|i| ok && value.contains(&format!("n{i}")))
    }

    /// Whether node `from` says that its link to node `to` is up.
    pub fn linked(&self, from: usize, to: usize) -> bool {
        link(&self.nodes[from].broker, to) == "up"
    }

    /// Waits until every node is registered and has links to all others.
    pub fn wait_formed(&self) {
        wait::until_true("all nodes are registered", || self.members().len() == self.nodes.len());
        for from in 0..self.len() {
            let others = || (0..self.len()).filter(|to| *to != from);
            wait::until_true("all links are up", || others().all(|to| self.linked(from, to)));
        }
    }
}

/// The environment of a process whose wall clock is wrong by so much, and no other clock.
fn faked(clock: &str) -> Vec<(&'static str, String)> {
    if clock.is_empty() {
        return Vec::new();
    }
    let libraries = || std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let library =
        libraries().map(|d| d.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    let library = library.expect("faketime: apt-get install faketime").to_str().unwrap().to_owned();
    let on = || "1".to_owned();
    vec![
        ("LD_PRELOAD", library),
        ("FAKETIME", clock.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", on()),
        ("NO_FAKE_STAT", on()),
    ]
}

/// The address in `http://address`.
fn address(endpoint: &str) -> SocketAddr {
    endpoint.trim_start_matches("http://").parse().unwrap()
}
