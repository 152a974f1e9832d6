//! Watches the free space of the volumes, and limits growth where it is low.
//!
//! Each node checks its own volume and reports in its answers to heartbeats when less than the reserve is free. The
//! leader accepts growth (messages, accounts) only while its own volume and those of a majority of the voters have
//! space. Deletions, receipts, logins and reads continue and use the reserve. A leader whose own volume is low
//! transfers leadership to a voter with space. Meanwhile it answers growth like a node that does not lead, so that
//! callers retry, and reports a lack of space only after 5 s. All limits end by themselves when there is space again.
//!
//! Something else may fill the volume. A node that is nearly out of space accepts no more entries, so that it does not
//! fail in the middle of a write. It serves the data that it has, and catches up when there is space. The reserve file
//! makes a start on a full volume possible: such a start removes it, and it is created again as soon as it fits. A node
//! without the file accepts no entries, since the next start would have nothing to remove.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    error::TransferError,
    node::{Node, PeerHealth},
    view::View,
};
use crate::{blocking, storage::private};

/// Interval between checks of the volume.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between attempts to transfer leadership to a voter with space. A leader that is low for longer refuses
/// growth.
const HAND_OVER_INTERVAL: Duration = Duration::from_secs(5);
/// The reserve is at most one part in this many of the volume, so that small volumes remain usable.
const RESERVE_PART: u64 = 10;
/// Free space at which a low volume has recovered, in percent of the reserve. The margin prevents flapping.
const RECOVERED_PERCENT: u64 = 125;
/// Bytes written per byte of entries. The log and the state each write the data to their file and to their write-ahead
/// log.
const WRITTEN_TIMES: u64 = 4;
/// Least bytes written for a message with entries: whole pages of both databases.
const WRITTEN_BYTES_MIN: u64 = 16 << 10;

/// Name of the reserve file in the data directory.
const RESERVE_FILE: &str = "reserve";
/// Largest size of the reserve file in bytes.
const RESERVE_FILE_BYTES_MAX: u64 = 4 << 20;
/// The reserve file is at most one part in this many of the volume.
const RESERVE_FILE_PART: u64 = 64;
/// Interval between attempts to create the reserve file.
const RESERVE_FILE_INTERVAL: Duration = Duration::from_secs(5);

/// Free and total bytes of a volume.
#[derive(Debug, Clone, Copy)]
struct Volume {
    free: u64,
    total: u64,
}

impl Volume {
    fn of(dir: &Path) -> io::Result<Self> {
        let volume = rustix::fs::statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(volume.f_frsize);
        if volume.f_blocks == 0 {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the file system does not say how large it is"));
        }
        Ok(Self { free: bytes(volume.f_bavail), total: bytes(volume.f_blocks) })
    }

    fn reserve_file_bytes(self) -> u64 {
        (self.total / RESERVE_FILE_PART).min(RESERVE_FILE_BYTES_MAX)
    }

    /// Whether so little space is free that any write may fail.
    fn is_critical(self) -> bool {
        self.free < self.reserve_file_bytes() / 2
    }

    /// Whether there is space for the reserve file and for the writes while it is created.
    fn fits_reserve_file(self) -> bool {
        self.free >= 2 * self.reserve_file_bytes()
    }
}

/// Removes the reserve file if there is too little space to start. Returns whether it was removed.
///
/// # Errors
/// The volume cannot be checked, or the file cannot be removed.
pub fn give_up_reserve_file(dir: &Path) -> io::Result<bool> {
    let path = dir.join(RESERVE_FILE);
    if !Volume::of(dir)?.is_critical() || !path.exists() {
        return Ok(false);
    }
    fs::remove_file(path)?;
    Ok(true)
}

/// Whether the reserve file exists in its full size.
fn has_reserve_file(dir: &Path, volume: Volume) -> bool {
    fs::metadata(dir.join(RESERVE_FILE)).is_ok_and(|metadata| metadata.len() >= volume.reserve_file_bytes())
}

