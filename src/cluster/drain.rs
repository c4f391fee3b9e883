//! This node leaves: its sessions go to other nodes, its MQTT 5 clients are told where (0x9D, MQTT 5.0 section 4.13), and no will is
//! published because of it.

use super::freeze::Out;
use super::{Cluster, Remote};
use crate::broker::handle::Handle;
use crate::broker::mailbox::Wakes;
use crate::hashing::HashSet;
use crate::names::shown;
use crate::ports::{BoxFuture, Member, MemberId, Request, Response};
use crate::telemetry::metrics::HandOver;
use futures_util::StreamExt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Sessions handed over at a time.
const HAND_OVER_AT_ONCE: usize = 64;

/// Between two looks whether a session that was on its way here has come, milliseconds.
const ARRIVED_LOOK_MS: u64 = 5;

/// Between two looks whether a session that was taken is gone, milliseconds.
const DEPARTED_LOOK_MS: u64 = 5;

/// Nodes that are asked to take one session.
const NODES_ASKED_MAX: usize = 2;

impl Cluster {
    /// Hands all sessions to other nodes and closes their clients; call [`Broker::drain`](crate::broker::Broker::drain) before. Completes with the number of
    /// sessions that stay, because no other node lives or takes them; those keep their connections.
    pub fn hand_over(self: &Arc<Cluster>) -> BoxFuture<usize> {
        let cluster = self.clone();
        Box::pin(async move {
            let mut handles = cluster.handles();
            let remote = cluster.remote.clone();
            if remote.takers("").is_empty() {
                tracing::info!(
                    sessions = handles.len(),
                    "no other node takes sessions: they stay in the journal"
                );
                return handles.len();
            }
            if !remote.ports.coordinator.writable() {
                tracing::info!(
                    sessions = handles.len(),
                    "etcd takes no writes, so that no session can move: they stay in the journal"
                );
                return handles.len();
            }
            // Who still waits for a session's owner waits elsewhere.
            remote.sessions.poke();
            let (mut left, mut asked) = (0, HashSet::default());
            loop {
                asked.extend(handles.iter().map(|h| h.no));
                let gone = futures_util::stream::iter(handles)
                    .map(|h| cluster.hand_over_one(remote.clone(), h))
                    .buffer_unordered(HAND_OVER_AT_ONCE)
                    .filter(|gone| std::future::ready(!gone))
                    .count();
                left += gone.await;
                // Sessions that were on their way here when this node began to leave have come meanwhile, or will.
                let coming = !remote.sessions.lanes.is_empty();
                handles = cluster.handles();
                handles.retain(|h| !asked.contains(&h.no));
                if handles.is_empty() {
                    // A claim that etcd takes no more has no end before it does again.
                    if !coming || !remote.ports.coordinator.writable() {
                        break;
                    }
                    remote.ports.tasks.sleep(ARRIVED_LOOK_MS).await;
                }
            }
            // Who has taken a session says so to its asker and to this node at the same time.
            let leaving: Vec<_> = remote.sessions.outgoing.lock().values().cloned().collect();
            for out in leaving {
                out.settled.wait().await;
            }
            // Of a node that is gone, routes for persistent sessions hold publishes until it is back: those of sessions that
            // left must not be among them.
            let deadline = remote.now().plus_ms(remote.limits.takeover_timeout_ms);
            let here = remote.clone();
            let told = remote.until(
                deadline,
                Box::pin(async move {
                    let told = here.local.tell_now();
                    here.while_it(|store| store.writable(), told).await
                }),
            );
            match told.await.flatten() {
                Some(written) => {
                    remote.when_all_applied(written, remote.limits.suback_wait_ms).await;
                }
                None => tracing::warn!(
                    "the routes of sessions handed over could not be taken back: publishes may wait for this node"
                ),
            }
            left
        })
    }

    fn handles(&self) -> Vec<Arc<Handle>> {
        let mut handles = Vec::new();
        self.broker.registry.for_each(|h| handles.push(h.clone()));
        handles
    }

