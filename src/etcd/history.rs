//! Whether a journal is the one that etcd knows, or a *fork*: a copy that has missed, or gone another way than, what etcd was
//! told of it. Decides; reads and writes nothing. See `docs/decisions/0016-forked-journals.md`.

use crate::ports::{History, MemberId};

/// What etcd was told of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The stamp of the start that told it.
    pub stamp: u64,
    /// Which start of the journal that was, from 1; `None` = it is not known.
    pub number: Option<u64>,
    /// How far the journal had come then, at least.
    pub position: u64,
}

/// How a journal stands to what etcd was told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// etcd was told nothing: the journal is new, or etcd is, or both are of a release that told nothing.
    Untold,
    /// etcd was told last by the journal's latest start.
    Latest,
    /// etcd was told last by an earlier start of this very journal. One start later may be a start that ended before it had
    /// registered; more, or one that is known to have registered, say that etcd is older than the journal: it was restored
    /// from a backup.
    Older {
        /// How many starts of the journal came after it.
        starts: u64,
    },
    /// Another copy of the journal has told etcd what this one does not know.
    Fork(Fork),
}

/// Why a journal is a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The start that told etcd is not one of this journal's.
    UnknownStamp,
    /// The start that told etcd last came further than this journal has it.
    Behind {
        /// How far this journal has it.
        reached: u64,
    },
}

/// Compares what a journal knew of itself before this start with what etcd was told of it.
pub fn verdict(history: &History, told: Option<&Told>) -> Verdict {
    let Some(told) = told else { return Verdict::Untold };
    let starts = &history.starts;
    let Some(at) = starts.iter().rposition(|start| start.stamp == told.stamp) else {
        let remembered = u64::try_from(starts.len()).unwrap_or(u64::MAX);
        let forgotten = history.count.saturating_sub(remembered);
        return match told.number {
            // So long ago that the journal has forgotten its stamp.
            Some(number) if number <= forgotten => Verdict::Older { starts: history.count - number },
            _ => Verdict::Fork(Fork::UnknownStamp),
        };
    };
    let later = starts.get(at + 1..).unwrap_or_default();
    let reached = later.first().map_or(history.position, |next| next.from);
    if reached < told.position {
        return Verdict::Fork(Fork::Behind { reached });
    }
    match u64::try_from(later.len()).unwrap_or(u64::MAX) {
        0 => Verdict::Latest,
        starts => Verdict::Older { starts },
    }
}

/// Whether who answers at an address is the process that etcd has recorded with a journal. One of an older release does not say
/// which journal it has (0); its incarnation names it all the same.
pub fn is_recorded(recorded: &MemberId, journal: u64, answers: &MemberId, with: u64) -> bool {
    recorded == answers && (with == 0 || with == journal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::JournalStart;

    /// Starts as (stamp, how far the journal had come before), so many forgotten, and how far it has come.
    fn history(starts: &[(u64, u64)], forgotten: u64, position: u64) -> History {
        let starts: Vec<_> =
            starts.iter().map(|(stamp, from)| JournalStart { stamp: *stamp, from: *from }).collect();
        History { count: forgotten + starts.len() as u64, starts, position }
    }

    #[test]
    fn a_journal_is_told_from_its_copies() {
        let behind = |reached| Verdict::Fork(Fork::Behind { reached });
        let unknown = Verdict::Fork(Fork::UnknownStamp);
        let three = || history(&[(11, 0), (12, 10), (13, 10)], 0, 25);
        let many = || history(&[(21, 50), (22, 60)], 7, 70);
        let new = || History::default();
        let cases = [
            ("etcd knows nothing", three(), None, Verdict::Untold),
            ("a new journal in a new etcd", new(), None, Verdict::Untold),
            ("the last start, as it said last", three(), Some((13, 25)), Verdict::Latest),
            ("the last start has come further since", three(), Some((13, 11)), Verdict::Latest),
            ("a copy of the running journal", three(), Some((13, 26)), behind(25)),
            (
                "a start that ended before it had registered",
                three(),
                Some((12, 10)),
                Verdict::Older { starts: 1 },
            ),
            ("etcd was restored", three(), Some((11, 4)), Verdict::Older { starts: 2 }),
            ("a copy that was started elsewhere since", three(), Some((12, 18)), behind(10)),
            ("a copy that was started elsewhere and has come further", three(), Some((11, 11)), behind(10)),
            ("the journal was started after the copy", three(), Some((14, 25)), unknown),
            ("a copy of before there were stamps", history(&[], 0, 0), Some((11, 0)), unknown),
            ("a copy of before there were stamps that counts", history(&[], 0, 9), Some((11, 3)), unknown),
            ("a forgotten stamp: etcd was restored", many(), Some((5, 5)), Verdict::Older { starts: 4 }),
            ("one that must be remembered", many(), Some((9, 5)), unknown),
        ];
        for (what, history, told, expected) in cases {
            // In these cases the number of a start can be told from its stamp: 11 is the first, 22 the ninth of `many`.
            let number = |stamp: u64| if stamp > 10 { stamp - 10 } else { stamp };
            let told = told.map(|(stamp, position)| Told { stamp, number: Some(number(stamp)), position });
            assert_eq!(verdict(&history, told.as_ref()), expected, "{what}");
        }
        // Without a number nothing says that the stamp was forgotten.
        let told = Told { stamp: 5, number: None, position: 0 };
        assert_eq!(verdict(&many(), Some(&told)), unknown);
    }

    #[test]
    fn who_answers_is_the_recorded_process_or_somebody_else() {
        let id = |node: &str, incarnation| MemberId { node: node.into(), incarnation };
        let recorded = id("a", 7);
        for (answers, with, expected) in [
            (id("a", 7), 5, true),
            (id("a", 7), 0, true),
            (id("a", 7), 6, false),
            (id("a", 8), 5, false),
            (id("b", 7), 5, false),
            (id("a", 0), 5, false),
        ] {
            assert_eq!(is_recorded(&recorded, 5, &answers, with), expected, "{answers} with {with}");
        }
    }
}
