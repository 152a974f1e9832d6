//! The calls of the workload: through one given node, or through the client library, which goes to the leader.

use std::{future::Future, time::Duration};

use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{Person, Shared};
use crate::history::{Deleted, Digest, Freshness, Marked, Marks, Outcome, Page, Seen, Stored, Uid};
use client::{ClientError, Consistency, ConversationPage, Message, MessageStatus, MessagesDeleted, ReadMarked, direct};
use proto::{
    Channel,
    chat::{v1 as pb, v1::chat_service_client::ChatServiceClient},
};

/// Time limit for the answer of a node.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Additional time on this side, so that the node's own timeout error arrives.
const GRACE: Duration = Duration::from_millis(250);

/// The route of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Through this node.
    Node(u16),
    /// Through the client library.
    Library,
}

impl Route {
    pub(super) fn node(self) -> Option<u16> {
        if let Self::Node(node) = self { Some(node) } else { None }
    }
}

/// Why a call failed, as far as the history distinguishes it.
#[derive(Debug)]
enum Failed {
    /// Nothing was applied, and nothing will be.
    Refused,
    Unknown,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        if direct::has_no_effect(&status) { Self::Refused } else { Self::Unknown }
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        let said = error.is_unavailable() || (error.reason.is_some() && error.code != Code::Internal);
        if said && !error.outcome_unknown { Self::Refused } else { Self::Unknown }
    }
}

fn outcome<T>(answer: Result<T, Failed>) -> Outcome<T> {
    match answer {
        Ok(answer) => Outcome::Ok(answer),
        Err(Failed::Refused) => Outcome::Refused,
        Err(Failed::Unknown) => Outcome::Unknown,
    }
}

/// Converts the answer of a change for which "not applied" is not distinguished from an unknown outcome.
fn at_most_unknown<T>(answer: Result<T, Failed>) -> Outcome<T> {
    answer.map_or(Outcome::Unknown, Outcome::Ok)
}

