//! The answers to the frames of one stream, on their way back.

use super::proto::{AnswerBatch, Declined, Exception, Hello, Range, exception};
use crate::hashing::HashMap;
use crate::ports::{Answer, Answers, MessageId};
use futures_util::Stream;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;
use tonic::Status;

/// Answers in one batch.
const ANSWERS_MAX: usize = 4096;

#[derive(Default)]
struct State {
    hello: Option<Hello>,
    /// Positions of the frames that are not answered.
    places: HashMap<MessageId, SmallVec<[u64; 1]>>,
    ready: Vec<(u64, Answer)>,
    waker: Option<Waker>,
    /// No more answers; what ends the call, if not the connection did.
    closed: Option<Result<(), Status>>,
    /// No more frames are delivered of the stream.
    over: bool,
}

/// Answers of one stream; void once it is gone.
pub(super) struct StreamAnswers {
    state: Mutex<State>,
    gone: Notify,
}

impl StreamAnswers {
    pub(super) fn new(hello: Hello) -> Arc<StreamAnswers> {
        let state = State { hello: Some(hello), ..State::default() };
        Arc::new(StreamAnswers { state: Mutex::new(state), gone: Notify::new() })
    }

    /// A frame came at this position.
    pub(super) fn expect(&self, frames: impl Iterator<Item = (MessageId, u64)>) {
        let mut state = self.state.lock();
        for (id, position) in frames {
            state.places.entry(id).or_default().push(position);
        }
    }

    /// Ends the call, with `status` for the other side if it is an error. What is ready is still sent.
    pub(super) fn close(&self, status: Result<(), Status>) {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return;
        }
        state.closed = Some(status);
        state.places = HashMap::default();
        let waker = state.waker.take();
        drop(state);
        self.gone.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Nothing of the stream is delivered any more.
    pub(super) fn end(&self) {
        self.state.lock().over = true;
    }

    /// Completes when the stream is gone. For one waiter.
    pub(super) async fn closed(&self) {
        while self.state.lock().closed.is_none() {
            self.gone.notified().await;
        }
    }
}

impl Answers for StreamAnswers {
    fn answer(&self, answers: Vec<(MessageId, Answer)>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.closed.is_some() {
            return;
        }
        for (id, answer) in answers {
            let hashbrown::hash_map::Entry::Occupied(mut entry) = state.places.entry(id) else { continue };
            // The oldest first, should a frame have come twice.
            let position = entry.get_mut().remove(0);
            if entry.get().is_empty() {
                entry.remove();
            }
            state.ready.push((position, answer));
        }
        let waker = state.waker.take();
        drop(guard);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn stands(&self) -> bool {
        // As long as frames are delivered those that wait are not forgotten: later ones would overtake them.
        !self.state.lock().over
    }
}

/// The stream that carries them; polled by the connection.
pub(super) struct AnswerStream(pub(super) Arc<StreamAnswers>);

impl Stream for AnswerStream {
    type Item = Result<AnswerBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.state.lock();
        if let Some(hello) = state.hello.take() {
            return Poll::Ready(Some(Ok(AnswerBatch { hello: Some(hello), ..AnswerBatch::default() })));
        }
        if !state.ready.is_empty() {
            let ready = match state.ready.len() {
                ..=ANSWERS_MAX => std::mem::take(&mut state.ready),
                _ => state.ready.drain(..ANSWERS_MAX).collect(),
            };
            drop(state);
            return Poll::Ready(Some(Ok(pack(ready))));
        }
        match &mut state.closed {
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(status) => Poll::Ready(std::mem::replace(status, Ok(())).err().map(Err)),
        }
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        self.0.close(Ok(()));
    }
}

/// Answers by position, as ranges where they are plain.
fn pack(mut ready: Vec<(u64, Answer)>) -> AnswerBatch {
    ready.sort_unstable_by_key(|(position, _)| *position);
    let mut batch = AnswerBatch::default();
    for (position, answer) in ready {
        let answer = match answer {
            Answer::Accepted { matched, declined } if declined.is_empty() => {
                extend(if matched { &mut batch.accepted } else { &mut batch.unmatched }, position);
                continue;
            }
            Answer::Accepted { matched, declined } => {
                let groups = declined.iter().map(ToString::to_string).collect();
                exception::Answer::Declined(Declined { matched, groups })
            }
            Answer::Moved(revision) => exception::Answer::Moved(revision),
            Answer::Failed(why) => exception::Answer::Failed(why.to_string()),
        };
        batch.exceptions.push(Exception { position, answer: Some(answer) });
    }
    batch
}

fn extend(ranges: &mut Vec<Range>, position: u64) {
    match ranges.last_mut() {
        Some(range) if range.first + range.count == position => range.count += 1,
        _ => ranges.push(Range { first: position, count: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_plain_answers_are_ranges_and_others_stand_alone() {
        let plain = |matched| Answer::Accepted { matched, declined: Vec::new() };
        let declined = Answer::Accepted { matched: true, declined: vec!["$share/g/f".into()] };
        let batch = pack(vec![
            (4, plain(true)),
            (2, plain(true)),
            (3, plain(true)),
            (5, Answer::Moved(9)),
            (6, plain(true)),
            (7, plain(false)),
            (8, plain(false)),
            (9, declined),
            (10, Answer::Failed("disk full".into())),
        ]);
        assert_eq!(batch.accepted, [Range { first: 2, count: 3 }, Range { first: 6, count: 1 }]);
        assert_eq!(batch.unmatched, [Range { first: 7, count: 2 }]);
        let positions: Vec<_> = batch.exceptions.iter().map(|e| e.position).collect();
        assert_eq!(positions, [5, 9, 10]);
    }

    #[test]
    fn an_answer_finds_the_place_of_its_frame_once() {
        let answers = StreamAnswers::new(Hello::default());
        let id = |seq| MessageId { origin: 1, seq };
        answers.expect([(id(1), 1), (id(2), 2), (id(1), 3)].into_iter());
        let yes = || Answer::Accepted { matched: true, declined: Vec::new() };
        answers.answer(vec![(id(1), yes()), (id(1), yes()), (id(1), yes()), (id(7), yes())]);
        let positions: Vec<_> = answers.state.lock().ready.iter().map(|(p, _)| *p).collect();
        assert_eq!(positions, [1, 3]);
        answers.close(Ok(()));
        answers.answer(vec![(id(2), yes())]);
        assert_eq!(answers.state.lock().ready.len(), 2, "void once the stream is gone");
    }

    #[test]
    fn frames_wait_until_no_more_are_delivered() {
        let answers = StreamAnswers::new(Hello::default());
        drop(AnswerStream(answers.clone()));
        assert!(answers.stands(), "its reader may still have some");
        answers.end();
        assert!(!answers.stands());
    }
}
