//! The pages of this node's routes in etcd, as this process (their only writer) knows them.
//!
//! Each transaction compares this node's member key, the page written last, and that its new pages are not there yet. So an
//! attempt that was given up and comes late after all, when another one and a merge have gone through, changes nothing.

use super::batch::{FenceNow, REQUEST_BYTES_MAX};
use super::claims::compare_revision;
use super::client::Etcd;
use super::decode::RawEvent;
use super::keys::{Key, Keys};
use super::page::{Fold, Packed, RoutePage, merge};
use super::snapshot::{self, SnapshotError};
use super::trouble::Trouble;
use crate::backoff::Backoff;
use crate::clock;
use crate::ports::{MemberId, Revision, RouteChange};
use etcd_client::{Compare, DeleteOptions, GetOptions, Txn, TxnOp, TxnOpResponse};
use std::time::Duration;
use tokio::time::sleep;

/// Pages in one transaction, at most: etcd allows 128 operations, and as many compares.
pub const TXN_PAGES_MAX: usize = 100;

/// The first pause after a failure; doubled until [`PAUSE_LONGEST`].
const PAUSE: Duration = Duration::from_millis(50);

/// The longest pause after a failure.
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
struct Page {
    number: u64,
    weight: Weight,
}

/// How much a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of its filters, as [`super::page::size_of`] counts them.
    pub size: usize,
    /// How many filters it names.
    pub filters: usize,
}

impl Weight {
    /// Of a page as it was packed.
    pub fn of(packed: &Packed) -> Weight {
        Weight { size: packed.size, filters: packed.page.len() }
    }
}

/// The pages of this node's routes in etcd, as this process (their only writer) knows them.
pub struct PageLog {
    etcd: Etcd,
    keys: Keys,
    me: MemberId,
    fence: FenceNow,
    pages: Vec<Page>,
    next: u64,
    /// The page written last, and when.
    head: Option<(u64, Revision)>,
}

/// A transaction: puts that tell whether it has gone through, and what goes with them.
struct Change {
    /// The keys that are written; the first tells whether it has gone through.
    puts: Vec<(String, Vec<u8>)>,
    deletes: Vec<String>,
    compares: Vec<Compare>,
    /// The revision of the first key before, 0 = it is not there.
    before: Revision,
}

/// What an attempt to change the log came to.
enum Attempt {
    /// It went through, now or before, at this revision.
    Done(Revision),
    /// This node has no lease now.
    Fenced,
    /// The page written last is another, or gone.
    Changed { key: String },
}

impl PageLog {
    /// The log of `me`, which has no pages yet.
    pub fn new(etcd: Etcd, keys: Keys, me: MemberId, fence: FenceNow) -> PageLog {
        PageLog { etcd, keys, me, fence, pages: Vec::new(), next: 1, head: None }
    }

    /// What each page says, in order.
    pub fn weights(&self) -> impl DoubleEndedIterator<Item = Weight> + ExactSizeIterator + Clone {
        self.pages.iter().map(|page| page.weight)
    }

    fn key(&self, number: u64) -> String {
        self.keys.route_page(&self.me, number)
    }

    /// Writes pages after all others; returns the revision of the last one. Tried until etcd answers.
    pub async fn append(&mut self, mut pages: Vec<Packed>) -> Revision {
        let mut revision = self.head.map_or(0, |(_, revision)| revision);
        while !pages.is_empty() {
            let mut bytes = 0;
            let fits = |packed: &&Packed| {
                bytes += packed.size;
                bytes <= REQUEST_BYTES_MAX
            };
            let count = pages.iter().take(TXN_PAGES_MAX).take_while(fits).count().max(1);
            revision = self.append_chunk(pages.drain(..count).collect()).await;
        }
        revision
    }

    async fn append_chunk(&mut self, chunk: Vec<Packed>) -> Revision {
        let (pages, puts) = self.numbered(self.next.., &chunk);
        let mut compares = self.compare_head();
        compares.extend(puts.iter().map(|(key, _)| compare_revision(&**key, 0)));
        let change = Change { puts, deletes: Vec::new(), compares, before: 0 };
        let revision = self.commit(change).await;
        if let Some(last) = pages.last() {
            self.next = last.number + 1;
            self.head = Some((last.number, revision));
        }
        self.pages.extend(pages);
        revision
    }

    /// Pages under these numbers, and what is written for them.
    fn numbered(
        &self,
        numbers: impl IntoIterator<Item = u64>,
        packed: &[Packed],
    ) -> (Vec<Page>, Vec<(String, Vec<u8>)>) {
        let page = |(number, packed): (u64, &Packed)| {
            (Page { number, weight: Weight::of(packed) }, (self.key(number), packed.page.encode()))
        };
        numbers.into_iter().zip(packed).map(page).unzip()
    }

