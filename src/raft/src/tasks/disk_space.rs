//! Checks the volume of the data directory, and transfers leadership away from a leader whose volume is low on space.
//!
//! Keeps [`Space`] up to date: the free bytes, the reserve file, and the treatment of growth while this node leads.
//! Does not cover: the rules themselves (`space`).

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    node::Node,
    space::{
        CHECK_INTERVAL, Growth, Room, Space, TRANSFER_INTERVAL, decide, report,
        volume::{Volume, has_reserve_file, make_reserve_file},
    },
    view::{self, View},
};
use trace::blocking;

/// Interval between attempts to create the reserve file.
const RESERVE_FILE_INTERVAL: Duration = Duration::from_secs(5);

/// Watches the volume of `dir` until Raft stops. Does nothing with a reserve of 0.
pub(crate) async fn watch(node: Node, dir: PathBuf, reserve_bytes: u64) {
    if reserve_bytes == 0 {
        return;
    }
    let mut view = node.view();
    let space = node.volumes().clone();
    let mut volume = WatchedVolume { dir, reserve_bytes, reserve_file_due: Instant::now() };
    let mut leadership = Leadership::of(node);
    loop {
        volume.check(&space).await;
        let now = view.borrow().clone();
        let rooms = leadership.decide_growth(&now);
        leadership.transfer_if_low(&now, &rooms).await;
        if !view::sleep(&mut view, CHECK_INTERVAL).await {
            return;
        }
    }
}

/// The volume of the data directory, between two checks.
struct WatchedVolume {
    dir: PathBuf,
    reserve_bytes: u64,
    /// Time of the next attempt to create a missing reserve file.
    reserve_file_due: Instant,
}

impl WatchedVolume {
    /// Records the state of the volume, and creates the reserve file if it is missing and fits.
    async fn check(&mut self, space: &Space) {
        match self.measure().await {
            Ok((volume, has_file)) => {
                let has_file = has_file || self.create_reserve_file(volume).await;
                if space.look(volume, self.reserve_bytes, has_file) {
                    report(space.is_low(), volume.free);
                }
            }
            Err(error) => tracing::warn!(%error, "The free space of the volume could not be determined"),
        }
    }

    /// The volume, and whether it has the reserve file.
    async fn measure(&self) -> std::io::Result<(Volume, bool)> {
        let dir = self.dir.clone();
        blocking::io(move || {
            let volume = Volume::of(&dir)?;
            Ok((volume, has_reserve_file(&dir, volume)))
        })
        .await
    }

    /// Creates the reserve file if it fits and an attempt is due. Returns whether it was created.
    async fn create_reserve_file(&mut self, volume: Volume) -> bool {
        if !volume.fits_reserve_file() || Instant::now() < self.reserve_file_due {
            return false;
        }
        self.reserve_file_due = Instant::now() + RESERVE_FILE_INTERVAL;
        let dir = self.dir.clone();
        let created = blocking::io(move || make_reserve_file(&dir, volume)).await;
        if let Err(error) = &created {
            tracing::warn!(%error, "The reserve file could not be created");
        }
        created.is_ok()
    }
}

/// A state, and the time of the first check in a row that found it.
type Since<T> = Option<(T, Instant)>;

/// The leadership of this node, as far as its treatment of growth depends on it.
struct Leadership {
    node: Node,
    /// The term in which this node leads.
    term: Since<u64>,
    /// Whether this node leads, or has led lately, while its volume is low.
    trouble: Since<()>,
    /// The last check that found this node leading.
    led_last: Option<Instant>,
    /// The last attempt to transfer leadership.
    transferred_last: Option<Instant>,
}

impl Leadership {
    fn of(node: Node) -> Self {
        Self { node, term: None, trouble: None, led_last: None, transferred_last: None }
    }

    /// Decides the treatment of growth. Returns the voters with their volumes.
    fn decide_growth(&mut self, view: &View) -> Vec<(u64, Room)> {
        let space = self.node.volumes();
        if view.is_leader() {
            self.led_last = Some(Instant::now());
        }
        // A leader that is re-elected again and again, because the others cannot lead, is in trouble all the time.
        let led_lately = self.led_last.is_some_and(|at| at.elapsed() < TRANSFER_INTERVAL);
        let leads = elapsed_with(view.is_leader().then_some(view.term), &mut self.term);
        let troubled = elapsed_with((led_lately && space.is_low()).then_some(()), &mut self.trouble);
        let health = self.node.cluster_health_here().peers;
        let rooms =
            space.rooms(self.node.identity().node_id, view, &health, leads, self.node.healthy_silence_max() * 2);
        let growth = match view.is_leader() {
            true => decide(space.own_room(), &rooms.iter().map(|(_, room)| *room).collect::<Vec<_>>(), troubled),
            // Applies for the moment after this node becomes leader.
            false if space.is_low() => Growth::Elsewhere,
            false => Growth::Taken,
        };
        space.set_growth(growth);
        rooms
    }

    /// Transfers leadership if this node leads with a low volume, and a majority of the voters has space.
    async fn transfer_if_low(&mut self, view: &View, rooms: &[(u64, Room)]) {
        let with_space: Vec<u64> = rooms.iter().filter(|(_, room)| *room == Room::Enough).map(|(id, _)| *id).collect();
        let due = self.transferred_last.is_none_or(|at| at.elapsed() >= TRANSFER_INTERVAL);
        if !view.is_leader() || !self.node.volumes().is_low() || with_space.len() <= rooms.len() / 2 || !due {
            return;
        }
        self.transferred_last = Some(Instant::now());
        match self.node.transfer_to_one_of(&with_space).await {
            Ok(to) => tracing::warn!(to, "This leader's volume is low on space; transferring leadership"),
            Err(error) => tracing::warn!(%error, "This leader's volume is low on space, and no other node can lead"),
        }
    }
}

/// How long the checks have found this `state`. `since` keeps when that began.
fn elapsed_with<T: PartialEq>(state: Option<T>, since: &mut Since<T>) -> Duration {
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
