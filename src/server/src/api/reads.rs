//! Reads and their consistency: linearizable, at least revision R, or local.
//!
//! A read first waits as its consistency requires. Then it runs as one read transaction on this node, which also checks
//! the session. The header contains the revision of that transaction.

use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::{
    ChatApi,
    auth::{Caller, still_open},
    call::Call,
    convert,
    pages::{self, Place},
    status,
};
use chat::{
    AccountId, ConversationId, Revision, Seq,
    limits::{self, Invalid},
};
use proto::chat::v1 as pb;
use storage::{Query, StorageError};

/// The conversation that a request refers to.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// The direct conversation with this account.
    Partner(String),
    /// The conversation with this id.
    Id(ConversationId),
}

/// The state that a read has waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Everything that was acknowledged before the call, so the age of the state counts as zero.
    Everything,
    Revision(Revision),
    Nothing,
}

/// The result of looking up a [`Target`].
pub(super) enum Resolved {
    Conversation(ConversationId),
    /// The partner exists, but has no conversation with the caller yet.
    NoneYet(storage::AccountRow),
}

impl Target {
    pub(super) fn partner(name: String) -> Result<Self, Invalid> {
        limits::check_username("partner", &name)?;
        Ok(Self::Partner(name))
    }

    /// Looks up the conversation, as `me` may see it.
    pub(super) fn find(&self, query: &Query<'_>, me: AccountId) -> Result<Result<Resolved, Status>, StorageError> {
        match self {
            Self::Partner(name) => {
                let Some(partner) = query.account_by_name(name)? else { return Ok(Err(status::user_unknown(name))) };
                Ok(Ok(match query.direct_conversation(me, partner.id)? {
                    Some(conversation) => Resolved::Conversation(conversation),
                    None => Resolved::NoneYet(partner),
                }))
            }
            Self::Id(id) if query.is_member(*id, me)? => Ok(Ok(Resolved::Conversation(*id))),
            Self::Id(_) => Ok(Err(status::conversation_unknown())),
        }
    }
}

impl ChatApi {
    /// Waits until this node has applied `target`.
    pub(super) async fn await_revision(&self, target: Revision, deadline: Instant) -> Result<(), Status> {
        let mut published = self.inner.hub.revision();
        let reached = timeout_at(deadline, published.wait_for(|(revision, _)| *revision >= target));
        match self.inner.node.unless_waits_end(reached).await {
            Some(Ok(Ok(_))) => Ok(()),
            None | Some(Ok(Err(_))) => Err(status::stopping()),
            Some(Err(_)) => Err(status::revision_not_reached(target.0, self.inner.hub.current().0.0)),
        }
    }

    /// Waits as `consistency` requires.
    pub(super) async fn await_consistency(
        &self,
        asked: Option<pb::ReadConsistency>,
        deadline: Instant,
    ) -> Result<Awaited, Status> {
        use pb::read_consistency::Level;
        match asked.and_then(|consistency| consistency.level) {
            Some(Level::Local(true)) => Ok(Awaited::Nothing),
            Some(Level::AtLeastRevision(revision)) => {
                self.await_revision(Revision(revision), deadline).await?;
                Ok(Awaited::Revision(Revision(revision)))
            }
            None | Some(Level::Linearizable(_) | Level::Local(false)) => {
                self.barrier(deadline).await?;
                Ok(Awaited::Everything)
            }
        }
    }

