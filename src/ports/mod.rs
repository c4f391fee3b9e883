//! What the broker needs from outside: a few small traits, implemented in `storage`, `cluster` and `auth`.

mod auth;
mod bans;
mod cluster_time;
mod coordinator;
mod directory;
mod history;
mod index;
mod journal;
mod peers;
mod permissions;
mod tasks;

pub use auth::{
    AccessClaims, Account, AccountMark, AuthStep, Authorizer, CertificateNames, Credentials, Decision, Door,
    EnhancedAuth, Identity, Verdict,
};
pub use bans::{Bans, NoBans};
pub use cluster_time::ClusterTime;
pub use coordinator::{
    Claim, ClaimOutcome, Coordinator, Expected, Retain, RetainOutcome, RouteChange, TooLarge, Unavailable,
};
pub use directory::{BanKind, Directory, DirectoryKey, DirectoryOutcome, DirectoryRecord, NoDirectory};
pub use history::{History, JournalStart, STARTS_KEPT, Stamped};
pub use index::{
    Custody, Epoch, GENERATION_AT, Incarnation, Index, IndexEvent, Member, MemberId, MessageId, Owner,
    RetainedRecord, Revision, Route, SessionOwner, Timeline, generation_of, registered_at,
};
pub use journal::{
    Change, Journal, JournalHealth, Lsn, NoRoom, NodeRecord, ORIGIN_DUTY, OutboundState, Publisher, ReadDone,
    Recipient, Recovered, RecoveredSession, Seq, SessionNo, SessionRecord, SpooledRetain, StoreKnown, Stored,
    SubscriptionRecord, Unserved, WillRecord, durable,
};
pub use peers::{
    Answer, Answers, Frame, GroupTry, Inbox, LinkClock, LinkState, LinkStatus, PeerClock, PeerError, Peers,
    Report, Request, Response, RetainedProgress, SaidClock,
};
pub use permissions::{Ask, By, Permissions, Proposed, Ruling, Unrestricted};
pub use tasks::{BoxFuture, Tasks};
