//! Whether the coordination store is older than what a journal knows of it: it was restored from a backup.
//!
//! A restored store uses revisions again and names the owners of sessions as they were at the backup. Nothing in it says so: only
//! the journals know that it had come further. Whoever notices counts one *generation* more in the store; everybody else finds
//! that. See `docs/decisions/0024-restored-etcd.md`.

use crate::ports::{Incarnation, Revision, StoreKnown, Timeline, generation_of, registered_at};

/// What a journal knows of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// How far the store had come; the revision is 0 in a journal of a release that did not keep it.
    pub store: StoreKnown,
    /// The last process that registered with this journal; `None` = none ever did.
    pub last: Option<Incarnation>,
    /// The last one of those that have compared all of the journal with the store.
    pub compared: Option<Incarnation>,
}

/// The custody record of the last process that registered with a journal, as the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The record is there, for this journal.
    Kept,
    /// There is none, or one of another journal.
    Missing,
    /// The record was given up, or it is gone and a mark says that it was.
    GivenUp,
}

/// What the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// How far it had come before this process wrote to it.
    pub revision: Revision,
    /// Which generation it counts.
    pub timeline: Timeline,
    /// The last process's record.
    pub record: Record,
    /// Whether its change at the revision that the journal knows last is the one that the journal knows; `None` if that cannot be
    /// told.
    pub same_change: Option<bool>,
}

/// Bytes of a value that count for [`mark_of`].
const MARKED_BYTES: usize = 1024;

/// Tells a change from other changes at the same revision, by its key and what it set (`None` = it deleted the key); never 0. Stays as it
/// is: journals keep it (FNV-1a, of long values their length and the first 1,024 bytes).
pub fn mark_of(key: &[u8], value: Option<&[u8]>) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    let hash = key.iter().fold(0xCBF2_9CE4_8422_2325, step);
    let hash = match value {
        None => hash,
        Some(value) => {
            let length = (value.len() as u64).to_le_bytes();
            length.iter().chain(value.iter().take(MARKED_BYTES)).fold(step(hash, &1), step)
        }
    };
    hash.max(1)
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The store is the one that the journal was compared with last, or the journal knows of none.
    AsKnown,
    /// Somebody has noticed before that it was restored. What the journal has and the store has not may be the journal's all the
    /// same.
    Restored,
    /// The store was restored, and it does not count that yet: these are its new generation at least, and what shows it.
    WentBack {
        /// One above those that the store and the journal know.
        generation: u64,
        /// For the log.
        why: String,
    },
}

impl Known {
    /// Of a journal that knows this of the store, and holds the state of these processes.
    pub fn new(store: StoreKnown, incarnations: &[Incarnation]) -> Known {
        // One of a later life has registered, and ended before it was done.
        let compared = incarnations.iter().filter(|i| generation_of(**i) <= store.timeline.generation);
        Known { store, last: incarnations.iter().max().copied(), compared: compared.max().copied() }
    }

    /// Whether a mark that everything up to this process was given up says anything of this journal. In a restored store it may be one
    /// that was taken back after the backup.
    pub fn is_marked(&self, up_to: Incarnation, timeline: Timeline) -> bool {
        timeline == self.store.timeline || self.compared.is_none_or(|compared| compared <= up_to)
    }

    /// How far the store had come for sure.
    fn revision(&self) -> Revision {
        let timeline = self.store.timeline;
        let of_it = self.last.filter(|last| generation_of(*last) == timeline.generation);
        self.store.revision.max(of_it.map_or(0, registered_at))
    }

