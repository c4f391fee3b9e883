//! Whether this process may use the journal that it has found: not while another process has it, and not if it is a copy that has
//! missed what etcd knows of it. See `docs/decisions/0016-forked-journals.md`.

use super::cluster::{JoinError, Joining, Waiting};
use super::desk::Progress;
use super::journal::FoundKind;
use crate::clock::{self, Time};
use crate::config::{Config, OnFork};
use crate::etcd::error::StoreError;
use crate::etcd::history::{self, Fork, Told, Verdict};
use crate::etcd::journals::{self, Answers, Looked};
use crate::etcd::register::RegisterError;
use crate::peers::{Answered, Probe};
use crate::ports::{History, MemberId};
use crate::storage::{FoundJournal, OpenError};
use std::path::PathBuf;
use std::sync::Arc;

/// What may be done about a fork, at the end of each refusal.
const ADVICE: &str = "What that process acknowledged since is not in this file. Journal and lease are as before. Put the newer \
                      journal into storage.dir; or, if it is lost, start once with --set-aside-journal to begin with an empty one \
                      (the sessions of the lost journal wait as with a lost disk), or with --accept-older-journal to go on with \
                      this one as it is";

/// A journal that is a copy of the one that etcd knows.
#[derive(Debug, thiserror::Error)]
pub enum Forked {
    /// The journal lacks a start that etcd was told of.
    #[error(
        "journal {path:?} is a copy of the one that etcd knows, and has missed a start of it: its own last stamp is {mine}, at \
         position {position}; in etcd {key} has stamp {theirs}, at position {told}, by process {by}. {ADVICE}"
    )]
    UnknownStamp {
        /// The file.
        path: PathBuf,
        /// The journal's last stamp.
        mine: String,
        /// How far it has come.
        position: u64,
        /// The key in etcd.
        key: String,
        /// The stamp there.
        theirs: String,
        /// The position there.
        told: u64,
        /// Who wrote that.
        by: MemberId,
    },
    /// The journal has not come as far as etcd was told that it has.
    #[error(
        "journal {path:?} is a copy of the one that etcd knows, and behind it: with stamp {theirs} it has come to position \
         {reached}; in etcd {key} has that stamp at position {told}, by process {by}. {ADVICE}"
    )]
    Behind {
        /// The file.
        path: PathBuf,
        /// How far it has come.
        reached: u64,
        /// The key in etcd.
        key: String,
        /// The stamp in both.
        theirs: String,
        /// The position there.
        told: u64,
        /// Who wrote that.
        by: MemberId,
    },
}

