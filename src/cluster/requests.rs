//! Questions of other nodes.

use super::Cluster;
use super::evict::Learned;
use crate::ports::{BoxFuture, MemberId, Owner, Request, Response, Unavailable};
use crate::sync::Once;
use std::sync::Arc;

impl Cluster {
    /// Carries out what another node asks for.
    ///
    /// # Errors
    /// A command of an operator, which is not for this room.
    pub fn request(&self, from: MemberId, request: Request) -> Result<BoxFuture<Response>, Arc<str>> {
        let remote = &self.remote;
        let Some(cluster) = self.me.upgrade() else {
            return Ok(Box::pin(std::future::ready(Response::NotHere)));
        };
        Ok(match request {
            Request::Events { after } => Box::pin(std::future::ready(remote.events_after(after))),
            Request::Freeze { client_id, epoch, correlation, reads } => {
                // Carried out to its end whoever waits for the answer.
                let (answer, tasks) = (Once::new(), remote.ports.tasks.clone());
                let asked = answer.clone();
                tasks.spawn(Box::pin(async move {
                    asked.set(cluster.freeze(from, client_id, epoch, correlation, reads).await);
                }));
                answer.wait()
            }
            Request::Next { client_id, correlation, part } => {
                Box::pin(async move { cluster.next_part(&client_id, &correlation, part).await })
            }
            Request::Taken { client_id, correlation, claimed_at } => {
                Box::pin(async move { cluster.taken(&client_id, &correlation, claimed_at).await })
            }
            Request::Evict { client_id, epoch } => {
                let (answer, tasks) = (Once::new(), remote.ports.tasks.clone());
                let (asked, coordinator) = (answer.clone(), remote.ports.coordinator.clone());
                tasks.spawn(Box::pin(async move {
                    cluster.evict(&client_id, epoch, Learned::Asked).await;
                    coordinator.evicted(&client_id, epoch);
                    asked.set(Response::Done);
                }));
                answer.wait()
            }
            Request::Adopt { client_id } => {
                let (answer, tasks) = (Once::new(), remote.ports.tasks.clone());
                let asked = answer.clone();
                tasks.spawn(Box::pin(async move {
                    asked.set(cluster.adopt(from, client_id).await);
                }));
                answer.wait()
            }
            Request::Operate(json) => return Err(json),
        })
    }

    /// Where a session lives, by the cluster's record; `None` if there is none.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn owner(&self, client_id: &str) -> BoxFuture<Result<Option<Owner>, Unavailable>> {
        self.remote.ports.coordinator.owner(client_id)
    }
}
