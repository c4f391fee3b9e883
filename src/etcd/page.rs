//! Pages of a node's routes: `routes/<node>/<incarnation>/<page>`. A route set is the fold of its pages in key order.
//!
//! A filter of `add` is a plain string where nothing is to be said about it, `["filter",1]` if a persistent session needs
//! it, `["filter",0,3]` or `["filter",1,3]` with another weight than 1.

use crate::hashing::HashMap;
use crate::ports::{Route, RouteChange};
use hashbrown::hash_map::Entry as Place;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// The version of the format written here.
const VERSION: u32 = 1;

/// Bytes of JSON around a filter, at most: quotes, brackets, flags, a comma.
const AROUND: usize = 20;

/// One page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutePage {
    /// Version of the format: 1.
    v: u32,
    /// The page replaces others: whoever has read those has nothing to learn from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merged: bool,
    /// Added or changed. A filter is in `add` or in `del`, once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<Entry>,
    /// Removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub del: Vec<Gone>,
}

/// A filter that is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(pub Route);

/// A filter that is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone(pub Arc<str>);

impl RoutePage {
    /// An empty page.
    pub fn new(merged: bool) -> RoutePage {
        RoutePage { v: VERSION, merged, ..RoutePage::default() }
    }

    /// Reads a page.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn decode(value: &[u8]) -> Result<RoutePage, String> {
        let page: RoutePage = serde_json::from_slice(value).map_err(|e| e.to_string())?;
        if page.v != VERSION {
            return Err(format!("version {} of a page of routes; this release reads {VERSION}", page.v));
        }
        Ok(page)
    }

    /// Its JSON.
    pub fn encode(&self) -> Vec<u8> {
        // Fails for maps with keys that are no strings only.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.del.is_empty()
    }

    /// How many filters it names.
    pub fn len(&self) -> usize {
        self.add.len() + self.del.len()
    }

    /// Puts `change` in. The filter must not be in the page yet.
    pub fn push(&mut self, change: RouteChange) {
        match change.route {
            Some((persistent, weight)) => {
                self.add.push(Entry(Route { filter: change.filter, persistent, weight }));
            }
            None => self.del.push(Gone(change.filter)),
        }
    }

    /// All it says.
    pub fn into_changes(self) -> impl Iterator<Item = RouteChange> {
        let add = self.add.into_iter().map(|Entry(route)| RouteChange {
            filter: route.filter,
            route: Some((route.persistent, route.weight)),
        });
        add.chain(self.del.into_iter().map(|Gone(filter)| RouteChange { filter, route: None }))
    }
}

/// Bytes that a filter takes in a page, about (characters that JSON escapes are counted twice).
pub fn size_of(filter: &str) -> usize {
    AROUND
        + filter
            .bytes()
            .map(|b| if b < 0x20 { 6 } else { 1 + usize::from(matches!(b, b'"' | b'\\')) })
            .sum::<usize>()
}

/// A page as it was packed.
#[derive(Debug)]
pub struct Packed {
    /// The page.
    pub page: RoutePage,
    /// Bytes of its filters, as [`size_of`] counts them.
    pub size: usize,
}

/// Packs changes into pages of at most `filters` filters and about `bytes` bytes; a filter longer than that has a page of its
/// own. Each filter may be there once.
pub fn pack(
    changes: impl IntoIterator<Item = RouteChange>,
    merged: bool,
    filters: usize,
    bytes: usize,
) -> Vec<Packed> {
    let mut pages = Vec::new();
    let mut page = RoutePage::new(merged);
    let mut size = 0;
    for change in changes {
        let more = size_of(&change.filter);
        if !page.is_empty() && (page.len() >= filters || size + more > bytes) {
            let page = std::mem::replace(&mut page, RoutePage::new(merged));
            pages.push(Packed { page, size: std::mem::take(&mut size) });
        }
        size += more;
        page.push(change);
    }
    if !page.is_empty() {
        pages.push(Packed { page, size });
    }
    pages
}

/// The routes of an incarnation, from its pages in key order.
#[derive(Debug, Default)]
pub struct Fold(HashMap<Arc<str>, (bool, u32)>);

impl Fold {
    /// Adds the next page.
    pub fn page(&mut self, page: RoutePage) {
        for change in page.into_changes() {
            self.change(change);
        }
    }

    /// Adds one change.
    pub fn change(&mut self, change: RouteChange) {
        match change.route {
            Some(route) => {
                self.0.insert(change.filter, route);
            }
            None => {
                self.0.remove(&change.filter);
            }
        }
    }

    /// What a filter is now.
    pub fn get(&self, filter: &str) -> Option<(bool, u32)> {
        self.0.get(filter).copied()
    }