/// Creates the reserve file.
fn make_reserve_file(dir: &Path, volume: Volume) -> io::Result<()> {
    let (path, length) = (dir.join(RESERVE_FILE), volume.reserve_file_bytes());
    let mut file = private::create_file(&path)?;
    let filled = match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(&mut file, length),
        other => other.map_err(io::Error::from),
    };
    filled.inspect_err(|_| drop(fs::remove_file(&path)))
}

/// Writes the file, for file systems that cannot reserve space.
fn fill(file: &mut fs::File, length: u64) -> io::Result<()> {
    let piece = vec![0; 1 << 16];
    for _ in 0..length / piece.len() as u64 {
        file.write_all(&piece)?;
    }
    file.set_len(length)
}

/// State of the volumes, as far as this node has it. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Space(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    own_low: AtomicBool,
    critical: AtomicBool,
    free_bytes: AtomicU64,
    /// Bytes of the volume that have to stay free for a write at any moment. 0: the volume is not watched.
    kept_bytes: AtomicU64,
    coming: Mutex<Coming>,
    /// Bytes that must be free before entries are accepted again, after some did not fit.
    wanted_bytes: AtomicU64,
    /// Bytes of this node's state, which a copy of it takes.
    state_bytes: AtomicU64,
    /// A [`Growth`] as its number.
    growth: AtomicU8,
    /// Whether each node reported low space in its last answer, by node id.
    low: Mutex<HashMap<u64, bool>>,
}

/// Treatment of messages and new accounts by a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Growth {
    /// They are accepted.
    Taken,
    /// Their callers retry: another node is asked to lead.
    Elsewhere,
    /// They are rejected for lack of space.
    Refused,
}

/// State of a voter's volume, as far as the leader has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// The volume has space.
    Enough,
    /// The voter reported low space.
    Low,
    /// The voter may still answer, as this node has led only for a short time.
    Unknown,
    /// The voter does not answer, so it acknowledges nothing, however much space it has.
    Silent,
}

/// Decides how a leader treats growth, given the volumes of the voters. `troubled` is how long its own volume has been
/// low.
fn decide(own: Room, rooms: &[Room], troubled: Duration) -> Growth {
    let takers = rooms.iter().filter(|room| matches!(room, Room::Enough | Room::Unknown)).count();
    let answering = rooms.iter().filter(|room| **room != Room::Silent).count();
    // Without a quorum of answering voters nothing is acknowledged anyway, which is not for lack of space.
    if rooms.contains(&Room::Low) && takers <= rooms.len() / 2 && answering > rooms.len() / 2 {
        return Growth::Refused;
    }
    match own {
        Room::Low if troubled > HAND_OVER_INTERVAL => Growth::Refused,
        Room::Low => Growth::Elsewhere,
        _ => Growth::Taken,
    }
}

/// Bytes that recently accepted entries will write, which may not be written yet. Kept by time rather than by checks of
/// the volume, which may fail.
#[derive(Debug, Default)]
struct Coming {
    /// Bytes since the last turn.
    now: u64,
    /// Bytes between the last turn and the one before.
    before: u64,
    turned: Option<Instant>,
}

impl Coming {
    fn turn(&mut self, now: Instant) {
        let since = self.turned.map_or(Duration::MAX, |turned| now.saturating_duration_since(turned));
        if since < LOOK_INTERVAL {
            return;
        }
        self.before = if since < 2 * LOOK_INTERVAL { self.now } else { 0 };
        (self.now, self.turned) = (0, Some(now));
    }
}

/// Space on a node's volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceStatus {
    /// Free bytes.
    pub free_bytes: u64,
    /// Whether less than the reserve is free, or the node accepts no entries.
    pub low: bool,
    /// Whether this node leads and refuses growth.
    pub refusing: bool,
}

