//! Starts a new cluster from a copy of the state: from a backup in an empty data directory ([`restore`]), or from the
//! files of the last node of a cluster ([`recover`]).
//!
//! The new cluster continues where the copy ends, as if one more entry had been committed that makes this node the only
//! member:
//!
//! - The cluster id is new. Nodes of the old cluster and this one reject each other's calls.
//! - The node id is one that neither the old cluster (up to the copy) nor the new one assigns to another node. A later
//!   member gets the index of a membership entry, which is at least this entry's index, plus [`MEMBER_IDS_FROM`].
//!   Earlier members got less than this entry's index plus that. This node gets the id in between.
//! - The log begins after that entry, in a term above all terms that the copy contains. Nothing has to be replayed, and
//!   a joining node receives a snapshot.
//! - Revisions continue [`REVISIONS_SKIPPED`] further. The old cluster may have assigned revisions after the copy was
//!   made. Their numbers are never reused, so that an old cursor or message id cannot refer to something else now. A
//!   request that uses one of them gets the error that it is lost ([`super::Query::is_lost`]).
//! - Everything else is kept: accounts, sessions, messages, outcomes by client id, the clock, the digest. A restored
//!   backup may begin without the sessions ([`KeptSessions`]).
//!
//! Invariant: the directory holds the old state or the new one, even if the process dies. The new state is built in a
//! separate directory, whose name records the progress. Every start calls [`finish`]. It removes an incomplete new
//! state and completes a decided one: the old files are moved to `aside/`, then the new ones take their places.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rusqlite::params;

use super::apply::{AppliedEntry, AppliedPayload, AppliedState, StateMachine, read_state, write_state};
use super::backup::{self, BackupMeta, verify_backup};
use super::db;
use super::error::{Context, StorageError};
use super::integrity;
use super::log::{Identity, LogDb};
use super::private;
use super::snapshot::{copy_file, copy_state, earlier_copies, open_snapshot};
use chat::{Revision, TimeMs};
use proto::log::v1 as pb;

/// Smallest node id that is assigned to later members. Smaller ids belong to the first members of a cluster.
pub const MEMBER_IDS_FROM: u64 = 16;
/// Gap after the last revision of the copy. It exceeds the number of revisions that a cluster has assigned since any
/// backup: at 100,000 changes per second it lasts 115 days. It is less than a thousandth of the integers that JSON
/// numbers represent exactly.
pub const REVISIONS_SKIPPED: u64 = 1_000_000_000_000;

/// Directory of an incomplete new state. It is removed.
const UNFINISHED: &str = "new-cluster.tmp";
/// Directory of a complete new state, while the old files have to be moved away.
const DECIDED: &str = "new-cluster.decided";
/// Directory of a complete new state whose files take the places of the old ones, which are gone.
const ARRIVING: &str = "new-cluster.arriving";
/// Names allowed in an empty data directory: the lock of this process, and a directory that file systems create.
const NOTHING: [&str; 2] = ["lock", "lost+found"];
/// Bytes of the log that are read and applied at a time.
const APPLY_BYTES: usize = 8 << 20;

/// The table exists only in states that have lost revisions. Both ends belong to the range.
const LOST_TABLE: &str = "
CREATE TABLE IF NOT EXISTS lost_revision (
    first   INTEGER PRIMARY KEY,
    last    INTEGER NOT NULL
) STRICT;
";

/// Ends every session, regardless of its state.
const END_SESSIONS: &str = "DELETE FROM session;";

/// Treatment of the sessions in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptSessions {
    /// All sessions stay valid, with their tokens.
    All,
    /// All sessions are ended. Known devices are kept, because a device alone opens no session.
    None,
}

/// The first node of a new cluster.
#[derive(Debug, Clone)]
pub struct Founder {
    /// UUID of the new cluster.
    pub cluster_id: String,
    /// The node's name, chosen by the operator.
    pub name: String,
    /// Address for peers, host:port.
    pub peer_address: String,
    /// Address for clients, host:port.
    pub client_address: String,
    /// Address for browsers, host:port.
    pub web_address: String,
}

