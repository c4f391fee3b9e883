//! Who speaks for an incarnation: the custody records as last seen, shared by the watch (which feeds them) and the claims
//! (which compare them).

use crate::hashing::HashMap;
use crate::ports::{Custody, MemberId, Revision};
use parking_lot::RwLock;

/// Records followed for one session, at most; a longer chain is a loop or a fault, and its last holder is taken.
pub const CHAIN_MAX: usize = 6;

/// A custody record as seen.
#[derive(Clone, Debug)]
struct Seen {
    /// `None` if it was given up.
    custody: Option<Custody>,
    /// The record's revision.
    revision: Revision,
}

#[derive(Default)]
struct Inner {
    records: HashMap<MemberId, Seen>,
    /// Everything up to this revision has been noted.
    applied: Revision,
}

/// Who speaks for an incarnation: the custody records as last seen, shared by the watch (which feeds them) and the claims (which compare
/// them).
#[derive(Default)]
pub struct Holders(RwLock<Inner>);

/// The holder of an incarnation, and the records that say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Who speaks for it.
    pub holder: MemberId,
    /// Each record followed, with its revision; 0 = there is none.
    pub records: Vec<(MemberId, Revision)>,
}

impl Holders {
    /// A record was read or seen; older ones than known are ignored. `custody` is `None` if it was given up.
    pub fn note(&self, of: &MemberId, custody: Option<Custody>, revision: Revision) {
        let mut inner = self.0.write();
        let seen = inner.records.get(of).map_or(0, |seen| seen.revision);
        if revision > seen {
            inner.records.insert(of.clone(), Seen { custody, revision });
        }
    }

    /// There was no record at `revision`.
    pub fn gone(&self, of: &MemberId, revision: Revision) {
        let mut inner = self.0.write();
        if inner.records.get(of).is_some_and(|seen| seen.revision <= revision) {
            inner.records.remove(of);
        }
    }

    /// Everything up to `revision` has been noted.
    pub fn applied(&self, revision: Revision) {
        let mut inner = self.0.write();
        inner.applied = inner.applied.max(revision);
    }

    /// A snapshot of `revision` had these records and no others. What is newer than the snapshot stays.
    pub fn snapshot(&self, named: &crate::hashing::HashSet<MemberId>, revision: Revision) {
        let mut inner = self.0.write();
        inner.records.retain(|of, seen| named.contains(of) || seen.revision > revision);
        inner.applied = inner.applied.max(revision);
    }

    /// Follows the records from `owner`.
    ///
    /// # Errors
    /// The incarnation whose record is not known.
    pub fn chain(&self, owner: &MemberId) -> Result<Chain, MemberId> {
        let inner = self.0.read();
        let mut records: Vec<(MemberId, Revision)> = Vec::with_capacity(1);
        let mut at = owner.clone();
        while records.len() < CHAIN_MAX {
            let Some(seen) = inner.records.get(&at) else {
                if at.registered_at() > inner.applied {
                    return Err(at);
                }
                records.push((at.clone(), 0));
                break;
            };
            records.push((at.clone(), seen.revision));
            match &seen.custody {
                Some(custody) if custody.holder != at => {
                    at = custody.holder.clone();
                    if !custody.merged {
                        break;
                    }
                }
                _ => break,
            }
        }
        Ok(Chain { holder: at, records })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: &str, incarnation: u64) -> MemberId {
        MemberId { node: node.into(), incarnation }
    }

    fn held_by(holder: MemberId, merged: bool) -> Option<Custody> {
        Some(Custody { holder, merged, copies: 1, journal: 1 })
    }

    #[test]
    fn chains_are_followed_through_merged_records_only() {
        let holders = Holders::default();
        assert_eq!(holders.chain(&id("a", 5)), Err(id("a", 5)));
        holders.note(&id("a", 5), held_by(id("a", 5), true), 6);
        assert_eq!(
            holders.chain(&id("a", 5)),
            Ok(Chain { holder: id("a", 5), records: vec![(id("a", 5), 6)] })
        );
        holders.note(&id("b", 9), held_by(id("c", 12), true), 13);
        holders.note(&id("a", 5), held_by(id("b", 9), false), 14);
        assert_eq!(holders.chain(&id("a", 5)).unwrap().holder, id("b", 9));
        holders.note(&id("a", 5), held_by(id("b", 9), true), 15);
        assert_eq!(holders.chain(&id("a", 5)), Err(id("c", 12)));
        holders.applied(15);
        let chain = holders.chain(&id("a", 5)).unwrap();
        assert_eq!(chain.holder, id("c", 12));
        assert_eq!(chain.records, [(id("a", 5), 15), (id("b", 9), 13), (id("c", 12), 0)]);
    }

    #[test]
    fn older_news_and_loops_do_no_harm() {
        let holders = Holders::default();
        holders.note(&id("a", 1), held_by(id("b", 2), true), 10);
        holders.note(&id("a", 1), held_by(id("a", 1), true), 9);
        holders.gone(&id("a", 1), 9);
        holders.note(&id("b", 2), held_by(id("a", 1), true), 11);
        assert_eq!(holders.chain(&id("a", 1)).unwrap().records.len(), CHAIN_MAX);
        holders.gone(&id("a", 1), 12);
        holders.applied(12);
        assert_eq!(holders.chain(&id("a", 1)).unwrap().records, [(id("a", 1), 0)]);
        holders.snapshot(&crate::hashing::HashSet::default(), 12);
        assert_eq!(holders.chain(&id("b", 2)).unwrap().records, [(id("b", 2), 0)]);
    }
}
