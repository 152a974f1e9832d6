//! The calls. Each builds a request and a [`Plan`], and leaves attempts and retries to `retry`.

use std::{future::Future, sync::Arc, time::Duration};

use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
};
use uuid::Uuid;

use super::{
    AccountCreated, AccountDeleted, AccountPage, Client, ClientError, ConversationPage, Leader, Login, MessagesDeleted,
    NodeList, PartnerPage, PasswordChanged, Privacy, PrivacyChange, ReadMarked, Registration, Sent, Session, bearer,
    nodes::Target,
    retry::{self, Plan},
};
use chat::limits;
use proto::{
    Channel,
    chat::v1::{
        AcknowledgeDeliveryRequest, ChangePasswordRequest, CreateAccountRequest, DeleteAccountRequest,
        DeleteMessagesRequest, DeliveryReceipt, GetLeaderRequest, GetPrivacyRequest, GetRegistrationRequest,
        ListAccountsRequest, ListChatPartnersRequest, ListNodesRequest, ListSessionsRequest, LoginRequest,
        LogoutRequest, MarkReadRequest, ReadConsistency, ReadConversationRequest, RevokeSessionRequest,
        SendMessageRequest, SetPrivacyResponse, chat_service_client::ChatServiceClient,
        cluster_service_client::ClusterServiceClient, mark_read_request, read_consistency, read_conversation_request,
        send_message_request,
    },
};

/// Maximum size of an answer: a full page of the longest messages, plus metadata.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Minimum time for an attempt that hashes a password, perhaps queued behind others.
const HASHING_ATTEMPT: Duration = Duration::from_secs(4);
/// Minimum time for a read attempt, because a page can be large.
const READ_ATTEMPT: Duration = Duration::from_secs(1);
/// Minimum time for an attempt to list the nodes: the node asks the leader first, which may hang.
const LIST_ATTEMPT: Duration = Duration::from_millis(1500);

type ChatClient = ChatServiceClient<Channel>;
type Answer<T> = Result<Response<T>, Status>;

/// Consistency level of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// The read reflects everything that was acknowledged before the call. Needs a majority of the nodes.
    #[default]
    Linearizable,
    /// The read reflects at least this revision. The revision of an own write gives read-your-writes.
    AtLeast(u64),
    /// The local state of the node that answers, even without a majority. The answer's header bounds its age.
    Local,
}

impl From<Consistency> for ReadConsistency {
    fn from(consistency: Consistency) -> Self {
        let level = match consistency {
            Consistency::Linearizable => read_consistency::Level::Linearizable(true),
            Consistency::AtLeast(revision) => read_consistency::Level::AtLeastRevision(revision),
            Consistency::Local => read_consistency::Level::Local(true),
        };
        Self { level: Some(level) }
    }
}