    /// True if the session is with another node, or over.
    async fn hand_over_one(self: &Arc<Cluster>, remote: Arc<Remote>, handle: Arc<Handle>) -> bool {
        let takers = remote.takers(&handle.client_id);
        let Some(first) = takers.first() else { return false };
        handle.mailbox.hand_over(first.mqtt_address.as_str().into(), &mut Wakes::default());
        if handle.mailbox.online() {
            let deadline = remote.now().plus_ms(remote.limits.takeover_timeout_ms);
            match remote.until(deadline, self.take_out_boxed(&handle)).await {
                Some(Out::Session(session)) => self.broker.park(&handle, session, &mut Wakes::default()),
                Some(Out::Gone) => return true,
                None => return false,
            }
        }
        for taker in takers.iter().take(NODES_ASKED_MAX) {
            let request = Request::Adopt { client_id: handle.client_id.clone() };
            let deadline = remote.now().plus_ms(remote.limits.takeover_timeout_ms);
            let answer = remote.until(deadline, remote.ports.peers.request(&taker.id.node, request)).await;
            let taken = matches!(answer, Some(Ok(Response::Done)));
            let leaving = remote.sessions.outgoing.lock().get(&handle.client_id).filter(|_| !taken).cloned();
            // A large session takes longer than a request may; nobody else can have it meanwhile.
            if let Some(out) = leaving {
                out.settled.wait().await;
            }
            if !handle.mailbox.present() || taken {
                // Its routes are taken back only once this node knows as well that it is gone.
                let gone = departed(remote.clone(), handle.clone());
                if remote.until(deadline, Box::pin(gone)).await.is_none() {
                    tracing::warn!(client = %shown(&handle.client_id), "session taken, but etcd has not told this node so");
                }
                remote.metrics.handed_over.of(HandOver::Moved).inc();
                return true;
            }
            tracing::info!(client = %shown(&handle.client_id), node = %taker.id.node, ?answer, "session not taken");
        }
        remote.metrics.handed_over.of(HandOver::Stayed).inc();
        false
    }

    /// Takes a session over from a node that leaves.
    pub(super) async fn adopt(self: &Arc<Cluster>, from: MemberId, client_id: Arc<str>) -> Response {
        let remote = self.remote.clone();
        if self.broker.draining() {
            return Response::Refused("this node leaves too".into());
        }
        remote.sessions.when_reconciled().await;
        let deadline = remote.now().plus_ms(remote.limits.takeover_timeout_ms);
        let lane = remote.sessions.lanes.join(&client_id);
        if remote.until(deadline, lane.turn()).await.is_none() {
            return Response::Refused("the session is busy".into());
        }
        if self.broker.session(&client_id).is_some_and(|h| h.mailbox.present()) {
            return Response::Done;
        }
        if !remote.ports.coordinator.writable() {
            return Response::Refused("etcd takes no writes".into());
        }
        let owner = match remote.ports.coordinator.owner(&client_id).await {
            Ok(Some(owner)) if owner.holder == from => owner,
            Ok(_) => return Response::NotHere,
            Err(why) => return Response::Refused(why.0),
        };
        match self.take_over(&client_id, &owner, deadline).await {
            super::takeover::Moved::Here => Response::Done,
            _ => Response::Refused("the takeover did not succeed".into()),
        }
    }
}

/// Completes when a session that another node has taken is gone from here.
async fn departed(remote: Arc<Remote>, handle: Arc<Handle>) {
    while handle.mailbox.present() {
        remote.ports.tasks.sleep(DEPARTED_LOOK_MS).await;
    }
}

impl Remote {
    /// Nodes that take sessions, the first choice for this one first (the highest hash of both names wins).
    fn takers(&self, client_id: &str) -> Vec<Member> {
        let weight = |m: &Member| {
            let mut hasher = DefaultHasher::new();
            (client_id, &m.id.node).hash(&mut hasher);
            hasher.finish()
        };
        let mut takers = self.members.live();
        takers.retain(|m| m.id.node != self.me.node && !m.draining && self.linked_to(&m.id));
        takers.sort_by_key(|m| std::cmp::Reverse(weight(m)));
        takers
    }
}
