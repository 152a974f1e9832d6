//! Calls to one node without retries, for tests of behaviour that the client library hides.

use std::{net::SocketAddr, time::Duration};

use client::{ClientError, Consistency};
use proto::chat::v1::{
    self as types, chat_service_client::ChatServiceClient, cluster_service_client::ClusterServiceClient,
    subscribe_response::Event,
};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

type Answer<T> = Result<T, ClientError>;

/// A connection to one node, opened with the first call and reopened when it breaks.
#[derive(Clone)]
pub struct Direct {
    channel: Channel,
    token: MetadataValue<Ascii>,
}

impl Direct {
    /// Time limit for an answer. A node without a leader answers earlier.
    const LIMIT: Duration = Duration::from_secs(5);

    pub fn new(address: SocketAddr, token: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect_timeout(Duration::from_millis(500)).tcp_nodelay(true).connect_lazy();
        Self { channel, token: format!("Bearer {token}").parse().unwrap() }
    }

    fn chat(&self) -> ChatServiceClient<Channel> {
        ChatServiceClient::new(self.channel.clone()).max_decoding_message_size(8 << 20)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(Self::LIMIT);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }

    pub async fn send(&self, id: Uuid, recipient: &str, body: &str) -> Answer<types::SendMessageResponse> {
        let request = self.request(types::SendMessageRequest {
            to: Some(types::send_message_request::To::Recipient(recipient.to_owned())),
            body: body.to_owned(),
            client_message_id: id.to_string(),
        });
        Ok(self.chat().send_message(request).await?.into_inner())
    }

    /// The newest messages of the conversation with a partner.
    pub async fn read(&self, partner: &str, consistency: Consistency) -> Answer<types::ReadConversationResponse> {
        let request = self.request(types::ReadConversationRequest {
            conversation: Some(types::read_conversation_request::Conversation::Partner(partner.to_owned())),
            before_seq: 0,
            limit: 200,
            consistency: Some(consistency.into()),
        });
        Ok(self.chat().read_conversation(request).await?.into_inner())
    }

    /// Reads the start of a stream without a cursor: the unacknowledged messages, and the heartbeat after them.
    pub async fn undelivered(&self, consistency: Consistency) -> Answer<(Vec<u64>, types::Heartbeat)> {
        let consistency = Some(consistency.into());
        let request = self.request(types::SubscribeRequest { after_revision: None, consistency });
        let mut stream = self.chat().subscribe(request).await?.into_inner();
        let mut ids = Vec::new();
        loop {
            match stream.message().await?.and_then(|response| response.event) {
                Some(Event::Message(event)) => ids.extend(event.message.map(|message| message.message_id)),
                Some(Event::Heartbeat(heartbeat)) => return Ok((ids, heartbeat)),
                other => panic!("{other:?} is nothing to begin with"),
            }
        }
    }

    /// Deletes messages, for everyone or for the caller. Returns how many were deleted.
    pub async fn delete(&self, message_ids: Vec<u64>, for_everyone: bool) -> Answer<u32> {
        let request = self.request(types::DeleteMessagesRequest { message_ids, for_everyone });
        Ok(self.chat().delete_messages(request).await?.into_inner().deleted_count)
    }

    /// Acknowledges the first message in each of this many conversations, none of which is the caller's.
    pub async fn acknowledge(&self, conversations: u64) -> Answer<u64> {
        let receipts =
            (1..=conversations).map(|conversation_id| types::DeliveryReceipt { conversation_id, up_to_seq: 1 });
        let request = self.request(types::AcknowledgeDeliveryRequest { receipts: receipts.collect() });
        Ok(self.chat().acknowledge_delivery(request).await?.into_inner().revision)
    }

    /// Deletes the account. Returns how many messages became tombstones.
    pub async fn delete_account(&self) -> Answer<u64> {
        let request = self.request(types::DeleteAccountRequest { password: super::PASSWORD.to_owned() });
        Ok(self.chat().delete_account(request).await?.into_inner().deleted_messages)
    }

    /// The header of a local read, which describes this node's state.
    pub async fn local(&self) -> Answer<types::ReadHeader> {
        let consistency = Some(Consistency::Local.into());
        let request = self.request(types::ListChatPartnersRequest { page_size: 1, consistency, ..Default::default() });
        Ok(self.chat().list_chat_partners(request).await?.into_inner().header.expect("every read has a header"))
    }

    pub async fn login(&self, name: &str, password: &str) -> Answer<types::LoginResponse> {
        let request =
            types::LoginRequest { username: name.to_owned(), password: password.to_owned(), ..Default::default() };
        Ok(self.chat().login(self.request(request)).await?.into_inner())
    }

    pub async fn logout(&self) -> Answer<u32> {
        let request = self.request(types::LogoutRequest { all_sessions: false });
        Ok(self.chat().logout(request).await?.into_inner().closed_sessions)
    }

    /// The members, as this node knows them.
    pub async fn nodes(&self) -> Answer<types::ListNodesResponse> {
        let request = self.request(types::ListNodesRequest {});
        Ok(ClusterServiceClient::new(self.channel.clone()).list_nodes(request).await?.into_inner())
    }

    /// Name and term of the leader that this node knows.
    pub async fn leader(&self) -> Answer<(String, u64)> {
        let request = self.request(types::GetLeaderRequest {});
        let answer = ClusterServiceClient::new(self.channel.clone()).get_leader(request).await?.into_inner();
        Ok((answer.leader.expect("an answer names a leader").name, answer.term))
    }
}
