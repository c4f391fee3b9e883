//! The values of `members/`, `custody/`, `journals/` and `sessions/`: compact JSON with `"v":1`.

use crate::ports::{Custody, Epoch, Incarnation, Member, MemberId, SessionOwner, Stamped};
use crate::user::SessionUser;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::sync::Arc;

/// The version of every value, and the only one this release reads.
pub const VALUE_VERSION: u32 = 1;

/// A value in etcd cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer release.
    #[error(
        "{key} in etcd has version {found}, and this release of Berth reads only version {VALUE_VERSION}: upgrade this \
         node, or give its cluster a prefix of its own (etcd.prefix)"
    )]
    Version {
        /// The key.
        key: String,
        /// Its version.
        found: u32,
    },
    /// Not written by Berth, or damaged.
    #[error(
        "{key} in etcd cannot be read ({what}): was it changed by hand? Restore it, or delete it with etcdctl if nothing \
         needs it"
    )]
    Malformed {
        /// The key.
        key: String,
        /// What is wrong.
        what: String,
    },
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// Reads the JSON value of `key`.
///
/// # Errors
/// If it is not a value of this version.
pub fn read<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, RecordError> {
    let key = || String::from_utf8_lossy(key).into_owned();
    let malformed = |e: serde_json::Error| RecordError::Malformed { key: key(), what: e.to_string() };
    let Version { v } = serde_json::from_slice(value).map_err(malformed)?;
    if v != VALUE_VERSION {
        return Err(RecordError::Version { key: key(), found: v });
    }
    serde_json::from_slice(value).map_err(malformed)
}

/// The JSON value of a record.
pub fn write<T: Serialize>(record: &T) -> Vec<u8> {
    // The records are plain structures of strings and numbers: these always have a JSON form.
    serde_json::to_vec(record).unwrap_or_default()
}

/// `node@incarnation`; the last `@` divides.
mod member_id {
    use super::*;

