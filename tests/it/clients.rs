//! Clients that others wrote: mosquitto's command line, Eclipse Paho in Python, and rumqttc (in `rumqttc_client.rs`).

use crate::broker::{Broker, command};
use crate::tree::root;
use crate::wait;
use std::cell::Cell;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;

/// Runs a command to its end; it must succeed. Its standard output.
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; scripts/test installs it"));
    let (out, err) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{out}\n{err}");
    out
}

/// Runs a script of `tests/it` that uses Paho; it must succeed. What it says. Paho needs an interpreter that has it:
/// `BERTH_TEST_PYTHON`, or the usual one.
pub fn paho_script(script: &str, args: &[&str]) -> String {
    let python = std::env::var("BERTH_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    run(Command::new(python).arg(root().join("tests/it").join(script)).args(args))
}

fn paho(version: &str) {
    let broker = Broker::start();
    let done = paho_script("paho_client.py", &[&broker.mqtt.port().to_string(), version]);
    assert!(done.lines().count() >= 6, "{done}");
}

#[test]
fn paho_3() {
    paho("3");
}

#[test]
fn paho_5() {
    paho("5");
}

/// mosquitto_pub and mosquitto_sub against one broker in one version.
struct Mosquitto {
    broker: Broker,
    version: &'static str,
    /// Subscriptions of those that listen.
    live: Rc<Cell<usize>>,
}

/// A mosquitto_sub that runs; killed when dropped.
struct Listening {
    child: Child,
    filters: usize,
    live: Rc<Cell<usize>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // An error says that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.live.set(self.live.get() - self.filters);
    }
}

impl Listening {
    /// What it wrote, once it has ended by itself.
    fn lines(mut self) -> Vec<String> {
        let stdout = self.child.stdout.take().unwrap();
        let text = std::io::read_to_string(stdout).unwrap();
        assert!(self.child.wait().unwrap().success(), "mosquitto_sub failed: {text}");
        text.lines().map(str::to_owned).collect()
    }
}

