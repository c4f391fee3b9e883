//! Runs the real `berth` process: starts it on free ports, waits until it is ready, kills it when dropped.

use crate::wait::{self, PATIENCE};
use berth::clock;
use rustix::event::{PollFd, PollFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// The program that was just built.
const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// Ports below those that the system gives to outgoing connections, so that nobody takes one while its broker is down.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// An address on loopback that nobody listens on.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let offset = (std::process::id() as u16).wrapping_mul(97);
    for _ in 0..span {
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(offset) % span;
        let address = SocketAddr::from(([127, 0, 0, 1], PORTS.start + n));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Where what every process writes is kept as well, also that of processes which have ended: `BERTH_TEST_LOGS`, if it is set.
pub fn logs_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("BERTH_TEST_LOGS")?);
    std::fs::create_dir_all(&dir).unwrap();
    Some(dir)
}

/// What the process wrote to standard error so far.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
    /// What the process writes into, to see whether there is more to read.
    pipe: OnceLock<OwnedFd>,
}

impl Log {
    fn follow(self: Arc<Log>, pid: u32, mut stderr: impl Read + AsFd + Send + 'static) -> JoinHandle<()> {
        self.pipe.set(stderr.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let mut copy = logs_dir().map(|dir| File::create(dir.join(format!("berth-{pid}.log"))).unwrap());
        std::thread::spawn(move || {
            let (mut bytes, mut rest) = (vec![0; 64 * 1024], Vec::new());
            loop {
                let mut readable = [PollFd::new(&stderr, PollFlags::IN)];
                if rustix::event::poll(&mut readable, None).is_err() {
                    continue; // a signal
                }
                // Under the lock: whoever finds nothing to read there has all of it here.
                let mut log = self.lines.lock().unwrap();
                let n = stderr.read(&mut bytes).unwrap_or(0);
                rest.extend_from_slice(&bytes[..n]);
                if let Some(copy) = &mut copy {
                    copy.write_all(&bytes[..n]).unwrap();
                }
                while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    log.0.push(String::from_utf8_lossy(&line[..end]).into_owned());
                }
                log.1 = n == 0;
                self.grown.notify_all();
                if n == 0 {
                    return;
                }
            }
        })
    }

    /// The first line that `wanted` takes; `None` if the process ends without it.
    fn wait(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let mut seen = 0;
        let deadline = wait::deadline();
        let mut log = self.lines.lock().unwrap();
        loop {
            if let Some(line) = log.0[seen..].iter().find(|l| wanted(l)) {
                return Some(line.clone());
            }
            if log.1 {
                return None;
            }
            seen = log.0.len();
            let left = deadline.since_ms(clock::now());
            if left == 0 {
                drop(log); // whoever shows it wants the lock
                panic!("no such log line within {PATIENCE:?}");
            }
            (log, _) = self.grown.wait_timeout(log, Duration::from_millis(left)).unwrap();
        }
    }

    /// Everything that the process has written so far.
    fn text(&self) -> String {
        let unread = || self.pipe.get().map_or(0, |pipe| rustix::io::ioctl_fionread(pipe).unwrap_or(0));
        let deadline = wait::deadline();
        let mut log = self.lines.lock().unwrap();
        while !log.1 && unread() > 0 && clock::now() < deadline {
            (log, _) = self.grown.wait_timeout(log, Duration::from_millis(50)).unwrap();
        }
        log.0.join("\n")
    }
}

/// How to start a broker.
pub struct Setup {
    dir: Option<PathBuf>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    program: PathBuf,
    /// The network namespace to run in, and the address there.
    host: Option<(String, IpAddr)>,
}

impl Setup {
    /// With the defaults, on free ports and in a directory of its own.
    pub fn new() -> Setup {
        Setup { dir: None, args: Vec::new(), env: Vec::new(), program: PathBuf::from(BERTH), host: None }
    }

    /// Sets an option.
    pub fn set(mut self, key: &str, value: &str) -> Setup {
        self.args.extend(["--set".to_owned(), format!("{key}={value}")]);
        self
    }