/// Returns the generated client for one node, with the limits that all calls share.
pub(super) fn chat_client(channel: Channel) -> ChatClient {
    ChatServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl Client {
    /// Makes a call to the chat service with the session's token, if there is one. Retries as `plan` says.
    async fn chat<Q, A, F, R>(&self, plan: Plan, message: Q, call: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Fn(ChatClient, Request<Q>) -> R,
        R: Future<Output = Answer<A>>,
    {
        let session = self.session();
        let attempt = |target: Target, limit: Duration| {
            let mut request = Request::new(message.clone());
            request.set_timeout(limit);
            if let Some(token) = &session {
                request.metadata_mut().insert("authorization", token.clone());
            }
            if let Some(trace) = self.traceparent() {
                request.metadata_mut().insert("traceparent", trace);
            }
            let answer = call(chat_client(target.channel), request);
            async { answer.await.map(Response::into_inner) }
        };
        retry::run(&self.nodes, &self.options, plan, attempt).await
    }

    /// Returns the trace context to send along, if there is one.
    pub(super) fn traceparent(&self) -> Option<MetadataValue<Ascii>> {
        // A trace context is always ASCII.
        self.options.trace?.to_string().parse().ok()
    }

    fn change(&self) -> Plan {
        Plan::change(&self.options)
    }

    fn read(&self, consistency: Consistency) -> Plan {
        let plan = Plan::read(&self.options).attempt_at_least(READ_ATTEMPT);
        Plan { leader: consistency != Consistency::Local, ..plan }
    }

    /// Creates an account with a unique name (1-32 characters of `[a-z0-9_.-]`) and a password (8-256 bytes).
    ///
    /// # Errors
    ///
    /// ALREADY_EXISTS / USERNAME_TAKEN; INVALID_ARGUMENT with the field; PERMISSION_DENIED / REGISTRATION_CLOSED or
    /// INVITATION_NEEDED; RESOURCE_EXHAUSTED / REGISTRATION_THROTTLED, with the time to wait.
    pub async fn create_account(&self, username: &str, password: &str) -> Result<AccountCreated, ClientError> {
        self.create_account_with_invitation(username, password, "").await
    }

    /// Creates an account like [`Client::create_account`], with the code of an invitation.
    ///
    /// # Errors
    ///
    /// Those of [`Client::create_account`], and PERMISSION_DENIED / INVITATION_INVALID.
    pub async fn create_account_with_invitation(
        &self,
        username: &str,
        password: &str,
        invitation: &str,
    ) -> Result<AccountCreated, ClientError> {
        let request = CreateAccountRequest {
            username: username.to_owned(),
            password: password.to_owned(),
            // The same for all attempts: a retry finds the account that an earlier attempt created.
            request_id: Uuid::now_v7().to_string(),
            invitation: invitation.to_owned(),
        };
        let plan = self.change().attempt_at_least(HASHING_ATTEMPT);
        self.chat(plan, request, |mut client, request| async move { client.create_account(request).await })
            .await
            .map(Into::into)
    }

    /// Opens a session. The client keeps the token for the calls that follow. The answer contains it too, for callers
    /// that store it. It is valid on every node.
    ///
    /// # Errors
    ///
    /// NOT_FOUND / USER_UNKNOWN; UNAUTHENTICATED / PASSWORD_WRONG; RESOURCE_EXHAUSTED / LOGIN_THROTTLED after repeated
    /// failures, with the time to wait; FAILED_PRECONDITION / ACCOUNT_DISABLED. Failed logins of others do not throttle
    /// a client that has logged in to the account before, or that has a device token for it ([`Client::keep_device`]).
    pub async fn login(&self, username: &str, password: &str) -> Result<Login, ClientError> {
        let request = LoginRequest {
            username: username.to_owned(),
            password: password.to_owned(),
            device_token: self.device(username),
        };
        let plan = self.change().attempt_at_least(HASHING_ATTEMPT);
        let call = |mut client: ChatClient, request| async move { client.login(request).await };
        let login: Login = self.chat(plan, request, call).await?.into();
        self.keep_session(Some(bearer(&login.token)?));
        self.keep_device(username, &login.device_token);
        Ok(login)
    }

    /// Closes this session, or all sessions of the account, and forgets the token. Returns the number of closed
    /// sessions: 0 when an earlier attempt, whose answer was lost, has closed them.
    pub async fn logout(&self, all_sessions: bool) -> Result<u32, ClientError> {
        let request = LogoutRequest { all_sessions };
        let call = |mut client: ChatClient, request| async move { client.logout(request).await };
        let closed = match self.chat(self.change(), request, call).await {
            Ok(answer) => answer.closed_sessions,
            // An earlier attempt got no answer, and the session no longer exists: the logout has taken effect.
            Err(error) if error.outcome_unknown && error.code == Code::Unauthenticated => 0,
            Err(error) => return Err(error),
        };
        self.keep_session(None);
        Ok(closed)
    }

    /// Returns whether accounts can be created, and whether that needs an invitation, as far as the answering node
    /// knows.
    pub async fn registration(&self) -> Result<Registration, ClientError> {
        let call = |mut client: ChatClient, request| async move { client.get_registration(request).await };
        self.chat(self.read(Consistency::Local), GetRegistrationRequest {}, call).await.map(Into::into)
    }

    /// Replaces the password of the account. Closes its other sessions; this one stays open.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED / PASSWORD_WRONG; INVALID_ARGUMENT with the field. With `outcome_unknown`, PASSWORD_WRONG can
    /// mean that an earlier attempt without an answer was applied.
    pub async fn change_password(&self, password: &str, new_password: &str) -> Result<PasswordChanged, ClientError> {
        let request = ChangePasswordRequest { password: password.to_owned(), new_password: new_password.to_owned() };
        let plan = self.change().attempt_at_least(HASHING_ATTEMPT);
        self.chat(plan, request, |mut client, request| async move { client.change_password(request).await })
            .await
            .map(Into::into)
    }

    /// Lists the open sessions of the account, most recently used first.
    pub async fn sessions(&self) -> Result<Vec<Session>, ClientError> {
        let call = |mut client: ChatClient, request| async move { client.list_sessions(request).await };
        let answer = self.chat(self.read(Consistency::Linearizable), ListSessionsRequest {}, call).await?;
        Ok(answer.sessions.into_iter().map(Session::from).collect())
    }

    /// Closes a session of the account.
    ///
    /// # Errors
    ///
    /// NOT_FOUND / SESSION_UNKNOWN. With `outcome_unknown`, an earlier attempt without an answer has closed the
    /// session.
    pub async fn revoke_session(&self, session_id: u64) -> Result<(), ClientError> {
        let call = |mut client: ChatClient, request| async move { client.revoke_session(request).await };
        self.chat(self.change(), RevokeSessionRequest { session_id }, call).await.map(|_| ())
    }

    /// Returns the settings for what others see of the account, and for what the service stores about it.
    pub async fn privacy(&self) -> Result<Privacy, ClientError> {
        let call = |mut client: ChatClient, request| async move { client.get_privacy(request).await };
        self.chat(self.read(Consistency::Linearizable), GetPrivacyRequest {}, call).await.map(Into::into)
    }

    /// Changes what others see of the account, and what the service stores about it. What is `None` is not changed.
    /// Returns the revision.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT when the change has no setting.
    pub async fn set_privacy(&self, change: PrivacyChange) -> Result<u64, ClientError> {
        let call = |mut client: ChatClient, request| async move { client.set_privacy(request).await };
        self.chat(self.change(), change.into(), call).await.map(|answer: SetPrivacyResponse| answer.revision)
    }

    /// Deletes the account, its sessions and the bodies of its messages. Cannot be undone.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED / PASSWORD_WRONG. UNAUTHENTICATED with `outcome_unknown`: an earlier attempt got no answer and
    /// the session no longer exists, most likely because the account was deleted.
    pub async fn delete_account(&self, password: &str) -> Result<AccountDeleted, ClientError> {
        let request = DeleteAccountRequest { password: password.to_owned() };
        let plan = self.change().attempt_at_least(HASHING_ATTEMPT);
        let call = |mut client: ChatClient, request| async move { client.delete_account(request).await };
        let answer = self.chat(plan, request, call).await?;
        self.keep_session(None);
        Ok(answer.into())
    }

    /// Sends a message to a person under a new id, which all attempts share: the message is stored once.
    ///
    /// # Errors
    ///
    /// NOT_FOUND / USER_UNKNOWN; FAILED_PRECONDITION / USER_DELETED; INVALID_ARGUMENT with the field. A retry after
    /// `outcome_unknown` needs the id. To be able to retry, create the id first and use
    /// [`Client::send_message_with_id`].
    pub async fn send_message(&self, recipient: &str, body: &str) -> Result<Sent, ClientError> {
        self.send_message_with_id(Uuid::now_v7(), recipient, body).await
    }

    /// Sends a message under an id that the caller chose. Idempotent: the message is stored once, however often the
    /// call is repeated.
    pub async fn send_message_with_id(&self, id: Uuid, recipient: &str, body: &str) -> Result<Sent, ClientError> {
        // The transport would cut off a body that is far too long, with an error that does not name the field.
        limits::check_body("body", body)?;
        let request = SendMessageRequest {
            to: Some(send_message_request::To::Recipient(recipient.to_owned())),
            body: body.to_owned(),
            client_message_id: id.to_string(),
        };
        let call = |mut client: ChatClient, request| async move { client.send_message(request).await };
        Ok(Sent::new(id, self.chat(self.change(), request, call).await?))
    }

    /// Reads a page of the conversation with a person, newest first: messages with a smaller seq than `before_seq` (0:
    /// the newest), at most `limit` of them (1-200; 0: 50).
    pub async fn read_conversation(
        &self,
        partner: &str,
        before_seq: u64,
        limit: u32,
        consistency: Consistency,
    ) -> Result<ConversationPage, ClientError> {
        let request = ReadConversationRequest {
            conversation: Some(read_conversation_request::Conversation::Partner(partner.to_owned())),
            before_seq,
            limit,
            consistency: Some(consistency.into()),
        };
        let call = |mut client: ChatClient, request| async move { client.read_conversation(request).await };
        self.chat(self.read(consistency), request, call).await.map(Into::into)
    }

    /// Lists accounts whose name contains `query`, sorted by name. Returns `page_size` of them (1-200; 0: 10), starting
    /// after `page_token` (empty: the first page).
    pub async fn list_accounts(
        &self,
        query: &str,
        page_size: u32,
        page_token: &str,
        consistency: Consistency,
    ) -> Result<AccountPage, ClientError> {
        let request = ListAccountsRequest {
            query: query.to_owned(),
            page_size,
            page_token: page_token.to_owned(),
            consistency: Some(consistency.into()),
        };
        let call = |mut client: ChatClient, request| async move { client.list_accounts(request).await };
        self.chat(self.read(consistency), request, call).await.map(Into::into)
    }

    /// Lists the caller's conversations, newest activity first. Returns `page_size` of them (1-200; 0: 50), starting
    /// after `page_token` (empty: the first page). A conversation that gets a message while the list is read is on the
    /// last pages, perhaps for the second time.
    pub async fn list_chat_partners(
        &self,
        page_size: u32,
        page_token: &str,
        consistency: Consistency,
    ) -> Result<PartnerPage, ClientError> {
        let page_token = page_token.to_owned();
        let request = ListChatPartnersRequest { page_size, page_token, consistency: Some(consistency.into()) };
        let call = |mut client: ChatClient, request| async move { client.list_chat_partners(request).await };
        self.chat(self.read(consistency), request, call).await.map(Into::into)
    }

    /// Marks the conversation with a person as read up to a seq; 0 means all its messages.
    pub async fn mark_read(&self, partner: &str, up_to_seq: u64) -> Result<ReadMarked, ClientError> {
        let conversation = Some(mark_read_request::Conversation::Partner(partner.to_owned()));
        let request = MarkReadRequest { conversation, up_to_seq };
        let call = |mut client: ChatClient, request| async move { client.mark_read(request).await };
        self.chat(self.change(), request, call).await.map(Into::into)
    }

    /// Acknowledges that everything up to a seq was received, for 1-1000 pairs of a conversation's id and a seq.
    /// Returns the revision. Event streams do this automatically, unless [`super::Options::acknowledge`] is off.
    pub async fn acknowledge_delivery(&self, up_to: &[(u64, u64)]) -> Result<u64, ClientError> {
        let receipt = |(conversation_id, up_to_seq): &(u64, u64)| DeliveryReceipt {
            conversation_id: *conversation_id,
            up_to_seq: *up_to_seq,
        };
        let request = AcknowledgeDeliveryRequest { receipts: up_to.iter().map(receipt).collect() };
        let call = |mut client: ChatClient, request| async move { client.acknowledge_delivery(request).await };
        self.chat(self.change(), request, call).await.map(|answer| answer.revision)
    }

    /// Deletes 1-1000 messages by id, for the caller only or, if the caller sent them, for everyone. Ids that are
    /// unknown or that the caller may not delete are counted as ignored.
    pub async fn delete_messages(
        &self,
        message_ids: Vec<u64>,
        for_everyone: bool,
    ) -> Result<MessagesDeleted, ClientError> {
        let request = DeleteMessagesRequest { message_ids, for_everyone };
        let call = |mut client: ChatClient, request| async move { client.delete_messages(request).await };
        self.chat(self.change(), request, call).await.map(Into::into)
    }

    /// Asks the cluster for its leader.
    ///
    /// # Errors
    ///
    /// UNAVAILABLE / NO_LEADER when no node knew a leader within the deadline.
    pub async fn leader(&self) -> Result<Leader, ClientError> {
        let call = |mut client: ClusterServiceClient<Channel>, request| async move { client.get_leader(request).await };
        self.cluster(Plan::read(&self.options), GetLeaderRequest {}, call).await.map(Into::into)
    }

    /// Lists the nodes of the cluster, with their health as far as the answering node can ask the leader. Works without
    /// a leader. Without a session the answer is `restricted`.
    pub async fn nodes(&self) -> Result<NodeList, ClientError> {
        let plan = Plan { leader: false, ..Plan::read(&self.options) }.attempt_at_least(LIST_ATTEMPT);
        let call = |mut client: ClusterServiceClient<Channel>, request| async move { client.list_nodes(request).await };
        let answer = self.cluster(plan, ListNodesRequest {}, call).await?;
        self.nodes.learn_nodes(&answer);
        Ok(answer.into())
    }

    /// Makes a call to the cluster service with the session's token, if there is one. Retries as `plan` says.
    async fn cluster<Q, A, F, R>(&self, plan: Plan, message: Q, call: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Fn(ClusterServiceClient<Channel>, Request<Q>) -> R,
        R: Future<Output = Answer<A>>,
    {
        let session = self.session();
        let attempt = |target: Target, limit: Duration| {
            let mut request = Request::new(message.clone());
            request.set_timeout(limit);
            if let Some(token) = &session {
                request.metadata_mut().insert("authorization", token.clone());
            }
            let answer = call(ClusterServiceClient::new(target.channel), request);
            async { answer.await.map(Response::into_inner) }
        };
        retry::run(&self.nodes, &self.options, plan, attempt).await
    }

    /// Opens the stream of the account's events. With `after_revision` it contains every event after that revision.
    /// Without, it starts with the messages that were not delivered yet, followed by new events. Must be called within
    /// a Tokio runtime.
    pub fn events(&self, after_revision: Option<u64>) -> super::EventStream {
        super::EventStream::start(self.clone(), after_revision)
    }

    pub(super) fn options(&self) -> &Arc<super::Options> {
        &self.options
    }
}
