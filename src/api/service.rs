//! Joins the calls to the generated service traits: authentication first, then the body.

use tonic::{Request, Response, Status};

use super::{ChatApi, auth::Caller, backup::BackupStream, call::Call, subscribe::EventStream};
use crate::proto::chat::v1::{
    self as pb, admin_service_server::AdminService, chat_service_server::ChatService,
    cluster_service_server::ClusterService,
};

type Answer<T> = Result<Response<T>, Status>;

impl ChatApi {
    /// The frame, the caller and the body of a call that needs a session.
    async fn admit<T>(&self, request: Request<T>) -> Result<(Call, Caller, T), Status> {
        let call = self.call(&request);
        let caller = self.authenticate(request.metadata(), call.deadline).await?;
        Ok((call, caller, request.into_inner()))
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
        ChatApi::login(self, &call, request.into_inner()).await.map(Response::new)
    }

    async fn logout(&self, request: Request<pb::LogoutRequest>) -> Answer<pb::LogoutResponse> {
        let (call, caller, request) = self.admit(request).await?;
        ChatApi::logout(self, &call, caller, request).await.map(Response::new)
    }

    async fn delete_account(&self, request: Request<pb::DeleteAccountRequest>) -> Answer<pb::DeleteAccountResponse> {
        let (call, caller, _) = self.admit(request).await?;
        ChatApi::delete_account(self, &call, caller).await.map(Response::new)
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
    async fn get_leader(&self, _: Request<pb::GetLeaderRequest>) -> Answer<pb::GetLeaderResponse> {
        ChatApi::get_leader(self).map(Response::new)
    }

    async fn list_nodes(&self, request: Request<pb::ListNodesRequest>) -> Answer<pb::ListNodesResponse> {
        let call = self.call(&request);
        Ok(Response::new(ChatApi::list_nodes(self, &call).await))
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
