//! A real mosquitto that bridges to one broker and to a cluster, with the configuration of `docs/bridging.md`.

use crate::broker::Broker;
use crate::client::{Client, Dial, Received};
use crate::cluster::nodes::BerthCluster;
use crate::tree::read;
use crate::wait;
use berth::mqtt::QoS;
use berth::mqtt::QoS::AtLeastOnce;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const STATES: &str = "$SYS/broker/connection/+/state";

/// A version as mosquitto's `bridge_protocol_version` names it. 3.1.1 is the default, and not mentioned.
const VERSIONS: [(&str, Option<&str>); 3] =
    [("3.1", Some("mqttv31")), ("3.1.1", None), ("5", Some("mqttv50"))];

/// Block `n` of the page, with this broker's address.
fn documented(n: usize, to: SocketAddr) -> String {
    let page = read("docs/bridging.md");
    let block = page.split("```").skip(1).step_by(2).nth(n).expect("a block of configuration");
    let (from, to) = ("address 127.0.0.1:1883", format!("address {to}"));
    assert!(block.contains(from), "{block}");
    block.replace(from, &to)
}

/// A mosquitto that bridges; killed when dropped. Its log is shown if the test fails.
pub struct Bridge {
    child: Child,
    /// Where it serves its own clients.
    pub address: SocketAddr,
    log: PathBuf,
    _dir: TempDir,
}

impl Bridge {
    /// The first configuration of the page in one of [`VERSIONS`], under a name; tries again after a second.
    fn to(broker: SocketAddr, name: &str, version: Option<&str>) -> Bridge {
        let version = version.map_or(String::new(), |v| format!("bridge_protocol_version {v}\n"));
        let block = documented(0, broker);
        Bridge::start(&format!(
            "{}restart_timeout 1\n{version}",
            block.replace("connection berth", &format!("connection {name}"))
        ))
    }