impl Space {
    /// The state at the start, from the volume of `dir`. With a reserve of 0 the volume is never checked.
    pub(super) fn at_start(dir: &Path, reserve_bytes: u64) -> Self {
        let space = Self::default();
        if reserve_bytes == 0 {
            return space;
        }
        match Volume::of(dir) {
            Ok(volume) => {
                let has_file = has_reserve_file(dir, volume);
                if space.look(volume, reserve_bytes, has_file || volume.fits_reserve_file()) {
                    report(true, volume.free);
                }
            }
            Err(error) => tracing::warn!(%error, "The free space of the volume could not be determined"),
        }
        space
    }

    /// Whether this node's volume is low.
    pub(super) fn is_low(&self) -> bool {
        self.0.own_low.load(Ordering::Relaxed)
    }

    /// Whether this node accepts no entries, because any write may fail.
    pub(super) fn is_critical(&self) -> bool {
        self.0.critical.load(Ordering::Relaxed)
    }

    /// Whether entries of `bytes` fit, in addition to earlier ones that may not be written yet. If not, no entries are
    /// accepted until these would fit.
    pub(super) fn takes(&self, bytes: u64) -> bool {
        if self.is_critical() {
            return false;
        }
        let needed = bytes.saturating_mul(WRITTEN_TIMES).max(WRITTEN_BYTES_MIN);
        let (kept, free) = (self.0.kept_bytes.load(Ordering::Relaxed), self.0.free_bytes.load(Ordering::Relaxed));
        let mut coming = self.0.coming.lock().unwrap_or_else(PoisonError::into_inner);
        coming.turn(Instant::now());
        let fits = kept == 0 || free >= coming.now + coming.before + needed + kept / 2;
        if fits {
            coming.now += needed;
        } else {
            self.0.wanted_bytes.store(needed + kept / 2, Ordering::Relaxed);
            self.set_critical(true, free);
        }
        fits
    }

    fn set_critical(&self, critical: bool, free: u64) {
        if self.0.critical.swap(critical, Ordering::Relaxed) == critical {
            return;
        }
        match critical {
            true => tracing::error!(free_bytes = free, "The volume is full: this node accepts no more entries"),
            false => tracing::warn!(free_bytes = free, "The volume has space again: this node catches up"),
        }
    }

    /// Whether there is space for a copy of the state, or for a state of `bytes` that another node sends. A copy that
    /// runs out of space stops the node. On a volume that is low because of its log, a copy is what frees space.
    pub(super) fn has_room(&self, bytes: Option<u64>) -> bool {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let kept = load(&self.0.kept_bytes);
        let needed = bytes.unwrap_or_else(|| load(&self.0.state_bytes)).saturating_add(2 * kept);
        kept == 0 || load(&self.0.free_bytes) >= needed
    }

    /// Records whether a follower reported low space.
    pub(super) fn note(&self, node: u64, low: bool) {
        self.0.low.lock().unwrap_or_else(PoisonError::into_inner).insert(node, low);
    }

    /// Treatment of messages and new accounts while this node leads.
    pub(super) fn growth(&self) -> Growth {
        match self.0.growth.load(Ordering::Relaxed) {
            0 => Growth::Taken,
            1 => Growth::Elsewhere,
            _ => Growth::Refused,
        }
    }

    pub(super) fn status(&self, leads: bool) -> SpaceStatus {
        SpaceStatus {
            free_bytes: self.0.free_bytes.load(Ordering::Relaxed),
            low: self.is_low(),
            refusing: leads && self.growth() == Growth::Refused,
        }
    }

