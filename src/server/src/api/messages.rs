//! Calls that send, mark as read, acknowledge and delete messages.

use tokio::time::Instant;
use tonic::Status;

use super::{
    ChatApi,
    auth::{Caller, still_open},
    call::Call,
    convert, judged,
    reads::{Resolved, Target},
    status, unexpected,
};
use chat::{
    AccountId, Command, ConversationId, Destination, Outcome, ReceiptItem, ReceiptResult, Rejection, Seq,
    limits::{self, Invalid},
};
use proto::chat::v1 as pb;
use raft::{ProposeError, Refusal};
use storage::Query;

/// Messages that one command deletes. Each may be in a conversation of its own. A longer list becomes several commands.
const DELETIONS_PER_COMMAND_MAX: usize = 128;

impl ChatApi {
    pub(super) async fn send_message(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::SendMessageRequest,
    ) -> Result<pb::SendMessageResponse, Status> {
        let (command, recipient) = send_command(&caller, request).map_err(status::invalid)?;
        match self.propose_as(call, caller.account, command).await? {
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
        let mut answer = pb::DeleteMessagesResponse::default();
        for (at, messages) in messages.chunks(DELETIONS_PER_COMMAND_MAX).enumerate() {
            let messages = messages.to_vec();
            let command = Command::DeleteMessages { session: caller.session, messages, for_everyone };
            // The deletions of earlier commands stay. The same call again deletes the rest.
            let proposed = match at {
                0 => self.propose_as(call, caller.account, command).await?,
                _ => self.propose_rest(call, caller.account, command).await.map_err(status::after_apply)?,
            };
            match proposed {
                Ok(Outcome::MessagesDeleted { deleted, ignored, revision }) => {
                    answer.deleted_count += deleted;
                    answer.ignored_count += ignored;
                    answer.revision = revision.0;
                }
                Ok(other) => return Err(unexpected(&other)),
                Err(rejection) => return Err(status::rejection(rejection, &caller.username, "")),
            }
        }
        Ok(answer)
    }

    /// Proposes a later part of a call. It waits until the account's rate allows it: earlier parts are applied, and a
    /// rejection would state that nothing was.
    async fn propose_rest(
        &self,
        call: &Call,
        account: AccountId,
        command: Command,
    ) -> Result<Result<Outcome, Rejection>, Status> {
        loop {
            let proposed = self.inner.node.propose_for(account, command.clone(), call.trace, call.deadline).await;
            match proposed {
                Err(ProposeError::Refused(Refusal::RateLimited { retry, .. }))
                    if Instant::now() + retry < call.deadline =>
                {
                    tokio::time::sleep(retry).await;
                }
                settled => return judged(settled, call),
            }
        }
    }

    /// Applies receipts of the caller, which count against the account's rate.
    async fn submit(
        &self,
        call: &Call,
        caller: &Caller,
        items: Vec<ReceiptItem>,
    ) -> Result<Vec<ReceiptResult>, Status> {
        let charged = self.inner.node.charge(caller.account, items.len()).map_err(ProposeError::Refused);
        charged.map_err(|error| status::propose(&error, call.deadline))?;
        let results = self.inner.receipts.submit(items, call.trace, call.deadline).await;
        results.map_err(|error| status::receipts(&error, call.deadline))
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
        let Some(result) = self.submit(call, &caller, vec![item]).await?.into_iter().next() else {
            return Err(status::internal("a receipt without a result", &"none"));
        };
        let (read_seq, revision) = result.map_err(|rejection| status::rejection(rejection, &caller.username, ""))?;
        // The count must include the change, which a follower applies a moment later.
        self.await_revision(revision, call.deadline).await.map_err(status::after_apply)?;
        let me = caller.account;
        let unread = self.inner.database.read(call.deadline, move |query| query.unread(me, conversation)).await;
        let unread = unread.map_err(status::after_apply)?;
        Ok(pb::MarkReadResponse { read_seq: read_seq.0, unread_count: unread, revision: revision.0 })
    }

    /// The caller's conversation with a partner. A conversation exists forever, so only a miss has to be confirmed.
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
                Ok(Resolved::Conversation(conversation)) => return Ok(conversation),
                Ok(Resolved::NoneYet(_)) if confirmed => return Err(status::conversation_unknown()),
                Err(refused) if confirmed => return Err(refused),
                Ok(Resolved::NoneYet(_)) | Err(_) => self.barrier(deadline).await?,
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
        let mut newest = None;
        for result in self.submit(call, &caller, items).await? {
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
    use chat::{AccountId, SessionId, TimeMs};

    const ID: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

    fn wrong_field(to: Option<pb::send_message_request::To>, body: &str, id: &str) -> Option<&'static str> {
        let caller = Caller {
            session: SessionId(1),
            account: AccountId(1),
            username: "alice".into(),
            expires_at: TimeMs(u64::MAX),
            touch_due: crate::api::auth::TouchDue::default(),
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