    /// Reads for `caller`. An error of `read` is returned unchanged. `scans` states that the read may scan many rows.
    async fn read<T: Send + 'static>(
        &self,
        caller: &Caller,
        scans: bool,
        consistency: Option<pb::ReadConsistency>,
        deadline: Instant,
        read: impl FnOnce(&Query<'_>) -> Result<Result<T, Status>, StorageError> + Send + 'static,
    ) -> Result<(T, pb::ReadHeader), Status> {
        let awaited = self.await_consistency(consistency, deadline).await?;
        // Measured before the read, so that updates that arrive meanwhile do not make the result look newer than it is.
        let measured_at = Instant::now();
        let age = self.inner.node.age();
        let session = caller.session;
        let in_transaction = move |query: &Query<'_>| {
            if let Err(closed) = still_open(query, session)? {
                return Ok(Err(closed));
            }
            if let Awaited::Revision(asked) = awaited
                && query.is_lost(asked)?
            {
                return Ok(Err(status::revision_lost(asked.0)));
            }
            let revision = query.revision()?;
            Ok(read(query)?.map(|value| (value, revision)))
        };
        let (value, revision) = match scans {
            true => self.inner.database.scan(deadline, in_transaction).await??,
            false => self.inner.database.read(deadline, in_transaction).await??,
        };
        let age_ms = if awaited == Awaited::Everything { Some(0) } else { convert::age_ms(age, measured_at) };
        let node = self.inner.settings.node_name.clone();
        Ok((value, pb::ReadHeader { revision: revision.0, age_ms, node }))
    }

    pub(super) async fn read_conversation(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::ReadConversationRequest,
    ) -> Result<pb::ReadConversationResponse, Status> {
        use pb::read_conversation_request::Conversation;
        let target = match request.conversation {
            Some(Conversation::Partner(name)) => Target::partner(name),
            Some(Conversation::ConversationId(id)) => Ok(Target::Id(ConversationId(id))),
            None => Err(Invalid::new("partner", "a partner or a conversation_id is needed")),
        };
        let target = target.map_err(status::invalid)?;
        let limit = limits::page_size("limit", request.limit, limits::PAGE_SIZE_CONVERSATION);
        let limit = limit.map_err(status::invalid)?;
        let before = Some(Seq(request.before_seq)).filter(|seq| seq.0 != 0);
        let me = caller.account;
        let my_name = caller.username.to_string();
        let read = move |query: &Query<'_>| {
            let conversation = match target.find(query, me)? {
                Ok(Resolved::Conversation(conversation)) => conversation,
                Ok(Resolved::NoneYet(partner)) => return Ok(Ok(no_conversation(my_name, me, partner))),
                Err(refused) => return Ok(Err(refused)),
            };
            let page = query.conversation_page(me, conversation, before, limit)?;
            Ok(Ok(pb::ReadConversationResponse {
                messages: page.messages.into_iter().map(|row| convert::message(row, me)).collect(),
                conversation_id: conversation.0,
                total_count: page.total,
                unread_count: page.unread,
                last_seq: page.last_seq.0,
                has_more: page.has_more,
                members: page.members.into_iter().map(convert::member).collect(),
                header: None,
            }))
        };
        let (mut response, header) = self.read(&caller, false, request.consistency, call.deadline, read).await?;
        response.header = Some(header);
        Ok(response)
    }

    pub(super) async fn list_chat_partners(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::ListChatPartnersRequest,
    ) -> Result<pb::ListChatPartnersResponse, Status> {
        let limit = limits::page_size("page_size", request.page_size, limits::PAGE_SIZE_PARTNERS);
        let limit = limit.map_err(status::invalid)?;
        let place = Place::of(&request.page_token).map_err(status::invalid)?;
        let me = caller.account;
        // One more row than requested shows whether there is a next page.
        let read = move |query: &Query<'_>| {
            let ((rows, total), since) = match place {
                Place::Newest => (query.conversations(me, None, limit + 1)?, None),
                Place::Before { revision, since } => (query.conversations(me, Some(revision), limit + 1)?, Some(since)),
                Place::Moved { since, after } => (query.conversations_since(me, (since, after), limit + 1)?, None),
            };
            let has_moved = match since {
                Some(since) => !query.conversations_since(me, (since, ConversationId(0)), 1)?.0.is_empty(),
                None => false,
            };
            Ok(Ok((rows, total, has_moved)))
        };
        let ((mut rows, total, has_moved), header) =
            self.read(&caller, true, request.consistency, call.deadline, read).await?;
        let sizes = rows.iter().map(|row| row.last_message.as_ref().map_or(0, |message| message.body.len()));
        let fitting = u32::try_from(limits::fitting(sizes, limits::PAGE_BYTES_MAX)).unwrap_or(u32::MAX);
        let last = truncated(&mut rows, fitting.min(limit));
        let next = place.next(last, Revision(header.revision), has_moved).map(Place::token);
        Ok(pb::ListChatPartnersResponse {
            partners: rows.into_iter().map(|row| convert::partner(row, me)).collect(),
            next_page_token: next.unwrap_or_default(),
            total_count: total,
            header: Some(header),
        })
    }

    pub(super) async fn list_accounts(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::ListAccountsRequest,
    ) -> Result<pb::ListAccountsResponse, Status> {
        let limit = limits::page_size("page_size", request.page_size, limits::PAGE_SIZE_ACCOUNTS);
        let limit = limit.map_err(status::invalid)?;
        let after = pages::account(&request.page_token).map_err(status::invalid)?;
        limits::check_query("query", &request.query).map_err(status::invalid)?;
        let contains = request.query;
        let read = move |query: &Query<'_>| query.accounts(&contains, after.as_deref(), limit + 1).map(Ok);
        let ((mut rows, total), header) = self.read(&caller, true, request.consistency, call.deadline, read).await?;
        let next = truncated(&mut rows, limit).map(|last| pages::after_account(&last.username));
        Ok(pb::ListAccountsResponse {
            accounts: rows.into_iter().map(convert::account).collect(),
            next_page_token: next.unwrap_or_default(),
            total_count: total,
            header: Some(header),
        })
    }
}

/// Truncates `rows` to `limit`. Returns the last remaining row if there were more.
pub(super) fn truncated<T>(rows: &mut Vec<T>, limit: u32) -> Option<&T> {
    let limit = limit as usize;
    let more = rows.len() > limit;
    rows.truncate(limit);
    if more { rows.last() } else { None }
}

/// The empty page of a conversation that does not exist yet.
fn no_conversation(my_name: String, me: AccountId, partner: storage::AccountRow) -> pb::ReadConversationResponse {
    let member = |username, deleted| pb::Member { username, deleted, delivered_seq: 0, read_seq: 0 };
    let mut members = vec![member(my_name, false)];
    if partner.id != me {
        members.push(member(partner.username, partner.deleted));
    }
    pb::ReadConversationResponse { members, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_whether_there_is_another() {
        let mut rows = vec![1, 2, 3];
        assert_eq!(truncated(&mut rows, 2), Some(&2));
        assert_eq!(rows, [1, 2]);
        assert_eq!(truncated(&mut rows, 2), None);
        assert_eq!(truncated(&mut Vec::<u8>::new(), 2), None);
    }
}
