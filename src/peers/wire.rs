//! The port's types to the protocol's and back. What comes from a peer is checked like anything from a network.

use super::proto::{self, control_request as ask, control_response as say};
use crate::clock::Time;
use crate::mqtt::message::Parts;
use crate::mqtt::{Message, QoS};
use crate::ports::{Frame, GroupTry, MemberId, MessageId, Report, Request, Response, RetainedProgress};
use bytes::Bytes;
use std::sync::Arc;

/// A message's bytes, owned by the buffer they are read from: nothing is copied.
struct Body(Message);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        self.0.body()
    }
}

/// A frame to be sent now.
pub(super) fn frame(frame: &Frame, skipped: u32, now: Time) -> proto::Frame {
    let message = &frame.message;
    proto::Frame {
        id: frame.id.map(|id| proto::MessageId { origin: id.origin, seq: id.seq }),
        matched_at: frame.matched_at,
        direct: frame.direct,
        groups: frame
            .groups
            .iter()
            .map(|g| proto::GroupTry {
                name: g.name.to_string(),
                queue: g.queue,
                tried: g.tried.iter().map(|n| n.to_string()).collect(),
            })
            .collect(),
        payload_len: message.payload().len() as u32,
        qos: message.qos() as u32,
        retain: message.retain(),
        expires_in_ms: message.expires_at().map(|at| at.since_ms(now)),
        body: Bytes::from_owner(Body(message.clone())),
        skipped,
        update: frame.update.map(|id| proto::MessageId { origin: id.origin, seq: id.seq }),
        first: frame.first,
    }
}

/// A frame received now, or what is wrong with it.
pub(super) fn read_frame(frame: proto::Frame, now: Time) -> Result<Frame, &'static str> {
    let body = &frame.body[..];
    let Some((len, rest)) = body.split_first_chunk::<2>() else { return Err("a frame without a topic") };
    let topic_len = usize::from(u16::from_be_bytes(*len));
    let payload_len = usize::try_from(frame.payload_len).unwrap_or(usize::MAX);
    let (topic, rest) = rest.split_at_checked(topic_len).ok_or("a topic longer than its frame")?;
    let (payload, properties) =
        rest.split_at_checked(payload_len).ok_or("a payload longer than its frame")?;
    let topic = simdutf8::basic::from_utf8(topic).map_err(|_| "a topic that is not UTF-8")?;
    let qos = u8::try_from(frame.qos).ok().and_then(QoS::from_bits).ok_or("a QoS above 2")?;
    let message = Message::new(Parts {
        topic,
        payload,
        properties,
        qos,
        retain: frame.retain,
        // A moment of 0 would mean "never".
        expires_at: frame.expires_in_ms.map(|ms| Time(now.plus_ms(ms).0.max(1))),
    });
    let group = |g: proto::GroupTry| GroupTry {
        name: g.name.into(),
        queue: g.queue,
        tried: g.tried.into_iter().map(Arc::from).collect(),
    };
    let groups = frame.groups.into_iter().map(group).collect();
    let id = frame.id.map(|id| MessageId { origin: id.origin, seq: id.seq });
    let update = frame.update.map(|id| MessageId { origin: id.origin, seq: id.seq });
    let proto::Frame { matched_at, direct, first, .. } = frame;
    Ok(Frame { id, matched_at, direct, groups, message, update, first })
}

pub(super) fn report(report: Report) -> proto::Report {
    let revisions = |of: &[(Arc<str>, u64)]| -> Vec<proto::Settled> {
        of.iter()
            .map(|(node, revision)| proto::Settled { node: node.to_string(), revision: *revision })
            .collect()
    };
    let heard = report.heard.iter().map(|(process, at)| proto::Heard {
        node: process.node.to_string(),
        incarnation: process.incarnation,
        sent_at_ms: at.as_millis(),
    });
    proto::Report {
        applied: report.applied,
        low_water: report.low_water,
        open: report.open,
        settled: revisions(&report.settled),
        past: revisions(&report.past),
        past_others: report.past_others,
        retired: report.retired,
        sent_at_ms: report.sent_at.as_millis(),
        heard: heard.collect(),
        leaving: report.leaving,
        retained: report.retained.map(|r| proto::RetainedProgress {
            settled: r.settled,
            written: r.written,
            waited: r.waited,
            decided: r.decided,
        }),
    }
}

