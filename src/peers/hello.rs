//! The first message on every call: who speaks, and whether the other side may believe it.

use super::options::PeerIdentity;
use super::proto::Hello;
use crate::ports::MemberId;
use std::sync::Arc;

/// Version of the protocol in `proto/berth/v1/`.
pub(super) const VERSION: u32 = 1;

/// What this process says to node `to`.
pub(super) fn hello(identity: &PeerIdentity, to: &str, attempt: u64) -> Hello {
    Hello {
        version: VERSION,
        cluster: identity.cluster.to_string(),
        node: identity.me.node.to_string(),
        incarnation: identity.me.incarnation,
        to: to.to_owned(),
        attempt,
        journal: identity.journal,
    }
}

/// Who said `hello`, or why we do not talk to it: for whoever reads its log, with what to do.
pub(super) fn check(identity: &PeerIdentity, hello: &Hello) -> Result<MemberId, String> {
    let me = &identity.me;
    let them = MemberId { node: Arc::from(hello.node.as_str()), incarnation: hello.incarnation };
    if hello.version != VERSION {
        return Err(format!(
            "node {them} speaks version {} of the protocol between nodes, node {} speaks version {VERSION}: \
             run versions of berth that are next to each other",
            hello.version, me.node
        ));
    }
    if *hello.cluster != *identity.cluster {
        return Err(format!(
            "node {them} is of cluster {:?}, node {} is of cluster {:?}: check cluster.name and \
             cluster.advertise_peer of both",
            hello.cluster, me.node, identity.cluster
        ));
    }
    if hello.node == *me.node {
        return Err(format!(
            "two processes have the node ID {:?} (here {me}, there {them}), or its cluster.advertise_peer leads to another \
             node: give each node its own node.id and address",
            hello.node
        ));
    }
    if hello.to != *me.node {
        return Err(format!(
            "node {them} looks for node {:?}, but node {:?} answers here: check cluster.advertise_peer of node {:?}",
            hello.to, me.node, hello.to
        ));
    }
    if hello.node.is_empty() || hello.incarnation == 0 {
        return Err("the other side did not say which node and incarnation it is".to_owned());
    }
    Ok(them)
}

/// Why a superseded process is not talked to.
pub(super) fn superseded(process: &MemberId, by: &str) -> String {
    format!(
        "process {process} is superseded, as node {by} knows: a newer process of the node registered, or its state was given \
         up; stop it"
    )
}