/// Why a journal is not used.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The journal is a copy of the one that etcd knows, and lacks something of it.
    #[error(transparent)]
    Forked(#[from] Box<Forked>),
    /// The operator takes a journal for a fork that is none.
    #[error(
        "{flag} is for a journal that is a copy of a newer one, and {path:?} is none: etcd knows nothing of it that it lacks. Start \
         without the option; nothing was changed"
    )]
    NoFork {
        /// The option.
        flag: &'static str,
        /// The journal.
        path: PathBuf,
    },
    /// The operator takes the journal of a broker without a cluster for a copy, where nothing could tell.
    #[error(
        "{flag} is for a node of a cluster (cluster.enabled): without etcd nothing tells a copy of a journal from the journal \
         itself. Start without the option; nothing was changed"
    )]
    Alone {
        /// The option.
        flag: &'static str,
    },
    /// The file cannot be set aside.
    #[error("--set-aside-journal: {0}")]
    SetAside(#[from] OpenError),
    /// The operating system refuses a thread.
    #[error("--set-aside-journal: {0}")]
    Thread(#[from] std::io::Error),
}

/// A journal that may be used.
pub(super) struct Compared {
    pub(super) found: FoundKind,
    /// The revision of its key in etcd when it was compared; 0 = there was none.
    pub(super) looked_at: i64,
}

/// Refuses what only a node of a cluster can be told to do.
///
/// # Errors
/// The option.
pub(super) fn alone(on_fork: OnFork) -> Result<(), ForkError> {
    match on_fork.flag() {
        Some(flag) => Err(ForkError::Alone { flag }),
        None => Ok(()),
    }
}

/// Compares the journal that was found with what etcd knows of it, however long etcd takes to come. Changes nothing unless
/// `on_fork` says so and it is a fork.
///
/// # Errors
/// Why this process may not use it.
pub(super) async fn compare(
    joining: &Joining,
    config: &Config,
    found: FoundKind,
    on_fork: OnFork,
    progress: &Progress,
) -> Result<Compared, JoinError> {
    // A journal in memory ends with its process: there is no copy of it.
    let FoundKind::Redb(journal) = found else { return Ok(Compared { found, looked_at: 0 }) };
    let me = &config.node.id;
    if let Some(found) = journal.recovered().node.as_ref().filter(|n| *n.node != **me && !n.node.is_empty()) {
        return Err(JoinError::OtherNode {
            dir: config.storage.dir.clone(),
            found: found.node.to_string(),
            me: me.clone(),
        });
    }
    let name = journal.recovered().journal;
    let looked = look(joining, me, name, progress).await?;
    for (process, peer) in &looked.processes {
        progress.say(format!("asking at {peer} whether {process}, which had this journal, still lives"));
        if (joining.answers)(process.clone(), name, peer.clone()).await {
            let (process, peer) = (process.clone(), peer.clone());
            return Err(RegisterError::Lives { process, journal: name, peer }.into());
        }
    }
    let told = looked.told.as_ref().map(|(told, _)| told);
    match (history::verdict(journal.history(), told), &looked.told) {
        (Verdict::Fork(fork), Some((told, by))) => {
            let error = refusal(joining, &journal, fork, told, by, looked.revision);
            match on_fork {
                OnFork::Refuse => Err(ForkError::from(error).into()),
                OnFork::SetAside => {
                    let found = set_aside(journal, me, &error).await?;
                    Ok(Compared { found, looked_at: 0 })
                }
                OnFork::Accept => {
                    tracing::warn!(
                        %error,
                        "--accept-older-journal: this node goes on with an older journal than etcd knows of. What was acknowledged \
                         since is lost, what was delivered since is delivered again; other copies of it are refused from now on"
                    );
                    Ok(Compared { found: FoundKind::Redb(journal), looked_at: looked.revision })
                }
            }
        }
        (verdict, _) => {
            if let Some(flag) = on_fork.flag() {
                let path = journal.path().to_owned();
                return Err(ForkError::NoFork { flag, path }.into());
            }
            tracing::debug!(?verdict, "the journal is the one that etcd knows, or unknown to it");
            Ok(Compared { found: FoundKind::Redb(journal), looked_at: looked.revision })
        }
    }
}

async fn look(joining: &Joining, me: &str, journal: u64, progress: &Progress) -> Result<Looked, JoinError> {
    let mut waiting = Waiting::new("registering this node in etcd", progress);
    loop {
        match journals::look(&joining.etcd, &joining.keys, &me.into(), journal).await {
            Ok(looked) => return Ok(looked),
            Err(StoreError::Etcd(error)) if !error.is_permanent() => waiting.pause(&error.to_string()).await,
            Err(error) => return Err(RegisterError::Store(error).into()),
        }
    }
}

/// Says why a fork is not used.
fn refusal(
    joining: &Joining,
    journal: &FoundJournal,
    fork: Fork,
    told: &Told,
    by: &MemberId,
    revision: i64,
) -> Box<Forked> {
    let name = journal.recovered().journal;
    let key = if revision == 0 { joining.keys.custody(by) } else { joining.keys.journal(name) };
    let History { starts, position, .. } = journal.history();
    let hex = |stamp: u64| format!("{stamp:016x}");
    let (path, theirs, by) = (journal.path().to_owned(), hex(told.stamp), by.clone());
    let told = told.position;
    Box::new(match fork {
        Fork::UnknownStamp => {
            let mine = starts.last().map_or("none".to_owned(), |start| hex(start.stamp));
            Forked::UnknownStamp { path, mine, position: *position, key, theirs, told, by }
        }
        Fork::Behind { reached } => Forked::Behind { path, reached, key, theirs, told, by },
    })
}

async fn set_aside(journal: Box<FoundJournal>, me: &str, why: &Forked) -> Result<FoundKind, ForkError> {
    let path = journal.path().to_owned();
    let suffix = format!("aside-{}", compact_utc(clock::now()));
    let renamed = tokio::task::spawn_blocking(move || journal.set_aside(&suffix)).await;
    let (aside, empty) = renamed.map_err(std::io::Error::other)??;
    tracing::warn!(
        journal = %path.display(),
        aside = %aside.display(),
        error = %why,
        "--set-aside-journal: the journal is set aside, and this node begins with an empty one. The sessions of the old one are \
         refused with 0x88, and publishes to them wait, until they expire or are given up by `berth ctl cluster forget {me}`. The \
         file that was set aside is not used any more, and yours to remove"
    );
    Ok(FoundKind::Redb(Box::new(empty)))
}

/// Tells whether a process still answers at its address as the one that etcd has recorded.
pub(super) fn answers(probe: Probe) -> Answers {
    let probe = Arc::new(probe);
    Arc::new(move |recorded, journal, address| {
        let probe = probe.clone();
        Box::pin(async move {
            let answered = probe.ask(&recorded.node, &address).await;
            let lives = matches!(&answered, Answered::Process { process, journal: with }
                if history::is_recorded(&recorded, journal, process, *with));
            if !lives {
                tracing::info!(
                    process = %recorded, address, found = ?answered,
                    "the process before this one does not answer at its address any more"
                );
            }
            lives
        })
    })
}

/// A moment as part of a file's name: `20260131T235959Z`.
fn compact_utc(time: Time) -> String {
    let seconds = time.as_millis() / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years begin in March here, so that a leap day
/// is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + later, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_so_that_names_sort() {
        for (seconds, expected) in [
            (0, "19700101T000000Z"),
            (951_827_696, "20000229T123456Z"),
            (1_709_251_199, "20240229T235959Z"),
            (1_709_251_200, "20240301T000000Z"),
            (1_798_761_599, "20261231T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(compact_utc(Time(seconds * 1000 + 999)), expected);
        }
    }
}
