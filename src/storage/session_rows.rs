//! Records of sessions and subscriptions as bytes and back. Decoding never panics, whatever the bytes.

use super::migrate::Chain;
use super::record::{RecordError, get_body, put_body};
use super::wire::{Input, put_text, put_varint};
use crate::clock::Time;
use crate::mqtt::packet::SubscribeOptions;
use crate::ports::{SessionNo, SessionRecord, SubscriptionRecord, WillRecord};
use crate::queue_policy::QueuePolicy;
use crate::user::{Author, SessionUser};
use bytes::BufMut;
use std::sync::Arc;

/// Versions of session records. Version 2 adds the epoch and whether the claim is under way, version 3 the user, version 4 the author of
/// the will and the queue policy.
pub(super) const SESSION_ROWS: Chain = Chain::new(1, &[to_version_2, to_version_3, to_version_4]);
/// Versions of subscriptions. Version 2 adds the publishes that they are younger than.
pub(super) const SUBSCRIPTION_ROWS: Chain = Chain::new(1, &[subscription_to_version_2]);

const DISCONNECTED: u8 = 1;
const WILL: u8 = 2;
const PENDING: u8 = 4;
/// The user is known: its name follows the client identifier, empty if it is anonymous.
const USER: u8 = 8;
/// The author of the will is known, and stands before its message.
const AUTHOR: u8 = 16;
/// The client has chosen that new messages are dropped when its queue is full.
const DROP_NEW: u8 = 32;
/// The same of the oldest ones.
const DROP_OLDEST: u8 = 64;

/// Where version 2 has the epoch: behind version, flags, expiry and time of making.
const EPOCH_AT: usize = 1 + 1 + 4 + 8;

/// Appends a session's record.
pub(super) fn put_session(out: &mut Vec<u8>, record: &SessionRecord) {
    let flag = |flag, set| if set { flag } else { 0 };
    let flags = flag(DISCONNECTED, record.disconnected_at.is_some())
        | flag(WILL, record.will.is_some())
        | flag(PENDING, record.pending)
        | flag(USER, record.user.written().is_some())
        | flag(AUTHOR, record.will.as_ref().is_some_and(|will| will.author.is_some()))
        | flag(DROP_NEW, record.queue_policy == Some(QueuePolicy::DropNew))
        | flag(DROP_OLDEST, record.queue_policy == Some(QueuePolicy::DropOldest));
    out.extend_from_slice(&[SESSION_ROWS.current(), flags]);
    out.put_u32_le(record.expiry_s);
    out.put_u64_le(record.created_at.0);
    put_varint(out, record.epoch);
    if let Some(at) = record.disconnected_at {
        out.put_u64_le(at.0);
    }
    put_text(out, &record.client_id);
    if let Some(user) = record.user.written() {
        put_text(out, user);
    }
    if let Some(will) = &record.will {
        out.put_u32_le(will.delay_s);
        out.push(u8::from(will.message_expiry_s.is_some()));
        out.put_u32_le(will.message_expiry_s.unwrap_or(0));
        if let Some(author) = &will.author {
            put_author(out, author);
        }
        put_body(out, &will.message);
    }
}

fn put_author(out: &mut Vec<u8>, author: &Author) {
    put_text(out, &author.listener);
    put_text(out, &author.address);
    put_texts(out, &author.groups);
    out.push(u8::from(author.publish.is_some()));
    put_texts(out, author.publish.as_deref().unwrap_or_default());
}

fn put_texts(out: &mut Vec<u8>, texts: &[Arc<str>]) {
    put_varint(out, texts.len() as u64);
    texts.iter().for_each(|text| put_text(out, text));
}

fn author(input: &mut Input<'_>) -> Result<Author, RecordError> {
    let listener = Arc::from(input.text()?);
    let address = Arc::from(input.text()?);
    let groups = texts(input)?;
    let claims = input.u8()? != 0;
    let publish = texts(input)?;
    Ok(Author { listener, address, groups, publish: claims.then_some(publish) })
}

fn texts(input: &mut Input<'_>) -> Result<Box<[Arc<str>]>, RecordError> {
    (0..input.len()?).map(|_| Ok(Arc::from(input.text()?))).collect()
}

/// Appends a subscription; its filter is in the key.
pub(super) fn put_subscription(out: &mut Vec<u8>, subscription: &SubscriptionRecord) {
    let flags = u8::from(subscription.subscription_id.is_some());
    out.extend_from_slice(&[SUBSCRIPTION_ROWS.current(), subscription.options.to_bits(), flags]);
    out.put_u32_le(subscription.subscription_id.unwrap_or(0));
    put_varint(out, subscription.older.len() as u64);
    for (origin, seq) in &subscription.older {
        put_varint(out, *origin);
        put_varint(out, *seq);
    }
}

