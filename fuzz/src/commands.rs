//! Sequences of log entries, made from an input: few ids and names, so that commands meet each other.

use arbitrary::Arbitrary;
use prost::Message as _;
use quorum_chat::{
    chat::{
        AccountId, ClientId, Command, ConversationId, Destination, DigestReport, ReceiptItem, Seq, SessionId,
        StateDigest, TokenHash,
    },
    proto::log::v1 as pb,
    storage::{AppliedEntry, AppliedPayload, codec},
};

/// More would only make each run longer.
const ENTRIES_MAX: usize = 24;
const COMMANDS_MAX: usize = 64;

/// One entry of the log.
#[derive(Debug, Clone, Arbitrary)]
pub enum Step {
    Blank,
    Membership(u8),
    /// The leader's clock, against the entry before, and the commands.
    Batch(i16, Vec<Do>),
}

/// A small number that is the id of something, or an absurd one.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Id(u8);

impl Id {
    fn number(self) -> u64 {
        match self.0 {
            255 => u64::MAX,
            254 => i64::MAX as u64,
            253 => i64::MAX as u64 + 1,
            small => small.into(),
        }
    }
}

/// One command.
#[derive(Debug, Clone, Arbitrary)]
pub enum Do {
    Create {
        name: u8,
        request: u8,
    },
    Open {
        account: Id,
        token: u8,
        lifetime: Lifetime,
    },
    Close {
        session: Id,
        all: bool,
    },
    DeleteAccount {
        session: Id,
    },
    Send {
        session: Id,
        to: To,
        client: u8,
        body: u8,
    },
    Receipts(Vec<(Id, Id, Id, bool)>),
    DeleteMessages {
        session: Id,
        messages: Vec<Id>,
        for_everyone: bool,
    },
    NoteDigest,
    ReportDigest {
        node: Id,
        mark: Id,
        digest: u8,
    },
    /// Whatever these bytes are, when they are a command.
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Lifetime {
    Short(u8),
    Long,
    Endless,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum To {
    Person(u8),
    Conversation(Id),
}

fn name(number: u8) -> String {
    format!("n{}", number % 6)
}

impl Do {
    /// The command; nothing for bytes that are none.
    pub fn command(&self) -> Option<Command> {
        Some(match self {
            Self::Create { name: number, request } => Command::CreateAccount {
                username: name(*number),
                password_hash: "hash".into(),
                request_id: (*request > 0).then_some(ClientId([*request % 8; 16])),
            },
            Self::Open { account, token, lifetime } => Command::OpenSession {
                account: AccountId(account.number()),
                token_hash: TokenHash([*token; 32]),
                lifetime_ms: match lifetime {
                    Lifetime::Short(ms) => u64::from(*ms) * 64,
                    Lifetime::Long => 1 << 40,
                    Lifetime::Endless => u64::MAX,
                },
            },
            Self::Close { session, all } => Command::CloseSession { session: SessionId(session.number()), all: *all },
            Self::DeleteAccount { session } => Command::DeleteAccount { session: SessionId(session.number()) },
            Self::Send { session, to, client, body } => Command::SendMessage {
                session: SessionId(session.number()),
                to: match to {
                    To::Person(number) => Destination::Person(name(*number)),
                    To::Conversation(id) => Destination::Conversation(ConversationId(id.number())),
                },
                client_id: ClientId([*client; 16]),
                body: format!("body {}", body % 4),
            },
            Self::Receipts(items) => {
                let item = |&(session, conversation, up_to, read): &(Id, Id, Id, bool)| ReceiptItem {
                    session: SessionId(session.number()),
                    conversation: ConversationId(conversation.number()),
                    up_to: Seq(up_to.number()),
                    read,
                };
                Command::Receipts(items.iter().take(COMMANDS_MAX).map(item).collect())
            }
            Self::DeleteMessages { session, messages, for_everyone } => Command::DeleteMessages {
                session: SessionId(session.number()),
                messages: messages.iter().take(COMMANDS_MAX).map(|id| id.number()).collect(),
                for_everyone: *for_everyone,
            },
            Self::NoteDigest => Command::NoteDigest,
            Self::ReportDigest { node, mark, digest } => Command::ReportDigest(DigestReport {
                node_id: node.number(),
                mark: mark.number(),
                digest: StateDigest([*digest; 32]),
            }),
            Self::Bytes(bytes) => {
                return pb::Command::decode(bytes.as_slice()).ok().and_then(|c| codec::decode_command(c).ok());
            }
        })
    }
}

/// The entries after the one at `after`, and how many commands each has. Clocks begin at `clock`.
pub fn entries(steps: &[Step], after: u64, clock: u64) -> Vec<AppliedEntry> {
    let mut time = clock;
    let entry = |(step, index): (&Step, u64)| {
        let payload = match step {
            Step::Blank => AppliedPayload::Blank,
            Step::Membership(voters) => {
                let node_ids = (0..8).filter(|bit| voters >> bit & 1 == 1).collect();
                AppliedPayload::Membership(pb::Membership { voters: vec![pb::VoterSet { node_ids }], nodes: vec![] })
            }
            Step::Batch(later, commands) => {
                time = time.saturating_add_signed((*later).into());
                let proposal = |command: Command| pb::Proposal {
                    time_ms: time,
                    traceparent: String::new(),
                    command: Some(codec::encode_command(&command)),
                };
                let proposals = commands.iter().take(COMMANDS_MAX).filter_map(Do::command).map(proposal).collect();
                AppliedPayload::Batch(pb::Batch { proposals }.encode_to_vec().into())
            }
        };
        AppliedEntry { log_id: pb::LogId { term: 1, node_id: 1, index }, payload }
    };
    steps.iter().take(ENTRIES_MAX).zip(after + 1..).map(entry).collect()
}
