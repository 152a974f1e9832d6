//! What is proposed without a caller: that sessions were used, and that expired rows are removed.
//!
//! Both are bounded: a command notes at most [`TOUCHES_MAX`] uses and removes at most [`REMOVED_MAX`] rows of each kind. Neither
//! is worth a wait: without a leader, uses are forgotten, and rows stay until the next round.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::database::Database;
use crate::{
    chat::{
        AccountCommand, Command, Outcome, SessionId, TimeMs,
        limits::{REMOVED_MAX, TOUCHES_MAX},
    },
    delivery::Hub,
    raft::Node,
};

/// Uses of sessions are gathered for this long.
const GATHER: Duration = Duration::from_secs(30);
/// Sessions whose use waits to be noted. More are noted at their next use.
const WAITING_MAX: usize = 16 * TOUCHES_MAX;
/// The leader looks for expired rows this often.
const ROUND: Duration = Duration::from_secs(600);
/// Between two commands that remove rows, so that they do not hold up messages.
const PAUSE: Duration = Duration::from_millis(200);
/// Expired rows stay for this long: until then their sessions are called expired, and not unknown.
const KEPT_MS: u64 = 24 * 3600 * 1000;
/// Time for one command.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sessions whose use has to be noted.
pub(super) struct Touches {
    waiting: Arc<Mutex<HashSet<SessionId>>>,
}

impl Touches {
    /// Starts the task that notes them; it ends with this value. Needs a tokio runtime.
    pub(super) fn start(node: Node, database: Database) -> Self {
        let waiting = Arc::default();
        tokio::spawn(note(Arc::downgrade(&waiting), node, database));
        Self { waiting }
    }

    /// A session was used.
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
            let (deadline, chunk) = (Instant::now() + PATIENCE, chunk.to_vec());
            // The log is no place either for what an account does not have noted.
            let noted = match database.read(deadline, move |query| query.with_activity(chunk)).await {
                Ok(noted) if noted.is_empty() => continue,
                Ok(noted) => noted,
                Err(error) => {
                    tracing::debug!(%error, "The use of sessions was not noted");
                    continue;
                }
            };
            let command = Command::Account(AccountCommand::TouchSessions(noted));
            if let Err(error) = node.propose(command, None, Instant::now() + PATIENCE).await {
                tracing::debug!(%error, "The use of sessions was not noted");
            }
        }
    }
}

/// Starts the task that removes expired rows while this node leads; it ends with Raft. Needs a tokio runtime.
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
        let any = database.read(Instant::now() + PATIENCE, move |query| query.has_expired_rows(before)).await;
        if !matches!(any, Ok(true)) {
            return;
        }
        let command = Command::Account(AccountCommand::RemoveExpired { before, limit: REMOVED_MAX });
        match node.propose(command, None, Instant::now() + PATIENCE).await {
            Ok(Outcome::Changed { count, .. }) if count > 0 => tracing::debug!(count, "Expired rows were removed"),
            _ => return,
        }
        sleep(PAUSE).await;
    }
}
