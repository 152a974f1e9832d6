//! Commands that are proposed without a caller: records of session use, and the removal of expired rows.
//!
//! Both are bounded: a command records at most [`TOUCHES_MAX`] uses and removes at most [`REMOVED_MAX`] rows of each
//! kind. Neither waits for a leader. Without one, uses are dropped, and rows stay until the next round.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::database::Database;
use crate::delivery::Hub;
use chat::{
    AccountCommand, Command, Outcome, SessionId, TimeMs,
    limits::{REMOVED_MAX, TOUCHES_MAX},
};
use raft::Node;

/// Interval over which uses of sessions are collected.
const GATHER: Duration = Duration::from_secs(30);
/// Sessions whose use waits to be recorded. Others are recorded at their next use.
const WAITING_MAX: usize = 16 * TOUCHES_MAX;
/// Interval of the leader's search for expired rows.
const ROUND: Duration = Duration::from_secs(600);
/// Pause between two commands that remove rows, so that they do not delay messages.
const PAUSE: Duration = Duration::from_millis(200);
/// Time for which expired rows are kept. Meanwhile their sessions are reported as expired, not as unknown.
const KEPT_MS: u64 = 24 * 3600 * 1000;
/// Time limit for one command.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sessions whose use has to be recorded.
pub(super) struct Touches {
    waiting: Arc<Mutex<HashSet<SessionId>>>,
}

impl Touches {
    /// Starts the task that records them. It ends with this value. Needs a tokio runtime.
    pub(super) fn start(node: Node, database: Database) -> Self {
        let waiting = Arc::default();
        tokio::spawn(note(Arc::downgrade(&waiting), node, database));
        Self { waiting }
    }

    /// Records that a session was used.
    pub(super) fn note(&self, session: SessionId) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX {
            waiting.insert(session);
        }
    }
}

async fn note(waiting: Weak<Mutex<HashSet<SessionId>>>, node: Node, database: Database) {
    loop {
        sleep(GATHER).await;
        let Some(waiting) = waiting.upgrade() else { return };
        let mut sessions: Vec<_> = waiting.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
        drop(waiting);
        sessions.sort_unstable();
        for chunk in sessions.chunks(TOUCHES_MAX) {
            let (deadline, chunk) = (Instant::now() + TIMEOUT, chunk.to_vec());
            // Accounts may turn off the record of their activity. Their uses stay out of the log, too.
            let noted = match database.read(deadline, move |query| query.with_activity(chunk)).await {
                Ok(noted) if noted.is_empty() => continue,
                Ok(noted) => noted,
                Err(error) => {
                    tracing::debug!(%error, "The last use of sessions could not be recorded");
                    continue;
                }
            };
            let command = Command::Account(AccountCommand::TouchSessions(noted));
            if let Err(error) = node.propose(command, None, Instant::now() + TIMEOUT).await {
                tracing::debug!(%error, "The last use of sessions could not be recorded");
            }
        }
    }
}

/// Starts the task that removes expired rows while this node leads. It ends with Raft. Needs a tokio runtime.
pub(super) fn remove_expired(node: Node, hub: &Hub, database: Database) {
    let hub = hub.clone();
    tokio::spawn(async move {
        let view = node.view();
        while view.has_changed().is_ok() {
            sleep(ROUND).await;
            if node.leading().is_some() {
                remove_now(&node, &hub, &database).await;
            }
        }
    });
}

async fn remove_now(node: &Node, hub: &Hub, database: &Database) {
    let before = TimeMs(hub.current().1.0.saturating_sub(KEPT_MS));
    loop {
        let any = database.read(Instant::now() + TIMEOUT, move |query| query.has_expired_rows(before)).await;
        if !matches!(any, Ok(true)) {
            return;
        }
        let command = Command::Account(AccountCommand::RemoveExpired { before, limit: REMOVED_MAX });
        match node.propose(command, None, Instant::now() + TIMEOUT).await {
            Ok(Outcome::Changed { count, .. }) if count > 0 => tracing::debug!(count, "Expired rows were removed"),
            _ => return,
        }
        sleep(PAUSE).await;
    }
}