    /// Records the state of the volume. Returns whether `is_low` changed.
    fn look(&self, volume: Volume, reserve: u64, has_reserve_file: bool) -> bool {
        let Volume { free, total } = volume;
        let finds_space = free >= self.0.wanted_bytes.load(Ordering::Relaxed);
        if volume.is_critical() || !has_reserve_file {
            self.set_critical(true, free);
        } else if finds_space {
            self.0.wanted_bytes.store(0, Ordering::Relaxed);
            self.set_critical(false, free);
        }
        let reserve = reserve.min(total / RESERVE_PART);
        let was = self.is_low();
        let limit = if was { reserve / 100 * RECOVERED_PERCENT } else { reserve };
        // A node that accepts no entries is low, however large the entries were that did not fit.
        let low = free < limit || self.is_critical();
        self.0.free_bytes.store(free, Ordering::Relaxed);
        self.0.kept_bytes.store(volume.reserve_file_bytes().max(1), Ordering::Relaxed);
        self.0.own_low.store(low, Ordering::Relaxed);
        was != low
    }

    fn own_room(&self) -> Room {
        if self.is_low() { Room::Low } else { Room::Enough }
    }

    /// The voters' volumes. A voter's report counts only while the voter answers, since it may date from an earlier
    /// term of this leader.
    fn rooms(
        &self,
        own: u64,
        view: &View,
        health: &[PeerHealth],
        leads: Duration,
        lately: Duration,
    ) -> Vec<(u64, Room)> {
        let low = self.0.low.lock().unwrap_or_else(PoisonError::into_inner);
        let room = |id: u64| {
            let silent = health.iter().find(|peer| peer.node_id == id).and_then(|peer| peer.silent);
            match silent {
                _ if id == own => self.own_room(),
                None if leads <= lately => Room::Unknown,
                Some(silent) if silent <= lately => match low.get(&id) {
                    Some(true) => Room::Low,
                    _ => Room::Enough,
                },
                _ => Room::Silent,
            }
        };
        let voters = view.members.iter().filter(|peer| peer.voter);
        voters.map(|peer| (peer.node_id, room(peer.node_id))).collect()
    }
}

impl Node {
    /// Transfers leadership to the one of `nodes` that answers and has the most log.
    async fn transfer_to_one_of(&self, nodes: &[u64]) -> Result<u64, TransferError> {
        let view = self.inner.view.borrow().clone();
        let successor = self.best_successor(&view, self.inner.election_max, |id| nodes.contains(&id));
        let successor = successor.ok_or(TransferError::NotAVoter)?;
        self.transfer_here(Some(successor)).await
    }
}