/// The result of creating a new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The node's id.
    pub node_id: u64,
    /// The last revision of the copy.
    pub copied: Revision,
    /// The revision with which the new cluster begins.
    pub revision: Revision,
}

/// The state of a stopped node.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// The node's identity.
    pub identity: Identity,
    /// The membership of its cluster, according to its log.
    pub membership: pb::Membership,
    /// The last entry of its log.
    pub last: Option<pb::LogId>,
    /// The last committed position in its log, which is saved only periodically.
    noted: Option<pb::LogId>,
    /// The last entry applied to its state.
    pub applied: Option<pb::LogId>,
    /// The state's revision.
    pub revision: Revision,
    /// The replicated clock of the state.
    pub clock: TimeMs,
    /// The snapshot from which the state is read, if `chat.db` ends before the log's first entry.
    snapshot: Option<PathBuf>,
}

impl Survey {
    /// The last entry known to be committed, according to the log or the state.
    pub fn committed(&self) -> Option<pb::LogId> {
        [self.noted, self.applied].into_iter().flatten().max_by_key(|id| id.index)
    }

    /// Number of entries in the log after the last committed one.
    pub fn uncertain(&self) -> u64 {
        let index = |id: Option<pb::LogId>| id.map_or(0, |id| id.index);
        index(self.last).saturating_sub(index(self.committed()))
    }
}

/// Starts a new cluster from a backup, in an empty directory.
///
/// # Errors
/// The directory is not empty, or a file operation failed. Call [`verify_backup`] on the file first: damage to the copy
/// is reported here like any other failure.
pub fn restore(
    dir: &Path,
    file: &Path,
    founder: &Founder,
    sessions: KeptSessions,
) -> Result<(BackupMeta, Beginning), StorageError> {
    finish(dir)?;
    require_empty(dir)?;
    let staging = dir.join(UNFINISHED);
    private::create_dir(&staging).map_err(StorageError::io("make directory", &staging))?;
    let copy = db::database_path(&staging);
    let result = copy_file(file, &copy).and_then(|()| {
        let meta = verify_backup(&copy)?;
        let also = match sessions {
            KeptSessions::All => backup::FORGET.to_owned(),
            KeptSessions::None => [backup::FORGET, END_SESSIONS].concat(),
        };
        let beginning = begin(&staging, founder, 0, &also)?;
        Ok((meta, beginning))
    });
    if result.is_err() {
        // The next attempt removes the directory if this fails.
        let _ = fs::remove_dir_all(&staging);
    }
    let done = result?;
    // There are no old files to move away.
    rename(dir, UNFINISHED, ARRIVING)?;
    finish(dir)?;
    Ok(done)
}

/// Examines the stopped node in a directory. Changes nothing, except that the files are closed cleanly.
///
/// # Errors
/// There is no node, or its files fail the integrity check.
pub fn survey(dir: &Path) -> Result<Survey, StorageError> {
    finish(dir)?;
    let refused = |problem: String| StorageError::NotRecoverable { path: dir.to_owned(), problem };
    for name in ["log.db", "chat.db"] {
        if !dir.join(name).exists() {
            return Err(refused(format!("there is no {name}")));
        }
    }
    if let Some(reason) = integrity::quarantine_reason(dir)? {
        return Err(refused(format!("its files cannot be trusted: {reason}")));
    }
    let log = LogDb::open(dir, Box::new(|_| {}))?;
    let surveyed = StateMachine::open(dir).and_then(|machine| {
        integrity::verify(dir, &log, &machine)?;
        let identity = log.identity().ok_or_else(|| refused("the node has not belonged to a cluster".into()))?;
        let (state, snapshot) = newest_state(dir, &log, machine.applied())?;
        let (_, last) = log.bounds();
        let mut survey = Survey {
            identity,
            membership: state.membership.membership.unwrap_or_default(),
            last,
            noted: log.committed(),
            applied: state.log_id,
            revision: state.revision,
            clock: state.clock,
            snapshot,
        };
        each_entry(&log, survey.applied, |entries| {
            for entry in entries {
                if let AppliedPayload::Membership(membership) = entry.payload {
                    survey.membership = membership;
                }
            }
            Ok(())
        })?;
        // From here on the write-ahead logs may be missing, as after any clean shutdown.
        integrity::closed(dir)?;
        Ok(survey)
    });
    log.close();
    surveyed
}

