//! A disk that hangs: a file system on a loop device, frozen (`fsfreeze`). It gives no error; nothing comes to an end. Needs root.

use crate::broker::{Broker, Setup};
use crate::client::{Dial, In};
use crate::wait;
use berth::clock;
use berth::mqtt::{QoS, Reason};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A process that writes to a frozen file system cannot be killed before that is thawed, the test itself perhaps included. So a
/// process of its own thaws it when the test is gone, when it is told to, and after a minute in every case.
const GUARD: &str = r#"
i=0
while [ $i -lt 600 ] && kill -0 "$1" 2>/dev/null && [ ! -e "$3" ]; do sleep 0.1; i=$((i+1)); done
fsfreeze -u "$2"
"#;

/// A file system of its own; thawed and unmounted when dropped.
struct Disk {
    dir: TempDir,
}

/// A disk that hangs, until this is dropped.
struct Frozen {
    at: PathBuf,
    thawed: PathBuf,
    guard: Child,
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program} {}: {said}", args.join(" "))) }
}

impl Disk {
    /// `None`, said aloud, if it cannot be made here; fails if `BERTH_REQUIRE_FSFREEZE` is 1.
    fn mount() -> Option<Disk> {
        let dir = TempDir::new().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("disk"));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let (image, at) = (image.to_str().unwrap(), at.to_str().unwrap());
        let made =
            run("mkfs.ext4", &["-q", "-F", image]).and_then(|()| run("mount", &["-o", "loop", image, at]));
        if let Err(why) = made {
            eprintln!(
                "\n*** NOT TESTED: a disk that hangs needs root, a loop device, mkfs.ext4 and fsfreeze: {why} ***\n"
            );
            let required = std::env::var("BERTH_REQUIRE_FSFREEZE").is_ok_and(|v| v == "1");
            assert!(!required, "BERTH_REQUIRE_FSFREEZE=1, and no disk can be made to hang here");
            return None;
        }
        Some(Disk { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn freeze(&self, nth: u32) -> Frozen {
        let (at, thawed) = (self.path(), self.dir.path().join(format!("thawed-{nth}")));
        let guard = Command::new("setsid")
            .args(["sh", "-c", GUARD, "guard", &std::process::id().to_string()])
            .args([&at, &thawed])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let frozen = Frozen { at, thawed, guard };
        run("fsfreeze", &["-f", frozen.at.to_str().unwrap()]).unwrap();
        frozen
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a broker that is being killed may still have its files open.
        let _ = run("umount", &["-l", self.path().to_str().unwrap_or_default()]);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let thawed = run("fsfreeze", &["-u", self.at.to_str().unwrap_or_default()]);
        // The guard ends, and tries it as well.
        let _ = std::fs::write(&self.thawed, "");
        let _ = self.guard.wait();
        if let Err(why) = thawed {
            eprintln!("thawed by the guard only: {why}");
        }
    }
}

fn not_ready(broker: &Broker) -> Option<String> {
    let (code, body) = broker.get("/ready");
    (code == 503).then_some(body)
}

fn data(disk: &Path) -> PathBuf {
    disk.join("data")
}

#[test]
fn a_disk_that_hangs_is_noticed_and_everything_goes_on_when_it_answers() {
    let Some(disk) = Disk::mount() else { return };
    let setup = Setup::new().dir(&data(&disk.path()));
    let mut broker = setup.set("storage.stall_timeout", "1s").set("publish.timeout", "5m").start();
    let kept = Dial::v5("kept").persistent();
    assert_eq!(kept.connect(broker.mqtt).subscribe(&[("kept", QoS::ExactlyOnce)]), [2]);
    let mut watching = Dial::v5("watching").connect(broker.mqtt);
    watching.subscribe(&[("live", QoS::AtMostOnce)]);
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    let mut expected = Vec::new();
    for round in 0..2 {
        let frozen = disk.freeze(round);
        // Appended before anybody knows: it may still become durable.
        let begun = publisher
            .send_publish("kept", format!("{round} begun").as_bytes(), QoS::AtLeastOnce, false)
            .unwrap();
        let why = wait::until("/ready says no", || not_ready(&broker));
        assert!(why.contains("hangs") && why.contains("under way for"), "{why}");
        let line = broker.wait_log(|l| l.contains("hangs: its oldest commit has been under way for"));
        assert!(line.contains("WARN"), "{line}");
        assert_eq!((broker.get("/health").0, broker.metric("berth_journal_healthy")), (200, 0.0));
        assert!(broker.metric("berth_journal_commit_age_seconds") >= 1.0);
        let status = broker.get_json("/cluster/status");
        assert_eq!(status["node"]["journal"]["healthy"], false);

        // What is not begun yet is refused at once, and with a reason.
        let begin = clock::now();
        let mut second = Dial::v5("second").connect(broker.mqtt);
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let reason = second.publish_with("kept", b"refused", qos, false);
            assert_eq!(reason, Reason::ImplementationSpecificError, "{qos:?}");
        }
        let reason = second.publish_with("any", b"refused", QoS::AtLeastOnce, true);
        assert_eq!(reason, Reason::ImplementationSpecificError, "to be retained");
        let mut older = Dial::v4("older").connect(broker.mqtt);
        older.send_publish("kept", b"refused", QoS::AtLeastOnce, false).unwrap();
        assert_eq!(older.recv(), In::Closed, "MQTT 3 has no words for it");
        for dial in
            [Dial::v5("new").persistent(), Dial::v5("kept").persistent(), Dial::v5("will").will("w", "w", 0)]
        {
            let (_, answer) = dial.try_connect(broker.mqtt).unwrap();
            assert!(matches!(answer, In::ConnAck { reason: Reason::ServerUnavailable, .. }), "{answer:?}");
        }
        let took = clock::now().since_ms(begin);
        assert!(took < 5_000, "{took} ms");
        // What needs no disk goes on.
        second.publish("live", "still", QoS::AtMostOnce);
        assert_eq!(watching.receive().text(), "still");
        second.publish("live", "still here", QoS::AtLeastOnce);
        assert_eq!(watching.receive().text(), "still here");
        publisher.expect_silence();

        drop(frozen);
        publisher.wait_for("PUBACK", |i| match i {
            In::PubAck(id, reason) if *id == begun => {
                assert!(!reason.is_error(), "{reason:?}");
                Some(())
            }
            _ => None,
        });
        wait::until_true("it recovers by itself", || not_ready(&broker).is_none());
        assert_eq!(broker.metric("berth_journal_healthy"), 1.0);
        publisher.publish("kept", &format!("{round} after"), QoS::AtLeastOnce);
        expected.extend([format!("{round} begun"), format!("{round} after")]);
    }
    let mut client = kept.connect(broker.mqtt);
    assert!(client.present);
    assert_eq!(client.receive_texts(4), expected);
    assert!(broker.stop().success());
}
