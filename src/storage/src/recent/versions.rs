//! What is recent, in memory: the newest values, and the earlier ones that readers still see.
//!
//! Readers look up single conversations while the writer commits. So there is one map for all of them, in parts with a
//! lock each, and an entry has the values as of several commits (multiversion concurrency control). A copy for each
//! commit would cost more than all the rest.
//!
//! Invariants: an entry has the version that the writer sees, and for each reader the newest one that is not newer than
//! its commit, if there is any. A version that no reader sees is removed with the next commit to the entry, or
//! with the first one after the end of the readers of its time.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use rusqlite::Connection;

use super::{Changes, Packed, RecentConversation, Round, table};
use crate::error::StorageError;
use chat::ConversationId;

/// Parts of the map. Readers of different parts do not wait for each other.
const PARTS: usize = 64;

/// The values of a conversation as of a commit; `None`: its tables have them.
type Version = (u64, Option<Packed>);

#[derive(Debug)]
struct Entry {
    newest: Version,
    /// Earlier versions that readers see, the oldest first.
    earlier: Vec<Version>,
}

impl Entry {
    fn at(&self, commit: u64) -> Option<&Packed> {
        let versions = [&self.newest].into_iter().chain(self.earlier.iter().rev());
        versions.into_iter().find(|(since, _)| *since <= commit).and_then(|(_, version)| version.as_ref())
    }

    /// Removes the versions that are not visible as of `oldest` or a later commit. Returns whether the entry is of use.
    fn prune(&mut self, oldest: u64) -> bool {
        // A version ends where the next one begins.
        let begins = self.earlier.iter().chain([&self.newest]).map(|(since, _)| *since);
        let unseen = begins.skip(1).take_while(|end| *end <= oldest).count();
        self.earlier.drain(..unseen);
        self.newest.1.is_some() || !self.earlier.is_empty()
    }
}

type Part = HashMap<ConversationId, Entry>;

/// All conversations that differ from the tables, as of each commit that a reader sees.
#[derive(Debug)]
pub(crate) struct Versions {
    parts: Box<[RwLock<Part>]>,
    /// How many have a newest value that differs from the tables.
    count: AtomicUsize,
    /// The last commit.
    commit: AtomicU64,
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Readers {
    /// How many see which commit.
    seen: BTreeMap<u64, usize>,
    /// Entries with versions that are of no use once all readers see this commit or a later one.
    outdated: VecDeque<(u64, ConversationId)>,
}

impl Default for Versions {
    fn default() -> Self {
        let parts = (0..PARTS).map(|_| RwLock::default()).collect();
        Self { parts, count: AtomicUsize::new(0), commit: AtomicU64::new(0), readers: Mutex::default() }
    }
}

impl Versions {
    /// Reads what is recent from the table, and how far it is written back.
    ///
    /// # Errors
    /// The file cannot be read, or a row of `recent` is damaged.
    pub(super) fn read(conn: &Connection) -> Result<(Self, Option<Round>), StorageError> {
        let versions = Self::default();
        let mut buffer = Vec::new();
        let round = table::read(conn, |id, conversation| {
            versions.set(id, (0, Some(conversation.pack(&mut buffer))), 0);
        })?;
        Ok((versions, round))
    }

    /// What is recent as of the last commit. No commit may be in progress.
    pub fn now(self: &Arc<Self>) -> RecentRows {
        let mut readers = self.readers();
        let commit = self.commit.load(Ordering::Acquire);
        *readers.seen.entry(commit).or_default() += 1;
        drop(readers);
        RecentRows { versions: Arc::clone(self), commit }
    }

    pub(super) fn newest(&self, id: ConversationId) -> Option<RecentConversation> {
        let packed = self.part(id).get(&id).and_then(|entry| entry.newest.1.clone());
        packed.map(|packed| packed.unpack())
    }

    /// How many conversations differ from the tables.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Their ids, in any order.
    pub(super) fn ids(&self) -> Vec<ConversationId> {
        let mut ids = Vec::with_capacity(self.len());
        for part in &self.parts {
            let part = read(part);
            ids.extend(part.iter().filter(|(_, entry)| entry.newest.1.is_some()).map(|(id, _)| *id));
        }
        ids
    }

