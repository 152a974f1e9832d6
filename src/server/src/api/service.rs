//! Connects the calls to the generated service traits: authentication first, then the body.

use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    ChatApi,
    auth::{self, Caller},
    backup::BackupStream,
    call::Call,
    status,
    subscribe::EventStream,
};
use proto::chat::{
    v1 as pb,
    v1::{
        admin_service_server::AdminService, chat_service_server::ChatService, cluster_service_server::ClusterService,
    },
};

/// The header with the account that the session of the call has to belong to.
const SESSION: &str = "chat-session";

type Answer<T> = Result<Response<T>, Status>;

impl ChatApi {
    /// The context, the caller and the body of a call that needs a session.
    async fn admit<T>(&self, request: Request<T>) -> Result<(Call, Caller, T), Status> {
        let call = self.call(&request);
        let caller = self.authenticate(request.metadata(), call.deadline).await?;
        check_session(request.metadata(), &caller)?;
        Ok((call, caller, request.into_inner()))
    }
}

/// Checks the account that a request may name for its session. The page names it, because its browser may send a
/// planted cookie.
fn check_session(metadata: &MetadataMap, caller: &Caller) -> Result<(), Status> {
    match metadata.get(SESSION) {
        Some(name) if name.as_bytes() != caller.username.as_bytes() => Err(status::session_mismatch()),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl ChatService for ChatApi {
    async fn create_account(&self, request: Request<pb::CreateAccountRequest>) -> Answer<pb::CreateAccountResponse> {
        let call = self.call(&request);
        ChatApi::create_account(self, &call, request.into_inner()).await.map(Response::new)
    }

    async fn login(&self, request: Request<pb::LoginRequest>) -> Answer<pb::LoginResponse> {
        let call = self.call(&request);
        // An invalid token counts as none.
        let session = auth::bearer(request.metadata()).ok().map(|token| token.hash());
        ChatApi::login(self, &call, session, request.into_inner()).await.map(Response::new)
    }

    async fn logout(&self, request: Request<pb::LogoutRequest>) -> Answer<pb::LogoutResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::logout(self, &call, caller, request).await.map(Response::new)
    }

    async fn delete_account(&self, request: Request<pb::DeleteAccountRequest>) -> Answer<pb::DeleteAccountResponse> {
        let session = auth::bearer(request.metadata())?.hash();
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::delete_account(self, &call, caller, session, request).await.map(Response::new)
    }

    async fn get_registration(
        &self,
        request: Request<pb::GetRegistrationRequest>,
    ) -> Answer<pb::GetRegistrationResponse> {
        let call = self.call(&request);
        ChatApi::get_registration(self, &call).await.map(Response::new)
    }

    async fn change_password(&self, request: Request<pb::ChangePasswordRequest>) -> Answer<pb::ChangePasswordResponse> {
        let session = auth::bearer(request.metadata())?.hash();
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::change_password(self, &call, caller, session, request).await.map(Response::new)
    }

    async fn list_sessions(&self, request: Request<pb::ListSessionsRequest>) -> Answer<pb::ListSessionsResponse> {
        let (call, caller, _) = self.admit(request).await?;
        ChatApi::list_sessions(self, &call, caller).await.map(Response::new)
    }

    async fn revoke_session(&self, request: Request<pb::RevokeSessionRequest>) -> Answer<pb::RevokeSessionResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::revoke_session(self, &call, caller, request).await.map(Response::new)
    }

    async fn get_privacy(&self, request: Request<pb::GetPrivacyRequest>) -> Answer<pb::GetPrivacyResponse> {
        let (call, caller, _) = self.admit(request).await?;
        ChatApi::get_privacy(self, &call, caller).await.map(Response::new)
    }

    async fn set_privacy(&self, request: Request<pb::SetPrivacyRequest>) -> Answer<pb::SetPrivacyResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::set_privacy(self, &call, caller, request).await.map(Response::new)
    }

    async fn list_accounts(&self, request: Request<pb::ListAccountsRequest>) -> Answer<pb::ListAccountsResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::list_accounts(self, &call, caller, request).await.map(Response::new)
    }

    async fn send_message(&self, request: Request<pb::SendMessageRequest>) -> Answer<pb::SendMessageResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::send_message(self, &call, caller, request).await.map(Response::new)
    }

    type SubscribeStream = EventStream;

    async fn subscribe(&self, request: Request<pb::SubscribeRequest>) -> Answer<EventStream> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::subscribe(self, &call, caller, request).await.map(Response::new)
    }

    async fn read_conversation(
        &self,
        request: Request<pb::ReadConversationRequest>,
    ) -> Answer<pb::ReadConversationResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::read_conversation(self, &call, caller, request).await.map(Response::new)
    }

    async fn delete_messages(&self, request: Request<pb::DeleteMessagesRequest>) -> Answer<pb::DeleteMessagesResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::delete_messages(self, &call, caller, request).await.map(Response::new)
    }

    async fn list_chat_partners(
        &self,
        request: Request<pb::ListChatPartnersRequest>,
    ) -> Answer<pb::ListChatPartnersResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::list_chat_partners(self, &call, caller, request).await.map(Response::new)
    }

    async fn mark_read(&self, request: Request<pb::MarkReadRequest>) -> Answer<pb::MarkReadResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::mark_read(self, &call, caller, request).await.map(Response::new)
    }

    async fn acknowledge_delivery(
        &self,
        request: Request<pb::AcknowledgeDeliveryRequest>,
    ) -> Answer<pb::AcknowledgeDeliveryResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::acknowledge_delivery(self, &call, caller, request).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl ClusterService for ChatApi {
    async fn get_leader(&self, request: Request<pb::GetLeaderRequest>) -> Answer<pb::GetLeaderResponse> {
        let call = self.call(&request);
        let audience = self.audience(&call, &request).await;
        ChatApi::get_leader(self, audience).map(Response::new)
    }

    async fn list_nodes(&self, request: Request<pb::ListNodesRequest>) -> Answer<pb::ListNodesResponse> {
        let call = self.call(&request);
        let audience = self.audience(&call, &request).await;
        Ok(Response::new(ChatApi::list_nodes(self, &call, audience).await))
    }
}

