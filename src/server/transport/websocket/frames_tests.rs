//! Frames against tungstenite, which another project wrote: what it sends is understood, what it refuses is refused.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::io::{Cursor, Read, Write};
use tungstenite::protocol::frame::coding::{Control as TheirControl, Data, OpCode};
use tungstenite::protocol::frame::{Frame as TheirFrame, FrameHeader};
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

/// Everything that was decoded: payload, control frames, and the fault that ended it.
#[derive(Debug, Default, PartialEq)]
struct Decoded {
    payload: Vec<u8>,
    controls: Vec<Control>,
    fault: Option<Fault>,
}

/// Decodes `bytes`, which come in pieces that end at `cuts`.
fn decode(bytes: &[u8], cuts: &[usize]) -> Decoded {
    let mut decoder = Decoder::default();
    let mut decoded = Decoded::default();
    let mut ends: Vec<usize> = cuts.iter().map(|c| c % (bytes.len() + 1)).collect();
    ends.extend([0, bytes.len()]);
    ends.sort_unstable();
    for piece in ends.windows(2) {
        let mut piece = bytes[piece[0]..piece[1]].to_vec();
        let outcome = decoder.decode(&mut piece, |control| decoded.controls.push(control));
        let n = outcome.unwrap_or_else(|(n, fault)| {
            decoded.fault = Some(fault);
            n
        });
        decoded.payload.extend_from_slice(&piece[..n]);
        if decoded.fault.is_some() || matches!(decoded.controls.last(), Some(Control::Close(_))) {
            break;
        }
    }
    decoded
}

