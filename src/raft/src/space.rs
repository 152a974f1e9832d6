//! Space on the volumes: what a node still accepts, and how a leader limits growth where it is low.
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
//!
//! `volume` is the volume itself with its reserve file. Does not cover: the task that checks the volume and transfers
//! leadership (`tasks::disk_space`).

pub(crate) mod volume;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{status::PeerHealth, view::View};
use volume::{Volume, has_reserve_file};

pub use volume::give_up_reserve_file;

/// Interval between checks of the volume.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between attempts to transfer leadership to a voter with space. A leader that is low for longer refuses
/// growth.
pub(crate) const TRANSFER_INTERVAL: Duration = Duration::from_secs(5);
/// The reserve is at most one part in this many of the volume, so that small volumes remain usable.
const RESERVE_PART: u64 = 10;
/// Free space at which a low volume has recovered, in percent of the reserve. The margin prevents flapping.
const RECOVERED_PERCENT: u64 = 125;
/// Bytes written per byte of entries. The log and the state each write the data to their file and to their write-ahead
/// log.
const WRITTEN_TIMES: u64 = 4;
/// Least bytes written for a message with entries: whole pages of both databases.
const WRITTEN_BYTES_MIN: u64 = 16 << 10;

/// State of the volumes, as far as this node has it. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Space(Arc<Known>);

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
    /// A [`Growth`] as its number.
    growth: AtomicU8,
    /// Whether each node reported low space in its last answer, by node id.
    low: Mutex<HashMap<u64, bool>>,
}

/// Treatment of messages and new accounts by a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Growth {
    /// They are accepted.
    Taken,
    /// Their callers retry: another node is asked to lead.
    Elsewhere,
    /// They are rejected for lack of space.
    Refused,
}

/// State of a voter's volume, as far as the leader has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
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
pub(crate) fn decide(own: Room, rooms: &[Room], troubled: Duration) -> Growth {
    let takers = rooms.iter().filter(|room| matches!(room, Room::Enough | Room::Unknown)).count();
    let answering = rooms.iter().filter(|room| **room != Room::Silent).count();
    // Without a quorum of answering voters nothing is acknowledged anyway, which is not for lack of space.
    if rooms.contains(&Room::Low) && takers <= rooms.len() / 2 && answering > rooms.len() / 2 {
        return Growth::Refused;
    }
    match own {
        Room::Low if troubled > TRANSFER_INTERVAL => Growth::Refused,
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
        if since < CHECK_INTERVAL {
            return;
        }
        self.before = if since < 2 * CHECK_INTERVAL { self.now } else { 0 };
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
    pub(crate) fn at_start(dir: &Path, reserve_bytes: u64) -> Self {
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
    pub(crate) fn is_low(&self) -> bool {
        self.0.own_low.load(Ordering::Relaxed)
    }

    /// Whether this node accepts no entries, because any write may fail.
    pub(crate) fn is_critical(&self) -> bool {
        self.0.critical.load(Ordering::Relaxed)
    }

    /// Whether entries of `bytes` fit, in addition to earlier ones that may not be written yet. If not, no entries are
    /// accepted until these would fit.
    pub(crate) fn takes(&self, bytes: u64) -> bool {
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

    /// Whether there is space for a state of `bytes` that another node sends.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let kept = load(&self.0.kept_bytes);
        kept == 0 || load(&self.0.free_bytes) >= bytes.saturating_add(2 * kept)
    }

    /// Records whether a follower reported low space.
    pub(crate) fn note(&self, node: u64, low: bool) {
        self.0.low.lock().unwrap_or_else(PoisonError::into_inner).insert(node, low);
    }

    /// Treatment of messages and new accounts while this node leads.
    pub(crate) fn growth(&self) -> Growth {
        match self.0.growth.load(Ordering::Relaxed) {
            0 => Growth::Taken,
            1 => Growth::Elsewhere,
            _ => Growth::Refused,
        }
    }

    pub(crate) fn status(&self, leads: bool) -> SpaceStatus {
        SpaceStatus {
            free_bytes: self.0.free_bytes.load(Ordering::Relaxed),
            low: self.is_low(),
            refusing: leads && self.growth() == Growth::Refused,
        }
    }

    /// Sets the treatment of messages and new accounts while this node leads.
    pub(crate) fn set_growth(&self, growth: Growth) {
        self.0.growth.store(growth as u8, Ordering::Relaxed);
    }

    /// Records the state of the volume. Returns whether `is_low` changed.
    pub(crate) fn look(&self, volume: Volume, reserve: u64, has_reserve_file: bool) -> bool {
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

    pub(crate) fn own_room(&self) -> Room {
        if self.is_low() { Room::Low } else { Room::Enough }
    }

    /// The voters' volumes. A voter's report counts only while the voter answers, since it may date from an earlier
    /// term of this leader.
    pub(crate) fn rooms(
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

/// Logs that the volume became low, or that it has space again.
pub(crate) fn report(low: bool, free: u64) {
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
mod tests;
