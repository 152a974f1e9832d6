//! Commands: the changes that can be requested of the replicated state.
//!
//! A command contains everything that is not in the state. The proposing node generates hashes, ids and lifetimes. The
//! leader adds the time, outside of the command.

use super::{AccountCommand, AccountId, ClientId, ConversationId, Login, Seq, SessionId, StateDigest, TokenHash};

/// A change to the replicated state. Every node applies it, in the same order and with the same outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Creates an account with a unique name.
    CreateAccount {
        /// Name of the account. Checked with [`super::limits::check_username`] before it is proposed.
        username: String,
        /// PHC string of the Argon2id hash.
        password_hash: String,
        /// Id of the request, which identifies a retry.
        request_id: Option<ClientId>,
        /// Hash of an invitation code.
        invitation: Option<TokenHash>,
    },
    /// Opens a session for an account whose password was verified.
    OpenSession {
        /// The account of the session.
        account: AccountId,
        /// Hash of the token that the caller receives.
        token_hash: TokenHash,
        /// Milliseconds from the command's time until the session expires.
        lifetime_ms: u64,
        /// Details of the login.
        login: Login,
    },
    /// Closes a session, or all sessions of its account.
    CloseSession {
        /// The caller's session.
        session: SessionId,
        /// Whether to close the account's other sessions too.
        all: bool,
    },
    /// Deletes the account of a session with all its messages at once. No longer proposed, because its work is
    /// unbounded: see [`Self::BeginAccountDeletion`].
    DeleteAccount {
        /// The caller's session.
        session: SessionId,
    },
    /// Deletes the account of a session. Its messages are tombstones from then on. [`Self::EraseAccount`] does the
    /// remaining work.
    BeginAccountDeletion {
        /// The caller's session.
        session: SessionId,
    },
    /// Does a bounded part of the remaining work of an account deletion: it notifies the members of the account's
    /// conversations and overwrites the bodies of its messages. The leader proposes it until the work is done.
    EraseAccount {
        /// The deleted account.
        account: AccountId,
        /// Maximum units of work. A unit is a conversation notified or a message examined.
        limit: u32,
    },
    /// Stores a message.
    SendMessage {
        /// The caller's session. Its account is the sender.
        session: SessionId,
        /// The destination.
        to: Destination,
        /// Unique per sender. A second command with the same id changes nothing.
        client_id: ClientId,
        /// The text.
        body: String,
    },
    /// Advances watermarks of many readers at once.
    Receipts(Vec<ReceiptItem>),
    /// Deletes messages by id.
    DeleteMessages {
        /// The caller's session.
        session: SessionId,
        /// Message ids, which are the revisions that stored the messages.
        messages: Vec<u64>,
        /// Whether to leave tombstones for all members instead of hiding the messages from the caller.
        for_everyone: bool,
    },
    /// Changes accounts, sessions, invitations or settings.
    Account(AccountCommand),
    /// Makes every node note the digest of its state at this position in the log, a *mark*. Changes nothing.
    NoteDigest,
    /// Reports to all nodes the digest that one of them noted at a mark. Changes nothing.
    ReportDigest(DigestReport),
    /// Permits one node that the cluster does not know to join.
    IssueJoinToken {
        /// Hash of the token that the operator receives.
        token_hash: TokenHash,
        /// Milliseconds from the command's time until the token expires.
        lifetime_ms: u64,
    },
    /// Redeems a join token. A repeat with the same admission number succeeds until the token expires.
    RedeemJoinToken {
        /// Hash of the token that the joining node presents.
        token_hash: TokenHash,
        /// Number that the joining node chose at its start. Never 0.
        admission: u64,
    },
}

/// The digest of a node at a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestReport {
    /// Id of the node.
    pub node_id: u64,
    /// Log index of the entry with the mark. The first mark of an entry counts.
    pub mark: u64,
    /// The digest at the mark.
    pub digest: StateDigest,
}

/// The destination of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The direct conversation with this person. Created if it does not exist.
    Person(String),
    /// An existing conversation of the sender.
    Conversation(ConversationId),
}

/// The progress of one reader in one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiptItem {
    /// The reader's session.
    pub session: SessionId,
    /// The conversation.
    pub conversation: ConversationId,
    /// Position up to which all messages are acknowledged. A position beyond the end means all existing messages.
    pub up_to: Seq,
    /// Whether they are read, which implies delivered.
    pub read: bool,
}
