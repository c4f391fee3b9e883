//! From keys and values of etcd to events of the index.

use super::eviction::EvictionRecord;
use super::holders::Holders;
use super::keys::{Key, Keys};
use super::page::{Fold, RoutePage};
use super::records::{self, CustodyRecord, MemberRecord, SessionRecord};
use super::restored;
use super::retained_value;
use crate::hashing::HashSet;
use crate::names::shown;
use crate::ports::{IndexEvent, MemberId, Revision, RouteChange, Timeline};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Keys of unreadable values that are remembered so that each is logged once; beyond that some are logged again.
const UNREADABLE_MAX: usize = 1024;

/// Routes in one event of a snapshot, at most.
const EVENT_ROUTES_MAX: usize = 4096;

/// A change of a key as etcd tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEvent {
    /// The key.
    pub key: Bytes,
    /// The value; `None` = deleted.
    pub value: Option<Bytes>,
    /// The revision of the change.
    pub revision: Revision,
    /// The revision at which the key was created; 0 if it was deleted.
    pub created: Revision,
}

/// Decodes events in the order of their revisions. Remembers what an event alone does not say: the candidates of the election.
pub struct Decoder {
    keys: Keys,
    holders: Arc<Holders>,
    /// By the revision of creation: the first leads.
    candidates: BTreeMap<Revision, (Bytes, MemberId)>,
    unreadable: HashSet<Bytes>,
    timeline: Timeline,
    /// Inside a snapshot.
    snapshot: Option<Snapshot>,
}

/// What a snapshot gathers until it is complete.
#[derive(Default)]
struct Snapshot {
    /// The incarnation whose pages are being read. Keys come in order, so its pages come one after the other.
    routes: Option<(MemberId, Fold)>,
    custody: HashSet<MemberId>,
}

impl Decoder {
    /// Reads `keys`; custody records are noted in `holders`.
    pub fn new(keys: Keys, holders: Arc<Holders>) -> Decoder {
        let (candidates, unreadable, timeline) = (BTreeMap::new(), HashSet::default(), Timeline::default());
        Decoder { keys, holders, candidates, unreadable, timeline, snapshot: None }
    }

    /// What follows is a snapshot: all keys, in order.
    pub fn begin_snapshot(&mut self) {
        self.candidates.clear();
        self.timeline = Timeline::default();
        self.snapshot = Some(Snapshot::default());
    }

    /// The snapshot of `revision` is complete.
    pub fn end_snapshot(&mut self, revision: Revision, out: &mut Vec<IndexEvent>) {
        let Some(snapshot) = self.snapshot.take() else { return };
        emit(snapshot.routes, out);
        self.holders.snapshot(&snapshot.custody, revision);
        out.push(IndexEvent::Leader(self.leader()));
    }

    /// One key's change, or one key of a snapshot.
    pub fn event(&mut self, raw: &RawEvent, out: &mut Vec<IndexEvent>) {
        let Some(key) = self.keys.parse(&raw.key) else {
            self.skip(&raw.key, "Berth has no such key");
            return;
        };
        let event = match key {
            Key::Leader => return self.candidate(raw, out),
            Key::Directory(key) => Ok(Some(IndexEvent::Directory { key, value: raw.value.clone() })),
            Key::Restored => self.restored(raw),
            // For processes that register.
            Key::Forgotten { .. } | Key::Journal { .. } => return,
            Key::Routes { of, .. } => self.routes(of, raw, out),
            Key::Member { node } => member(node, raw),
            Key::Custody { of } => self.custody(of, raw),
            Key::Session { client_id } => session(client_id, raw),
            Key::Retained { topic } => retained(topic, raw),
            Key::Eviction { node, client_id } => eviction(node, client_id, raw),
        };
        match event {
            Ok(Some(event)) => out.push(event),
            Ok(None) => {}
            Err(problem) => self.skip(&raw.key, &problem),
        }
    }

    /// Everything up to `revision` has been decoded.
    pub fn applied(&self, revision: Revision) {
        self.holders.applied(revision);
    }

    fn skip(&mut self, key: &Bytes, problem: &str) {
        if self.unreadable.len() >= UNREADABLE_MAX {
            self.unreadable.clear();
        }
        if self.unreadable.insert(key.clone()) {
            let key = String::from_utf8_lossy(key);
            tracing::error!(key = %shown(&key), problem, "a key in etcd cannot be read and is left out; look at it with etcdctl get");
        }
    }

    /// Who leads.
    pub fn leader(&self) -> Option<MemberId> {
        self.candidates.first_key_value().map(|(_, (_, id))| id.clone())
    }

