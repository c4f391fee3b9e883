//! Every line of the corpus of malformed packets, through the decoder.

use crate::corpus::{Expected, State, malformed};
use berth::mqtt::decode::{Answer, DecodeError};
use berth::mqtt::{Version, decode, frame_len};

const MAX: u32 = 268_435_460;

/// What the decoder says of the bytes; `None` if it accepts them.
fn refuse(state: Option<Version>, bytes: &[u8]) -> Option<DecodeError> {
    match frame_len(bytes, MAX) {
        Err(error) => Some(error),
        Ok(Some(len)) => decode(state, &bytes[..len]).err(),
        Ok(None) => panic!("not a complete frame"),
    }
}

#[test]
fn the_corpus_is_refused() {
    let cases = malformed();
    assert!(cases.len() >= 300, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let state = if case.state == State::Pre { None } else { case.version };
        let error = refuse(state, &case.bytes);
        let fine = match (case.state, case.expected, error) {
            (State::Session, _, None) => true,
            (State::Session, _, Some(_)) | (_, _, None) => false,
            (_, Expected::Close, Some(error)) => error.answer(state) == Answer::Close,
            (_, Expected::Reason(reason), Some(error)) => {
                error.reason() == reason && error.answer(state) != Answer::Close
            }
        };
        if !fine {
            wrong.push(format!("line {}: {} -- got {error:?}", case.line, case.rule));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// A CONNACK goes out in the version of the CONNECT.
#[test]
fn refused_connects_are_answered_in_their_version() {
    for case in malformed().iter().filter(|c| c.state == State::Pre) {
        if let (Some(version), Expected::Reason(_)) = (case.version, case.expected) {
            let answer = refuse(None, &case.bytes).map(|e| e.answer(None));
            assert_eq!(answer, Some(Answer::ConnAck(version)), "line {}", case.line);
        }
    }
}

/// What every version's corpus has in common: no case may be a duplicate of another.
#[test]
fn no_case_twice() {
    let mut seen = std::collections::HashSet::new();
    for case in malformed() {
        assert!(seen.insert((case.version, case.state == State::Pre, case.bytes)), "line {}", case.line);
    }
}
