//! The membership of the cluster: adding and removing members, making a change, checking who is a member.
//!
//! Does not cover: which changes are allowed (`membership::plan`), the admission of a node (`node::joining`), and moves
//! (`node::moves`).

use std::{collections::BTreeSet, error::Error as _, time::Duration};

use futures_util::future::join_all;
use openraft::{
    Precondition,
    async_runtime::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::Node;
use crate::{
    error::{MemberError, TransferError},
    membership::{
        ANSWER_MAX, CHANGE_MAX,
        plan::{Change, MembershipView},
    },
    status::ClusterHealth,
    transport::{
        leader_client::{CallError, Client, Leader},
        peers::Lane,
    },
    types::{StoredMembership, TypeConfig},
};
use net::dial::never_connected;
use proto::raft::v1 as wire;

/// Interval between retries of a change that is not possible at the moment.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// Interval at which a node without a leader asks whether it is still a member.
const MEMBERSHIP_CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Node {
    /// Adds the empty node at `peer_address` as a learner, from any node. Returns its id. Waits for a leader like a
    /// command does.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn add_member(&self, peer_address: &str, deadline: Instant) -> Result<u64, MemberError> {
        let limit = self.leader_limit(deadline);
        loop {
            let result = self.ask_to_add(peer_address, deadline).await;
            if !self.may_retry(&result, limit).await {
                return result;
            }
        }
    }

    /// Removes the node called `name`, from any node. Returns the removed ids. Waits for a leader like a command does.
    ///
    /// # Errors
    /// See [`MemberError`].
    pub async fn remove_member(&self, name: &str, deadline: Instant) -> Result<Vec<u64>, MemberError> {
        let limit = self.leader_limit(deadline);
        loop {
            let result = self.ask_to_remove(name, deadline).await;
            if !self.may_retry(&result, limit).await {
                return result;
            }
        }
    }

    /// Whether a request found no leader, and thus did nothing, but finds one now. Waits for one until `limit`. A node
    /// that was just elected may not know it yet, so the next request can fail like this one.
    async fn may_retry<T>(&self, result: &Result<T, MemberError>, limit: Instant) -> bool {
        matches!(result, Err(MemberError::NoLeader))
            && self.pause_before_retry().await
            && self.has_leader(limit).await
            && Instant::now() < limit
    }

    async fn ask_to_add(&self, peer_address: &str, deadline: Instant) -> Result<u64, MemberError> {
        let leader = match self.inner.leader.find().ok_or(MemberError::NoLeader)? {
            Leader::Here => return self.add_here(peer_address).await,
            Leader::There(leader) => leader,
        };
        let request = wire::AddMemberRequest { peer_address: peer_address.to_owned() };
        let call = async |mut client: Client, request| client.add_member(request).await;
        let answer = self.inner.leader.call(&leader, Lane::Control, Some(deadline), request, call).await;
        Ok(answer.map_err(failed)?.node_id)
    }

    async fn ask_to_remove(&self, name: &str, deadline: Instant) -> Result<Vec<u64>, MemberError> {
        let mut leader = self.inner.leader.find().ok_or(MemberError::NoLeader)?;
        let leads = match &leader {
            Leader::Here => self.inner.identity.name == name,
            Leader::There(peer) => peer.name == name,
        };
        // A leader does not remove itself: its successor does.
        if leads {
            self.transfer_leadership(None, deadline).await.map_err(|error| match error {
                TransferError::NoLeader => MemberError::NoLeader,
                TransferError::NotAVoter => MemberError::Conflict("it leads, and no other voter can take over".into()),
                error @ (TransferError::Silent | TransferError::NotTaken(_)) => {
                    MemberError::Conflict(error.to_string())
                }
                TransferError::Unknown(reason) => MemberError::Unknown(reason),
            })?;
            leader = self.inner.leader.find().ok_or(MemberError::NoLeader)?;
        }
        let leader = match leader {
            Leader::Here => return self.remove_here(name).await.map(|ids| ids.into_iter().collect()),
            Leader::There(leader) => leader,
        };
        let request = wire::RemoveMemberRequest { name: name.to_owned() };
        let call = async |mut client: Client, request| client.remove_member(request).await;
        let answer = self.inner.leader.call(&leader, Lane::Control, Some(deadline), request, call).await;
        Ok(answer.map_err(failed)?.node_ids)
    }

    /// On the leader: removes all nodes of a name.
    pub(crate) async fn remove_here(&self, name: &str) -> Result<BTreeSet<u64>, MemberError> {
        if !self.inner.view.borrow().is_leader() {
            return Err(MemberError::NoLeader);
        }
        if self.inner.identity.name == name {
            return Err(MemberError::Conflict("this node leads, so it must transfer leadership first".into()));
        }
        let _one = self.inner.membership.lock().await;
        // Two conflicts pass by themselves: a new leader has no answers from some members yet, or another change is in
        // flight.
        let retry_until = Instant::now() + self.inner.election_max * 2;
        let ids = loop {
            match self.change(|_, membership_view| membership_view.removal(name)).await {
                Err(MemberError::Conflict(_)) if Instant::now() < retry_until => sleep(RETRY_EVERY).await,
                result => break result?,
            }
        };
        tracing::info!(name, ?ids, "A node was removed from the cluster");
        Ok(ids)
    }

    /// Decides on a change and makes it, provided that the membership is unchanged.
    pub(super) async fn change<T>(
        &self,
        decide: impl FnOnce(u64, &MembershipView<'_>) -> Result<(T, Change), MemberError>,
    ) -> Result<T, MemberError> {
        let stored = self.membership();
        let cluster_health = self.cluster_health_here();
        let base = stored.log_id().map_or(0, |id| id.index);
        let (result, change) = decide(base, &self.membership_view(&stored, &cluster_health))?;
        self.apply_change(&stored, change).await?;
        Ok(result)
    }

    /// While this node leads: finishes a change that was left half done, or gives its vote to a learner that has caught
    /// up. Does nothing while another change is made.
    pub(crate) async fn continue_change(&self) {
        let Ok(_one) = self.inner.membership.try_lock() else { return };
        let stored = self.membership();
        let cluster_health = self.cluster_health_here();
        let Some(change) = self.membership_view(&stored, &cluster_health).next_step() else { return };
        tracing::info!(?change, "Changing the membership");
        if let Err(error) = self.apply_change(&stored, change).await {
            tracing::warn!(%error, "The membership change failed; retrying");
        }
    }

    async fn apply_change(&self, base: &StoredMembership, change: Change) -> Result<(), MemberError> {
        let same: Precondition<TypeConfig> =
            Precondition::LastMembershipLogId { last_membership_log_id: *base.log_id() };
        // A voter that is removed does not stay as a learner.
        match timeout(CHANGE_MAX, self.inner.raft.change_membership_if(change, false, [same])).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::Fatal(fatal))) => Err(MemberError::Unknown(fatal.to_string())),
            Ok(Err(RaftError::APIError(error))) => Err(match error {
                ClientWriteError::ForwardToLeader(_) => MemberError::NoLeader,
                ClientWriteError::LogEntryDiscarded(_) => MemberError::Unknown(error.to_string()),
                ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                    MemberError::Conflict("another change of the membership is under way".into())
                }
                other => MemberError::Conflict(other.to_string()),
            }),
            Err(_) => Err(MemberError::Unknown("the change was not committed in time".into())),
        }
    }

    /// Waits until this node has another member in its membership.
    pub async fn has_fellows(&self) {
        let mut view = self.inner.view.clone();
        if view.wait_for(|view| view.members.len() > 1).await.is_err() {
            // Raft was shut down.
            std::future::pending().await
        }
    }

    /// The effective membership, committed or not.
    pub(super) fn membership(&self) -> StoredMembership {
        (*self.inner.raft.server_metrics().borrow_watched().membership_config).clone()
    }

    pub(super) fn membership_view<'a>(
        &self,
        stored: &'a StoredMembership,
        cluster_health: &'a ClusterHealth,
    ) -> MembershipView<'a> {
        MembershipView { membership: stored.membership(), cluster_health, silence_max: self.inner.election_max }
    }

    pub(super) async fn probe(&self, peer_address: &str) -> Result<wire::ProbeResponse, String> {
        let client = self.inner.peers.client(peer_address, Lane::Control);
        let mut client = client.map_err(|status| status.message().to_owned())?;
        let request = wire::ProbeRequest { name: self.inner.identity.name.clone() };
        let request = self.inner.credentials.present(request);
        match timeout(ANSWER_MAX, client.probe(request)).await {
            Ok(Ok(found)) => Ok(found.into_inner()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Whether an id belongs to the cluster, as of a moment at which a majority has confirmed the leader. Any member
    /// can answer. A node that was removed while it was away does not have the addresses of the members that joined
    /// meanwhile, and one of those may lead.
    pub(crate) async fn is_member_here(&self, node_id: u64) -> Result<bool, MemberError> {
        Ok(self.settled_membership().await?.membership().get_node(&node_id).is_some())
    }

    /// The membership as of a moment at which a majority has confirmed the leader. Fails while a change is in flight,
    /// or while this node is behind.
    pub(super) async fn settled_membership(&self) -> Result<StoredMembership, MemberError> {
        let committed = self.inner.read_index.ask().await.map_err(|_| MemberError::NoLeader)?;
        let stored = self.membership();
        let may_be_taken_back = stored.log_id().is_some_and(|id| id > committed);
        // A leader has every committed entry in its log.
        let is_behind = !self.inner.view.borrow().is_leader() && *self.inner.applied.borrow() < Some(committed);
        if may_be_taken_back || is_behind { Err(MemberError::NoLeader) } else { Ok(stored) }
    }

    /// Waits until a member answers that this node no longer belongs to the cluster. While this node has no leader, it
    /// asks the other members and the nodes at `more` addresses.
    pub async fn removed(&self, more: &[String]) {
        loop {
            if !self.is_led() && self.ask_membership(more).await == Some(false) {
                return;
            }
            sleep(MEMBERSHIP_CHECK_INTERVAL).await;
        }
    }

    /// Current addresses of the other members, and `more` addresses.
    pub(super) fn addresses_of_others(&self, more: &[String]) -> BTreeSet<String> {
        let view = self.inner.view.borrow();
        let others = view.members.iter().filter(|peer| peer.node_id != self.inner.identity.node_id);
        let known = others.map(|peer| self.inner.peers.address_of(peer.node_id, &peer.peer_address));
        known.chain(more.iter().cloned()).collect()
    }

    async fn ask_membership(&self, more: &[String]) -> Option<bool> {
        let own = self.inner.identity.node_id;
        let questions = self.addresses_of_others(more).into_iter().map(|address| async move {
            let mut client = self.inner.peers.client(&address, Lane::Control).ok()?;
            let cluster_id = self.inner.identity.cluster_id.clone();
            let request = self.inner.credentials.present(wire::CheckMembershipRequest { cluster_id, node_id: own });
            let answer = timeout(ANSWER_MAX, client.check_membership(request)).await.ok()?.ok()?;
            Some(answer.into_inner().is_member)
        });
        join_all(questions).await.into_iter().flatten().next()
    }
}

/// Converts the failure of a call to the leader.
fn failed(error: CallError) -> MemberError {
    match error {
        CallError::NotSent => MemberError::NoLeader,
        CallError::Failed(status) => match status.code() {
            Code::NotFound => MemberError::NodeUnknown,
            Code::FailedPrecondition => MemberError::Conflict(status.message().to_owned()),
            // The leader's answer has no source. A connection that broke does, and the change may have been made.
            Code::Unavailable if status.source().is_none() || never_connected(&status) => MemberError::NoLeader,
            _ => MemberError::Unknown(status.message().to_owned()),
        },
        CallError::Late => MemberError::Unknown("the leader does not answer".into()),
    }
}

impl From<MemberError> for Status {
    fn from(error: MemberError) -> Self {
        let text = error.to_string();
        match error {
            MemberError::NoLeader => Self::unavailable(text),
            MemberError::NodeUnknown => Self::not_found(text),
            MemberError::Conflict(_) => Self::failed_precondition(text),
            MemberError::Unknown(_) => Self::aborted(text),
        }
    }
}