    /// The life of the store, as far as has been decoded.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    fn restored(&mut self, raw: &RawEvent) -> Result<Option<IndexEvent>, String> {
        self.timeline = match &raw.value {
            Some(value) => restored::timeline(&raw.key, value).map_err(|e| e.to_string())?,
            None => Timeline::default(),
        };
        Ok(None)
    }

    fn candidate(&mut self, raw: &RawEvent, out: &mut Vec<IndexEvent>) {
        let before = self.leader();
        self.candidates.retain(|_, (key, _)| *key != raw.key);
        if let Some(value) = &raw.value {
            match records::parse_member_id(value) {
                Some(id) => {
                    self.candidates.insert(raw.created, (raw.key.clone(), id));
                }
                None => self.skip(&raw.key, "the value is not node@incarnation"),
            }
        }
        let leader = self.leader();
        if leader != before && self.snapshot.is_none() {
            out.push(IndexEvent::Leader(leader));
        }
    }

    fn routes(
        &mut self,
        of: MemberId,
        raw: &RawEvent,
        out: &mut Vec<IndexEvent>,
    ) -> Result<Option<IndexEvent>, String> {
        // Pages go when others have taken their place.
        let Some(value) = &raw.value else { return Ok(None) };
        let page = RoutePage::decode(value)?;
        let Some(snapshot) = &mut self.snapshot else {
            return Ok((!page.merged).then(|| page_event(of, page)));
        };
        match &mut snapshot.routes {
            Some((at, fold)) if *at == of => fold.page(page),
            routes => {
                emit(routes.take(), out);
                let mut fold = Fold::default();
                fold.page(page);
                *routes = Some((of, fold));
            }
        }
        Ok(None)
    }

    fn custody(&mut self, of: MemberId, raw: &RawEvent) -> Result<Option<IndexEvent>, String> {
        let Some(value) = &raw.value else {
            self.holders.gone(&of, raw.revision);
            return Ok(Some(IndexEvent::Custody { of, custody: None }));
        };
        let record: CustodyRecord = records::read(&raw.key, value).map_err(|e| e.to_string())?;
        let custody = record.custody();
        self.holders.note(&of, custody.clone(), raw.revision);
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.custody.insert(of.clone());
        }
        Ok(Some(IndexEvent::Custody { of, custody }))
    }
}

fn page_event(of: MemberId, page: RoutePage) -> IndexEvent {
    let (mut add, mut del) = (Vec::with_capacity(page.add.len()), Vec::with_capacity(page.del.len()));
    for RouteChange { filter, route } in page.into_changes() {
        match route {
            Some((persistent, weight)) => {
                add.push(crate::ports::Route { filter, persistent, weight });
            }
            None => del.push(filter),
        }
    }
    IndexEvent::Routes { of, add, del }
}

/// The routes of one incarnation, as events of a bounded size.
fn emit(routes: Option<(MemberId, Fold)>, out: &mut Vec<IndexEvent>) {
    let Some((of, fold)) = routes else { return };
    let mut routes = fold.into_routes().peekable();
    while routes.peek().is_some() {
        let add = routes.by_ref().take(EVENT_ROUTES_MAX).collect();
        out.push(IndexEvent::Routes { of: of.clone(), add, del: Vec::new() });
    }
}

fn member(node: Arc<str>, raw: &RawEvent) -> Result<Option<IndexEvent>, String> {
    let record: Option<MemberRecord> = read(raw)?;
    let member = record.and_then(|record| record.member(node.clone()));
    Ok(Some(IndexEvent::Member { node, member }))
}

fn session(client_id: Arc<str>, raw: &RawEvent) -> Result<Option<IndexEvent>, String> {
    let record: Option<SessionRecord> = read(raw)?;
    let session = record.map(|record| record.session());
    Ok(Some(IndexEvent::Session { client_id, session, revision: raw.revision }))
}

fn retained(topic: Arc<str>, raw: &RawEvent) -> Result<Option<IndexEvent>, String> {
    let retained = match &raw.value {
        Some(value) => Some(retained_value::decode(&topic, value)?),
        None => None,
    };
    Ok(Some(IndexEvent::Retained { topic, retained, revision: raw.revision }))
}

fn eviction(node: Arc<str>, client_id: Arc<str>, raw: &RawEvent) -> Result<Option<IndexEvent>, String> {
    let record: Option<EvictionRecord> = read(raw)?;
    let expired = record.as_ref().is_some_and(|record| record.expired);
    let epoch = record.map(|record| record.epoch);
    Ok(Some(IndexEvent::Eviction { node, client_id, epoch, expired, revision: raw.revision }))
}

fn read<T: serde::de::DeserializeOwned>(raw: &RawEvent) -> Result<Option<T>, String> {
    let Some(value) = &raw.value else { return Ok(None) };
    records::read(&raw.key, value).map(Some).map_err(|e| e.to_string())
}
