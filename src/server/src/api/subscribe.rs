//! Opens a subscription: waits for the state that the stream begins with, then starts the feed.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, stream};
use tokio::time::Instant;
use tonic::Status;

use super::{
    ChatApi,
    auth::{Caller, still_open},
    call::Call,
    feed::{Backlog, BacklogScope, Feed, PAGE_EVENTS},
    reads::Awaited,
    status,
};
use chat::{AccountId, Event, Revision, SessionId, TimeMs};
use proto::chat::v1 as pb;
use raft::ReadError;
use storage::Query;

/// Longest wait for a cursor from another node, which may be slightly ahead of this one.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// Longest wait for a connection to the database, for each page.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(10);

/// The answer of `Subscribe`.
pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<pb::SubscribeResponse, Status>> + Send>>;

impl ChatApi {
    pub(super) async fn subscribe(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::SubscribeRequest,
    ) -> Result<EventStream, Status> {
        let after = request.after_revision.map(Revision);
        if let Some(after) = after {
            self.await_cursor(after, call.deadline).await?;
        }
        if after.is_none() || request.consistency.is_some() {
            let awaited = self.await_consistency(request.consistency, call.deadline).await?;
            if let Awaited::Revision(asked) = awaited
                && self.is_lost(asked, call.deadline).await?
            {
                return Err(status::revision_lost(asked.0));
            }
        }
        let inner = &self.inner;
        let backlog = StoredEvents { api: self.clone(), account: caller.account, session: caller.session };
        let feed = Feed::open(inner.hub.clone(), backlog, caller, after, inner.settings.subscription_heartbeat)?;
        let trace = call.trace;
        let stream = stream::unfold(Some(feed), move |feed| async move {
            let mut feed = feed?;
            match feed.next().await {
                Ok(response) => Some((Ok(response), Some(feed))),
                Err(end) => Some((Err(status::traced(end, trace)), None)),
            }
        });
        Ok(Box::pin(stream))
    }

    /// Waits until this node has the cursor's revision. Rejects one that the cluster does not have.
    async fn await_cursor(&self, after: Revision, deadline: Instant) -> Result<(), Status> {
        self.reach_cursor(after, deadline).await?;
        if self.is_lost(after, deadline).await? {
            self.inner.observer.cursor_refused();
            return Err(status::revision_lost(after.0));
        }
        Ok(())
    }

    async fn is_lost(&self, revision: Revision, deadline: Instant) -> Result<bool, Status> {
        self.inner.database.read(deadline, move |query| query.is_lost(revision)).await
    }

    async fn reach_cursor(&self, after: Revision, deadline: Instant) -> Result<(), Status> {
        if self.inner.hub.current().0 >= after {
            return Ok(());
        }
        let until = deadline.min(Instant::now() + CATCH_UP_MAX);
        if self.await_revision(after, until).await.is_ok() {
            return Ok(());
        }
        match self.inner.node.read_barrier(deadline).await {
            Ok(()) => {}
            // The cluster may have the revision even though this node does not.
            Err(ReadError::Deadline) => return self.await_revision(after, deadline).await,
            Err(error) => return Err(status::read(&error)),
        }
        let newest = self.inner.database.read(deadline, |query| query.revision()).await?;
        if newest < after {
            self.inner.observer.cursor_refused();
            return Err(status::revision_in_future(after.0, newest.0));
        }
        self.await_revision(after, deadline).await
    }
}

/// The caller's past events, in this node's database.
#[derive(Clone)]
struct StoredEvents {
    api: ChatApi,
    account: AccountId,
    session: SessionId,
}

impl Backlog for StoredEvents {
    async fn page(&self, scope: BacklogScope, after: Revision, up_to: Revision) -> Result<Vec<Event>, Status> {
        let (account, session) = (self.account, self.session);
        let read = move |query: &Query<'_>| {
            if let Err(closed) = still_open(query, session)? {
                return Ok(Err(closed));
            }
            let events = match scope {
                BacklogScope::Undelivered => query.undelivered(account, after, up_to, PAGE_EVENTS)?,
                BacklogScope::All => query.events_after(account, after, up_to, PAGE_EVENTS)?,
            };
            Ok(Ok(events))
        };
        self.api.inner.database.scan(Instant::now() + PAGE_WAIT_MAX, read).await?
    }

    fn age(&self) -> Option<Duration> {
        self.api.inner.node.age()
    }

    async fn confirm_clock(&self, caller: &Caller) -> Result<TimeMs, Status> {
        self.api.confirm_clock(caller, Instant::now() + PAGE_WAIT_MAX).await
    }
}
