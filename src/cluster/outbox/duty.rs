//! How the journal has the duty to bring a publish to other nodes.

use crate::mqtt::QoS;
use crate::ports::{ORIGIN_DUTY, Publisher, Recipient};
use smallvec::SmallVec;
use std::sync::Arc;

/// The recipient that stands for a duty of this node: to bring a message to all other nodes that need it, or to a member of
/// one shared subscription.
pub fn duty(shared: Option<Arc<str>>, publisher: Option<Box<Publisher>>) -> Recipient {
    let (qos, subscription_ids) = (QoS::ExactlyOnce, SmallVec::new());
    let session = ORIGIN_DUTY;
    Recipient { session, qos, retain: false, subscription_ids, shared, publisher, unserved: None }
}