/// Watches the volume of `dir` until Raft stops. Does nothing with a reserve of 0.
pub(super) async fn watch(node: Node, dir: PathBuf, reserve_bytes: u64) {
    if reserve_bytes == 0 {
        return;
    }
    let mut reserve_file_due = Instant::now();
    let own = node.inner.identity.node_id;
    let space = node.inner.space.clone();
    let mut view = node.view();
    let lately = node.inner.election_max * 2;
    let (mut leads_since, mut troubled_since) = (None, None);
    let mut led_last: Option<Instant> = None;
    let mut handed_over: Option<Instant> = None;
    loop {
        let volume = dir.clone();
        let found = blocking::io(move || {
            let state =
                ["chat.db", "chat.db-wal"].map(|name| fs::metadata(volume.join(name)).map_or(0, |file| file.len()));
            let found = Volume::of(&volume)?;
            Ok((found, state.iter().sum::<u64>(), has_reserve_file(&volume, found)))
        })
        .await;
        match found {
            Ok((volume, state_bytes, mut has_file)) => {
                space.0.state_bytes.store(state_bytes, Ordering::Relaxed);
                if !has_file && volume.fits_reserve_file() && Instant::now() >= reserve_file_due {
                    reserve_file_due = Instant::now() + RESERVE_FILE_INTERVAL;
                    let dir = dir.clone();
                    match blocking::io(move || make_reserve_file(&dir, volume)).await {
                        Ok(()) => has_file = true,
                        Err(error) => tracing::warn!(%error, "The reserve file could not be created"),
                    }
                }
                if space.look(volume, reserve_bytes, has_file) {
                    report(space.is_low(), volume.free);
                }
            }
            Err(error) => tracing::warn!(%error, "The free space of the volume could not be determined"),
        }
        let now = view.borrow().clone();
        if now.is_leader() {
            led_last = Some(Instant::now());
        }
        // A leader that is re-elected again and again, because the others cannot lead, is in trouble all the time.
        let led_lately = led_last.is_some_and(|at| at.elapsed() < HAND_OVER_INTERVAL);
        let leads = elapsed_with(now.is_leader().then_some(now.term), &mut leads_since);
        let troubled = elapsed_with((led_lately && space.is_low()).then_some(()), &mut troubled_since);
        let rooms = space.rooms(own, &now, &node.cluster_health_here().peers, leads, lately);
        let growth = match now.is_leader() {
            true => decide(space.own_room(), &rooms.iter().map(|(_, room)| *room).collect::<Vec<_>>(), troubled),
            // Applies for the moment after this node becomes leader.
            false if space.is_low() => Growth::Elsewhere,
            false => Growth::Taken,
        };
        space.0.growth.store(growth as u8, Ordering::Relaxed);
        let with_space: Vec<u64> = rooms.iter().filter(|(_, room)| *room == Room::Enough).map(|(id, _)| *id).collect();
        let due = handed_over.is_none_or(|at| at.elapsed() >= HAND_OVER_INTERVAL);
        if now.is_leader() && space.is_low() && with_space.len() > rooms.len() / 2 && due {
            handed_over = Some(Instant::now());
            match node.transfer_to_one_of(&with_space).await {
                Ok(to) => tracing::warn!(to, "This leader's volume is low on space; transferring leadership"),
                Err(error) => {
                    tracing::warn!(%error, "This leader's volume is low on space, and no other node can lead")
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            gone = view.wait_for(|_| false) => {
                if gone.is_err() {
                    return;
                }
            }
        }
    }
}

/// How long the checks have found this `state`. `since` keeps when that began.
fn elapsed_with<T: PartialEq>(state: Option<T>, since: &mut Option<(T, Instant)>) -> Duration {
    let Some(state) = state else {
        *since = None;
        return Duration::ZERO;
    };
    match since {
        Some((before, began)) if *before == state => began.elapsed(),
        _ => {
            *since = Some((state, Instant::now()));
            Duration::ZERO
        }
    }
}

fn report(low: bool, free: u64) {
    if low {
        tracing::error!(
            free_bytes = free,
            "The volume is low on space: the rest is reserved for deletions, receipts and logins"
        );
    } else {
        tracing::warn!(free_bytes = free, "The volume has enough space again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_part_of_a_small_volume_and_low_does_not_flap() {
        let space = Space::default();
        let mib = 1 << 20;
        let look = |free, total| space.look(Volume { free, total }, 256 * mib, true);
        assert!(!look(10 * mib, 64 * mib), "64 MiB have a reserve of 6.4");
        assert!(look(6 * mib, 64 * mib) && space.is_low());
        assert!(!look(7 * mib, 64 * mib) && space.is_low(), "a little more is not enough");
        assert!(look(9 * mib, 64 * mib) && !space.is_low());
        assert!(look(200 * mib, 100_000 * mib));
    }

    #[test]
    fn a_leader_that_is_low_refuses_growth_only_where_nobody_else_can_take_it() {
        use Room::{Enough, Low, Silent, Unknown};
        let soon = Duration::ZERO;
        let decide = |rooms: &[Room], troubled| decide(rooms[0], rooms, troubled);
        assert_eq!(decide(&[Enough, Enough, Enough, Low, Low], soon), Growth::Taken);
        assert_eq!(decide(&[Enough, Enough, Low, Low, Low], soon), Growth::Refused);
        // A dead voter acknowledges nothing. Without a low voter, the cause is not a lack of space.
        assert_eq!(decide(&[Enough, Enough, Silent, Silent, Low], soon), Growth::Refused);
        assert_eq!(decide(&[Enough, Enough, Silent, Silent, Silent], soon), Growth::Taken);
        // While another node is asked to lead, no caller gets a storage error.
        assert_eq!(decide(&[Low, Enough, Enough, Enough, Silent], soon), Growth::Elsewhere);
        assert_eq!(decide(&[Low, Enough, Enough, Enough, Silent], 2 * HAND_OVER_INTERVAL), Growth::Refused);
        assert_eq!(decide(&[Low], soon), Growth::Refused);
        assert_eq!(decide(&[Low, Silent, Silent], soon), Growth::Elsewhere);
        // A new leader does not count a missing report as low space.
        assert_eq!(decide(&[Enough, Low, Unknown, Unknown, Unknown], soon), Growth::Taken);
        assert_eq!(decide(&[Low, Unknown, Unknown, Unknown, Unknown], soon), Growth::Elsewhere);
    }

    #[test]
    fn entries_that_may_not_fit_are_not_taken_until_they_do() {
        let (space, mib) = (Space::default(), 1 << 20);
        let look = |free, has_file| space.look(Volume { free, total: 64 * mib }, 0, has_file);
        let forget = || *space.0.coming.lock().unwrap() = Coming::default();
        look(4 * mib, true);
        assert!(space.takes(mib / 2), "it writes 2 of 4 MiB");
        assert!(!space.takes(mib / 2), "the first ones may not be written yet");
        assert!(!space.takes(1), "what comes later does not overtake");
        assert!(look(2 * mib, true) && space.is_low(), "who takes no entries is low");
        assert!(look(3 * mib, true), "the first ones are written, and what was refused fits");
        forget();
        assert!(space.takes(1) && !space.is_low());
        look(mib / 4, true);
        assert!(!space.takes(1));
        look(mib, true);
        assert!(space.takes(1));
        // Without the reserve file, the next start cannot free any space.
        look(64 * mib, false);
        assert!(!space.takes(1));
    }

    #[test]
    fn what_came_long_ago_is_written() {
        let (mut coming, began) = (Coming::default(), Instant::now());
        coming.turn(began);
        coming.now = 7;
        coming.turn(began + LOOK_INTERVAL / 2);
        assert_eq!((coming.now, coming.before), (7, 0));
        coming.turn(began + LOOK_INTERVAL);
        assert_eq!((coming.now, coming.before), (0, 7));
        coming.turn(began + 4 * LOOK_INTERVAL);
        assert_eq!((coming.now, coming.before), (0, 0));
    }

    #[test]
    fn a_node_that_starts_without_a_reserve_file_takes_nothing_unless_it_fits() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Space::at_start(dir.path(), 1 << 20).takes(1), "there is space for tests");
        assert!(
            !Space::at_start(&dir.path().join("nowhere"), 1 << 20).is_critical(),
            "what is not known refuses nothing"
        );
        let (space, full) = (Space::default(), Volume { free: 1 << 20, total: 1 << 30 });
        assert!(!has_reserve_file(dir.path(), full) && !full.fits_reserve_file());
        space.look(full, 1 << 20, false);
        assert!(space.is_critical());
    }

    #[test]
    fn the_reserve_file_is_given_up_only_without_space() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume { free: 1 << 30, total: 1 << 30 };
        make_reserve_file(dir.path(), volume).unwrap();
        make_reserve_file(dir.path(), volume).unwrap();
        assert_eq!(fs::metadata(dir.path().join(RESERVE_FILE)).unwrap().len(), 4 << 20);
        assert!(!give_up_reserve_file(dir.path()).unwrap(), "there is space for tests");
        let full = Volume { free: 1 << 20, total: 1 << 30 };
        assert!(full.is_critical() && !Volume { free: 4 << 20, ..full }.is_critical());
    }
}