/// Starts a new cluster from the files of a node. Every entry of its log is applied, because any of them may have been
/// acknowledged. The old files are moved aside.
///
/// `skip` lists the indexes of entries that are applied as if they were blank, for a log with an entry that no
/// available version can apply. Their content is lost, and the digest of the new cluster differs from that of a node
/// that applied them.
///
/// # Errors
/// An entry cannot be applied, an index in `skip` is not among the entries to be applied, or a file operation failed.
pub fn recover(dir: &Path, survey: &Survey, founder: &Founder, skip: &[u64]) -> Result<Beginning, StorageError> {
    finish(dir)?;
    let beginning = decide(dir, survey, founder, skip)?;
    finish(dir)?;
    Ok(beginning)
}

/// The part of [`recover`] before the decision. After it, every start completes the rest.
fn decide(dir: &Path, survey: &Survey, founder: &Founder, skip: &[u64]) -> Result<Beginning, StorageError> {
    let refused = |problem: String| StorageError::NotRecoverable { path: dir.to_owned(), problem };
    let (first, last) = (survey.applied.map_or(0, |id| id.index + 1), survey.last.map_or(0, |id| id.index));
    if let Some(outside) = skip.iter().find(|index| !(first..=last).contains(*index)) {
        let left = match last.checked_sub(first) {
            None => format!("the state has all entries up to {last}, and none is left to be applied"),
            Some(_) => format!("only {first} to {last} are left to be applied"),
        };
        return Err(refused(format!("entry {outside} cannot be skipped: {left}")));
    }
    let staging = dir.join(UNFINISHED);
    private::create_dir(&staging).map_err(StorageError::io("make directory", &staging))?;
    let copy = db::database_path(&staging);
    match &survey.snapshot {
        Some(file) => copy_file(file, &copy)?,
        None => drop(copy_state(dir, &copy)?),
    }
    let log = LogDb::open(dir, Box::new(|_| {}))?;
    let applied = StateMachine::open(&staging).and_then(|mut machine| {
        let base = machine.applied().log_id;
        each_entry(&log, base, |mut entries| {
            for entry in entries.iter_mut().filter(|entry| skip.contains(&entry.log_id.index)) {
                entry.payload = AppliedPayload::Blank;
            }
            machine.apply(entries).map(drop)
        })
    });
    let term = log.vote().map_or(0, |vote| vote.term);
    log.close();
    applied?;
    let beginning = begin(&staging, founder, term, "")?;
    rename(dir, UNFINISHED, DECIDED)?;
    Ok(beginning)
}

/// Completes what [`restore`] or [`recover`] has decided, and removes an undecided new state. Must be called before any
/// other access to the directory.
///
/// # Errors
/// A file operation failed.
pub fn finish(dir: &Path) -> Result<(), StorageError> {
    let unfinished = dir.join(UNFINISHED);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(StorageError::io("remove", &unfinished))?;
        db::sync_directory(dir)?;
    }
    if dir.join(DECIDED).exists() {
        if integrity::has_files(dir) {
            integrity::move_aside(dir, "the node became the start of a new cluster (chatd recover)")?;
        }
        rename(dir, DECIDED, ARRIVING)?;
    }
    let arriving = dir.join(ARRIVING);
    if arriving.exists() {
        let items = fs::read_dir(&arriving).and_then(|items| items.collect::<io::Result<Vec<_>>>());
        for item in items.map_err(StorageError::io("list", &arriving))? {
            let to = dir.join(item.file_name());
            fs::rename(item.path(), &to).map_err(StorageError::io("move a file to", &to))?;
        }
        db::sync_directory(dir)?;
        fs::remove_dir(&arriving).map_err(StorageError::io("remove", &arriving))?;
        db::sync_directory(dir)?;
    }
    Ok(())
}

