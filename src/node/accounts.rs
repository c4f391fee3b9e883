//! Connections whose clients may not stay: banned, or let in by what does not hold any more.

use super::Node;
use crate::clock::Time;
use crate::ports::Account;
use crate::session::CloseCause;

impl Node {
    /// Closes the connections of all clients that are banned `now`; returns how many.
    pub fn end_banned(&self, now: Time) -> usize {
        self.broker.close_those(CloseCause::Banned, |handle| {
            handle.rights.who().is_some_and(|who| self.bans.banned(&who, now).is_some())
        })
    }

    /// Ends the connections of clients that the authorizer would not let in any more as it did; how many.
    pub fn review_accounts(&self) -> usize {
        let ended = self.broker.close_those(CloseCause::AccountChanged, |handle| {
            handle.attached().is_some_and(|attached| !self.authorizer.holds(&attached.account))
        });
        self.broker.metrics.accounts_withdrawn.add(ended as u64);
        ended
    }

    /// Whether what let a client in holds.
    pub(super) fn holds(&self, account: &Account) -> bool {
        self.authorizer.holds(account)
    }
}
