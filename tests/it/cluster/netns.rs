//! Network namespaces joined by a bridge: nodes that can be parted by a packet filter, pair by pair and in one direction
//! only, while their connections seem to stand. Needs root, `ip` (iproute2) and `nft` (nftables).

use crate::wait;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

/// Whether namespaces can be made here; says so loudly if not, and fails if `BERTH_REQUIRE_NETNS` is 1.
pub fn available() -> bool {
    let root = rustix::process::geteuid().is_root();
    let tools = ["ip", "nft"].iter().all(|t| Command::new(t).arg("-V").output().is_ok());
    if !root || !tools {
        eprintln!(
            "\n*** NOT TESTED: network partitions need root (is: {root}) and the programs ip and nft (there: {tools}) ***\n"
        );
        let required = std::env::var("BERTH_REQUIRE_NETNS").is_ok_and(|v| v == "1");
        assert!(!required, "BERTH_REQUIRE_NETNS=1, and network namespaces cannot be made here");
    }
    root && tools
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", args.join(" "));
}

/// Hosts on a network of their own, which this process can reach. Removed when dropped.
pub struct Network {
    name: String,
    /// The first three bytes of all addresses.
    net: [u8; 3],
    hosts: usize,
}

impl Network {
    /// `n` hosts.
    pub fn new(n: usize) -> Network {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let no = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        // At most 15 characters for each interface.
        let name = format!("bt{pid:x}{no:x}");
        let [.., high, low] = pid.wrapping_mul(31).wrapping_add(u32::from(no)).to_be_bytes();
        let mut network = Network { name, net: [10, 64 | (high & 63), low], hosts: 0 };
        // The bridge has a namespace of its own: in this one a packet filter of others may drop what is forwarded.
        let (switch, plug) = (network.switch(), format!("{}p", network.name));
        run("ip", &["netns", "add", &switch]);
        run("ip", &["-n", &switch, "link", "add", "switch", "type", "bridge"]);
        run("ip", &["-n", &switch, "link", "set", "switch", "up"]);
        run("ip", &["link", "add", &network.name, "type", "veth", "peer", "name", &plug, "netns", &switch]);
        run("ip", &["-n", &switch, "link", "set", &plug, "master", "switch", "up"]);
        run("ip", &["addr", "add", &format!("{}/24", network.address(usize::MAX)), "dev", &network.name]);
        run("ip", &["link", "set", &network.name, "up"]);
        for host in 0..n {
            network.hosts += 1;
            network.add(host);
        }
        network
    }

    fn add(&self, host: usize) {
        let (space, switch) = (self.namespace(host), self.switch());
        let (outer, inner) = (format!("{}o{host}", self.name), format!("{}i{host}", self.name));
        run("ip", &["netns", "add", &space]);
        run(
            "ip",
            &["-n", &switch, "link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &space],
        );
        run("ip", &["-n", &switch, "link", "set", &outer, "master", "switch", "up"]);
        let address = format!("{}/24", self.address(host));
        self.within(host, &["ip", "addr", "add", &address, "dev", &inner]);
        self.within(host, &["ip", "link", "set", &inner, "up"]);
        self.within(host, &["ip", "link", "set", "lo", "up"]);
        self.within(host, &["nft", "add", "table", "ip", "cut"]);
        let hook = "{ type filter hook output priority 0; }";
        self.within(host, &["nft", "add", "chain", "ip", "cut", "out", hook]);
    }

    fn within(&self, host: usize, command: &[&str]) {
        run("ip", &[&["netns", "exec", &self.namespace(host)][..], command].concat());
    }

    fn switch(&self) -> String {
        format!("{}s", self.name)
    }

    /// The namespace of a host, for `ip netns exec`.
    pub fn namespace(&self, host: usize) -> String {
        format!("{}h{host}", self.name)
    }

    /// The address of a host; of this process's end with any number beyond.
    pub fn address(&self, host: usize) -> IpAddr {
        let [a, b, c] = self.net;
        let last = if host < 200 { 10 + host as u8 } else { 1 };
        IpAddr::V4(Ipv4Addr::new(a, b, c, last))
    }

    /// Drops every packet from `from` to `to`.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        let to = self.address(to).to_string();
        self.within(from, &["nft", "add", "rule", "ip", "cut", "out", "ip", "daddr", &to, "drop"]);
    }

    /// Drops every packet from a host to this TCP port of this process's end.
    pub fn cut_port(&self, from: usize, port: u16) {
        let (to, port) = (self.address(usize::MAX).to_string(), port.to_string());
        let rule = ["ip", "daddr", &to, "tcp", "dport", &port, "drop"];
        self.within(from, &[&["nft", "add", "rule", "ip", "cut", "out"][..], &rule].concat());
    }

    /// Drops every packet from a host to this process's end.
    pub fn cut_off(&self, from: usize) {
        self.cut_one_way(from, usize::MAX);
    }

    /// Drops every packet between two hosts.
    pub fn partition(&self, a: usize, b: usize) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        for host in 0..self.hosts {
            self.within(host, &["nft", "flush", "chain", "ip", "cut", "out"]);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in 0..self.hosts {
            // The other end of its cable goes along.
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(host)]).status();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.switch()]).status();
    }
}

/// That a packet filter parts what it is told to part, and nothing else.
#[test]
fn hosts_are_parted_one_way_and_joined_again() {
    if !available() {
        return;
    }
    let network = Network::new(3);
    let reaches = |from: usize, to: usize| {
        let to = network.address(to).to_string();
        let space = network.namespace(from);
        // A connection that is refused shows that packets pass both ways.
        let script = format!("exec 3<>/dev/tcp/{to}/9");
        let args = ["netns", "exec", &space, "timeout", "1", "bash", "-c", &script];
        let said = Command::new("ip").args(args).output().unwrap();
        String::from_utf8_lossy(&said.stderr).contains("refused")
    };
    let reached = |from, to| wait::until_true("a packet passes", || reaches(from, to));
    [(0, 1), (1, 0), (0, 2)].into_iter().for_each(|(from, to)| reached(from, to));
    network.cut_one_way(0, 1);
    assert!(!reaches(0, 1) && !reaches(1, 0));
    [(0, 2), (1, 2)].into_iter().for_each(|(from, to)| reached(from, to));
    network.heal();
    network.partition(1, 2);
    assert!(!reaches(1, 2));
    [(0, 1), (2, 0)].into_iter().for_each(|(from, to)| reached(from, to));
    network.heal();
    reached(1, 2);
}