impl Mosquitto {
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        let port = self.broker.mqtt.port().to_string();
        command.args(["-h", "127.0.0.1", "-p", &port, "-V", self.version]).args(args);
        command
    }

    fn publish(&self, args: &[&str]) {
        run(&mut self.command("mosquitto_pub", args));
    }

    /// Starts mosquitto_sub and waits until its subscriptions are there.
    fn listen(&self, args: &[&str]) -> Listening {
        let filters = args.iter().filter(|a| **a == "-t").count();
        // Those that have ended may not have left the broker yet.
        let live = self.live.get();
        wait::until_true("earlier ones have left", || self.subscriptions() == live as f64);
        let mut command = self.command("mosquitto_sub", &[args, &["-W", "30"]].concat());
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        self.live.set(live + filters);
        let listening = Listening { child, filters, live: self.live.clone() };
        let wanted = (live + filters) as f64;
        wait::until_true("mosquitto_sub has subscribed", || self.subscriptions() == wanted);
        listening
    }

    fn subscriptions(&self) -> f64 {
        self.broker.metric("mqtt_subscriptions_active")
    }

    fn all_qos(&self) {
        let seen = self.listen(&["-t", "q/+", "-q", "2", "-C", "30", "-F", "%t %q %r %p"]);
        for n in 0..10 {
            for qos in ["0", "1", "2"] {
                self.publish(&["-t", &format!("q/{qos}"), "-q", qos, "-m", &n.to_string()]);
            }
        }
        // Order holds per topic and QoS; mosquitto_sub shows QoS 2 only once it is released.
        let lines = seen.lines();
        for qos in 0..3 {
            let topic = format!("q/{qos}");
            let of_topic: Vec<_> = lines.iter().filter(|l| l.starts_with(&topic)).collect();
            let expected: Vec<_> = (0..10).map(|n| format!("{topic} {qos} 0 {n}")).collect();
            assert_eq!(of_topic, expected.iter().collect::<Vec<_>>());
        }
    }

    fn retained(&self) {
        self.publish(&["-t", "r/a", "-r", "-q", "1", "-m", "old"]);
        self.publish(&["-t", "r/a", "-r", "-q", "2", "-m", "new"]);
        self.publish(&["-t", "r/b", "-r", "-q", "1", "-m", "gone"]);
        self.publish(&["-t", "r/b", "-r", "-q", "1", "-n"]);
        self.publish(&["-t", "r/c", "-r", "-m", "third"]);
        let seen =
            run(&mut self.command("mosquitto_sub", &["-t", "r/+", "-C", "2", "-W", "30", "-F", "%t %r %p"]));
        let mut seen: Vec<_> = seen.lines().collect();
        seen.sort_unstable();
        assert_eq!(seen, ["r/a 1 new", "r/c 1 third"]);
    }

    fn offline(&self) {
        let session = ["-c", "-i", "sleeper", "-q", "2", "-t", "o/#"];
        let expiry: &[&str] = if self.version == "5" { &["-x", "3600"] } else { &[] };
        // -E: leave once subscribed.
        run(&mut self.command("mosquitto_sub", &[&session[..], expiry, &["-E"]].concat()));
        for n in 0..20 {
            let qos = if n % 2 == 0 { "1" } else { "2" };
            self.publish(&["-t", "o/t", "-q", qos, "-m", &n.to_string()]);
        }
        let resumed = [&session[..], expiry, &["-C", "20", "-W", "30", "-F", "%q %p"]].concat();
        let seen = run(&mut self.command("mosquitto_sub", &resumed));
        // mosquitto_sub shows a message of QoS 2 when PUBREL comes: the order is that of each QoS.
        for qos in [1, 2] {
            let expected: Vec<_> =
                (0..20).filter(|n| 1 + n % 2 == qos).map(|n| format!("{qos} {n}")).collect();
            let seen: Vec<_> = seen.lines().filter(|l| l.starts_with(&qos.to_string())).collect();
            assert_eq!(seen, expected);
        }
        run(&mut self.command("mosquitto_sub", &["-i", "sleeper", "-t", "o/#", "-E"]));
    }

    fn wills(&self) {
        let watch = self.listen(&["-t", "w/#", "-q", "1", "-C", "1", "-F", "%t %p"]);
        let will = |topic: &'static str| {
            ["-t", "x", "--will-topic", topic, "--will-payload", "gone", "--will-qos", "1"]
        };
        run(&mut self.command("mosquitto_sub", &[&will("w/clean")[..], &["-E"]].concat()));
        drop(self.listen(&will("w/lost"))); // by SIGKILL
        assert_eq!(watch.lines(), ["w/lost gone"]);
    }

    fn shared(&self) {
        let member = || self.listen(&["-t", "$share/g/s/t", "-q", "1", "-C", "10", "-F", "%p"]);
        let members = [member(), member()];
        for n in 0..20 {
            self.publish(&["-t", "s/t", "-q", "1", "-m", &format!("{n:02}")]);
        }
        let mut seen = members.map(Listening::lines).concat();
        seen.sort();
        assert_eq!(seen, (0..20).map(|n| format!("{n:02}")).collect::<Vec<_>>());
    }

    fn large(&self, dir: &Path) {
        let (file, payload) = (dir.join("large"), vec![b'L'; 1024 * 1024 - 64]);
        std::fs::write(&file, &payload).unwrap();
        let seen = self.listen(&["-t", "l/t", "-q", "1", "-C", "1", "-F", "%l"]);
        self.publish(&["-t", "l/t", "-q", "1", "-f", file.to_str().unwrap()]);
        assert_eq!(seen.lines(), [payload.len().to_string()]);
    }

    fn properties(&self) {
        let seen = self.listen(&["-t", "p/t", "-q", "1", "-C", "1", "-F", "%C|%D|%R|%P|%E"]);
        let mut args = vec!["-t", "p/t", "-q", "1", "-m", "x"];
        for property in [
            ["content-type", "text/plain"].as_slice(),
            &["correlation-data", "c0"],
            &["response-topic", "answer/here"],
            &["user-property", "a", "1"],
            &["message-expiry-interval", "300"],
        ] {
            args.extend(["-D", "publish"]);
            args.extend(property);
        }
        self.publish(&args);
        let lines = seen.lines();
        let rest = lines[0].strip_prefix("text/plain|c0|answer/here|a:1|");
        let expiry: u32 = rest.unwrap_or_else(|| panic!("{lines:?}")).parse().unwrap();
        assert!((290..=300).contains(&expiry), "{expiry}");
    }
}

fn mosquitto(version: &'static str) {
    let dir = tempfile::TempDir::new().unwrap();
    let m = Mosquitto { broker: Broker::start(), version, live: Rc::default() };
    m.all_qos();
    m.retained();
    m.offline();
    m.wills();
    if version != "mqttv31" {
        m.shared();
    }
    m.large(dir.path());
    if version == "5" {
        m.properties();
    }
}

#[test]
fn mosquitto_3_1() {
    mosquitto("mqttv31");
}

#[test]
fn mosquitto_3_1_1() {
    mosquitto("mqttv311");
}

#[test]
fn mosquitto_5() {
    mosquitto("5");
}

/// What a user sees who only has the binary.
#[test]
fn the_command_line_answers() {
    let defaults = run(command().args(["config", "defaults"]));
    assert!(defaults.contains("max_connections"));
    assert_eq!(run(command().arg("version")).trim(), concat!("berth ", env!("CARGO_PKG_VERSION")));
}