    /// Compares.
    pub fn verdict(&self, found: &Found) -> Verdict {
        let (Some(last), before) = (self.last, self.store.timeline) else { return Verdict::AsKnown };
        let went_back = |why: String| Verdict::WentBack {
            generation: found.timeline.generation.max(before.generation) + 1,
            why,
        };
        let (here, there) = (before.generation, found.timeline.generation);
        if there > here {
            return Verdict::Restored;
        }
        if there < here || found.timeline.name != before.name {
            return went_back(format!(
                "it counts {there} restorations, and the journal was compared with it after {here}"
            ));
        }
        if found.revision < self.revision() {
            let (now, then) = (found.revision, self.revision());
            return went_back(format!(
                "its revision is {now}, and the journal knows that it had come to {then}"
            ));
        }
        if found.same_change == Some(false) {
            let then = self.store.revision;
            return went_back(format!("its change at revision {then} is another one than the journal knows"));
        }
        // Who forgets a process leaves a mark, but for a release that did not; such a one kept no revision either.
        if found.record == Record::Missing && self.store.revision > 0 {
            return went_back(format!(
                "it has no record of the process that this journal was last opened by ({last})"
            ));
        }
        Verdict::AsKnown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Record::{GivenUp, Kept, Missing};

    const FIRST: Timeline = Timeline { generation: 0, name: 0 };

    fn later(generation: u64, name: u64) -> Timeline {
        Timeline { generation, name }
    }

    fn known(timeline: Timeline, revision: Revision, last: Revision) -> Known {
        Known::new(StoreKnown { timeline, revision, mark: 0 }, &[timeline.incarnation(last)])
    }

    /// The generation to be counted; `None` if there is nothing to count.
    fn counted(known: Known, revision: Revision, timeline: Timeline, record: Record) -> Result<u64, Verdict> {
        match known.verdict(&Found { revision, timeline, record, same_change: None }) {
            Verdict::WentBack { generation, .. } => Ok(generation),
            other => Err(other),
        }
    }

    #[test]
    fn who_knows_more_than_the_store_says_so() {
        let as_known = Err(Verdict::AsKnown);
        let restored = Err(Verdict::Restored);
        let new = Known::default();
        let old_release = known(FIRST, 0, 5);
        let cases = [
            ("a journal that was in no cluster", new, 1, FIRST, Missing, as_known.clone()),
            ("the same in a restored store", new, 1, later(3, 7), Missing, as_known.clone()),
            ("nothing has happened", known(FIRST, 20, 5), 20, FIRST, Kept, as_known.clone()),
            ("much has happened", known(FIRST, 20, 5), 900, FIRST, Kept, as_known.clone()),
            ("a backup of before", known(FIRST, 20, 5), 19, FIRST, Kept, Ok(1)),
            ("a backup of before its first start", known(FIRST, 20, 5), 4, FIRST, Missing, Ok(1)),
            ("an empty store", known(FIRST, 20, 5), 1, FIRST, Missing, Ok(1)),
            ("the store has come further since", known(FIRST, 20, 5), 21, FIRST, Missing, Ok(1)),
            ("the node was forgotten", known(FIRST, 20, 5), 21, FIRST, GivenUp, as_known.clone()),
            ("forgotten, then restored", known(FIRST, 20, 5), 19, FIRST, GivenUp, Ok(1)),
            ("others have noticed", known(FIRST, 20, 5), 15, later(1, 9), Kept, restored.clone()),
            (
                "others have noticed, long ago",
                known(FIRST, 20, 5),
                99,
                later(2, 9),
                Missing,
                restored.clone(),
            ),
            ("forgotten, others have noticed", known(FIRST, 20, 5), 15, later(1, 9), GivenUp, restored),
            ("restored before", known(later(1, 9), 20, 15), 30, later(1, 9), Kept, as_known.clone()),
            ("restored again", known(later(1, 9), 20, 15), 18, later(1, 9), Kept, Ok(2)),
            ("restored again from before", known(later(1, 9), 20, 15), 90, FIRST, Kept, Ok(2)),
            ("the same count, another life", known(later(1, 9), 20, 15), 90, later(1, 8), Kept, Ok(2)),
            ("two counts less", known(later(3, 9), 20, 15), 90, later(1, 8), Kept, Ok(4)),
            ("of an older release", old_release, 5, FIRST, Kept, as_known.clone()),
            ("of an older release, restored", old_release, 4, FIRST, Kept, Ok(1)),
            ("of an older release, forgotten", old_release, 9, FIRST, Missing, as_known),
        ];
        for (what, known, revision, timeline, record, expected) in cases {
            assert_eq!(counted(known, revision, timeline, record), expected, "{what}");
        }
    }

    #[test]
    fn a_store_that_has_come_as_far_again_has_other_changes() {
        let known = known(FIRST, 20, 5);
        for (same_change, went_back) in [(None, false), (Some(true), false), (Some(false), true)] {
            let found = Found { revision: 22, timeline: FIRST, record: Kept, same_change };
            let verdict = known.verdict(&found);
            assert_eq!(matches!(verdict, Verdict::WentBack { generation: 1, .. }), went_back, "{verdict:?}");
        }
        assert_eq!(mark_of(b"a", None), 0xAF63_DC4C_8601_EC8C, "journals keep it");
        let long = |last| [vec![0; MARKED_BYTES], vec![last]].concat();
        let changes: [(&[u8], Option<&[u8]>); 6] = [
            (b"x", None),
            (b"y", None),
            (b"x", Some(b"")),
            (b"x", Some(b"1")),
            (b"x", Some(b"2")),
            (b"x1", Some(b"")),
        ];
        let marks: std::collections::HashSet<_> =
            changes.iter().map(|(key, value)| mark_of(key, *value)).collect();
        assert_eq!(marks.len(), changes.len());
        assert_eq!(
            mark_of(b"x", Some(&long(1))),
            mark_of(b"x", Some(&long(2))),
            "the rest of a long value does not count"
        );
    }

    #[test]
    fn an_incarnation_never_comes_twice() {
        let of = |generation, revision| later(generation, 1).incarnation(revision);
        assert_eq!(of(0, 42), 42);
        assert!(of(1, 1) > of(0, (1 << 48) - 1));
        assert_eq!((registered_at(of(3, 42)), generation_of(of(3, 42))), (42, 3));
    }

    #[test]
    fn a_mark_counts_until_the_journal_was_compared() {
        let second = later(1, 9);
        let cases = [
            ("it stayed away", vec![30], FIRST, 30, FIRST, true),
            ("it is back, and the mark not gone yet", vec![40], FIRST, 30, FIRST, true),
            ("it stayed away, then the store was restored", vec![30], FIRST, 30, second, true),
            ("it came back, then the store was restored", vec![40], FIRST, 30, second, false),
            (
                "it was back in the restored store, and ended too early",
                vec![second.incarnation(35)],
                FIRST,
                30,
                second,
                true,
            ),
            ("it was back there", vec![second.incarnation(35)], second, 30, later(2, 8), false),
        ];
        for (what, incarnations, timeline, up_to, now, expected) in cases {
            let known = Known::new(StoreKnown { timeline, revision: 50, mark: 0 }, &incarnations);
            assert_eq!(known.is_marked(up_to, now), expected, "{what}");
        }
    }
}