#[derive(Clone, Debug)]
enum Sent {
    /// A message in fragments.
    Data(Vec<Vec<u8>>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn sent() -> impl Strategy<Value = Vec<Sent>> {
    let bytes = |max| vec(any::<u8>(), 0..max);
    let one = prop_oneof![
        3 => vec(bytes(200), 1..4).prop_map(Sent::Data),
        1 => bytes(70_000).prop_map(|b| Sent::Data(vec![b])),
        1 => bytes(CONTROL_BYTES_MAX + 1).prop_map(Sent::Ping),
        1 => bytes(CONTROL_BYTES_MAX + 1).prop_map(Sent::Pong),
    ];
    vec(one, 0..8)
}

/// The frames as tungstenite writes them for a client, with masks.
fn written(sent: &[Sent], mask: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |payload: &[u8], opcode: OpCode, last: bool| {
        let header = FrameHeader { is_final: last, opcode, mask: Some(mask), ..FrameHeader::default() };
        TheirFrame::from_payload(header, payload.to_vec().into()).format(&mut out).unwrap();
    };
    for one in sent {
        match one {
            Sent::Data(parts) => {
                for (at, part) in parts.iter().enumerate() {
                    let data = if at == 0 { Data::Binary } else { Data::Continue };
                    put(part, OpCode::Data(data), at + 1 == parts.len());
                }
            }
            Sent::Ping(payload) => put(payload, OpCode::Control(TheirControl::Ping), true),
            Sent::Pong(payload) => put(payload, OpCode::Control(TheirControl::Pong), true),
        }
    }
    out
}

/// What comes in, and somewhere for what goes out.
struct Pipe(Cursor<Vec<u8>>);

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What tungstenite, as a server, makes of `bytes`: the payload of whole messages, and whether it refuses anything.
fn theirs(bytes: &[u8]) -> (Vec<u8>, bool, bool) {
    // It makes room for a whole frame once it has the header, so that one without a bound may ask for more than there is.
    let config = WebSocketConfig::default().max_frame_size(Some(1 << 24)).max_message_size(None);
    let mut server =
        WebSocket::from_raw_socket(Pipe(Cursor::new(bytes.to_vec())), Role::Server, Some(config));
    let mut payload = Vec::new();
    loop {
        match server.read() {
            Ok(Message::Binary(b)) => payload.extend_from_slice(&b),
            Ok(Message::Close(_)) => return (payload, false, true),
            Ok(Message::Text(_)) => return (payload, true, false),
            Ok(_) => {}
            // Bytes of a long frame are refused only when they come, if at all.
            Err(Error::Io(_) | Error::ConnectionClosed | Error::Capacity(_)) => {
                return (payload, false, false);
            }
            Err(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                return (payload, false, false);
            }
            Err(_) => return (payload, true, false),
        }
    }
}

proptest! {
    #[test]
    fn what_a_client_sends_arrives_however_it_is_cut(
        sent in sent(), mask in any::<[u8; 4]>(), cuts in vec(any::<usize>(), 0..20),
    ) {
        let decoded = decode(&written(&sent, mask), &cuts);
        let payload: Vec<u8> = sent
            .iter()
            .filter_map(|s| if let Sent::Data(parts) = s { Some(parts.concat()) } else { None })
            .flatten()
            .collect();
        let pings: Vec<Control> = sent
            .iter()
            .filter_map(|s| if let Sent::Ping(p) = s { Some(Control::Ping(p.clone())) } else { None })
            .collect();
        prop_assert_eq!(decoded, Decoded { payload, controls: pings, fault: None });
    }

    /// Bytes that are nearly frames: both refuse them or neither does. Unfinished ones are only gathered by tungstenite, and it takes
    /// text, so that what is refused here earlier may not be there.
    #[test]
    fn what_tungstenite_refuses_is_refused(
        sent in sent(), mask in any::<[u8; 4]>(), flips in vec((any::<usize>(), any::<u8>()), 0..3), cuts in vec(any::<usize>(), 0..6),
    ) {
        let mut bytes = written(&sent, mask);
        for (at, flip) in flips {
            if !bytes.is_empty() {
                let at = at % bytes.len();
                bytes[at] ^= flip;
            }
        }
        let ours = decode(&bytes, &cuts);
        let (payload, refused, closed) = theirs(&bytes);
        if refused {
            prop_assert!(ours.fault.is_some(), "{:?} is taken", ours);
        }
        if ours.fault.is_none() {
            prop_assert!(ours.payload.starts_with(&payload));
            prop_assert_eq!(closed, matches!(ours.controls.last(), Some(Control::Close(_))));
        }
    }

    #[test]
    fn what_the_broker_sends_is_understood(payload in vec(any::<u8>(), 0..70_000), ping in vec(any::<u8>(), 0..=CONTROL_BYTES_MAX)) {
        let mut out = Vec::new();
        put_binary_header(&mut out, payload.len());
        out.extend_from_slice(&payload);
        put_pong(&mut out, &ping);
        put_close(&mut out, Some(NORMAL), "bye");
        let mut client = WebSocket::from_raw_socket(Pipe(Cursor::new(out)), Role::Client, None);
        prop_assert_eq!(client.read().unwrap(), Message::Binary(payload.into()));
        prop_assert_eq!(client.read().unwrap(), Message::Pong(ping.into()));
        let Message::Close(Some(close)) = client.read().unwrap() else { panic!("no close frame") };
        prop_assert_eq!((u16::from(close.code), close.reason.as_str()), (NORMAL, "bye"));
    }
}

/// The first bytes of a frame, and the code it is refused with. The rest need not come.
#[test]
fn what_may_not_be_sent() {
    let cases: &[(&[u8], u16)] = &[
        (&[0x81, 0x80], UNSUPPORTED_DATA),
        (&[0x01, 0x80], UNSUPPORTED_DATA),
        (&[0x82, 0x00], PROTOCOL_ERROR),
        (&[0xC2, 0x80], PROTOCOL_ERROR),
        (&[0x92, 0x80], PROTOCOL_ERROR),
        (&[0x83, 0x80], PROTOCOL_ERROR),
        (&[0x8B, 0x80], PROTOCOL_ERROR),
        (&[0x09, 0x80], PROTOCOL_ERROR),
        (&[0x89, 0xFE], PROTOCOL_ERROR),
        (&[0x80, 0x80, 0, 0, 0, 0], PROTOCOL_ERROR),
        (&[0x02, 0x80, 0, 0, 0, 0, 0x82, 0x80, 0, 0, 0, 0], PROTOCOL_ERROR),
        (&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], PROTOCOL_ERROR),
        (&[0x88, 0x81, 0, 0, 0, 0, 3], PROTOCOL_ERROR),
        (&[0x88, 0x82, 0, 0, 0, 0, 3, 0xED], PROTOCOL_ERROR),
        (&[0x88, 0x83, 0, 0, 0, 0, 3, 0xE8, 0xFF], INVALID_DATA),
    ];
    for (bytes, code) in cases {
        let fault = decode(bytes, &[]).fault;
        assert_eq!(fault.map(|f| f.code), Some(*code), "{bytes:02x?}");
        assert_eq!(decode(bytes, &(0..bytes.len()).collect::<Vec<_>>()).fault, fault);
    }
    for (payload, code) in [(&[][..], None), (&[3, 0xE8], Some(1000)), (&[0x0F, 0xA0, b'x'], Some(4000))] {
        let mut bytes = vec![0x88, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        bytes.extend_from_slice(payload);
        bytes.extend([0x81, 0x00]); // nothing is looked at any more
        assert_eq!(decode(&bytes, &[]).controls, [Control::Close(code)]);
    }
}
