//! People with raw clients, and assertions on the answers.

use std::fmt::Debug;

use proto::chat::{
    v1 as pb,
    v1::{
        chat_service_client::ChatServiceClient, read_conversation_request, send_message_request,
        subscribe_response::Event,
    },
};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use super::node::{Node, soon};

pub type Chat = ChatServiceClient<Channel>;
pub type Answer<T> = Result<Response<T>, Status>;

pub const PASSWORD: &str = "correct horse";

/// A person with an account and a session.
#[derive(Clone)]
pub struct Person {
    pub name: String,
    pub token: String,
    pub chat: Chat,
}

/// `message`, with `token` in its metadata.
pub fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("visible characters"));
    request
}

pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

pub async fn sign_up(chat: &mut Chat, name: &str) -> pb::CreateAccountResponse {
    let request = pb::CreateAccountRequest { username: name.into(), password: PASSWORD.into(), ..Default::default() };
    chat.create_account(request).await.expect("the account is made").into_inner()
}

pub async fn log_in(chat: &mut Chat, name: &str) -> pb::LoginResponse {
    let request = pb::LoginRequest { username: name.into(), password: PASSWORD.into(), device_token: String::new() };
    chat.login(request).await.expect("the password is right").into_inner()
}

impl Person {
    /// Creates an account on its own connection, and logs in.
    pub async fn join(node: &Node, name: &str) -> Self {
        let mut chat = Chat::new(node.channel().await);
        sign_up(&mut chat, name).await;
        Self::log_in(chat, name).await
    }

    /// Opens another session.
    pub async fn log_in(mut chat: Chat, name: &str) -> Self {
        let token = log_in(&mut chat, name).await.token;
        Self { name: name.into(), token, chat }
    }

    pub fn ask<T>(&self, message: T) -> Request<T> {
        with_token(&self.token, message)
    }

    pub async fn try_send(&mut self, request: pb::SendMessageRequest) -> Answer<pb::SendMessageResponse> {
        let request = self.ask(request);
        self.chat.send_message(request).await
    }

    pub async fn send(&mut self, to: &str, body: &str) -> pb::SendMessageResponse {
        self.try_send(message(to, body, &new_id())).await.expect("the message is stored").into_inner()
    }

    pub async fn read(&mut self, partner: &str) -> pb::ReadConversationResponse {
        let conversation = Some(read_conversation_request::Conversation::Partner(partner.into()));
        let request = self.ask(pb::ReadConversationRequest { conversation, ..Default::default() });
        self.chat.read_conversation(request).await.expect("the conversation is read").into_inner()
    }

    pub async fn partners(&mut self) -> Vec<pb::ChatPartner> {
        let request = self.ask(pb::ListChatPartnersRequest::default());
        self.chat.list_chat_partners(request).await.expect("the partners are listed").into_inner().partners
    }

    pub async fn mark_read(&mut self, conversation: u64, up_to_seq: u64) -> pb::MarkReadResponse {
        let conversation = Some(pb::mark_read_request::Conversation::ConversationId(conversation));
        let request = self.ask(pb::MarkReadRequest { conversation, up_to_seq });
        self.chat.mark_read(request).await.expect("it is marked").into_inner()
    }

    pub async fn acknowledge(&mut self, conversation_id: u64, up_to_seq: u64) {
        let receipts = vec![pb::DeliveryReceipt { conversation_id, up_to_seq }];
        let request = self.ask(pb::AcknowledgeDeliveryRequest { receipts });
        self.chat.acknowledge_delivery(request).await.expect("it is acknowledged");
    }

    /// Deletes messages. Returns the numbers of deleted and ignored ones.
    pub async fn delete(&mut self, ids: &[u64], for_everyone: bool) -> (u32, u32) {
        let request = self.ask(pb::DeleteMessagesRequest { message_ids: ids.to_vec(), for_everyone });
        let answer = self.chat.delete_messages(request).await.expect("they are looked at").into_inner();
        (answer.deleted_count, answer.ignored_count)
    }

    pub async fn delete_account(&mut self) -> pb::DeleteAccountResponse {
        let request = self.ask(pb::DeleteAccountRequest { password: PASSWORD.into() });
        self.chat.delete_account(request).await.expect("the account is deleted").into_inner()
    }

    pub async fn try_subscribe(&mut self, after: Option<u64>) -> Answer<Streaming<pb::SubscribeResponse>> {
        let request = self.ask(pb::SubscribeRequest { after_revision: after, consistency: None });
        self.chat.subscribe(request).await
    }

    pub async fn subscribe(&mut self, after: Option<u64>) -> Streaming<pb::SubscribeResponse> {
        self.try_subscribe(after).await.expect("the stream opens").into_inner()
    }
}

pub fn message(to: &str, body: &str, id: &str) -> pb::SendMessageRequest {
    let to = Some(send_message_request::To::Recipient(to.into()));
    pb::SendMessageRequest { to, body: body.into(), client_message_id: id.into() }
}

/// The next event or heartbeat.
pub async fn next(stream: &mut Streaming<pb::SubscribeResponse>) -> pb::SubscribeResponse {
    soon("an event", stream.message()).await.expect("the stream goes on").expect("the stream goes on")
}

/// Events up to the first heartbeat, and its revision.
pub async fn up_to_heartbeat(stream: &mut Streaming<pb::SubscribeResponse>) -> (Vec<pb::SubscribeResponse>, u64) {
    let mut events = Vec::new();
    loop {
        let response = next(stream).await;
        match response.event {
            Some(Event::Heartbeat(_)) => return (events, response.revision),
            _ => events.push(response),
        }
    }
}

/// The final status of the stream, whatever comes before.
pub async fn end(stream: &mut Streaming<pb::SubscribeResponse>) -> Status {
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ends without a reason"),
                Err(status) => return status,
            }
        }
    };
    soon("the end of the stream", ended).await
}

/// The code, reason and field (empty if none is named) of an error.
pub fn refusal(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("without ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "quorum-chat");
    let fields = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
    assert!(fields.len() <= 1, "{fields:?}");
    (status.code(), info.reason.clone(), fields.first().map(|wrong| wrong.field.clone()).unwrap_or_default())
}

/// Asserts that a call was rejected with this code, reason and field.
#[track_caller]
pub fn refused<T: Debug>(answer: Answer<T>, code: Code, reason: &str, field: &str) {
    let status = answer.expect_err(&format!("should be refused as {reason} {field}"));
    assert_eq!(refusal(&status), (code, reason.to_owned(), field.to_owned()), "{status:?}");
}

/// Asserts that a call was rejected because of this field.
#[track_caller]
pub fn invalid<T: Debug>(answer: Answer<T>, field: &str) {
    refused(answer, Code::InvalidArgument, "INVALID_FIELD", field);
}
