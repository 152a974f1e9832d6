//! Calls to the leader: finding it, the connection, the credentials, and the time limit.
//!
//! Invariant: [`CallError::NotSent`] is returned only if the leader received nothing. After any other error it may have
//! handled the call, and the caller decides what that means.
//!
//! Does not cover: waiting for a leader, retries, and the calls of openraft (`client`).

use std::sync::Arc;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::{Request, Response, Status};

use crate::{
    error::ReadError,
    transport::peers::{Credentials, Lane, Peers},
    view::{Peer, View},
};
use proto::{Channel, raft::v1::raft_service_client::RaftServiceClient};

/// Client for one call to the leader.
pub(crate) type Client = RaftServiceClient<Channel>;

/// Calls the leader that this node has in its view. Clones share the connections.
#[derive(Clone)]
pub(crate) struct LeaderClient {
    view: watch::Receiver<View>,
    peers: Arc<Peers>,
    credentials: Credentials,
}

/// The leader at one moment.
pub(crate) enum Leader {
    /// This node leads.
    Here,
    /// Another node leads.
    There(Peer),
}

/// Why a call has no response.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The call was not made, because the leader's address is invalid.
    NotSent,
    /// The leader rejected the call, or the connection failed.
    Failed(Status),
    /// There was no response before the deadline.
    Late,
}

impl From<CallError> for ReadError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotSent | CallError::Failed(_) => Self::NoLeader,
            CallError::Late => Self::Deadline,
        }
    }
}

impl LeaderClient {
    /// A client that follows `view`, and makes calls over `peers` that it signs with `credentials`.
    pub(crate) fn new(view: watch::Receiver<View>, peers: Arc<Peers>, credentials: Credentials) -> Self {
        Self { view, peers, credentials }
    }

    /// The present leader. `None`: there is none.
    pub(crate) fn find(&self) -> Option<Leader> {
        let view = self.view.borrow();
        if view.is_leader() {
            return Some(Leader::Here);
        }
        view.leader().cloned().map(Leader::There)
    }

    /// A connection to `leader` for one call, which connects if necessary.
    ///
    /// # Errors
    /// [`CallError::NotSent`].
    pub(crate) fn connect(&self, leader: &Peer, lane: Lane) -> Result<LeaderConnection, CallError> {
        let client = self.peers.member(leader.node_id, &leader.peer_address, lane).map_err(|_| CallError::NotSent)?;
        Ok(LeaderConnection {
            client,
            leader: leader.clone(),
            peers: Arc::clone(&self.peers),
            credentials: self.credentials.clone(),
        })
    }

    /// Makes one call to `leader`, see [`LeaderConnection::call`].
    pub(crate) async fn call<M, R>(
        &self,
        leader: &Peer,
        lane: Lane,
        deadline: Option<Instant>,
        message: M,
        call: impl AsyncFnOnce(Client, Request<M>) -> Result<Response<R>, Status>,
    ) -> Result<R, CallError> {
        self.connect(leader, lane)?.call(deadline, message, call).await
    }
}

/// A connection to the leader.
pub(crate) struct LeaderConnection {
    client: Client,
    /// The node that the call is meant for.
    leader: Peer,
    peers: Arc<Peers>,
    credentials: Credentials,
}

impl LeaderConnection {
    /// Signs `message` and sends it with `call`. Without a deadline, the call has no time limit of its own.
    ///
    /// # Errors
    /// [`CallError::Failed`] or [`CallError::Late`].
    pub(crate) async fn call<M, R>(
        self,
        deadline: Option<Instant>,
        message: M,
        call: impl AsyncFnOnce(Client, Request<M>) -> Result<Response<R>, Status>,
    ) -> Result<R, CallError> {
        let answer = call(self.client, self.credentials.sign(self.leader.node_id, message));
        let answer = match deadline {
            Some(deadline) => timeout_at(deadline, answer).await.map_err(|_| CallError::Late)?,
            None => answer.await,
        };
        let note = |status: &Status| self.peers.note_error(status, self.leader.node_id, &self.leader.peer_address);
        answer.inspect_err(note).map(Response::into_inner).map_err(CallError::Failed)
    }
}