/// From version 1: it is younger than nothing.
fn subscription_to_version_2(row: &[u8]) -> Result<Vec<u8>, RecordError> {
    match row {
        [_, rest @ ..] => Ok([&[2], rest, &[0]].concat()),
        [] => Err(RecordError::Truncated),
    }
}

/// From version 1: a session of a node without a cluster has epoch 0.
fn to_version_2(row: &[u8]) -> Result<Vec<u8>, RecordError> {
    let [_, flags, ..] = row else { return Err(RecordError::Truncated) };
    if flags & !(DISCONNECTED | WILL) != 0 {
        return Err(RecordError::Value("flags"));
    }
    let (head, tail) = row.split_at_checked(EPOCH_AT).ok_or(RecordError::Truncated)?;
    let mut row = [head, &[0], tail].concat();
    if let Some(version) = row.first_mut() {
        *version = 2;
    }
    Ok(row)
}

/// From version 2: only the version changes, and nobody knew a user.
fn to_version_3(row: &[u8]) -> Result<Vec<u8>, RecordError> {
    match row {
        [_, flags, ..] if flags & !(DISCONNECTED | WILL | PENDING) != 0 => Err(RecordError::Value("flags")),
        [_, rest @ ..] => Ok([&[3], rest].concat()),
        [] => Err(RecordError::Truncated),
    }
}

/// From version 3: only the version changes; nobody knew an author, or could choose a queue policy.
fn to_version_4(row: &[u8]) -> Result<Vec<u8>, RecordError> {
    match row {
        [_, flags, ..] if flags & !(DISCONNECTED | WILL | PENDING | USER) != 0 => {
            Err(RecordError::Value("flags"))
        }
        [_, rest @ ..] => Ok([&[4], rest].concat()),
        [] => Err(RecordError::Truncated),
    }
}

/// Decodes the record of session `no`.
pub(super) fn decode_session(no: SessionNo, row: &[u8]) -> Result<SessionRecord, RecordError> {
    let row = SESSION_ROWS.lift(row)?;
    let mut input = Input::new(&row);
    input.u8()?;
    let flags = input.u8()?;
    let queue_policy = match flags & (DROP_NEW | DROP_OLDEST) {
        0 => None,
        DROP_NEW => Some(QueuePolicy::DropNew),
        DROP_OLDEST => Some(QueuePolicy::DropOldest),
        _ => return Err(RecordError::Value("queue policy")),
    };
    let known = DISCONNECTED | WILL | PENDING | USER | AUTHOR | DROP_NEW | DROP_OLDEST;
    if flags & !known != 0 || flags & (WILL | AUTHOR) == AUTHOR {
        return Err(RecordError::Value("flags"));
    }
    let expiry_s = input.u32()?;
    let created_at = Time(input.u64()?);
    let epoch = input.varint()?;
    let disconnected_at = if flags & DISCONNECTED != 0 { Some(Time(input.u64()?)) } else { None };
    let client_id = Arc::from(input.text()?);
    let user = if flags & USER != 0 { Some(input.text()?) } else { None };
    let user = SessionUser::read(user);
    let will = if flags & WILL != 0 {
        let delay_s = input.u32()?;
        let expires = input.u8()?;
        let expiry = input.u32()?;
        let author = if flags & AUTHOR != 0 { Some(Arc::new(author(&mut input)?)) } else { None };
        let message = get_body(&mut input)?.message();
        Some(WillRecord { message, delay_s, message_expiry_s: (expires != 0).then_some(expiry), author })
    } else {
        None
    };
    input.end()?;
    let pending = flags & PENDING != 0;
    Ok(SessionRecord {
        no,
        client_id,
        expiry_s,
        disconnected_at,
        will,
        created_at,
        epoch,
        pending,
        user,
        queue_policy,
    })
}

/// Decodes the subscription to `filter`.
pub(super) fn decode_subscription(filter: &str, row: &[u8]) -> Result<SubscriptionRecord, RecordError> {
    let row = SUBSCRIPTION_ROWS.lift(row)?;
    let mut input = Input::new(&row);
    input.u8()?;
    let options =
        SubscribeOptions::from_bits(input.u8()?).ok_or(RecordError::Value("subscription options"))?;
    let has_id = input.u8()?;
    let id = input.u32()?;
    let count = input.len()?;
    let mut older = Vec::new();
    for _ in 0..count {
        older.push((input.varint()?, input.varint()?));
    }
    input.end()?;
    let subscription_id = (has_id != 0).then_some(id);
    Ok(SubscriptionRecord { filter: Arc::from(filter), options, subscription_id, older })
}
