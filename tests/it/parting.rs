//! Parting politely: a client that is still writing reads why it was let go, and not that the connection was reset.

use crate::broker::{Broker, Setup};
use crate::client::Dial;
use crate::wait;
use berth::mqtt::Version;
use berth::server::parting::PARTINGS_MAX;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

/// Says `bytes`, goes on talking for a megabyte as fast as it is taken, and only then reads: everything up to the end.
fn talk_on(to: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    stream.set_write_timeout(Some(wait::PATIENCE))?;
    stream.write_all(bytes)?;
    for _ in 0..16 {
        stream.write_all(&[0; 64 << 10])?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_client_that_goes_on_writing_reads_the_reason() {
    let broker = Setup::new().set("limits.max_packet_size", "1KiB").start();
    let connected = |version| {
        let mut bytes = Dial::new(version, "talks").bytes();
        bytes.extend([0x30, 0x80, 0x80, 0x40]); // a PUBLISH of 1 MiB
        bytes
    };
    let taken_over = |version| {
        let mut bytes = Dial::new(version, "talks").bytes();
        bytes.extend(Dial::new(version, "talks").bytes()); // a second CONNECT
        bytes
    };
    // What is said, and how the last answer begins.
    let cases: &[(&str, Vec<u8>, &[u8])] = &[
        ("too large, 5", connected(Version::V5), &[0xE0]),
        ("too large, 3.1.1", connected(Version::V311), &[0x20, 2, 0, 0]),
        ("second CONNECT, 5", taken_over(Version::V5), &[0xE0]),
        ("second CONNECT, 3.1.1", taken_over(Version::V311), &[0x20, 2, 0, 0]),
        ("no such version", b"\x10\x0c\x00\x04MQTT\x02\x02\x00\x00\x00\x00".to_vec(), &[0x20, 2, 0, 1]),
        ("a goodbye", [Dial::v4("talks").bytes(), vec![0xE0, 0]].concat(), &[0x20, 2, 0, 0]),
    ];
    for round in 0..5 {
        for (what, bytes, last) in cases {
            let answer = talk_on(broker.mqtt, bytes).unwrap_or_else(|e| panic!("{what}, {round}: {e}"));
            // A CONNACK of MQTT 5 comes before, where there is one.
            let at = if last[0] == 0xE0 { 2 + usize::from(answer[1]) } else { 0 };
            assert!(answer[at..].starts_with(last), "{what}: {answer:02x?}");
        }
    }
}

/// Also when the broker stops: it waits for those who are still writing.
#[test]
fn a_client_that_goes_on_writing_reads_that_the_broker_stops() {
    let mut broker = Broker::start();
    let mut stream = TcpStream::connect(broker.mqtt).unwrap();
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    stream.write_all(&Dial::v5("talks").bytes()).unwrap();
    let mut connack = [0; 2];
    stream.read_exact(&mut connack).unwrap();
    stream.read_exact(&mut vec![0; connack[1].into()]).unwrap();
    broker.signal("TERM");
    let mut writer = stream.try_clone().unwrap();
    let talks = std::thread::spawn(move || {
        for _ in 0..100 {
            writer.write_all(&[0xC0, 0])?;
            wait::pace(2);
        }
        writer.shutdown(Shutdown::Write)
    });
    talks.join().unwrap().unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let said = answer.chunks(2).find(|c| c[0] == 0xE0).is_some();
    assert!(said, "{answer:02x?}");
    assert!(broker.wait().success());
}

/// Sockets of clients that were let go and do not close are bounded in number, and go after a while.
#[test]
fn clients_that_do_not_go_cost_a_bounded_number_of_sockets() {
    let broker = Broker::start();
    let sockets = || -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", broker.pid())).unwrap();
        files
            .flatten()
            .filter(|f| {
                std::fs::read_link(f.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
            })
            .count()
    };
    let before = sockets();
    let mut stay: Vec<TcpStream> = (0..PARTINGS_MAX + 500)
        .map(|_| {
            let mut stream = TcpStream::connect(broker.mqtt).unwrap();
            stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
            stream.write_all(b"\x10\x0c\x00\x04MQTT\x02\x02\x00\x00\x00\x00").unwrap();
            stream
        })
        .collect();
    for stream in &mut stay {
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => assert_eq!(answer, [0x20, 2, 0, 1]),
            Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
        }
    }
    // All have been told.
    let most = sockets();
    assert!(most <= before + PARTINGS_MAX + 8, "{most} sockets, {before} before");
    wait::until_true("they are gone", || sockets() <= before);
    drop(stay);
}