    pub fn serialize<S: Serializer>(id: &MemberId, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<MemberId, D::Error> {
        let text = String::deserialize(d)?;
        parse(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is not node@incarnation")))
    }

    pub fn parse(text: &str) -> Option<MemberId> {
        let (node, incarnation) = text.rsplit_once('@')?;
        let incarnation = incarnation.parse().ok()?;
        (!node.is_empty()).then(|| MemberId { node: node.into(), incarnation })
    }
}

/// Reads `node@incarnation` (the value of a candidate's `leader/` key).
pub fn parse_member_id(text: &[u8]) -> Option<MemberId> {
    member_id::parse(std::str::from_utf8(text).ok()?)
}

/// 16 hexadecimal digits: JSON tools lose the last digits of large numbers.
mod hex {
    use super::*;

    pub fn serialize<S: Serializer>(number: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{number:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        let text = String::deserialize(d)?;
        u64::from_str_radix(&text, 16).map_err(|_| de::Error::custom(format!("{text:?} is not hexadecimal")))
    }
}

/// As [`hex`], of a field that may be missing.
mod maybe_hex {
    use super::*;

    pub fn serialize<S: Serializer>(number: &Option<u64>, s: S) -> Result<S::Ok, S::Error> {
        match number {
            Some(number) => hex::serialize(number, s),
            None => s.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
        hex::deserialize(d).map(Some)
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// The value of `members/<node>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    pub(super) v: u32,
    /// Which start of the node; missing between the registration and the custody record, when the node does not count yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// Where other nodes reach it, `host:port`.
    pub peer: String,
    /// Where clients reach it, `host:port`.
    pub mqtt: String,
    /// Where its admin HTTP listens, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Where it stands.
    #[serde(default)]
    pub zone: String,
    /// Its release.
    pub version: String,
    /// When it started, milliseconds since the epoch.
    pub started: u64,
    /// It hands its sessions over and takes no new ones.
    #[serde(default, skip_serializing_if = "is_false")]
    pub draining: bool,
    /// Its journal's ID.
    #[serde(with = "hex")]
    pub journal: u64,
}

impl MemberRecord {
    /// The record of a node that has not got its incarnation yet, from its description (whose incarnation is ignored).
    pub fn new(member: &Member, journal: u64) -> MemberRecord {
        MemberRecord {
            v: VALUE_VERSION,
            incarnation: None,
            peer: member.peer_address.clone(),
            mqtt: member.mqtt_address.clone(),
            http: member.http_address.clone(),
            zone: member.zone.clone(),
            version: member.version.clone(),
            started: member.started_ms,
            draining: member.draining,
            journal,
        }
    }

    /// The member; `None` while it does not count yet.
    pub fn member(&self, node: Arc<str>) -> Option<Member> {
        Some(Member {
            id: MemberId { node, incarnation: self.incarnation? },
            peer_address: self.peer.clone(),
            mqtt_address: self.mqtt.clone(),
            http_address: self.http.clone(),
            zone: self.zone.clone(),
            version: self.version.clone(),
            started_ms: self.started,
            draining: self.draining,
        })
    }
}

/// The value of `custody/<node>/<incarnation>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustodyRecord {
    pub(super) v: u32,
    /// The holder.
    #[serde(with = "member_id")]
    pub holder: MemberId,
    /// Whether the holder's own journal has everything of it.
    pub merged: bool,
    /// Copies of the journal: 1 or 2.
    pub copies: u8,
    /// The journal that holds the state.
    #[serde(with = "hex")]
    pub journal: u64,
    /// The stamp of the incarnation's start in its journal; missing if it has none, or was of a release without.
    #[serde(default, with = "maybe_hex", skip_serializing_if = "Option::is_none")]
    pub stamp: Option<u64>,
    /// Since when the leader has known the holder's node to be gone, milliseconds since the epoch by the cluster's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<u64>,
    /// Its process keeps the expiry in the records of its sessions right: what they say counts when it is gone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub expires: bool,
    /// Given up for ever, with all it owned; the record goes when nothing refers to it any more.
    #[serde(default, skip_serializing_if = "is_false")]
    pub given_up: bool,
}

impl CustodyRecord {
    /// The first record of an incarnation: it holds itself, in one copy.
    pub fn own(me: &MemberId, journal: u64) -> CustodyRecord {
        CustodyRecord {
            v: VALUE_VERSION,
            holder: me.clone(),
            merged: true,
            copies: 1,
            journal,
            stamp: None,
            gone: None,
            expires: true,
            given_up: false,
        }
    }

    /// What the broker knows of it; `None` if it was given up.
    pub fn custody(&self) -> Option<Custody> {
        let CustodyRecord { holder, merged, copies, journal, .. } = self;
        let custody = Custody { holder: holder.clone(), merged: *merged, copies: *copies, journal: *journal };
        (!self.given_up).then_some(custody)
    }
}

/// The value of `journals/<journal>`: what the last process that had it said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRecord {
    pub(super) v: u32,
    /// The process that told it.
    #[serde(with = "member_id")]
    pub process: MemberId,
    /// The stamp of its start, which is in the journal.
    #[serde(with = "hex")]
    pub stamp: u64,
    /// Which start of the journal that was, from 1.
    pub start: u64,
    /// How far the journal had come, durably.
    pub position: u64,
    /// Where other nodes reach it, `host:port`; missing once it has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

impl JournalRecord {
    /// What a process that other nodes reach at `peer` says of a start of its journal.
    pub fn new(process: &MemberId, start: Stamped, position: u64, peer: &str) -> JournalRecord {
        JournalRecord {
            v: VALUE_VERSION,
            process: process.clone(),
            stamp: start.stamp,
            start: start.number,
            position,
            peer: Some(peer.to_owned()),
        }
    }
}

/// The value of `sessions/<client>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    pub(super) v: u32,
    /// The incarnation that claimed it.
    #[serde(with = "member_id")]
    pub owner: MemberId,
    /// How often the owner has changed.
    pub epoch: Epoch,
    /// Session expiry interval, seconds; 0 = there is no state behind the connection.
    pub expiry: u32,
    /// Whose it is: missing = unknown, empty = anonymous. The last field, so that the values of one owner and epoch are a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl SessionRecord {
    /// The record of `session`.
    pub fn new(session: &SessionOwner) -> SessionRecord {
        let SessionOwner { owner, epoch, expiry_s, user } = session;
        let user = user.written().map(str::to_owned);
        SessionRecord { v: VALUE_VERSION, owner: owner.clone(), epoch: *epoch, expiry: *expiry_s, user }
    }

    /// What the broker knows of it.
    pub fn session(&self) -> SessionOwner {
        let user = SessionUser::read(self.user.as_deref());
        SessionOwner { owner: self.owner.clone(), epoch: self.epoch, expiry_s: self.expiry, user }
    }
}

/// The value of `restored`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredRecord {
    v: u32,
    /// How many restorations have been noticed.
    pub generation: u64,
    /// A random number that tells this life of the store from others with the same count.
    #[serde(with = "hex")]
    pub name: u64,
}

impl RestoredRecord {
    /// So many, the last of this name.
    pub fn new(generation: u64, name: u64) -> RestoredRecord {
        RestoredRecord { v: VALUE_VERSION, generation, name }
    }
}

/// The value of `forgotten/<journal>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgottenRecord {
    v: u32,
    /// The last process with this journal whose things were given up.
    pub up_to: Incarnation,
}

impl ForgottenRecord {
    /// Everything up to this process.
    pub fn new(up_to: Incarnation) -> ForgottenRecord {
        ForgottenRecord { v: VALUE_VERSION, up_to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> MemberId {
        MemberId { node: "a@b".into(), incarnation: 7 }
    }

    #[test]
    fn values_are_read_as_they_were_written() {
        for (user, written) in
            [(None, ""), (Some(""), r#","user":"""#), (Some("al\"ice"), r#","user":"al\"ice""#)]
        {
            let owner = SessionOwner { owner: me(), epoch: 3, expiry_s: 60, user: SessionUser::read(user) };
            let text = write(&SessionRecord::new(&owner));
            let expected = format!(r#"{{"v":1,"owner":"a@b@7","epoch":3,"expiry":60{written}}}"#);
            assert_eq!(std::str::from_utf8(&text).unwrap(), expected);
            assert_eq!(read::<SessionRecord>(b"k", &text).unwrap().session(), owner);
        }

        let custody = CustodyRecord::own(&me(), u64::MAX - 1);
        let text = write(&custody);
        let json = r#"{"v":1,"holder":"a@b@7","merged":true,"copies":1,"journal":"fffffffffffffffe","expires":true}"#;
        assert_eq!(std::str::from_utf8(&text).unwrap(), json);
        let back = read::<CustodyRecord>(b"k", &text).unwrap();
        assert_eq!(back.custody().unwrap().holder, me());
        let stamped = CustodyRecord { stamp: Some(0x1f), ..back.clone() };
        let text = write(&stamped);
        assert!(std::str::from_utf8(&text).unwrap().contains(r#","stamp":"000000000000001f","#));
        assert_eq!(read::<CustodyRecord>(b"k", &text).unwrap(), stamped);
        let given_up = CustodyRecord { given_up: true, ..back };
        assert_eq!(read::<CustodyRecord>(b"k", &write(&given_up)).unwrap().custody(), None);
    }

    #[test]
    fn a_member_counts_once_it_has_an_incarnation() {
        let member = Member {
            id: me(),
            peer_address: "h:1".into(),
            mqtt_address: "h:2".into(),
            http_address: None,
            zone: "z".into(),
            version: "1.2.3".into(),
            started_ms: 5,
            draining: true,
        };
        let mut record = MemberRecord::new(&member, 9);
        assert_eq!(record.member(me().node), None);
        record.incarnation = Some(7);
        let back: MemberRecord = read(b"k", &write(&record)).unwrap();
        assert_eq!(back, record);
        assert_eq!(back.member(me().node), Some(member));
    }

    #[test]
    fn a_newer_or_foreign_value_is_refused_by_name() {
        let newer = read::<SessionRecord>(b"/berth/c/v1/sessions/x", br#"{"v":2,"owner":[]}"#).unwrap_err();
        assert_eq!(
            newer.to_string(),
            "/berth/c/v1/sessions/x in etcd has version 2, and this release of Berth reads only version 1: upgrade this \
             node, or give its cluster a prefix of its own (etcd.prefix)"
        );
        for value in [&b"hello"[..], b"{}", br#"{"v":1,"owner":"x","epoch":1,"expiry":0}"#, br#"{"v":1}"#] {
            let error = read::<SessionRecord>(b"k", value).unwrap_err();
            assert!(matches!(error, RecordError::Malformed { .. }), "{error}");
        }
    }
}
