//! What can be asked of the replicated state.
//!
//! A command carries everything that is not in the state: hashes, ids and lifetimes are made by the node that
//! proposes it. The time is added by the leader, outside of the command.

use super::{AccountCommand, AccountId, ClientId, ConversationId, Login, Seq, SessionId, StateDigest, TokenHash};

/// A change to the replicated state. Applied by every node, in the same order, with the same outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make an account with a unique name.
    CreateAccount {
        /// Checked against [`super::limits::check_username`] before it is proposed.
        username: String,
        /// PHC string of the Argon2id hash.
        password_hash: String,
        /// Makes a retry recognizable.
        request_id: Option<ClientId>,
        /// Hash of the code of an invitation.
        invitation: Option<TokenHash>,
    },
    /// Open a session for an account whose password was verified.
    OpenSession {
        /// Whose session.
        account: AccountId,
        /// Hash of the token that the caller was given.
        token_hash: TokenHash,
        /// Milliseconds from the command's time until the session expires.
        lifetime_ms: u64,
        /// What else the login brings.
        login: Login,
    },
    /// Close a session, or all sessions of its account.
    CloseSession {
        /// The caller's session.
        session: SessionId,
        /// Close the account's other sessions too.
        all: bool,
    },
    /// Delete the account of a session with all its messages at once. Not proposed any more, because its work has no
    /// bound: see [`Self::BeginAccountDeletion`].
    DeleteAccount {
        /// The caller's session.
        session: SessionId,
    },
    /// Delete the account of a session. Its messages are tombstones from then on; [`Self::EraseAccount`] does the rest.
    BeginAccountDeletion {
        /// The caller's session.
        session: SessionId,
    },
    /// Do a bounded part of what is left of the deletion of an account: tell the members of its conversations, overwrite
    /// the bodies of its messages. Proposed by the leader until it is done.
    EraseAccount {
        /// The deleted account.
        account: AccountId,
        /// Most units of work: conversations told, messages looked at.
        limit: u32,
    },
    /// Store a message.
    SendMessage {
        /// The caller's session: its account is the sender.
        session: SessionId,
        /// Where to.
        to: Destination,
        /// Unique per sender; a second command with it changes nothing.
        client_id: ClientId,
        /// The text.
        body: String,
    },
    /// Move watermarks of many readers at once.
    Receipts(Vec<ReceiptItem>),
    /// Delete messages by id.
    DeleteMessages {
        /// The caller's session.
        session: SessionId,
        /// Message ids: the revisions that stored them.
        messages: Vec<u64>,
        /// Tombstones for all, instead of hiding for the caller.
        for_everyone: bool,
    },
    /// Change accounts, sessions, invitations or settings.
    Account(AccountCommand),
    /// Have every node note the digest of its state at this place in the log: a *mark*. Changes nothing.
    NoteDigest,
    /// Tell all nodes what one of them noted at a mark. Changes nothing.
    ReportDigest(DigestReport),
    /// Allow one node that the cluster does not know to join.
    IssueJoinToken {
        /// Hash of the token that the operator was given.
        token_hash: TokenHash,
        /// Milliseconds from the command's time until the token expires.
        lifetime_ms: u64,
    },
    /// Use a join token. A repeat with the same admission number succeeds until the token expires.
    RedeemJoinToken {
        /// Hash of the token that the joining node has.
        token_hash: TokenHash,
        /// Number that the joining node chose at its start; never 0.
        admission: u64,
    },
}

/// The digest that a node had at a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestReport {
    /// Which node.
    pub node_id: u64,
    /// Log index of the entry with the mark. When an entry has several, its first one counts.
    pub mark: u64,
    /// What it had there.
    pub digest: StateDigest,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The direct conversation with this person, made if there is none.
    Person(String),
    /// An existing conversation of the sender.
    Conversation(ConversationId),
}

/// One reader's progress in one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiptItem {
    /// The reader's session.
    pub session: SessionId,
    /// The conversation.
    pub conversation: ConversationId,
    /// Everything up to here; beyond the end means all that is there.
    pub up_to: Seq,
    /// Read, which implies delivered.
    pub read: bool,
}
