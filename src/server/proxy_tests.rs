//! Headers of the PROXY protocol: good ones, bad ones, and any.

use super::*;
use proptest::prelude::*;

/// Reads a header off the front of `bytes` as a connection does: only what belongs to it for certain. How many bytes it had.
fn read(bytes: &[u8]) -> Result<Option<(Told, usize)>, Malformed> {
    let mut had = 0;
    loop {
        match step(&bytes[..had])? {
            Step::Done(told) => return Ok(Some((told, had))),
            Step::More(n) => {
                assert!(n > 0);
                had += n;
            }
        }
        if had > bytes.len() {
            return Ok(None);
        }
    }
}

fn v2(command: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.extend([0x20 | command, kind]);
    out.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    out.extend_from_slice(rest);
    out
}

fn v4_addresses() -> Vec<u8> {
    vec![192, 0, 2, 7, 10, 0, 0, 1, 0xD9, 0x03, 0x07, 0x5B]
}

fn v6_addresses() -> Vec<u8> {
    let mut out = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets().to_vec();
    out.extend([0; 16]);
    out.extend([0xD9, 0x03, 0x07, 0x5B]);
    out
}

#[test]
fn good_headers() {
    let from = |a: &str| Told::From(a.parse().unwrap());
    let long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE_BYTES_MAX - 16));
    let with_tlvs = [v4_addresses(), vec![3, 0, 4, 1, 2, 3, 4, 0xE0, 0, 1, 9]].concat();
    let cases: Vec<(Vec<u8>, Told)> = vec![
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 55555 1883\r\n".to_vec(), from("192.0.2.7:55555")),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 0 1\r\n".to_vec(), from("1.1.1.1:0")),
        (b"PROXY TCP6 2001:db8::7 ::1 55555 1883\r\n".to_vec(), from("[2001:db8::7]:55555")),
        (b"PROXY UNKNOWN\r\n".to_vec(), Told::Nothing),
        (b"PROXY UNKNOWN a b c\r\n".to_vec(), Told::Nothing),
        (long.into_bytes(), Told::Nothing),
        (v2(1, 0x11, &v4_addresses()), from("192.0.2.7:55555")),
        (v2(1, 0x11, &with_tlvs), from("192.0.2.7:55555")),
        (v2(1, 0x21, &v6_addresses()), from("[2001:db8::7]:55555")),
        (v2(0, 0x00, &[]), Told::Nothing),
        (v2(0, 0x11, &v4_addresses()), Told::Nothing),
        (v2(0, 0x00, &[1, 2, 3]), Told::Nothing),
        (v2(1, 0x00, &[]), Told::Nothing),
        (v2(1, 0x31, &[0; 216]), Told::Nothing),
        (v2(1, 0x11, &[0; HEADER_BYTES_MAX - FIXED_BYTES]), from("0.0.0.0:0")),
    ];
    for (header, told) in cases {
        for behind in [&b""[..], b"\x10\x0c\x00\x04MQTT", b"\r\n"] {
            let bytes = [&header[..], behind].concat();
            assert_eq!(read(&bytes), Ok(Some((told, header.len()))), "{header:02x?}");
        }
        for cut in 0..header.len() {
            assert_eq!(read(&header[..cut]), Ok(None), "{header:02x?} cut at {cut}");
        }
    }
}

#[test]
fn bad_headers() {
    let cases: Vec<Vec<u8>> = vec![
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00".to_vec(),
        b"GET /mqtt HTTP/1.1\r\n".to_vec(),
        b"proxy TCP4 192.0.2.7 10.0.0.1 5 1883\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 5 1883\n\n\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 5\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 5 1883 7\r\n".to_vec(),
        b"PROXY TCP4  192.0.2.7 10.0.0.1 5 1883\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 1883\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 05 1883\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 +5 1883\r\n".to_vec(),
        b"PROXY TCP4 192.0.2 10.0.0.1 5 1883\r\n".to_vec(),
        b"PROXY TCP4 ::1 ::1 5 1883\r\n".to_vec(),
        b"PROXY TCP6 192.0.2.7 10.0.0.1 5 1883\r\n".to_vec(),
        b"PROXY UDP4 192.0.2.7 10.0.0.1 5 1883\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 \xff 1883\r\n".to_vec(),
        format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE_BYTES_MAX)).into_bytes(),
        v2(2, 0x11, &v4_addresses()),
        v2(1, 0x41, &v4_addresses()),
        v2(1, 0x13, &v4_addresses()),
        v2(1, 0x11, &v4_addresses()[..11]),
        v2(1, 0x21, &v4_addresses()),
        v2(1, 0x11, &[0; HEADER_BYTES_MAX]),
        {
            let mut v = v2(1, 0x11, &v4_addresses());
            v[12] = 0x11; // version 1
            v
        },
    ];
    for header in cases {
        assert!(read(&header).is_err(), "{header:02x?}: {:?}", read(&header));
    }
}

proptest! {
    /// A header never has more bytes than are asked for, and nothing is a panic.
    #[test]
    fn anything_may_come(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..3, at in any::<usize>()) {
        let mut bytes = bytes;
        if kind == 1 {
            bytes.splice(0..0, *SIGNATURE);
        } else if kind == 2 {
            bytes.splice(0..0, *b"PROXY TCP4 192.0.2.7 10.0.0.1 5 1883\r\n");
            let at = at % bytes.len();
            bytes[at] = bytes[at].wrapping_add(1);
        }
        if let Ok(Some((_, had))) = read(&bytes) {
            prop_assert!(had <= bytes.len() && had <= HEADER_BYTES_MAX);
        }
        let _ = step(&bytes);
    }

    #[test]
    fn both_versions_tell_the_same(ip in any::<[u8; 4]>(), v6 in any::<u128>(), port in any::<u16>()) {
        let (ip, v6) = (Ipv4Addr::from(ip), Ipv6Addr::from(v6));
        let line = format!("PROXY TCP4 {ip} 10.0.0.1 {port} 1883\r\n");
        let told = Told::From(SocketAddr::new(ip.into(), port));
        prop_assert_eq!(read(line.as_bytes()), Ok(Some((told, line.len()))));
        let mut rest = ip.octets().to_vec();
        rest.extend([0; 4]);
        rest.extend(port.to_be_bytes());
        rest.extend([0; 2]);
        prop_assert_eq!(read(&v2(1, 0x11, &rest)).map(|r| r.map(|(t, _)| t)), Ok(Some(told)));
        let line = format!("PROXY TCP6 {v6} ::1 {port} 1883\r\n");
        prop_assert_eq!(
            read(line.as_bytes()),
            Ok(Some((Told::From(SocketAddr::new(v6.into(), port)), line.len())))
        );
    }
}