    /// How many filters there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The filters.
    pub fn filters(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    /// The routes.
    pub fn into_routes(self) -> impl Iterator<Item = Route> {
        self.0.into_iter().map(|(filter, (persistent, weight))| Route { filter, persistent, weight })
    }
}

/// What is left of the changes of several pages, in their order: each filter once, with what was said of it last.
/// `first` = there is no page before them, so removals say nothing.
pub fn merge(pages: impl IntoIterator<Item = RoutePage>, first: bool) -> Vec<RouteChange> {
    let mut kept: Vec<RouteChange> = Vec::new();
    let mut places: HashMap<Arc<str>, usize> = HashMap::default();
    for change in pages.into_iter().flat_map(RoutePage::into_changes) {
        match places.entry(change.filter.clone()) {
            Place::Occupied(place) => {
                if let Some(there) = kept.get_mut(*place.get()) {
                    there.route = change.route;
                }
            }
            Place::Vacant(place) => {
                place.insert(kept.len());
                kept.push(change);
            }
        }
    }
    kept.retain(|change| change.route.is_some() || !first);
    kept
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Route { filter, persistent, weight } = &self.0;
        if *weight == 1 && !persistent {
            return out.serialize_str(filter);
        }
        let mut tuple = out.serialize_tuple(if *weight == 1 { 2 } else { 3 })?;
        tuple.serialize_element(&**filter)?;
        tuple.serialize_element(&u8::from(*persistent))?;
        if *weight != 1 {
            tuple.serialize_element(weight)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Entry, D::Error> {
        input.deserialize_any(EntryVisitor)
    }
}

impl Serialize for Gone {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Gone {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Gone, D::Error> {
        Ok(Gone(String::deserialize(input)?.into()))
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a filter or [filter, persistent, weight]")
    }

    fn visit_str<E>(self, filter: &str) -> Result<Entry, E> {
        Ok(Entry(Route { filter: filter.into(), persistent: false, weight: 1 }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Entry, A::Error> {
        let filter: Arc<str> =
            seq.next_element::<String>()?.ok_or_else(|| A::Error::custom("no filter"))?.into();
        let persistent = seq.next_element::<u8>()?.unwrap_or(0) != 0;
        let weight = seq.next_element::<u32>()?.unwrap_or(1);
        Ok(Entry(Route { filter, persistent, weight }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(filter: &str, route: Option<(bool, u32)>) -> RouteChange {
        RouteChange { filter: filter.into(), route }
    }

    #[test]
    fn a_page_reads_as_written_and_is_compact() {
        let mut page = RoutePage::new(false);
        page.push(change("a/b", Some((false, 1))));
        page.push(change("c/\"d\"", Some((true, 1))));
        page.push(change("$share/g/x", Some((false, 3))));
        page.push(change("old", None));
        let json = page.encode();
        assert_eq!(
            std::str::from_utf8(&json).unwrap(),
            r#"{"v":1,"add":["a/b",["c/\"d\"",1],["$share/g/x",0,3]],"del":["old"]}"#
        );
        assert_eq!(RoutePage::decode(&json).unwrap(), page);
        assert!(json.len() <= page.add.iter().map(|e| size_of(&e.0.filter)).sum::<usize>() + 60);
    }

    #[test]
    fn what_is_no_page_is_refused_in_words() {
        for bad in ["", "[]", "{}", r#"{"v":2}"#, r#"{"v":1,"add":[[]]}"#, r#"{"v":1,"add":[7]}"#] {
            let problem = RoutePage::decode(bad.as_bytes()).unwrap_err();
            assert!(!problem.is_empty());
        }
    }

    #[test]
    fn pages_keep_to_their_limits() {
        let changes: Vec<_> = (0..2500).map(|i| change(&format!("site/{i}"), Some((true, 1)))).collect();
        let pages = pack(changes.clone(), false, 1000, 64 << 10);
        assert_eq!(pages.iter().map(|p| p.page.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
        let small = pack(changes, false, 1000, 2000);
        assert!(small.iter().all(|p| p.page.encode().len() <= p.size + 60 && p.size <= 2000));
        let long = "x".repeat(5000);
        let pages = pack([change("a", None), change(&long, None), change("b", None)], false, 1000, 2000);
        assert_eq!(pages.len(), 3);
    }

    #[test]
    fn merging_keeps_the_fold() {
        let mut random = 7u64;
        let mut next = |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        for _ in 0..200 {
            let pages: Vec<RoutePage> = (0..next(12) + 2)
                .map(|_| {
                    let mut page = RoutePage::new(false);
                    let mut seen = std::collections::HashSet::new();
                    for _ in 0..next(6) + 1 {
                        let filter = format!("f{}", next(8));
                        if seen.insert(filter.clone()) {
                            let route = (next(2) == 0).then(|| (next(2) == 0, 1 + next(3) as u32));
                            page.push(change(&filter, route));
                        }
                    }
                    page
                })
                .collect();
            let from = next(pages.len() as u64) as usize;
            let to = from + next((pages.len() - from) as u64 + 1) as usize;
            let mut merged = pages[..from].to_vec();
            let packed = pack(merge(pages[from..to].to_vec(), from == 0), true, 3, 1 << 16);
            merged.extend(packed.into_iter().map(|packed| packed.page));
            merged.extend(pages[to..].to_vec());
            let fold = |pages: Vec<RoutePage>| {
                let mut fold = Fold::default();
                pages.into_iter().for_each(|p| fold.page(p));
                fold.0.into_iter().collect::<std::collections::BTreeMap<_, _>>()
            };
            assert_eq!(fold(pages), fold(merged));
        }
    }
}