    /// Adds an argument of the command line.
    pub fn arg(mut self, arg: &str) -> Setup {
        self.args.push(arg.to_owned());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts another program than the one that was just built. A restart takes the one that was built.
    pub fn program(mut self, program: PathBuf) -> Setup {
        self.program = program;
        self
    }

    /// Runs in a network namespace, where it has this address.
    pub fn within(mut self, namespace: String, address: IpAddr) -> Setup {
        self.host = Some((namespace, address));
        self
    }

    /// Keeps the journal in `dir`.
    pub fn dir(mut self, dir: &Path) -> Setup {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Starts the broker and waits until it is ready.
    pub fn start(self) -> Broker {
        let mut broker = self.spawn();
        broker.wait_ready();
        broker
    }

    /// Starts the broker without waiting.
    pub fn spawn(self) -> Broker {
        let own = self.dir.is_none().then(|| TempDir::new().unwrap());
        let dir = self.dir.unwrap_or_else(|| own.as_ref().unwrap().path().join("data"));
        let (mut mqtt, mut http) = (free_address(), free_address());
        let mut namespace = None;
        if let Some((name, address)) = self.host {
            namespace = Some(name);
            mqtt.set_ip(address);
            http.set_ip(address);
        }
        let mut args = vec!["--listen".to_owned(), mqtt.to_string()];
        args.extend(["--data-dir".to_owned(), dir.to_str().unwrap().to_owned()]);
        args.extend(["--set".to_owned(), format!("http.address={http}")]);
        args.extend(self.args);
        let process = Process::start(&self.program, namespace.as_deref(), &args, &self.env);
        Broker { process, namespace, args, env: self.env, mqtt, http, dir, _own: own }
    }
}

/// A process of the broker; killed when dropped.
struct Process {
    child: Child,
    log: Arc<Log>,
    follower: Option<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Process {
    fn start(program: &Path, namespace: Option<&str>, args: &[String], env: &[(String, String)]) -> Process {
        // `ip netns exec` becomes the broker: it is the same process.
        let mut command = match namespace {
            Some(name) => {
                let mut ip = clean("ip");
                ip.args(["netns", "exec", name]).arg(program);
                ip
            }
            None => clean(program),
        };
        let mut child = command
            .args(args)
            .envs(env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Log::default());
        let follower = log.clone().follow(child.id(), child.stderr.take().unwrap());
        Process { child, log, follower: Some(follower), status: None }
    }

    fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        let status = wait::until("the process ends", || self.child.try_wait().unwrap());
        self.status = Some(status);
        if let Some(follower) = self.follower.take() {
            follower.join().unwrap();
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // An error says that it is gone already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let log = self.log.text();
        if std::thread::panicking() {
            eprintln!("--- log of berth {} ---\n{log}\n---", self.child.id());
        } else {
            // One connection's task may have ended by it while all others went on.
            assert!(!log.contains("panicked at"), "the broker panicked:\n{log}");
        }
    }
}

/// A running broker. Standard error is kept and shown if the test fails.
pub struct Broker {
    process: Process,
    namespace: Option<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// Where it serves MQTT.
    pub mqtt: SocketAddr,
    /// Where it serves admin HTTP.
    pub http: SocketAddr,
    /// Where the journal is.
    pub dir: PathBuf,
    _own: Option<TempDir>,
}

impl Broker {
    /// With the defaults.
    pub fn start() -> Broker {
        Setup::new().start()
    }

    /// Waits until the broker says that it is ready.
    pub fn wait_ready(&mut self) {
        self.wait_log(|line| line.trim_end().ends_with(" ready") || line.contains("\"ready\""));
    }

    /// Waits for a line of the log.
    pub fn wait_log(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        match self.process.log.wait(wanted) {
            Some(line) => line,
            None => panic!("berth ended ({}) before the line came", self.process.wait()),
        }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.process.log.text()
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Kills the process as `kill -9` does.
    pub fn sigkill(&mut self) {
        self.process.child.kill().unwrap();
        self.process.wait();
    }

    /// Starts the program that was just built with the same arguments, once the process has ended, without waiting until it is ready.
    pub fn respawn(&mut self) {
        self.process.wait();
        self.process = Process::start(Path::new(BERTH), self.namespace.as_deref(), &self.args, &self.env);
    }

    /// As [`Broker::respawn`], and waits until it is ready.
    pub fn restart(&mut self) {
        self.respawn();
        self.wait_ready();
    }

    /// The environment of its next process.
    pub fn set_env(&mut self, env: Vec<(&str, String)>) {
        self.env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(done.success(), "kill -{name}");
    }

    /// Waits for the process's end.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Stops the process by SIGTERM and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// GET from admin HTTP: status code and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        http_get(self.http, path).unwrap()
    }

    /// As [`Broker::get`]; `None` if it does not answer.
    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.http, path).ok()
    }

    /// GET of a JSON page.
    pub fn get_json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path).1).unwrap()
    }

    /// A number from `/metrics` by its name with labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics");
        let found = page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or_else(|| panic!("no metric {name} in\n{page}"))
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

/// The binary, without arguments and without the caller's configuration.
pub fn command() -> Command {
    clean(BERTH)
}

fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("BERTH_") {
            command.env_remove(name);
        }
    }
    command.current_dir(std::env::temp_dir());
    command
}

/// GET of a page of the admin HTTP at `address`: the status and the body.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((code, body.to_owned()))
}