pub(super) fn read_report(report: proto::Report) -> Report {
    let revisions =
        |of: Vec<proto::Settled>| of.into_iter().map(|s| (s.node.into(), s.revision)).collect::<Vec<_>>();
    let heard = report.heard.into_iter().map(|h| {
        let process = MemberId { node: h.node.into(), incarnation: h.incarnation };
        (process, Time(h.sent_at_ms))
    });
    Report {
        applied: report.applied,
        low_water: report.low_water,
        open: report.open,
        settled: revisions(report.settled),
        past: revisions(report.past),
        past_others: report.past_others,
        retired: report.retired,
        sent_at: Time(report.sent_at_ms),
        heard: heard.collect(),
        leaving: report.leaving,
        retained: report.retained.map(|r| RetainedProgress {
            settled: r.settled,
            written: r.written,
            waited: r.waited,
            decided: r.decided,
        }),
    }
}

pub(super) fn request(request: Request) -> ask::Request {
    match request {
        Request::Freeze { client_id, epoch, correlation, reads } => ask::Request::Freeze(proto::Freeze {
            client_id: client_id.to_string(),
            epoch,
            correlation: correlation.to_string(),
            reads,
        }),
        Request::Next { client_id, correlation, part } => ask::Request::Next(proto::Next {
            client_id: client_id.to_string(),
            correlation: correlation.to_string(),
            part,
        }),
        Request::Taken { client_id, correlation, claimed_at } => ask::Request::Taken(proto::Taken {
            client_id: client_id.to_string(),
            correlation: correlation.to_string(),
            claimed_at,
        }),
        Request::Evict { client_id, epoch } => {
            ask::Request::Evict(proto::Evict { client_id: client_id.to_string(), epoch })
        }
        Request::Adopt { client_id } => ask::Request::Adopt(client_id.to_string()),
        Request::Events { after } => ask::Request::EventsAfter(after),
        Request::Operate(command) => ask::Request::Operate(command.to_string()),
    }
}

/// A request of a peer; `None` = one that belongs to the link itself.
pub(super) fn read_request(request: ask::Request) -> Option<Request> {
    Some(match request {
        ask::Request::Hello(_) | ask::Request::Ping(_) => return None,
        ask::Request::Freeze(it) => Request::Freeze {
            client_id: it.client_id.into(),
            epoch: it.epoch,
            correlation: it.correlation.into(),
            reads: it.reads,
        },
        ask::Request::Next(it) => Request::Next {
            client_id: it.client_id.into(),
            correlation: it.correlation.into(),
            part: it.part,
        },
        ask::Request::Taken(it) => Request::Taken {
            client_id: it.client_id.into(),
            correlation: it.correlation.into(),
            claimed_at: it.claimed_at,
        },
        ask::Request::Evict(it) => Request::Evict { client_id: it.client_id.into(), epoch: it.epoch },
        ask::Request::Adopt(client_id) => Request::Adopt { client_id: client_id.into() },
        ask::Request::EventsAfter(after) => Request::Events { after },
        ask::Request::Operate(command) => Request::Operate(command.into()),
    })
}

pub(super) fn response(response: Response) -> say::Response {
    match response {
        Response::Done => say::Response::Done(proto::Done {}),
        Response::State { bytes, last } => say::Response::State(proto::State { bytes, last }),
        Response::Events(None) => say::Response::Events(proto::Events::default()),
        Response::Events(Some((bytes, up_to))) => {
            say::Response::Events(proto::Events { known: true, bytes, up_to })
        }
        Response::NotHere => say::Response::NotHere(proto::Done {}),
        Response::Refused(why) => say::Response::Refused(why.to_string()),
        Response::Operated(json) => say::Response::Operated(json.to_string()),
    }
}

/// A response of a peer. One that this version does not know is a refusal.
pub(super) fn read_response(response: Option<say::Response>) -> Response {
    match response {
        Some(say::Response::Done(_)) => Response::Done,
        Some(say::Response::State(it)) => Response::State { bytes: it.bytes, last: it.last },
        Some(say::Response::Events(it)) => Response::Events(it.known.then_some((it.bytes, it.up_to))),
        Some(say::Response::NotHere(_)) => Response::NotHere,
        Some(say::Response::Refused(why)) => Response::Refused(why.into()),
        Some(say::Response::Operated(json)) => Response::Operated(json.into()),
        Some(say::Response::Hello(_) | say::Response::Pong(_)) | None => {
            Response::Refused("the other node gave a response that this version does not know".into())
        }
    }
}
