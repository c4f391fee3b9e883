//! An etcd cluster of its own for each test: real processes on loopback, which can be killed, stopped and started again.

use crate::wait;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// The ports given out: below those that the system gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A port nobody listens on.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id().wrapping_mul(97) as u16;
    for _ in 0..PORTS.len() {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u16;
        let port = PORTS.start + offset;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// One member.
struct Member {
    client: u16,
    peer: u16,
    metrics: u16,
    process: Option<Child>,
}

/// An etcd cluster. Its processes are killed and its data is removed when it is dropped.
pub struct Etcd {
    members: Vec<Member>,
    scheme: &'static str,
    args: Vec<String>,
    /// As whom etcdctl asks, `user:password`.
    user: Option<&'static str>,
    dir: TempDir,
}

/// Whether the etcd that is installed refuses every transaction while its database is full, those that cost nothing included, as it did
/// before 3.4.20 and 3.5.7 (docs/etcd.md).
pub fn refuses_all_when_full() -> bool {
    let output = Command::new("etcd").arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let version = text.lines().find_map(|line| line.strip_prefix("etcd Version: ")).unwrap();
    let numbers: Vec<u32> = version.split('.').map(|n| n.parse().unwrap()).collect();
    matches!(numbers[..], [3, 4, 0..20] | [3, 5, 0..7])
}

impl Etcd {
    /// Starts `n` members and waits until they have a leader.
    pub fn start(n: usize) -> Etcd {
        Etcd::with(n, "http", &[])
    }

    /// One member with the smallest database that is worth filling.
    pub fn small() -> Etcd {
        Etcd::with(1, "http", &["--quota-backend-bytes", "2097152"].map(str::to_owned))
    }

    /// One member that takes smaller requests than Berth expects.
    pub fn narrow() -> Etcd {
        Etcd::with(1, "http", &["--max-request-bytes", "49152"].map(str::to_owned))
    }

    /// Turns authentication on. Etcdctl is `root` from then on.
    pub fn enable_auth(&mut self) {
        for args in
            [&["user", "add", "root:root"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]]
        {
            self.ctl(args);
        }
        self.user = Some("root:root");
    }

    /// Writes until the database is full and the member raises its NOSPACE alarm.
    pub fn fill(&self) {
        let filler = "x".repeat(60_000);
        let full = (0..100).position(|i| !self.try_ctl(&["put", &format!("/fill/{i}"), &filler]).1);
        assert!(full.is_some(), "the quota is not reached");
    }

    /// Makes room again as an operator does.
    pub fn make_room(&self) {
        self.ctl(&["del", "/fill/", "--prefix"]);
        let status: serde_json::Value =
            serde_json::from_str(&self.ctl(&["endpoint", "status", "--write-out=json"])).unwrap();
        self.ctl(&["compact", &status[0]["Status"]["header"]["revision"].to_string()]);
        self.ctl(&["defrag"]);
        self.ctl(&["alarm", "disarm"]);
    }

    /// As [`Etcd::start`] with clients served over `scheme` (`http` or `https`) and more arguments for each member.
    pub fn with(n: usize, scheme: &'static str, args: &[String]) -> Etcd {
        // Its fsyncs go to memory: tests do not pull the plug.
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("berth-etcd-").tempdir_in(parent).unwrap();
        let member =
            || Member { client: free_port(), peer: free_port(), metrics: free_port(), process: None };
        let members = (0..n).map(|_| member()).collect();
        let mut etcd = Etcd { members, scheme, args: args.to_vec(), user: None, dir };
        for i in 0..n {
            etcd.spawn(i);
        }
        for i in 0..n {
            etcd.wait_healthy(i);
        }
        etcd
    }

    /// The members' addresses for clients.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|i| self.endpoint(i)).collect()
    }

    /// The address of member `i` for clients.
    pub fn endpoint(&self, i: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.members[i].client)
    }

    fn spawn(&mut self, i: usize) {
        let name = |i: usize| format!("m{i}");
        let peer = |i: usize| format!("http://127.0.0.1:{}", self.members[i].peer);
        let all: Vec<_> = (0..self.members.len()).map(|i| format!("{}={}", name(i), peer(i))).collect();
        let metrics = format!("http://127.0.0.1:{}", self.members[i].metrics);
        let data = self.dir.path().join(name(i));
        let log = File::options().create(true).append(true).open(self.log(i)).unwrap();
        let process = Command::new("etcd")
            .args(["--name", &name(i), "--data-dir", data.to_str().unwrap(), "--logger", "zap"])
            .args(["--listen-client-urls", &self.endpoint(i), "--advertise-client-urls", &self.endpoint(i)])
            .args(["--listen-peer-urls", &peer(i), "--initial-advertise-peer-urls", &peer(i)])
            .args(["--listen-metrics-urls", &metrics, "--initial-cluster", &all.join(",")])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the etcd program must be installed");
        self.members[i].process = Some(process);
    }

    fn log(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("m{i}.log"))
    }

    /// Whether member `i` answers and knows a leader.
    pub fn healthy(&self, i: usize) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.members[i].metrics));
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        ask().is_ok_and(|text| text.contains(r#""health":"true""#))
    }

    /// Waits until member `i` answers and knows a leader.
    pub fn wait_healthy(&mut self, i: usize) {
        let deadline = wait::deadline();
        wait::until_true("an etcd member is healthy", || {
            let ended = self.members[i].process.as_mut().and_then(|p| p.try_wait().unwrap());
            let log = || std::fs::read_to_string(self.log(i)).unwrap_or_default();
            assert!(ended.is_none(), "etcd member {i} has ended: {ended:?}\n{}", log());
            let healthy = self.healthy(i);
            assert!(healthy || berth::clock::now() < deadline, "etcd member {i} is not healthy:\n{}", log());
            healthy
        });
    }

    /// The member that leads.
    pub fn leader(&self) -> usize {
        wait::until("etcd has a leader", || {
            let status = self.ctl(&["endpoint", "status", "-w", "json"]);
            let members: serde_json::Value = serde_json::from_str(&status).ok()?;
            let leads = |m: &serde_json::Value| {
                let status = &m["Status"];
                status["leader"] == status["header"]["member_id"] && status["leader"] != 0
            };
            let leader = members.as_array()?.iter().find(|m| leads(m))?;
            self.endpoints().iter().position(|e| leader["Endpoint"] == **e)
        })
    }

    fn signal(&self, i: usize, signal: Signal) {
        let process = self.members[i].process.as_ref().expect("the member runs");
        kill_process(Pid::from_child(process), signal).unwrap();
    }

    /// SIGKILL.
    pub fn kill(&mut self, i: usize) {
        if let Some(mut process) = self.members[i].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// SIGSTOP: it hangs, its connections stay open.
    pub fn stop(&self, i: usize) {
        self.signal(i, Signal::STOP);
        wait::until_stopped(self.members[i].process.as_ref().expect("the member runs").id());
    }

    /// SIGCONT.
    pub fn cont(&self, i: usize) {
        self.signal(i, Signal::CONT);
    }

    /// Starts a killed member again with its data. Does not wait.
    pub fn restart(&mut self, i: usize) {
        self.kill(i);
        self.spawn(i);
    }

    /// Saves a backup; the file.
    pub fn save(&self) -> PathBuf {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let file = self.dir.path().join(format!("backup-{}.db", NEXT.fetch_add(1, Ordering::Relaxed)));
        // It takes one endpoint.
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint(0), "snapshot", "save", file.to_str().unwrap()])
            .output()
            .expect("the etcdctl program must be installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        file
    }

    /// Stops all members, restores each from a backup, and starts them again.
    pub fn restore(&mut self, backup: &Path) {
        let peers: Vec<_> = self.members.iter().map(|m| format!("http://127.0.0.1:{}", m.peer)).collect();
        let all: Vec<_> = peers.iter().enumerate().map(|(i, peer)| format!("m{i}={peer}")).collect();
        self.anew(|i, data| {
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["snapshot", "restore", backup.to_str().unwrap(), "--name", &format!("m{i}")])
                .args(["--data-dir", data.to_str().unwrap(), "--initial-cluster", &all.join(",")])
                .args(["--initial-advertise-peer-urls", &peers[i]])
                .output()
                .expect("the etcdctl program must be installed");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
    }

    /// Stops all members, and starts them again without their data.
    pub fn wipe(&mut self) {
        self.anew(|_, _| {});
    }

    /// Stops all members, has their data made anew, and starts them again.
    fn anew(&mut self, make: impl Fn(usize, &Path)) {
        (0..self.members.len()).for_each(|i| self.kill(i));
        for i in 0..self.members.len() {
            let data = self.dir.path().join(format!("m{i}"));
            std::fs::remove_dir_all(&data).unwrap();
            make(i, &data);
        }
        (0..self.members.len()).for_each(|i| self.spawn(i));
        (0..self.members.len()).for_each(|i| self.wait_healthy(i));
    }

    /// Runs etcdctl at all members that run; its output. Panics if it fails.
    pub fn ctl(&self, args: &[&str]) -> String {
        let (text, ok) = self.try_ctl(args);
        assert!(ok, "etcdctl {args:?}: {text}");
        text
    }

    /// Runs etcdctl at all members that run; its output and whether it succeeded.
    pub fn try_ctl(&self, args: &[&str]) -> (String, bool) {
        let running = (0..self.members.len()).filter(|&i| self.members[i].process.is_some());
        let endpoints: Vec<_> = running.map(|i| self.endpoint(i)).collect();
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints.join(","), "--command-timeout=10s"]);
        command.args(self.user.iter().flat_map(|user| ["--user", user]));
        let output = command.args(args).output().expect("the etcdctl program must be installed");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let ok = output.status.success();
        (String::from_utf8(output.stdout).unwrap() + if ok { "" } else { &stderr }, ok)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for i in 0..self.members.len() {
            // A stopped process is killed as well.
            self.kill(i);
        }
    }
}
