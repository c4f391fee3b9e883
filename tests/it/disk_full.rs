//! A disk that is really full: a small tmpfs. Nothing is acknowledged that is not safe, the broker says what is wrong, serves
//! what needs no disk, and recovers by itself.

use crate::broker::{Broker, Setup};
use crate::client::{Dial, In};
use crate::operations::Tmpfs;
use crate::wait;
use berth::mqtt::{QoS, Reason};
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Takes all space that is left.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("ballast");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    path
}

fn not_ready(broker: &Broker) -> Option<String> {
    let (code, body) = broker.get("/ready");
    (code == 503).then_some(body)
}

#[test]
fn a_full_disk_is_survived() {
    let Some(disk) = Tmpfs::mount("size=24m") else { return };
    let mut broker = Setup::new().dir(&disk.path().join("data")).set("publish.timeout", "1s").start();
    let offline = Dial::v5("offline").persistent();
    offline.connect(broker.mqtt).subscribe(&[("kept/#", QoS::ExactlyOnce)]);
    let mut watching = Dial::v5("watching").connect(broker.mqtt);
    watching.subscribe(&[("live", QoS::AtMostOnce)]);
    let mut publisher = Dial::v5("publisher").connect(broker.mqtt);
    let mut acked = HashSet::new();

    for round in 0..2 {
        let ballast = fill(disk.path());
        // Until the journal finds no room: there may be some left in its file.
        let mut refused = 0;
        for n in 0.. {
            assert!(n < 2_000, "40 MB were accepted on a disk that is full");
            let name = format!("{round}-{n}");
            let payload = [name.as_bytes(), &vec![b' '; 20_000]].concat();
            let reason = publisher.publish_with("kept/t", &payload, QoS::AtLeastOnce, false);
            if reason.is_error() {
                assert_eq!(reason, Reason::ImplementationSpecificError);
                refused += 1;
                if refused == 2 {
                    break;
                }
            } else {
                assert_eq!(refused, 0, "accepted again while the disk is full");
                acked.insert(name);
            }
        }
        let why = wait::until("/ready says no", || not_ready(&broker));
        assert!(why.contains("space"), "{why}");
        let status = broker.get_json("/cluster/status");
        assert_eq!(
            (&status["node"]["ready"], &status["node"]["journal"]["healthy"]),
            (&false.into(), &false.into())
        );
        assert_eq!(broker.metric("berth_journal_healthy"), 0.0);
        assert_eq!(broker.get("/health").0, 200);
        assert!(broker.metric("berth_publishes_refused_total{reason=\"journal\"}") >= 2.0);

        // A refused QoS 2 publish would be published anew, though the journal still has it: the connection ends instead.
        let mut exactly = Dial::v5("exactly").connect(broker.mqtt);
        exactly.send_publish("kept/t", b"once", QoS::ExactlyOnce, false).unwrap();
        assert_eq!(exactly.expect_closed(), Some(Reason::ImplementationSpecificError));
        // MQTT 3 has no words for it: the connection is closed.
        let mut older = Dial::v4("older").connect(broker.mqtt);
        older.send_publish("kept/t", b"never acknowledged", QoS::AtLeastOnce, false).unwrap();
        assert_eq!(older.recv(), In::Closed);
        // QoS 0 needs no disk, nor does QoS 1 that no persistent session is to have.
        publisher.publish("live", "still", QoS::AtMostOnce);
        assert_eq!(watching.receive().text(), "still");
        publisher.publish("live", "still here", QoS::AtLeastOnce);
        assert_eq!(watching.receive().text(), "still here");

        if round == 1 {
            // Killed while the disk is full: it comes up when there is room, with all that was acknowledged.
            broker.sigkill();
        }
        std::fs::remove_file(ballast).unwrap();
        if round == 1 {
            broker.restart();
            publisher = Dial::v5("publisher").connect(broker.mqtt);
        }
        wait::until_true("it recovers by itself", || not_ready(&broker).is_none());
        publisher.publish("kept/t", &format!("{round}-after"), QoS::AtLeastOnce);
        acked.insert(format!("{round}-after"));
        assert_eq!(broker.metric("berth_journal_healthy"), 1.0);
    }

    let mut client = offline.connect(broker.mqtt);
    assert!(client.present);
    while !acked.is_empty() {
        // What was refused may have been kept all the same: it was never promised either way.
        acked.remove(client.receive().text().trim_end());
    }
}
