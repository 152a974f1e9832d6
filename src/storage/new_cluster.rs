//! A copy of the state becomes the start of a new cluster: a backup in an empty data directory ([`restore`]), or what the last
//! node of a cluster has ([`recover`]).
//!
//! The new cluster goes on where the copy ends, as if one more entry had been committed that makes this node the only member:
//!
//! - Another cluster id: nodes of the old cluster and this one refuse each other's calls.
//! - A node id that neither the old cluster up to the copy nor the new one gives to another node: members that come
//!   later get the index of a membership entry, which is at least this entry's, plus [`MEMBER_IDS_FROM`]; earlier ones got
//!   less than this entry's index plus that. This node gets what is between.
//! - The log begins behind that entry, in a term above all that the copy knows. Nothing has to be replayed, and
//!   who joins is sent a snapshot.
//! - Revisions go on [`REVISIONS_SKIPPED`] further. The old cluster may have given away revisions after the copy was made;
//!   their numbers are never used again, so that no old cursor or message id means something else now. Who names one of
//!   them is told that it is lost ([`super::Query::is_lost`]).
//! - Everything else stays: accounts, sessions, messages, what client ids came to, the clock, the digest. A restored
//!   backup may begin without the sessions ([`KeptSessions`]).
//!
//! Invariant: the directory holds the old state or the new one, whenever the process dies. The new one is built in a directory
//! of its own, whose name says how far it is; [`finish`], which every start calls, removes what is incomplete and goes
//! on with what is decided: the old files move to `aside/`, then the new ones take their places.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rusqlite::{Connection, OptionalExtension, params};

use super::apply::{AppliedEntry, AppliedPayload, AppliedState, StateMachine, read_state, write_state};
use super::backup::{self, BackupMeta, verify_backup};
use super::db;
use super::error::{Context, StorageError};
use super::log::{Identity, LogDb};
use super::private;
use super::snapshot::{copy_file, copy_state, open_snapshot};
use super::trust;
use crate::chat::{Revision, TimeMs};
use crate::proto::log::v1 as pb;

/// Node ids below are those of a cluster's first members.
pub const MEMBER_IDS_FROM: u64 = 16;
/// More than a cluster has given away since any backup: at 100,000 changes a second it is the work of 115 days. Less than a
/// thousandth of what JSON's numbers hold exactly.
pub const REVISIONS_SKIPPED: u64 = 1_000_000_000_000;

/// Incomplete: as if it were not there.
const UNFINISHED: &str = "new-cluster.tmp";
/// Complete: the old files have to go.
const DECIDED: &str = "new-cluster.decided";
/// The old files are gone: the new ones take their places.
const ARRIVING: &str = "new-cluster.arriving";
/// What may be in an empty data directory: the lock of the process that looks, and what file systems make.
const NOTHING: [&str; 2] = ["lock", "lost+found"];
/// Bytes of the log that are applied at a time.
const APPLY_BYTES: usize = 8 << 20;

/// The table is only in states that have lost revisions. Both ends belong to the range.
const LOST_TABLE: &str = "
CREATE TABLE IF NOT EXISTS lost_revision (
    first   INTEGER PRIMARY KEY,
    last    INTEGER NOT NULL
) STRICT;
";

/// Ends every session, whatever its state.
const END_SESSIONS: &str = "DELETE FROM session;";

/// What becomes of the sessions in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptSessions {
    /// All of them stay as they are, with their tokens.
    All,
    /// All of them have ended. Known devices stay: a device opens nothing by itself.
    None,
}

/// The node that a new cluster begins with.
#[derive(Debug, Clone)]
pub struct Founder {
    /// UUID of the new cluster.
    pub cluster_id: String,
    /// The node's name.
    pub name: String,
    /// Where peers reach it, host:port.
    pub peer_address: String,
    /// Where clients reach it, host:port.
    pub client_address: String,
    /// Where browsers reach it, host:port.
    pub web_address: String,
}

/// What a new cluster begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The node's id.
    pub node_id: u64,
    /// The revision of the copy.
    pub copied: Revision,
    /// The revision that the cluster begins with.
    pub revision: Revision,
}

/// What a stopped node has.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// Who it was.
    pub identity: Identity,
    /// Who belonged to its cluster, by its log.
    pub membership: pb::Membership,
    /// The last entry of its log.
    pub last: Option<pb::LogId>,
    /// The last entry that it has noted as committed; it does so now and then.
    noted: Option<pb::LogId>,
    /// The last entry that is in its state.
    pub applied: Option<pb::LogId>,
    /// The state's revision.
    pub revision: Revision,
    /// The replicated clock, in the state.
    pub clock: TimeMs,
    /// The state is read from this snapshot, because `chat.db` is behind the log's first entry.
    snapshot: Option<PathBuf>,
}

impl Survey {
    /// The last entry that is known to be committed: noted as such, or in the state.
    pub fn committed(&self) -> Option<pb::LogId> {
        [self.noted, self.applied].into_iter().flatten().max_by_key(|id| id.index)
    }

