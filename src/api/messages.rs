//! Sending, marking read, acknowledging, deleting.

use tokio::time::Instant;
use tonic::Status;

use super::{
    ChatApi,
    auth::{Caller, still_open},
    call::Call,
    convert,
    reads::{Found, Target},
    status, unexpected,
};
use crate::{
    chat::{
        Command, ConversationId, Destination, Outcome, ReceiptItem, Rejection, Seq,
        limits::{self, Invalid},
    },
    proto::chat::v1 as pb,
    storage::Query,
};

impl ChatApi {
    pub(super) async fn send_message(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::SendMessageRequest,
    ) -> Result<pb::SendMessageResponse, Status> {
        let (command, recipient) = send_command(&caller, request).map_err(status::invalid)?;
        match self.propose(call, command).await? {
            Ok(Outcome::MessageSent(sent)) => {
                if sent.repeated {
                    self.inner.observer.repeated();
                }
                Ok(pb::SendMessageResponse {
                    message_id: sent.revision.0,
                    conversation_id: sent.conversation.0,
                    seq: sent.seq.0,
                    revision: sent.revision.0,
                    time_ms: sent.time.0,
                    repeated: sent.repeated,
                })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &recipient, "client_message_id")),
        }
    }

    pub(super) async fn delete_messages(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::DeleteMessagesRequest,
    ) -> Result<pb::DeleteMessagesResponse, Status> {
        let pb::DeleteMessagesRequest { message_ids: messages, for_everyone } = request;
        limits::check_count("message_ids", messages.len(), limits::DELETE_IDS_MAX).map_err(status::invalid)?;
        let command = Command::DeleteMessages { session: caller.session, messages, for_everyone };
        match self.propose(call, command).await? {
            Ok(Outcome::MessagesDeleted { deleted, ignored, revision }) => {
                Ok(pb::DeleteMessagesResponse { deleted_count: deleted, ignored_count: ignored, revision: revision.0 })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &caller.username, "")),
        }
    }

    pub(super) async fn mark_read(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::MarkReadRequest,
    ) -> Result<pb::MarkReadResponse, Status> {
        use pb::mark_read_request::Conversation;
        let conversation = match request.conversation {
            Some(Conversation::Partner(name)) => {
                let target = Target::partner(name).map_err(status::invalid)?;
                self.direct_conversation(&caller, target, call.deadline).await?
            }
            Some(Conversation::ConversationId(id)) => ConversationId(id),
            None => return Err(status::invalid(Invalid::new("partner", "a partner or a conversation_id is needed"))),
        };
        let up_to = if request.up_to_seq == 0 { Seq(u64::MAX) } else { Seq(request.up_to_seq) };
        let item = ReceiptItem { session: caller.session, conversation, up_to, read: true };
        let results = self.inner.receipts.submit(vec![item], call.trace, call.deadline).await;
        let results = results.map_err(|error| status::receipts(&error, call.deadline))?;
        let Some(result) = results.into_iter().next() else {
            return Err(status::internal("a receipt without a result", &"none"));
        };
        let (read_seq, revision) = result.map_err(|rejection| status::rejection(rejection, &caller.username, ""))?;
        // The count is of a state that has the change: on a follower that is a moment later.
        self.await_revision(revision, call.deadline).await.map_err(status::after_apply)?;
        let me = caller.account;
        let unread = self.inner.database.read(call.deadline, move |query| query.unread(me, conversation)).await;
        let unread = unread.map_err(status::after_apply)?;
        Ok(pb::MarkReadResponse { read_seq: read_seq.0, unread_count: unread, revision: revision.0 })
    }

    /// The caller's conversation with a partner. Once there, it is there for ever: only a miss has to be confirmed.
    async fn direct_conversation(
        &self,
        caller: &Caller,
        target: Target,
        deadline: Instant,
    ) -> Result<ConversationId, Status> {
        let mut confirmed = false;
        loop {
            let (me, session, target) = (caller.account, caller.session, target.clone());
            let find = move |query: &Query<'_>| {
                Ok(match still_open(query, session)? {
                    Ok(()) => target.find(query, me)?,
                    Err(closed) => Err(closed),
                })
            };
            match self.inner.database.read(deadline, find).await? {
                Ok(Found::Conversation(conversation)) => return Ok(conversation),
                Ok(Found::NoneYet(_)) if confirmed => return Err(status::conversation_unknown()),
                Err(refused) if confirmed => return Err(refused),
                Ok(Found::NoneYet(_)) | Err(_) => self.barrier(deadline).await?,
            }
            confirmed = true;
        }
    }

    pub(super) async fn acknowledge_delivery(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::AcknowledgeDeliveryRequest,
    ) -> Result<pb::AcknowledgeDeliveryResponse, Status> {
        limits::check_count("receipts", request.receipts.len(), limits::RECEIPTS_MAX).map_err(status::invalid)?;
        let item = |receipt: pb::DeliveryReceipt| ReceiptItem {
            session: caller.session,
            conversation: ConversationId(receipt.conversation_id),
            up_to: Seq(receipt.up_to_seq),
            read: false,
        };
        let items = request.receipts.into_iter().map(item).collect();
        let results = self.inner.receipts.submit(items, call.trace, call.deadline).await;
        let results = results.map_err(|error| status::receipts(&error, call.deadline))?;
        let mut newest = None;
        for result in results {
            match result {
                Ok((_, revision)) => newest = newest.max(Some(revision)),
                Err(Rejection::ConversationUnknown) => {}
                Err(other) => return Err(status::rejection(other, &caller.username, "")),
            }
        }
        let revision = newest.unwrap_or_else(|| self.inner.hub.current().0);
        Ok(pb::AcknowledgeDeliveryResponse { revision: revision.0 })
    }
}

