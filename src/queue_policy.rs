//! What becomes of messages for a session whose queue is full.

/// The name of the user property of CONNECT by which an MQTT 5 client chooses.
pub const QUEUE_POLICY_PROPERTY: &str = "berth-queue-policy";

/// Which messages are dropped when a session's queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuePolicy {
    /// Those that come.
    DropNew,
    /// Those that have waited longest, of those that are not on their way to the client.
    DropOldest,
}

impl QueuePolicy {
    /// Both of them.
    pub const ALL: [QueuePolicy; 2] = [QueuePolicy::DropNew, QueuePolicy::DropOldest];

    /// As one writes it.
    pub fn name(self) -> &'static str {
        match self {
            QueuePolicy::DropNew => "drop_new",
            QueuePolicy::DropOldest => "drop_oldest",
        }
    }

    /// The policy that is written so.
    pub fn of(name: &str) -> Option<QueuePolicy> {
        QueuePolicy::ALL.into_iter().find(|policy| policy.name() == name)
    }
}