    /// Entries in the log after that one.
    pub fn uncertain(&self) -> u64 {
        let index = |id: Option<pb::LogId>| id.map_or(0, |id| id.index);
        index(self.last).saturating_sub(index(self.committed()))
    }
}

/// Makes a backup the start of a new cluster, in an empty directory.
///
/// # Errors
/// The directory is not empty; or a file operation failed. [`verify_backup`] the file first: what it then finds wrong with
/// the copy is told like any other failure here.
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
        // What cannot be removed now goes with the next attempt.
        let _ = fs::remove_dir_all(&staging);
    }
    let done = result?;
    // Nothing has to go.
    rename(dir, UNFINISHED, ARRIVING)?;
    finish(dir)?;
    Ok(done)
}

/// What the stopped node in a directory has. Changes nothing, but that the files are closed in order afterwards.
///
/// # Errors
/// There is no node, or its files cannot be trusted.
pub fn survey(dir: &Path) -> Result<Survey, StorageError> {
    finish(dir)?;
    let refused = |problem: String| StorageError::NotRecoverable { path: dir.to_owned(), problem };
    for name in ["log.db", "chat.db"] {
        if !dir.join(name).exists() {
            return Err(refused(format!("there is no {name}")));
        }
    }
    if let Some(reason) = trust::doubts(dir)? {
        return Err(refused(format!("its files cannot be trusted: {reason}")));
    }
    let log = LogDb::open(dir, Box::new(|_| {}))?;
    let surveyed = StateMachine::open(dir).and_then(|machine| {
        trust::verify(dir, &log, &machine)?;
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
        // From here on the write-ahead logs may go, as at any other end in order.
        trust::closed(dir)?;
        Ok(survey)
    });
    log.close();
    surveyed
}

/// Makes what a node has the start of a new cluster. Every entry of its log is applied: any of them may have been
/// acknowledged. The old files are moved aside.
///
/// `skip` are the indexes of entries that are applied as if they were blank: for a log with an entry that no version at hand can
/// apply. What they held is lost, and the digest of the new cluster is another one than that of a node that applied them.
///
/// # Errors
/// An entry cannot be applied, one of `skip` is not left to be applied, or a file operation failed.
pub fn recover(dir: &Path, survey: &Survey, founder: &Founder, skip: &[u64]) -> Result<Beginning, StorageError> {
    finish(dir)?;
    let beginning = decide(dir, survey, founder, skip)?;
    finish(dir)?;
    Ok(beginning)
}

/// Everything of [`recover`] up to the point from which every start goes on with it.
fn decide(dir: &Path, survey: &Survey, founder: &Founder, skip: &[u64]) -> Result<Beginning, StorageError> {
    let refused = |problem: String| StorageError::NotRecoverable { path: dir.to_owned(), problem };
    let (first, last) = (survey.applied.map_or(0, |id| id.index + 1), survey.last.map_or(0, |id| id.index));
    if let Some(outside) = skip.iter().find(|index| !(first..=last).contains(*index)) {
        return Err(refused(format!(
            "entry {outside} cannot be skipped: only {first} to {last} are left to be applied"
        )));
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

/// Goes on with what [`restore`] or [`recover`] has decided and not brought to an end, and removes what they had not
/// decided. Called before anything in the directory is looked at.
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
        if trust::has_files(dir) {
            trust::move_aside(dir, "the node became the start of a new cluster (chatd recover)")?;
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

/// Whether a revision was skipped, and not given away in this state.
pub(super) fn is_lost(conn: &Connection, revision: Revision) -> Result<bool, StorageError> {
    let ask = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        let found = conn.prepare_cached(sql)?.query_row(values, |_| Ok(())).optional()?;
        Ok::<_, rusqlite::Error>(found.is_some())
    };
    let found = ask("SELECT 1 FROM sqlite_schema WHERE name = 'lost_revision'", &[])
        .and_then(|any| Ok(any && ask("SELECT 1 FROM lost_revision WHERE ?1 BETWEEN first AND last", &[&revision])?));
    found.context("look for a lost revision")
}

/// Makes the copy of a state in `staging` the start of a cluster, and a log for it. All of it is durable then.
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
        // One file, without a write-ahead log beside it.
        conn.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
        // Hashes of tokens are overwritten as well.
        conn.pragma_update(None, "secure_delete", "ON")?;
        conn.execute_batch(also)?;
        conn.execute_batch(LOST_TABLE)?;
        // Permissions of the old cluster. A copy of format 1 has none.
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
    // What the state machine keeps beside its file; and the files alone.
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

/// A log that ends with `log_id`, of which no entry is there.
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

/// The newest state that a node has: `chat.db`, or a snapshot when the log has been cut behind it.
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
    for file in StateMachine::snapshot_files(dir)? {
        if StateMachine::verify_snapshot(&file).is_ok_and(|meta| index(meta.log_id) >= index(purged)) {
            return Ok((read_state(&open_snapshot(&file)?)?, Some(file)));
        }
    }
    Err(StorageError::Corrupt("the log has been cut, and no state or snapshot reaches up to there".into()))
}

/// Hands all entries after `base` to `take`, in order, in pieces.
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
#[path = "new_cluster_tests.rs"]
mod tests;