    /// Nothing was written since what this process wrote last.
    fn compare_head(&self) -> Vec<Compare> {
        let head = self.head.map(|(number, revision)| compare_revision(self.key(number), revision));
        head.into_iter().collect()
    }

    /// Carries out a change, however often that takes; returns its revision.
    async fn commit(&self, change: Change) -> Revision {
        let mut backoff = Backoff::new(PAUSE, PAUSE_LONGEST);
        let mut said = false;
        let mut trouble = Trouble::default();
        loop {
            match self.attempt(&change).await {
                Ok(Attempt::Done(revision)) => {
                    if let Some(ms) = trouble.over(clock::now()) {
                        tracing::info!(ms, "this node's routes are written to etcd again");
                    }
                    return revision;
                }
                Ok(Attempt::Fenced) => {}
                Ok(Attempt::Changed { key }) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::error!(
                            key,
                            "a page of this node's routes in etcd is not as this node wrote it: its routes are not written \
                             until this node is started again"
                        );
                    }
                }
                Err(error) => {
                    if trouble.is_news(&error, clock::now()) {
                        tracing::warn!(%error, "this node's routes wait for etcd");
                    }
                }
            }
            sleep(backoff.pause()).await;
        }
    }

    async fn attempt(&self, change: &Change) -> Result<Attempt, super::error::EtcdError> {
        let Some(fence) = (self.fence)() else { return Ok(Attempt::Fenced) };
        let Some((first, _)) = change.puts.first() else { return Ok(Attempt::Done(0)) };
        let mut compares = vec![fence];
        compares.extend(change.compares.iter().cloned());
        let mut ops: Vec<TxnOp> =
            change.puts.iter().map(|(key, value)| TxnOp::put(&**key, &**value, None)).collect();
        ops.extend(change.deletes.iter().map(|key| TxnOp::delete(&**key, None)));
        let head = self.head.map(|(number, revision)| (self.key(number), revision));
        let keys = [&**first].into_iter().chain(head.as_ref().map(|(key, _)| &**key));
        let looks: Vec<TxnOp> =
            keys.map(|key| TxnOp::get(key, Some(GetOptions::new().with_keys_only()))).collect();
        let response = self.etcd.txn(Txn::new().when(compares).and_then(ops).or_else(looks)).await?;
        if response.succeeded() {
            let revision = response.header().map_or(0, |header| header.revision());
            return Ok(Attempt::Done(revision as Revision));
        }
        // An earlier attempt went through unheard, or this node has no lease now, or somebody else was here.
        let mut there = response.op_responses().into_iter().map(|found| match found {
            TxnOpResponse::Get(get) => get.kvs().first().map_or(0, |kv| kv.mod_revision() as Revision),
            _ => 0,
        });
        let written = there.next().unwrap_or(0);
        if written > change.before {
            return Ok(Attempt::Done(written));
        }
        match (head, there.next()) {
            (Some((key, revision)), Some(found)) if found != revision => Ok(Attempt::Changed { key }),
            _ => Ok(Attempt::Fenced),
        }
    }

    /// Merges the last `run` pages into fewer.
    pub async fn merge(&mut self, run: usize, pack: impl Fn(Vec<RouteChange>) -> Vec<Packed>) {
        let at = self.pages.len().saturating_sub(run);
        let Some(first) = self.pages.get(at).copied() else { return };
        let Ok(raw) = self.read_from(first.number).await else { return };
        let old: Vec<(u64, Revision, RoutePage)> = self.decode(&raw);
        let known = self.pages[at..].iter().map(|page| page.number);
        if !old.iter().map(|(number, ..)| *number).eq(known) {
            tracing::error!(
                node = &*self.me.node,
                "the pages of this node's routes are not as it wrote them"
            );
            return;
        }
        let numbers: Vec<u64> = old.iter().map(|(number, ..)| *number).collect();
        let before = old.first().map_or(0, |(_, revision, _)| *revision);
        let merged = pack(merge(old.into_iter().map(|(.., page)| page), at == 0));
        // Nothing is left of them, or they cannot be packed better: they stay until the log is written anew.
        if merged.is_empty() || merged.len() >= numbers.len() {
            return;
        }
        let (pages, puts) = self.numbered(numbers.iter().copied(), &merged);
        let deletes = numbers[pages.len()..].iter().map(|&number| self.key(number)).collect();
        let compares = self.compare_head();
        let revision = self.commit(Change { puts, deletes, compares, before }).await;
        self.head = pages.last().map(|page| (page.number, revision));
        self.pages.truncate(at);
        self.pages.extend(pages);
    }

    /// Writes everything anew, after all other pages, then removes these: the fold is the same at every step.
    pub async fn rewrite(&mut self, pack: impl Fn(Vec<RouteChange>) -> Vec<Packed>) {
        let Ok(raw) = self.read_from(0).await else { return };
        let mut fold = Fold::default();
        self.decode(&raw).into_iter().for_each(|(.., page)| fold.page(page));
        let first = self.next;
        let route = |route: crate::ports::Route| RouteChange {
            filter: route.filter,
            route: Some((route.persistent, route.weight)),
        };
        let pages = pack(fold.into_routes().map(route).collect());
        // A log without a page has no head to compare: an empty page stays behind.
        let pages =
            if pages.is_empty() { vec![Packed { page: RoutePage::new(true), size: 0 }] } else { pages };
        self.append(pages).await;
        self.delete(&self.me, first).await;
        self.pages.retain(|page| page.number >= first);
    }

    /// Removes all routes of an incarnation that this node has adopted: says so first, so that those who follow know.
    pub async fn clear(&self, of: &MemberId) {
        let mut backoff = Backoff::new(PAUSE, PAUSE_LONGEST);
        let mut said = false;
        loop {
            match self.try_clear(of).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, of = %of, "routes of an earlier start wait for etcd");
                    }
                }
            }
            sleep(backoff.pause()).await;
        }
    }

    async fn try_clear(&self, of: &MemberId) -> Result<bool, SnapshotError> {
        let mut raw = Vec::new();
        snapshot::read(&self.etcd, &self.keys.routes_of(of), |page| raw.extend(page)).await?;
        let Some(first) = raw.first() else { return Ok(true) };
        let there = compare_revision(first.key.to_vec(), first.revision);
        let mut fold = Fold::default();
        let mut next = 1;
        for (number, _, page) in self.decode(&raw) {
            fold.page(page);
            next = number + 1;
        }
        let gone = fold.filters().map(|filter| RouteChange { filter: filter.clone(), route: None });
        let (filters, bytes) = (super::routes::PAGE_FILTERS_MAX, super::routes::PAGE_BYTES_MAX);
        for (number, packed) in (next..).zip(super::page::pack(gone, false, filters, bytes)) {
            let put = TxnOp::put(self.keys.route_page(of, number), packed.page.encode(), None);
            if !self.fenced(vec![there.clone()], vec![put]).await? {
                return Ok(false);
            }
        }
        let end = snapshot::end_of(self.keys.routes_of(of).as_bytes());
        let all = DeleteOptions::new().with_range(end);
        self.fenced(vec![there], vec![TxnOp::delete(self.keys.routes_of(of), Some(all))]).await?;
        Ok(true)
    }

    /// Removes the pages of an incarnation below a number.
    async fn delete(&self, of: &MemberId, below: u64) {
        let mut backoff = Backoff::new(PAUSE, PAUSE_LONGEST);
        let range = DeleteOptions::new().with_range(self.keys.route_page(of, below));
        let delete = TxnOp::delete(self.keys.route_page(of, 0), Some(range));
        while !matches!(self.fenced(Vec::new(), vec![delete.clone()]).await, Ok(true)) {
            sleep(backoff.pause()).await;
        }
    }

    async fn fenced(
        &self,
        mut compares: Vec<Compare>,
        ops: Vec<TxnOp>,
    ) -> Result<bool, super::error::EtcdError> {
        let Some(fence) = (self.fence)() else { return Ok(false) };
        compares.push(fence);
        Ok(self.etcd.txn(Txn::new().when(compares).and_then(ops)).await?.succeeded())
    }

    /// This node's pages from a number on.
    async fn read_from(&self, number: u64) -> Result<Vec<RawEvent>, SnapshotError> {
        let (from, end) = (self.key(number), snapshot::end_of(self.keys.routes_of(&self.me).as_bytes()));
        let mut raw = Vec::new();
        snapshot::read_range(&self.etcd, from.into_bytes(), end, |page| raw.extend(page)).await?;
        Ok(raw)
    }

    fn decode(&self, raw: &[RawEvent]) -> Vec<(u64, Revision, RoutePage)> {
        let page = |event: &RawEvent| {
            let Some(Key::Routes { page: number, .. }) = self.keys.parse(&event.key) else { return None };
            let page = RoutePage::decode(event.value.as_ref()?).ok()?;
            Some((number, event.revision, page))
        };
        raw.iter().filter_map(page).collect()
    }
}
