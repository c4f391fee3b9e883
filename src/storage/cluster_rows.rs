//! Rows of the log that only a node of a cluster has. Decoding never panics, whatever the bytes.

use super::record::{
    Body, LogRow, RecordError, begin_node, begin_seen, begin_spooled, get_body, get_id, put_body, put_id,
};
use super::wire::{Input, put_text, put_varint};
use crate::ports::{MemberId, MessageId, NodeRecord, Revision, SessionNo, SpooledRetain, Unserved};
use std::sync::Arc;

/// Added to the mark that says whether there is a message, if the revision follows at which the update was accepted. Older releases
/// refuse such a row by that mark.
const SINCE: u8 = 2;

/// An update of a retained message as stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spooled<'a> {
    pub(super) topic: &'a str,
    id: MessageId,
    known: Revision,
    since: Revision,
    body: Option<Body<'a>>,
}

impl Spooled<'_> {
    /// The update.
    pub(super) fn update(&self) -> SpooledRetain {
        SpooledRetain {
            topic: Arc::from(self.topic),
            message: self.body.map(|body| body.message()),
            id: self.id,
            known: self.known,
            since: self.since,
        }
    }
}

/// Appends the row of a publish that `sessions` have had.
pub(super) fn put_seen(out: &mut Vec<u8>, id: MessageId, sessions: &[SessionNo]) {
    begin_seen(out);
    put_id(out, id);
    put_varint(out, sessions.len() as u64);
    for session in sessions {
        put_varint(out, *session);
    }
}

/// Appends the row that says whose journal this is.
pub(super) fn put_node(out: &mut Vec<u8>, node: &NodeRecord) {
    begin_node(out);
    put_text(out, &node.node);
    put_varint(out, node.incarnations.len() as u64);
    for incarnation in &node.incarnations {
        put_varint(out, *incarnation);
    }
}

/// Appends the row of an update that the cluster has not taken.
pub(super) fn put_spooled(out: &mut Vec<u8>, spooled: &SpooledRetain) {
    begin_spooled(out);
    put_id(out, spooled.id);
    put_varint(out, spooled.known);
    put_text(out, &spooled.topic);
    out.push(u8::from(spooled.message.is_some()) + if spooled.since > 0 { SINCE } else { 0 });
    if spooled.since > 0 {
        put_varint(out, spooled.since);
    }
    if let Some(message) = &spooled.message {
        put_body(out, message);
    }
}

/// Appends what a duty's recipient has of shared subscriptions.
pub(super) fn put_unserved(out: &mut Vec<u8>, unserved: &[Unserved]) {
    put_varint(out, unserved.len() as u64);
    for u in unserved {
        put_text(out, &u.name);
        out.push(u8::from(u.asked.is_some()));
        if let Some(asked) = &u.asked {
            put_text(out, &asked.node);
            put_varint(out, asked.incarnation);
        }
    }
}

/// Reads it.
pub(super) fn get_unserved(input: &mut Input<'_>) -> Result<Box<[Unserved]>, RecordError> {
    let count = input.len()?;
    let mut unserved = Vec::new();
    for _ in 0..count {
        let name = Arc::from(input.text()?);
        let asked = match input.u8()? {
            0 => None,
            1 => Some(MemberId { node: Arc::from(input.text()?), incarnation: input.varint()? }),
            _ => return Err(RecordError::Value("mark of a process")),
        };
        unserved.push(Unserved { name, asked });
    }
    Ok(unserved.into())
}

/// Reads the rest of a row of its kind.
pub(super) fn get_seen(mut input: Input<'_>) -> Result<LogRow<'_>, RecordError> {
    let id = get_id(&mut input)?;
    let sessions = get_numbers(&mut input)?;
    input.end()?;
    Ok(LogRow::Seen { id, sessions })
}

/// Reads the rest of a row of its kind.
pub(super) fn get_node(mut input: Input<'_>) -> Result<LogRow<'_>, RecordError> {
    let node = Arc::from(input.text()?);
    let incarnations = get_numbers(&mut input)?;
    input.end()?;
    Ok(LogRow::Node(NodeRecord { node, incarnations }))
}

/// Reads the rest of a row of its kind.
pub(super) fn get_spooled(mut input: Input<'_>) -> Result<LogRow<'_>, RecordError> {
    let id = get_id(&mut input)?;
    let known = input.varint()?;
    let topic = input.text()?;
    let mark = input.u8()?;
    let since = match mark {
        SINCE.. => input.varint()?,
        _ => 0,
    };
    if mark >= SINCE && since == 0 {
        return Err(RecordError::Value("revision of an update"));
    }
    let body = match mark % SINCE {
        _ if mark > SINCE + 1 => return Err(RecordError::Value("mark of a message")),
        0 => {
            input.end()?;
            None
        }
        _ => Some(get_body(&mut input)?),
    };
    Ok(LogRow::Spooled(Spooled { topic, id, known, since, body }))
}

/// Numbers with their count before them, which is not believed: memory is taken as they come.
fn get_numbers(input: &mut Input<'_>) -> Result<Vec<u64>, RecordError> {
    let count = input.len()?;
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(input.varint()?);
    }
    Ok(numbers)
}

/// What was decoded can be read and encoded again.
pub(super) fn fuzz_spooled(spooled: Spooled<'_>) {
    let update = spooled.update();
    let mut row = Vec::new();
    put_spooled(&mut row, &update);
    let again = super::record::decode_log(&row);
    assert!(matches!(again, Ok(LogRow::Spooled(again)) if again.update() == update));
}
