//! What waits for one node: frames that keep their place until they are answered, frames that do not, and reports.

use super::options::PeerOptions;
use super::proto::{self, exception};
use super::wire;
use crate::clock::Time;
use crate::hashing::HashMap;
use crate::ports::{Answer, Frame, MessageId, Report};
use crate::telemetry::Loss;
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};

/// Frames in one batch.
pub(super) const BATCH_FRAMES_MAX: usize = 64;
/// Bytes of messages in one batch, the last message not counted.
pub(super) const BATCH_BYTES_MAX: usize = 64 << 10;
/// Reports that wait for one node: the first keeps its place, so that some get through whatever comes behind it, and a later
/// one replaces the last.
pub const REPORTS_MAX: usize = 2;

/// Places of frames and reports that are gone, beyond twice those that are not; then they are cleared away.
const DEAD_PLACES: usize = 64;

enum Out {
    /// The frame at this position, if it still is there.
    Kept(u64),
    Loose(Frame),
    /// The report of this number, if it still is there.
    Report(u64),
}

/// One batch, ready to be sent.
pub(super) struct Batch {
    pub(super) message: proto::PublishBatch,
    pub(super) bytes: usize,
}

/// A frame that keeps its place.
struct Kept {
    frame: Frame,
    /// On this stream or on an earlier one.
    sent: bool,
}

/// What waits for one node: frames that keep their place until they are answered, frames that do not, and reports. A closed queue (no
/// working link) keeps frames with an ID and the latest report only.
pub(super) struct Queue {
    open: bool,
    /// Frames with an ID by position. On one stream positions ascend in the order of `push`; each new one gives all that is there others.
    kept: BTreeMap<u64, Kept>,
    places: HashMap<MessageId, SmallVec<[u64; 1]>>,
    next: u64,
    /// Positions below were sent on this stream, or on an earlier one.
    unsent_from: u64,
    unsent: VecDeque<Out>,
    /// Reports of `unsent` by number, ascending.
    reports: VecDeque<(u64, Report)>,
    last_report: u64,
    /// Frames of `kept` that are not sent on this stream.
    kept_unsent: usize,
    loose: usize,
    loose_bytes: usize,
    loose_max: (usize, usize),
    latest: Option<Report>,
}

