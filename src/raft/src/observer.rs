//! What the layers above learn of Raft: the applied changes, and figures for the metrics.
//!
//! Does not cover: who observes (`server`), and how an entry is applied (`store::state_machine`).

use std::{sync::Arc, time::Duration};

use chat::{Event, Revision, SessionId, TimeMs};

/// Observes Raft events. Called from the tasks that cause the events, so it must not block.
pub trait Observer: Send + Sync + 'static {
    /// Changes were applied. `revision` and `clock` are those of the state afterwards.
    fn applied(&self, events: Vec<Arc<Event>>, closed_sessions: &[SessionId], revision: Revision, clock: TimeMs);
    /// A snapshot replaced the state. The changes in between are only in the database.
    fn replaced(&self, revision: Revision, clock: TimeMs);
    /// The digests of the nodes were compared. `agreed`: a majority has this node's digest; otherwise some node
    /// differs.
    fn compared(&self, agreed: bool);
    /// This many commands in the log were invalid in every version, and were rejected.
    fn malformed(&self, commands: u64);
    /// Applying this many entries took this long.
    fn measured(&self, entries: usize, took: Duration);
    /// A snapshot was built.
    fn snapshot_built(&self, took: Duration);
    /// The member of this name answered a heartbeat.
    fn answered(&self, peer: &str, took: Duration);
}