    /// A mosquitto with these lines of configuration.
    pub fn start(connection: &str) -> Bridge {
        let dir = TempDir::new().unwrap();
        let address = crate::broker::free_address();
        let (conf, log) = (dir.path().join("mosquitto.conf"), dir.path().join("log"));
        let listener =
            format!("listener {} {}\nallow_anonymous true\nlog_dest stderr\n", address.port(), address.ip());
        std::fs::write(&conf, format!("{listener}{connection}")).unwrap();
        // Debian has it where the PATH of plain users does not lead.
        let usual = "/usr/sbin/mosquitto";
        let program = if std::path::Path::new(usual).exists() { usual } else { "mosquitto" };
        let child = Command::new(program)
            .arg("-v")
            .arg("-c")
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("the broker mosquitto: {e}; scripts/test installs it"));
        let mut bridge = Bridge { child, address, log, _dir: dir };
        wait::until_true("mosquitto listens", || {
            let ended = bridge.child.try_wait().unwrap();
            assert!(ended.is_none(), "mosquitto ended: {ended:?}");
            std::net::TcpStream::connect(address).is_ok()
        });
        bridge
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // An error says that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of mosquitto ---\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// A client that has subscribed.
fn subscribed(dial: &Dial, to: SocketAddr, filter: &str) -> Client {
    let mut client = dial.connect(to);
    assert_eq!(client.subscribe(&[(filter, AtLeastOnce)]), [1]);
    client
}

fn publish(client: &mut Client, topic: &str, payload: &str, retain: bool) {
    assert!(!client.publish_with(topic, payload.as_bytes(), AtLeastOnce, retain).is_error());
}

/// Topic, payload and RETAIN.
fn seen(got: &Received) -> (&str, &str, bool) {
    (&got.topic, got.text(), got.retain)
}

/// The next messages are these, and no others come between.
fn gets(client: &mut Client, expected: &[(&str, &str, bool)]) {
    for message in expected {
        let got = client.receive();
        assert_eq!(seen(&got), *message, "of {expected:?}");
        assert_eq!(got.qos, AtLeastOnce);
    }
}

/// The next state of the bridge `name` that comes; whether it was retained.
fn state(watcher: &mut Client, name: &str) -> (String, bool) {
    loop {
        let got = watcher.receive();
        if got.topic.ends_with(&format!("{name}/state")) {
            return (got.text().to_owned(), got.retain);
        }
    }
}

/// The retained state that a new subscription gets.
fn retained_state(at: SocketAddr, name: &str) -> (String, bool) {
    state(&mut subscribed(&Dial::v5("asks for the state"), at, STATES), name)
}

/// What must be so between a mosquitto and a broker, for topics below `root`. `here` listens to all below `root` on Berth, `there` on
/// mosquitto; the bridge has subscribed.
fn both_ways(here: &mut Client, there: &mut Client, bridge: SocketAddr, broker: SocketAddr, root: &str) {
    let topic = |name: &str| format!("{root}/{name}");
    publish(there, &topic("a"), "up", false);
    gets(here, &[(&topic("a"), "up", false)]);
    // Had it come back, it would come before what is published later.
    publish(here, &topic("b"), "down", false);
    gets(there, &[(&topic("a"), "up", false), (&topic("b"), "down", false)]);
    publish(there, &topic("c"), "up", false);
    gets(here, &[(&topic("b"), "down", false), (&topic("c"), "up", false)]);
    gets(there, &[(&topic("c"), "up", false)]);
    // What is retained on one side is on the other, though it goes over a connection that has subscribed before.
    publish(there, &topic("kept/up"), "1", true);
    publish(here, &topic("kept/down"), "2", true);
    gets(here, &[(&topic("kept/up"), "1", false), (&topic("kept/down"), "2", false)]);
    gets(there, &[(&topic("kept/up"), "1", false), (&topic("kept/down"), "2", false)]);
    let kept = topic("kept/+");
    for at in [bridge, broker] {
        let mut late = subscribed(&Dial::v4("late"), at, &kept);
        let mut all = [late.receive(), late.receive()];
        all.sort_by(|a, b| a.topic.cmp(&b.topic));
        assert_eq!(
            all.each_ref().map(seen),
            [(&*topic("kept/down"), "2", true), (&*topic("kept/up"), "1", true)],
            "at {at}"
        );
    }
}

/// Waits until what was retained on Berth before the bridge came is on its side: it has subscribed.
fn wait_subscribed(bridge: &Bridge, topic: &str) {
    let mut first = subscribed(&Dial::v4("first"), bridge.address, topic);
    gets_either_way(&mut first, topic);
}

/// Live or retained, as it comes.
fn gets_either_way(client: &mut Client, topic: &str) {
    assert_eq!(client.receive().topic, topic);
}

/// Topic and payload of the next message that is not to be retained: at each connect a bridge sends and gets what is.
fn news(client: &mut Client) -> (String, String) {
    let got =
        wait::until("a message", || Some(client.receive()).filter(|got| !got.topic.starts_with("t/kept/")));
    (got.topic.clone(), got.text().to_owned())
}

fn one_broker(version: &str, bridge_version: Option<&str>) {
    let mut broker = Broker::start();
    let name = format!("to-one-{version}");
    let mut watcher = subscribed(&Dial::v5("watcher"), broker.mqtt, STATES);
    publish(&mut watcher, "before", "x", true);
    let mut bridge = Bridge::to(broker.mqtt, &name, bridge_version);
    assert_eq!(state(&mut watcher, &name), ("1".to_owned(), false));
    wait_subscribed(&bridge, "before");
    let dial = Dial::v5("here").persistent();
    let mut here = subscribed(&dial, broker.mqtt, "t/#");
    let mut there = subscribed(&Dial::v4("there"), bridge.address, "t/#");
    both_ways(&mut here, &mut there, bridge.address, broker.mqtt, "t");
    assert_eq!(retained_state(broker.mqtt, &name), ("1".to_owned(), true));

    // What is published while the broker is down waits in mosquitto; the bridge comes back by itself.
    broker.sigkill();
    publish(&mut there, "t/meanwhile", "up", false);
    gets(&mut there, &[("t/meanwhile", "up", false)]);
    broker.restart();
    let mut here = dial.connect(broker.mqtt);
    assert!(here.present);
    assert_eq!(news(&mut here), ("t/meanwhile".to_owned(), "up".to_owned()));
    let mut watcher = subscribed(&Dial::v5("watcher"), broker.mqtt, STATES);
    wait::until_true("the bridge says that it is back", || state(&mut watcher, &name).0 == "1");
    publish(&mut here, "t/again", "down", false);
    assert_eq!(news(&mut here), ("t/again".to_owned(), "down".to_owned()));
    assert_eq!(news(&mut there), ("t/again".to_owned(), "down".to_owned()));
    publish(&mut there, "t/last", "up", false);
    assert_eq!(news(&mut here), ("t/last".to_owned(), "up".to_owned()));
    assert_eq!(news(&mut there), ("t/last".to_owned(), "up".to_owned()));

    bridge.kill();
    wait::until_true("its will is published", || state(&mut watcher, &name).0 == "0");
    assert_eq!(retained_state(broker.mqtt, &name), ("0".to_owned(), true));
}

#[test]
fn mosquitto_3_1_bridges_to_one_broker() {
    one_broker(VERSIONS[0].0, VERSIONS[0].1);
}

#[test]
fn mosquitto_3_1_1_bridges_to_one_broker() {
    one_broker(VERSIONS[1].0, VERSIONS[1].1);
}

#[test]
fn mosquitto_5_bridges_to_one_broker() {
    one_broker(VERSIONS[2].0, VERSIONS[2].1);
}

/// What the others must not see: a bridge that does not say that it is one gets back what it publishes.
#[test]
fn a_bridge_that_does_not_say_so_is_a_client_as_any_other() {
    let broker = Broker::start();
    let mut here = subscribed(&Dial::v5("here"), broker.mqtt, "t/#");
    publish(&mut here, "before", "x", true);
    let bridge = Bridge::start(&format!("{}try_private false\n", documented(0, broker.mqtt)));
    wait_subscribed(&bridge, "before");
    let mut there = subscribed(&Dial::v4("there"), bridge.address, "t/#");
    publish(&mut there, "t/a", "up", false);
    gets(&mut here, &[("t/a", "up", false)]);
    gets(&mut there, &[("t/a", "up", false), ("t/a", "up", false)]);
}

#[test]
fn topics_are_mapped_as_documented() {
    let broker = Broker::start();
    let mut here = subscribed(&Dial::v5("here"), broker.mqtt, "#");
    publish(&mut here, "site/7/down/before", "x", true);
    let bridge = Bridge::start(&documented(1, broker.mqtt));
    wait_subscribed(&bridge, "down/before");
    let mut there = subscribed(&Dial::v4("there"), bridge.address, "#");
    gets(&mut there, &[("down/before", "x", true)]);
    publish(&mut there, "up/t", "1", false);
    publish(&mut there, "elsewhere", "2", false);
    publish(&mut here, "site/7/down/t", "3", false);
    publish(&mut here, "down/t", "4", false);
    publish(&mut here, "site/7/down/u", "5", false);
    let from_here = ["site/7/down/t", "down/t", "site/7/down/u"];
    let mut got: Vec<_> = (0..5).map(|_| here.receive().topic).collect();
    let up = got.iter().position(|t| t == "site/7/up/t").expect("what goes up");
    got.remove(up);
    assert_eq!(got, [&["site/7/down/before"], &from_here[..]].concat());
    let got: Vec<_> = (0..4).map(|_| there.receive().topic).collect();
    assert_eq!(got, ["up/t", "elsewhere", "down/t", "down/u"]);
}

#[test]
fn states_are_bounded() {
    const KEPT: usize = 1_024;
    let broker = Broker::start();
    let mut client = Dial::v5("any").connect(broker.mqtt);
    let topic = |n: usize| format!("$SYS/broker/connection/{n}/state");
    for n in 0..KEPT + 3 {
        publish(&mut client, &topic(n), "1", true);
    }
    let mut late = subscribed(&Dial::v5("late"), broker.mqtt, STATES);
    let mut found: Vec<_> = (0..KEPT).map(|_| late.receive().topic).collect();
    let mut expected: Vec<_> = (3..KEPT + 3).map(topic).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    late.expect_silence();
    let said = broker.log().lines().filter(|l| l.contains("BRIDGE_STATES_MAX")).count();
    assert_eq!(said, 1);
}

#[test]
fn mosquitto_bridges_to_a_cluster() {
    let cluster = BerthCluster::start(3);
    let mut watchers: Vec<_> =
        (0..3).map(|i| subscribed(&Dial::v5(&format!("watcher {i}")), cluster.mqtt(i), STATES)).collect();
    publish(&mut watchers[1], "before", "x", true);
    for (version, bridge_version) in VERSIONS {
        let (name, root) = (format!("to-all-{version}"), format!("v{version}"));
        let mut bridge = Bridge::to(cluster.mqtt(0), &name, bridge_version);
        for watcher in &mut watchers {
            assert_eq!(state(watcher, &name), ("1".to_owned(), false), "{version}");
        }
        wait_subscribed(&bridge, "before");
        let filter = format!("{root}/#");
        let mut here = subscribed(&Dial::v5("here"), cluster.mqtt(1), &filter);
        let mut there = subscribed(&Dial::v4("there"), bridge.address, &filter);
        both_ways(&mut here, &mut there, bridge.address, cluster.mqtt(2), &root);
        bridge.kill();
        for watcher in &mut watchers {
            assert_eq!(state(watcher, &name), ("0".to_owned(), false), "{version}");
        }
        assert_eq!(retained_state(cluster.mqtt(0), &name), ("0".to_owned(), true));
    }
    bridges_move(&cluster);
}

/// A bridge comes back to another node: its session brings no local and retain as published along, and its state is told anew.
fn bridges_move(cluster: &BerthCluster) {
    let topic = "$SYS/broker/connection/moves/state";
    let mut watchers: Vec<_> =
        (0..2).map(|i| subscribed(&Dial::v5(&format!("mover {i}")), cluster.mqtt(i), topic)).collect();
    let mut dial = Dial::v4("moves").bridge().persistent().will(topic, "0", 0);
    if let Some(will) = dial.will.as_mut() {
        will.retain = true;
    }
    let mut old = subscribed(&dial, cluster.mqtt(0), "m/+");
    publish(&mut old, topic, "1", true);
    let mut new = dial.connect(cluster.mqtt(1));
    assert!(new.present);
    publish(&mut new, topic, "1", true);
    for watcher in &mut watchers {
        gets(watcher, &[(topic, "1", false), (topic, "0", false), (topic, "1", false)]);
    }
    assert_eq!(retained_state(cluster.mqtt(0), "moves"), ("0".to_owned(), true));
    assert_eq!(retained_state(cluster.mqtt(1), "moves"), ("1".to_owned(), true));
    publish(&mut new, "m/own", "x", true);
    let mut other = cluster.connect(2, &Dial::v5("other"));
    publish(&mut other, "m/kept", "y", true);
    publish(&mut other, "m/live", "z", false);
    gets(&mut new, &[("m/kept", "y", true), ("m/live", "z", false)]);
    assert_eq!(new.publish_with("m/own", b"x", QoS::AtMostOnce, false), berth::mqtt::Reason::Success);
    new.expect_silence();
}