#[tonic::async_trait]
impl AdminService for ChatApi {
    async fn transfer_leadership(
        &self,
        request: Request<pb::TransferLeadershipRequest>,
    ) -> Answer<pb::TransferLeadershipResponse> {
        let call = self.call(&request);
        ChatApi::transfer_leadership(self, &call, request.into_inner()).await.map(Response::new)
    }

    async fn add_node(&self, request: Request<pb::AddNodeRequest>) -> Answer<pb::AddNodeResponse> {
        let call = self.call(&request);
        ChatApi::add_node(self, &call, request.into_inner()).await.map(Response::new)
    }

    async fn remove_node(&self, request: Request<pb::RemoveNodeRequest>) -> Answer<pb::RemoveNodeResponse> {
        let call = self.call(&request);
        ChatApi::remove_node(self, &call, request.into_inner()).await.map(Response::new)
    }

    async fn issue_join_token(
        &self,
        request: Request<pb::IssueJoinTokenRequest>,
    ) -> Answer<pb::IssueJoinTokenResponse> {
        let call = self.call(&request);
        ChatApi::issue_join_token(self, &call).await.map(Response::new)
    }

    type BackupStream = BackupStream;

    async fn backup(&self, request: Request<pb::BackupRequest>) -> Answer<BackupStream> {
        let call = self.call(&request);
        ChatApi::backup(self, &call, request.into_inner()).await.map(Response::new)
    }

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Answer<pb::SnapshotResponse> {
        let call = self.call(&request);
        ChatApi::snapshot(self, &call).await.map(Response::new)
    }
}
