//! HAProxy before a listener, with clients that nobody here has written.

use super::pki::Pki;
use super::with_listener;
use crate::accounts::Files;
use crate::broker::{Broker, free_address};
use crate::wait;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// A running HAProxy; killed when dropped.
struct Haproxy {
    child: Child,
    door: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Haproxy {
    /// Hands connections on to `server`, with headers of version 2 of the PROXY protocol.
    fn start(server: SocketAddr) -> Haproxy {
        let (dir, door) = (tempfile::tempdir().unwrap(), free_address());
        let file = dir.path().join("haproxy.cfg");
        let config = format!(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend mqtt\n  bind {door}\n  default_backend brokers\n\
             backend brokers\n  server berth {server} send-proxy-v2\n"
        );
        std::fs::write(&file, config).unwrap();
        let program = ["/usr/sbin/haproxy", "haproxy"].into_iter().find(|p| std::path::Path::new(p).exists());
        let child = Command::new(program.unwrap_or("haproxy"))
            .args(["-db", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy is there: scripts/test installs it");
        wait::until_true("HAProxy listens", || std::net::TcpStream::connect(door).is_ok());
        Haproxy { child, door, _dir: dir }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of mosquitto's at an address of its own, through the proxy.
fn mosquitto(program: &str, from: &str, to: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["30", program, "-h", "localhost", "-p", &to.port().to_string(), "-A", from]);
    command.args(["-u", "alice", "-P", "secret", "-q", "1"]).args(args).stderr(Stdio::null());
    command
}

fn peer(broker: &Broker, id: &str) -> Option<String> {
    let (code, page) = broker.get(&format!("/api/v1/sessions/{id}"));
    let page: serde_json::Value = serde_json::from_str(&page).ok()?;
    (code == 200).then(|| page["session"]["connection"]["peer"].as_str().map(str::to_owned))?
}

#[test]
fn clients_behind_haproxy_are_known_by_their_own_addresses() {
    let (files, pki) = (Files::new(), Pki::new("authority"));
    files.user("alice", "secret");
    let (cert, key) = pki.server("broker");
    let ca = pki.ca().file;
    let proxied = [("proxy_protocol", "required"), ("proxy_from", "127.0.0.1")];
    let tls = [("cert_file", &*cert.file), ("key_file", &*key.file)];
    for (kind, options, shown) in
        [("tcp", proxied.to_vec(), vec![]), ("tls", [proxied, tls].concat(), vec!["--cafile", &*ca])]
    {
        let (setup, address) = with_listener(files.setup(), kind, &options);
        let broker = setup.start();
        let proxy = Haproxy::start(address);
        let args = [&["-i", "sub", "-t", "t/#", "-C", "1"][..], &shown].concat();
        let sub = mosquitto("mosquitto_sub", "127.0.0.7", proxy.door, &args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let from = wait::until("the subscriber is there", || peer(&broker, "sub"));
        assert!(from.starts_with("127.0.0.7:"), "{kind}: {from}");
        wait::until_true("it has subscribed", || broker.metric("mqtt_subscriptions_active") == 1.0);
        let args = [&["-i", "pub", "-t", "t/1", "-m", "through"][..], &shown].concat();
        assert!(
            mosquitto("mosquitto_pub", "127.0.0.8", proxy.door, &args).status().unwrap().success(),
            "{kind}"
        );
        let got = sub.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&got.stdout), "through\n", "{kind}");
        // Past the proxy nobody comes in.
        assert!(
            !mosquitto("mosquitto_pub", "127.0.0.8", address, &args).status().unwrap().success(),
            "{kind}"
        );
    }
}