/// The command of a request, and the recipient's name for error messages.
pub(super) fn send_command(caller: &Caller, request: pb::SendMessageRequest) -> Result<(Command, String), Invalid> {
    use pb::send_message_request::To;
    let pb::SendMessageRequest { to, body, client_message_id } = request;
    let (to, recipient) = match to {
        Some(To::Recipient(name)) => {
            limits::check_username("recipient", &name)?;
            (Destination::Person(name.clone()), name)
        }
        Some(To::ConversationId(0)) => return Err(Invalid::new("conversation_id", "must not be 0")),
        Some(To::ConversationId(id)) => (Destination::Conversation(ConversationId(id)), String::new()),
        None => return Err(Invalid::new("recipient", "a recipient or a conversation_id is needed")),
    };
    limits::check_body("body", &body)?;
    let client_id = convert::client_id("client_message_id", &client_message_id)?;
    Ok((Command::SendMessage { session: caller.session, to, client_id, body }, recipient))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{AccountId, SessionId, TimeMs};

    const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    fn wrong_field(to: Option<pb::send_message_request::To>, body: &str, id: &str) -> Option<&'static str> {
        let caller = Caller {
            session: SessionId(1),
            account: AccountId(1),
            username: "alice".into(),
            expires_at: TimeMs(u64::MAX),
        };
        let request = pb::SendMessageRequest { to, body: body.into(), client_message_id: id.into() };
        send_command(&caller, request).err().map(|invalid| invalid.field)
    }

    #[test]
    fn a_request_is_checked_before_anything_is_done() {
        use pb::send_message_request::To;
        let bob = || Some(To::Recipient("bob".into()));
        assert_eq!(wrong_field(bob(), "hello", ID), None);
        assert_eq!(wrong_field(Some(To::ConversationId(7)), "hello", ID), None);
        assert_eq!(wrong_field(None, "hello", ID), Some("recipient"));
        assert_eq!(wrong_field(Some(To::Recipient("Bob\n".into())), "hello", ID), Some("recipient"));
        assert_eq!(wrong_field(Some(To::ConversationId(0)), "hello", ID), Some("conversation_id"));
        assert_eq!(wrong_field(bob(), "", ID), Some("body"));
        assert_eq!(wrong_field(bob(), &"b".repeat(limits::BODY_BYTES_MAX + 1), ID), Some("body"));
        assert_eq!(wrong_field(bob(), "hello", "1"), Some("client_message_id"));
        assert_eq!(wrong_field(bob(), "hello", ""), Some("client_message_id"));
    }
}