    /// Takes over the changes of a commit. No reader may begin until the commit is done.
    pub(super) fn publish(&self, changes: Changes) {
        let commit = self.commit.load(Ordering::Acquire) + 1;
        let mut readers = self.readers();
        let oldest = readers.seen.first_key_value().map_or(commit, |(seen, _)| *seen);
        while let Some((_, id)) = readers.outdated.pop_front_if(|(end, _)| *end <= oldest) {
            let mut part = self.part_mut(id);
            if part.get_mut(&id).is_some_and(|entry| !entry.prune(oldest)) {
                part.remove(&id);
            }
        }
        let mut set = |id, version| {
            if self.set(id, (commit, version), oldest) {
                readers.outdated.push_back((commit, id));
            }
        };
        changes.recent.into_iter().for_each(|(id, conversation)| set(id, Some(conversation)));
        changes.written.into_iter().for_each(|id| set(id, None));
        self.commit.store(commit, Ordering::Release);
    }

    /// Adds a version. Returns whether readers see earlier ones.
    fn set(&self, id: ConversationId, version: Version, oldest: u64) -> bool {
        let (commit, is_recent) = (version.0, version.1.is_some());
        let mut part = self.part_mut(id);
        let was_recent = part.get(&id).is_some_and(|entry| entry.newest.1.is_some());
        match (was_recent, is_recent) {
            (false, true) => _ = self.count.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.count.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
        let Some(entry) = part.get_mut(&id) else {
            part.insert(id, Entry { newest: version, earlier: Vec::new() });
            return false;
        };
        let replaced = mem::replace(&mut entry.newest, version);
        // An earlier value of the same commit is not visible to any reader.
        if replaced.0 < commit {
            entry.earlier.push(replaced);
        }
        if !entry.prune(oldest) {
            part.remove(&id);
            return false;
        }
        !entry.earlier.is_empty()
    }

    /// Number of conversations, and of versions that are not the newest.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        let count = |part: &RwLock<Part>| {
            let part = read(part);
            (part.len(), part.values().map(|entry| entry.earlier.len()).sum::<usize>())
        };
        self.parts.iter().map(count).fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
    }

    fn end_of_reader(&self, commit: u64) {
        let mut readers = self.readers();
        if let Some(count) = readers.seen.get_mut(&commit) {
            *count -= 1;
            if *count == 0 {
                readers.seen.remove(&commit);
            }
        }
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        // Nothing that can panic leaves it half-changed.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(&self, id: ConversationId) -> RwLockReadGuard<'_, Part> {
        read(&self.parts[part(id)])
    }

    fn part_mut(&self, id: ConversationId) -> RwLockWriteGuard<'_, Part> {
        self.parts[part(id)].write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(part: &RwLock<Part>) -> RwLockReadGuard<'_, Part> {
    part.read().unwrap_or_else(PoisonError::into_inner)
}

fn part(id: ConversationId) -> usize {
    // Ids are revisions, and consecutive ones may belong to anything. Fibonacci hashing spreads any pattern.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    (id.0.wrapping_mul(GOLDEN) >> (u64::BITS - PARTS.trailing_zeros())) as usize
}

/// All conversations that differ from the tables, as of one commit.
#[derive(Debug)]
pub(crate) struct RecentRows {
    versions: Arc<Versions>,
    commit: u64,
}

impl RecentRows {
    /// Reads them from the table.
    ///
    /// # Errors
    /// The file cannot be read, or a row of `recent` is damaged.
    pub fn read(conn: &Connection) -> Result<Self, StorageError> {
        Ok(Arc::new(Versions::read(conn)?.0).now())
    }

    /// A conversation, if it differs.
    pub fn get(&self, id: ConversationId) -> Option<RecentConversation> {
        let packed = self.versions.part(id).get(&id).and_then(|entry| entry.at(self.commit).cloned());
        packed.map(|packed| packed.unpack())
    }
}

impl Drop for RecentRows {
    fn drop(&mut self) {
        self.versions.end_of_reader(self.commit);
    }
}
