//! Questions of other nodes.

use super::evict::Learned;
use crate::broker::Broker;
use crate::ports::{BoxFuture, MemberId, Owner, Request, Response, Unavailable};

impl Broker {
    /// Carries out what another node asks for.
    pub(super) fn peer_request(&self, from: MemberId, request: Request) -> BoxFuture<Response> {
        let (Some(remote), Some(broker)) = (&self.remote, self.me.upgrade()) else {
            return Box::pin(std::future::ready(Response::NotHere));
        };
        match request {
            Request::Events { after } => Box::pin(std::future::ready(remote.events_after(after))),
            Request::Freeze { client_id, epoch, correlation, reads } => {
                // Carried out to its end whoever waits for the answer.
                let (answer, tasks) = (super::Once::new(), remote.ports.tasks.clone());
                let asked = answer.clone();
                tasks.spawn(Box::pin(async move {
                    asked.set(broker.freeze(from, client_id, epoch, correlation, reads).await);
                }));
                answer.wait()
            }
            Request::Next { client_id, correlation, part } => {
                Box::pin(async move { broker.next_part(&client_id, &correlation, part).await })
            }
            Request::Taken { client_id, correlation, claimed_at } => {
                Box::pin(async move { broker.taken(&client_id, &correlation, claimed_at).await })
            }
            Request::Evict { client_id, epoch } => {
                let (answer, tasks) = (super::Once::new(), remote.ports.tasks.clone());
                let (asked, coordinator) = (answer.clone(), remote.ports.coordinator.clone());
                tasks.spawn(Box::pin(async move {
                    broker.evict(&client_id, epoch, Learned::Asked).await;
                    coordinator.evicted(&client_id, epoch);
                    asked.set(Response::Done);
                }));
                answer.wait()
            }
            Request::Adopt { client_id } => {
                let (answer, tasks) = (super::Once::new(), remote.ports.tasks.clone());
                let asked = answer.clone();
                tasks.spawn(Box::pin(async move {
                    asked.set(broker.adopt(from, client_id).await);
                }));
                answer.wait()
            }
            Request::Operate(json) => Box::pin(std::future::ready(self.operate(&json))),
        }
    }

    /// Where a session lives, by the cluster's record; `None` if there is none, or this node is alone.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn owner(&self, client_id: &str) -> BoxFuture<Result<Option<Owner>, Unavailable>> {
        match &self.remote {
            Some(remote) => remote.ports.coordinator.owner(client_id),
            None => Box::pin(std::future::ready(Ok(None))),
        }
    }
}