/// Turns the copy of a state in `staging` into the start of a cluster, and creates a log for it. Everything is durable
/// when this returns.
fn begin(staging: &Path, founder: &Founder, term: u64, also: &str) -> Result<Beginning, StorageError> {
    let path = db::database_path(staging);
    let conn = db::open_writer(&path)?;
    let before = read_state(&conn)?;
    let last = before.log_id.unwrap_or_default();
    let index = last.index + 1;
    let node_id = index + MEMBER_IDS_FROM - 1;
    let vote = pb::Vote { term: last.term.max(term) + 1, node_id, committed: false };
    let log_id = pb::LogId { term: vote.term, node_id, index };
    let membership = pb::Membership {
        voters: vec![pb::VoterSet { node_ids: vec![node_id] }],
        nodes: vec![pb::Node {
            node_id,
            name: founder.name.clone(),
            peer_address: founder.peer_address.clone(),
            client_address: founder.client_address.clone(),
            web_address: founder.web_address.clone(),
            admission: 0,
        }],
    };
    let copied = before.revision;
    let revision = Revision(copied.0.saturating_add(REVISIONS_SKIPPED));
    let after = AppliedState {
        log_id: Some(log_id),
        membership: pb::StoredMembership { log_id: Some(log_id), membership: Some(membership) },
        revision,
        ..before
    };
    let change = || -> rusqlite::Result<()> {
        // A single file, without a write-ahead log.
        conn.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
        // Also overwrites the hashes of tokens.
        conn.pragma_update(None, "secure_delete", "ON")?;
        conn.execute_batch(also)?;
        conn.execute_batch(LOST_TABLE)?;
        // Join tokens are permissions of the old cluster. A copy of format 1 has no such table.
        let sql = "SELECT 1 FROM sqlite_schema WHERE name = 'join_token'";
        if conn.prepare(sql)?.exists([])? {
            conn.execute("DELETE FROM join_token", [])?;
        }
        let lost = (Revision(copied.0 + 1), Revision(revision.0 - 1));
        conn.execute("INSERT INTO lost_revision (first, last) VALUES (?1, ?2)", params![lost.0, lost.1])?;
        Ok(())
    };
    change().context("make a copy of the state the start of a cluster")?;
    write_state(&conn, &after)?;
    drop(conn);
    let identity = Identity { cluster_id: founder.cluster_id.clone(), node_id, name: founder.name.clone() };
    make_log(staging, identity, vote, log_id)?;
    // Removes additional files of the state machine, so that only the databases remain.
    let items = fs::read_dir(staging).and_then(|items| items.collect::<io::Result<Vec<_>>>());
    for item in items.map_err(StorageError::io("list", staging))? {
        let path = item.path();
        match item.file_name().to_str() {
            Some("chat.db" | "log.db" | "log.db-wal" | "log.db-end") => db::sync_file(&path)?,
            _ if path.is_dir() => fs::remove_dir_all(&path).map_err(StorageError::io("remove", &path))?,
            _ => fs::remove_file(&path).map_err(StorageError::io("remove", &path))?,
        }
    }
    db::sync_directory(staging)?;
    Ok(Beginning { node_id, copied, revision })
}