impl Shared {
    async fn ask<Q, A, F, R>(&self, node: u16, person: &Person, message: Q, call: F) -> Result<A, Failed>
    where
        F: FnOnce(ChatServiceClient<Channel>, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let channel = self.nodes[usize::from(node)].clone();
        let mut request = Request::new(message);
        request.set_timeout(ATTEMPT);
        request.metadata_mut().insert("authorization", person.token.clone());
        match timeout(ATTEMPT + GRACE, call(direct::chat(channel), request)).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Failed::Unknown),
        }
    }

    pub(super) async fn send(&self, route: Route, me: &Person, id: Uuid, to: &str, body: &str) -> Outcome<Stored> {
        let answer = match route {
            Route::Library => me.library.send_message_with_id(id, to, body).await.map_err(Failed::from),
            Route::Node(node) => {
                let request = pb::SendMessageRequest {
                    to: Some(pb::send_message_request::To::Recipient(to.to_owned())),
                    body: body.to_owned(),
                    client_message_id: id.to_string(),
                };
                let answer = self.ask(node, me, request, |mut c, request| async move { c.send_message(request).await });
                answer.await.map(|answer| direct::sent(id, answer))
            }
        };
        outcome(answer.map(|sent| Stored {
            message: sent.message_id,
            conversation: sent.conversation_id,
            seq: sent.seq,
            repeated: sent.repeated,
            time_ms: sent.time_ms,
        }))
    }

    pub(super) async fn read(
        &self,
        route: Route,
        me: &Person,
        with: &str,
        (before, limit): (u64, u32),
        freshness: Freshness,
    ) -> Outcome<Page> {
        let consistency = match freshness {
            Freshness::Linearizable => Consistency::Linearizable,
            Freshness::AtLeast(revision) => Consistency::AtLeast(revision),
            Freshness::Local => Consistency::Local,
        };
        let answer = match route {
            Route::Library => {
                me.library.read_conversation(with, before, limit, consistency).await.map_err(Failed::from)
            }
            Route::Node(node) => {
                let request = pb::ReadConversationRequest {
                    conversation: Some(pb::read_conversation_request::Conversation::Partner(with.to_owned())),
                    before_seq: before,
                    limit,
                    consistency: Some(consistency.into()),
                };
                let answer = self
                    .ask(node, me, request, |mut c, request| async move { c.read_conversation(request).await })
                    .await;
                answer.map(ConversationPage::from)
            }
        };
        match answer {
            Ok(page) => Outcome::Ok(self.page(me, with, page)),
            // A read changes nothing, so its outcome is never unknown.
            Err(_) => Outcome::Refused,
        }
    }

    pub(super) async fn mark_read(&self, route: Route, me: &Person, with: &str, up_to: u64) -> Outcome<Marked> {
        let answer = match route {
            Route::Library => me.library.mark_read(with, up_to).await.map_err(Failed::from),
            Route::Node(node) => {
                let conversation = Some(pb::mark_read_request::Conversation::Partner(with.to_owned()));
                let request = pb::MarkReadRequest { conversation, up_to_seq: up_to };
                let answer =
                    self.ask(node, me, request, |mut c, request| async move { c.mark_read(request).await }).await;
                answer.map(ReadMarked::from)
            }
        };
        at_most_unknown(answer.map(|answer| Marked { read: answer.read_seq, revision: answer.revision }))
    }

    pub(super) async fn deliver(
        &self,
        route: Route,
        me: &Person,
        conversation_id: u64,
        up_to_seq: u64,
    ) -> Outcome<u64> {
        let answer = match route {
            Route::Library => {
                me.library.acknowledge_delivery(&[(conversation_id, up_to_seq)]).await.map_err(Failed::from)
            }
            Route::Node(node) => {
                let receipts = vec![pb::DeliveryReceipt { conversation_id, up_to_seq }];
                let request = pb::AcknowledgeDeliveryRequest { receipts };
                let call =
                    |mut c: ChatServiceClient<Channel>, request| async move { c.acknowledge_delivery(request).await };
                self.ask(node, me, request, call).await.map(|answer| answer.revision)
            }
        };
        at_most_unknown(answer)
    }

    pub(super) async fn delete(
        &self,
        route: Route,
        me: &Person,
        ids: Vec<u64>,
        for_everyone: bool,
    ) -> Outcome<Deleted> {
        let answer = match route {
            Route::Library => me.library.delete_messages(ids, for_everyone).await.map_err(Failed::from),
            Route::Node(node) => {
                let request = pb::DeleteMessagesRequest { message_ids: ids, for_everyone };
                let answer =
                    self.ask(node, me, request, |mut c, request| async move { c.delete_messages(request).await }).await;
                answer.map(MessagesDeleted::from)
            }
        };
        outcome(answer.map(|answer| Deleted {
            deleted: answer.deleted_count,
            ignored: answer.ignored_count,
            revision: answer.revision,
        }))
    }

    fn page(&self, me: &Person, with: &str, page: ConversationPage) -> Page {
        let marks = |name: &str| {
            let member = page.members.iter().find(|member| member.username == name);
            member.map_or(Marks::default(), |member| Marks { delivered: member.delivered_seq, read: member.read_seq })
        };
        Page {
            // Without a header it is 0, which is never correct.
            revision: page.header.revision,
            conversation: page.conversation_id,
            last_seq: page.last_seq,
            total: page.total_count,
            unread: page.unread_count,
            has_more: page.has_more,
            own: marks(&me.name),
            other: marks(with),
            messages: page.messages.iter().map(|message| self.seen(message)).collect(),
        }
    }

    /// Converts a message to its form in the history.
    pub(super) fn seen(&self, message: &Message) -> Seen {
        Seen {
            message: message.message_id,
            seq: message.seq,
            sender: self.numbers.get(&message.sender).copied(),
            body: (!message.deleted).then(|| Digest::of(&message.body)),
            id: message.client_message_id.map(Uid),
            time_ms: message.time_ms,
            status: status(message.status),
        }
    }
}

/// The number of a status in the history, which is that of the protocol.
fn status(status: Option<MessageStatus>) -> u8 {
    match status {
        None => 0,
        Some(MessageStatus::Sent) => 1,
        Some(MessageStatus::Delivered) => 2,
        Some(MessageStatus::Read) => 3,
        Some(_) => u8::MAX,
    }
}