impl Queue {
    pub(super) fn new(options: &PeerOptions, latest: Option<Report>) -> Queue {
        Queue {
            open: false,
            kept: BTreeMap::new(),
            places: HashMap::default(),
            next: 1,
            unsent_from: 1,
            unsent: VecDeque::new(),
            reports: VecDeque::new(),
            last_report: 0,
            kept_unsent: 0,
            loose: 0,
            loose_bytes: 0,
            loose_max: (options.queued_frames_max, options.queued_bytes_max),
            latest,
        }
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// Why it was dropped.
    pub(super) fn push(&mut self, frame: Frame) -> Result<(), Loss> {
        let Some(id) = frame.id else { return self.push_loose(frame) };
        let position = self.keep(id, Kept { frame, sent: false });
        self.kept_unsent += 1;
        if self.open {
            self.unsent.push_back(Out::Kept(position));
        }
        Ok(())
    }

    /// Gives a frame the next position.
    fn keep(&mut self, id: MessageId, kept: Kept) -> u64 {
        let position = self.next;
        self.next += 1;
        self.places.entry(id).or_default().push(position);
        self.kept.insert(position, kept);
        position
    }

    fn push_loose(&mut self, frame: Frame) -> Result<(), Loss> {
        let size = frame.message.size();
        let (frames_max, bytes_max) = self.loose_max;
        if !self.open {
            return Err(Loss::LinkDown);
        } else if self.loose >= frames_max {
            return Err(Loss::LinkMessages(frames_max as u64));
        } else if self.loose_bytes + size > bytes_max {
            return Err(Loss::LinkBytes(bytes_max as u64));
        }
        self.loose += 1;
        self.loose_bytes += size;
        self.unsent.push_back(Out::Loose(frame));
        Ok(())
    }

    /// Takes a frame back, wherever it is.
    pub(super) fn cancel(&mut self, id: MessageId) {
        for position in self.places.remove(&id).unwrap_or_default() {
            if self.kept.remove(&position).is_some() && position >= self.unsent_from {
                self.kept_unsent -= 1;
            }
        }
        self.tidy();
        self.shrink();
    }

    /// Queues a report behind everything that is there; it replaces the last one if nothing came in between, or if the first
    /// has not been sent either.
    pub(super) fn report(&mut self, report: &Report) {
        self.latest = Some(report.clone());
        if !self.open {
            return;
        }
        if let (Some(Out::Report(_)), Some((_, last))) = (self.unsent.back(), self.reports.back_mut()) {
            *last = report.clone();
            return;
        }
        self.reports.truncate(REPORTS_MAX - 1);
        self.push_report(report.clone());
        self.tidy();
    }

    fn push_report(&mut self, report: Report) {
        self.last_report += 1;
        self.reports.push_back((self.last_report, report));
        self.unsent.push_back(Out::Report(self.last_report));
    }

    /// Clears away the places of what is gone, once they are many.
    fn tidy(&mut self) {
        let live = self.kept_unsent + self.loose + self.reports.len();
        if self.unsent.len() <= 2 * live + DEAD_PLACES {
            return;
        }
        let (kept, reports) = (&self.kept, &self.reports);
        self.unsent.retain(|out| match out {
            Out::Kept(position) => kept.contains_key(position),
            Out::Loose(_) => true,
            Out::Report(number) => reports.iter().any(|(n, _)| n == number),
        });
    }

    /// A stream is there: everything not answered is to be sent on it in the order of the names, then the latest report. Returns how
    /// many frames are sent not for the first time.
    pub(super) fn open(&mut self) -> usize {
        self.close();
        self.open = true;
        let resent = self.kept.values().filter(|kept| kept.sent).count();
        // They were queued as they were matched. The receiver knew which of those before were still to come, and has lost that with the stream.
        let mut kept: Vec<Kept> = std::mem::take(&mut self.kept).into_values().collect();
        kept.sort_by_key(|kept| kept.frame.id);
        self.places.clear();
        for kept in kept {
            if let Some(id) = kept.frame.id {
                let position = self.keep(id, kept);
                self.unsent.push_back(Out::Kept(position));
            }
        }
        self.unsent_from = self.kept.keys().next().copied().unwrap_or(self.next);
        if let Some(latest) = self.latest.clone() {
            self.push_report(latest);
        }
        resent
    }

    /// The stream is gone, and with it what is not worth keeping. Returns how many frames that were.
    pub(super) fn close(&mut self) -> usize {
        self.open = false;
        self.unsent.clear();
        self.reports.clear();
        self.loose_bytes = 0;
        self.kept_unsent = self.kept.len();
        self.unsent_from = self.kept.keys().next().copied().unwrap_or(self.next);
        std::mem::take(&mut self.loose)
    }

    /// The next batch: whatever is there, up to its limits.
    pub(super) fn take(&mut self, now: Time) -> Option<Batch> {
        let mut batch = Batch { message: proto::PublishBatch::default(), bytes: 0 };
        let mut expected = None;
        while batch.message.frames.len() < BATCH_FRAMES_MAX && batch.bytes < BATCH_BYTES_MAX {
            let Some(out) = self.unsent.pop_front() else { break };
            match out {
                Out::Report(number) => {
                    let is_there = self.reports.front().is_some_and(|(first, _)| *first == number);
                    let Some((_, report)) = is_there.then(|| self.reports.pop_front()).flatten() else {
                        continue;
                    };
                    batch.message.report = Some(wire::report(report));
                    break;
                }
                Out::Loose(frame) => {
                    let size = frame.message.size();
                    self.loose -= 1;
                    self.loose_bytes -= size;
                    batch.bytes += size;
                    batch.message.frames.push(wire::frame(&frame, 0, now));
                }
                Out::Kept(position) => {
                    let Some(Kept { frame, sent }) = self.kept.get_mut(&position) else { continue };
                    let skipped = position - *expected.get_or_insert(position);
                    let Ok(skipped) = u32::try_from(skipped) else {
                        self.unsent.push_front(out);
                        break;
                    };
                    if batch.message.first_position == 0 {
                        batch.message.first_position = position;
                    }
                    expected = Some(position + 1);
                    batch.bytes += frame.message.size();
                    batch.message.frames.push(wire::frame(frame, skipped, now));
                    self.kept_unsent -= 1;
                    self.unsent_from = position + 1;
                    *sent = true;
                }
            }
        }
        let empty = batch.message.frames.is_empty() && batch.message.report.is_none();
        (!empty).then_some(batch)
    }

    /// Takes the answers of a batch; what was cancelled meanwhile is left out.
    pub(super) fn answered(&mut self, batch: proto::AnswerBatch) -> Vec<(MessageId, Answer)> {
        let mut answers = Vec::new();
        for (ranges, matched) in [(&batch.accepted, true), (&batch.unmatched, false)] {
            for range in ranges {
                let plain = Answer::Accepted { matched, declined: Vec::new() };
                self.take_range(range.first, range.count, &plain, &mut answers);
            }
        }
        for exception in batch.exceptions {
            let answer = match exception.answer {
                Some(exception::Answer::Declined(it)) => Answer::Accepted {
                    matched: it.matched,
                    declined: it.groups.into_iter().map(Into::into).collect(),
                },
                Some(exception::Answer::Moved(revision)) => Answer::Moved(revision),
                Some(exception::Answer::Failed(why)) => Answer::Failed(why.into()),
                // A later version's answer that says nothing to us: not safe.
                None => Answer::Failed("an answer this version does not know".into()),
            };
            self.take_range(exception.position, 1, &answer, &mut answers);
        }
        self.shrink();
        answers
    }

    fn take_range(
        &mut self,
        first: u64,
        count: u64,
        answer: &Answer,
        answers: &mut Vec<(MessageId, Answer)>,
    ) {
        // Only what was sent can have been answered.
        let end = first.saturating_add(count).min(self.unsent_from);
        let mut from = first;
        while from < end {
            let Some((&position, Kept { frame, .. })) = self.kept.range(from..end).next() else { return };
            if let Some(id) = frame.id {
                self.forget_place(id, position);
                answers.push((id, answer.clone()));
            }
            self.kept.remove(&position);
            from = position + 1;
        }
    }

    fn forget_place(&mut self, id: MessageId, position: u64) {
        if let hashbrown::hash_map::Entry::Occupied(mut entry) = self.places.entry(id) {
            entry.get_mut().retain(|p| *p != position);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }

    /// Gives memory of a backlog back once it is worked off.
    fn shrink(&mut self) {
        const SPARE: usize = 4096;
        if self.kept.is_empty() && self.places.capacity() > SPARE {
            self.places.shrink_to(SPARE / 4);
            self.unsent.shrink_to(SPARE / 4);
        }
    }

    /// Frames sent on this stream that are not answered.
    pub(super) fn unanswered(&self) -> u64 {
        (self.kept.len() - self.kept_unsent) as u64
    }

    /// Frames not sent yet.
    pub(super) fn queued(&self) -> u64 {
        (self.kept_unsent + self.loose) as u64
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod queue_tests;
