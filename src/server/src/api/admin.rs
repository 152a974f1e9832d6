//! Operator calls: membership, transfer of leadership, snapshots.

use tonic::Status;

use super::{ChatApi, auth::Token, call::Call, status, unexpected};
use chat::{Command, Outcome, limits::JOIN_TOKEN_LIFETIME_MS};
use proto::chat::v1 as pb;

impl ChatApi {
    pub(super) async fn transfer_leadership(
        &self,
        call: &Call,
        request: pb::TransferLeadershipRequest,
    ) -> Result<pb::TransferLeadershipResponse, Status> {
        let name = request.to;
        let to = match name.as_str() {
            "" => None,
            _ => {
                let members = self.inner.node.status().members;
                let peer = members.into_iter().find(|peer| peer.name == name);
                let peer = peer.ok_or_else(|| status::node_unknown(&name))?;
                if !peer.voter {
                    return Err(status::not_a_voter(&name));
                }
                Some(peer.node_id)
            }
        };
        let leader = self.inner.node.transfer_leadership(to, call.deadline).await;
        let leader = leader.map_err(|error| status::transfer(&error, &name))?;
        let node = self.inner.node.status();
        let found = node.members.into_iter().find(|peer| peer.node_id == leader);
        let leader = found.map_or_else(|| leader.to_string(), |peer| peer.name);
        Ok(pb::TransferLeadershipResponse { leader, term: node.term })
    }

    pub(super) async fn add_node(
        &self,
        call: &Call,
        request: pb::AddNodeRequest,
    ) -> Result<pb::AddNodeResponse, Status> {
        let address = request.peer_address;
        let added = self.inner.node.add_member(&address, call.deadline).await;
        Ok(pb::AddNodeResponse { node_id: added.map_err(|error| status::member(&error, &address))? })
    }

    pub(super) async fn remove_node(
        &self,
        call: &Call,
        request: pb::RemoveNodeRequest,
    ) -> Result<pb::RemoveNodeResponse, Status> {
        let removed = self.inner.node.remove_member(&request.name, call.deadline).await;
        Ok(pb::RemoveNodeResponse { node_ids: removed.map_err(|error| status::member(&error, &request.name))? })
    }

    pub(super) async fn issue_join_token(&self, call: &Call) -> Result<pb::IssueJoinTokenResponse, Status> {
        let token = Token::random()?;
        let command = Command::IssueJoinToken { token_hash: token.hash(), lifetime_ms: JOIN_TOKEN_LIFETIME_MS };
        match self.propose(call, command).await? {
            Ok(Outcome::JoinTokenIssued { expires_at }) => {
                Ok(pb::IssueJoinTokenResponse { token: token.text(), expires_at_ms: expires_at.0 })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, "", "")),
        }
    }

    pub(super) async fn snapshot(&self, call: &Call) -> Result<pb::SnapshotResponse, Status> {
        let log_index = self.inner.node.snapshot(call.deadline).await;
        Ok(pb::SnapshotResponse { log_index: log_index.map_err(|error| status::snapshot(&error))? })
    }
}