/// Creates an empty log that ends at `log_id`.
fn make_log(dir: &Path, identity: Identity, vote: pb::Vote, log_id: pb::LogId) -> Result<(), StorageError> {
    let log = LogDb::open(dir, Box::new(|_| {}))?;
    log.save_identity(identity)?;
    log.purge(log_id)?;
    log.save_committed(log_id)?;
    let (sender, durable) = mpsc::sync_channel(1);
    log.save_vote(vote, Box::new(move |result| drop(sender.send(result))))?;
    let written = durable.recv();
    log.close();
    written.map_err(|_| StorageError::Stopped("the log writer was closed".into()))?.map_err(StorageError::Failed)?;
    match (log.bounds(), LogDb::open(dir, Box::new(|_| {}))?) {
        (bounds, again) if bounds == again.bounds() && again.vote() == Some(vote) => {
            again.close();
            Ok(())
        }
        _ => Err(StorageError::Stopped("the new log is not what was written".into())),
    }
}

/// The newest state of a node: `chat.db`, or the copy of an earlier version if the log was purged beyond `chat.db`.
fn newest_state(
    dir: &Path,
    log: &LogDb,
    applied: &AppliedState,
) -> Result<(AppliedState, Option<PathBuf>), StorageError> {
    let index = |id: Option<pb::LogId>| id.map(|id| id.index);
    let (purged, _) = log.bounds();
    if index(applied.log_id) >= index(purged) {
        return Ok((applied.clone(), None));
    }
    for file in earlier_copies(dir)? {
        if StateMachine::verify_copy(&file).is_ok_and(|meta| index(meta.log_id) >= index(purged)) {
            return Ok((read_state(&open_snapshot(&file)?)?, Some(file)));
        }
    }
    Err(StorageError::Corrupt("the log has been cut, and the state does not reach up to there".into()))
}

/// Passes all entries after `base` to `take`, in order and in batches.
fn each_entry(
    log: &LogDb,
    base: Option<pb::LogId>,
    mut take: impl FnMut(Vec<AppliedEntry>) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let end = log.bounds().1.map_or(0, |id| id.index + 1);
    let mut next = base.map_or(0, |id| id.index + 1);
    while next < end {
        let entries = log.read(next..end, APPLY_BYTES)?;
        let entries: Vec<AppliedEntry> = entries.into_iter().map(applied_entry).collect::<Result<_, _>>()?;
        match entries.last() {
            Some(last) if entries[0].log_id.index == next => next = last.log_id.index + 1,
            _ => return Err(StorageError::Corrupt(format!("log entry {next} is missing"))),
        }
        take(entries)?;
    }
    Ok(())
}

fn applied_entry(entry: pb::Entry) -> Result<AppliedEntry, StorageError> {
    let incomplete = || StorageError::Corrupt("a log entry is incomplete".into());
    let log_id = entry.log_id.ok_or_else(incomplete)?;
    let payload = match entry.payload.ok_or_else(incomplete)? {
        pb::entry::Payload::Blank(_) => AppliedPayload::Blank,
        pb::entry::Payload::Batch(bytes) => AppliedPayload::Batch(bytes),
        pb::entry::Payload::Membership(membership) => AppliedPayload::Membership(membership),
    };
    Ok(AppliedEntry { log_id, payload })
}

fn require_empty(dir: &Path) -> Result<(), StorageError> {
    for item in fs::read_dir(dir).map_err(StorageError::io("list", dir))? {
        let name = item.map_err(StorageError::io("list", dir))?.file_name();
        if !NOTHING.iter().any(|nothing| name == *nothing) {
            let found = name.to_string_lossy().into_owned();
            return Err(StorageError::NotEmpty { path: dir.to_owned(), found });
        }
    }
    Ok(())
}

fn rename(dir: &Path, from: &str, to: &str) -> Result<(), StorageError> {
    let from = dir.join(from);
    fs::rename(&from, dir.join(to)).map_err(StorageError::io("rename", &from))?;
    db::sync_directory(dir)
}

#[cfg(test)]
mod tests;
