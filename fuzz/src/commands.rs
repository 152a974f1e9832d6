//! Sequences of log entries, made from an input: few ids and names, so that commands meet each other. Among them are
//! malformed commands and batches. What only a later version may have written is left out, because it stops a node.

use arbitrary::Arbitrary;
use chat::{
    AccountCommand, AccountId, ClientId, Command, ConversationId, Destination, DigestReport, Login, PrivacyChange,
    ReceiptItem, Seq, SessionId, StateDigest, TokenHash,
};
use prost::Message as _;
use proto::log::v1 as pb;
use storage::{AppliedEntry, AppliedPayload, codec};

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
    /// An entry whose payload is these bytes.
    Bytes(Vec<u8>),
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
    BeginAccountDeletion {
        session: Id,
    },
    EraseAccount {
        account: Id,
        limit: u8,
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
    IssueJoinToken {
        token: u8,
        lifetime: Lifetime,
    },
    RedeemJoinToken {
        token: u8,
        admission: Id,
    },
    NoteDigest,
    ReportDigest {
        node: Id,
        mark: Id,
        digest: u8,
    },
    SetPrivacy {
        session: Id,
        read_receipts: Option<bool>,
        session_activity: Option<bool>,
    },
    /// These bytes in the place of a command.
    Bytes(Vec<u8>),
    /// A proposal without a command.
    Absent,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Lifetime {
    Short(u8),
    Long,
    Endless,
}

impl Lifetime {
    fn ms(self) -> u64 {
        match self {
            Self::Short(ms) => u64::from(ms) * 64,
            Self::Long => 1 << 40,
            Self::Endless => u64::MAX,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum To {
    Person(u8),
    Conversation(Id),
}

fn name(number: u8) -> String {
    format!("n{}", number % 6)
}

/// A `log.v1.Batch` whose commands are bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct RawBatch {
    #[prost(message, repeated, tag = "1")]
    proposals: Vec<RawProposal>,
    #[prost(uint64, tag = "20")]
    quota_messages: u64,
    #[prost(uint64, tag = "21")]
    quota_bytes: u64,
}

/// A `log.v1.Proposal` whose command is bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct RawProposal {
    #[prost(uint64, tag = "1")]
    time_ms: u64,
    #[prost(string, tag = "2")]
    traceparent: String,
    #[prost(bytes = "vec", optional, tag = "3")]
    command: Option<Vec<u8>>,
}

/// What the bytes of a command are, by the rules of decision 0025.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Command,
    /// No command in any version: rejected.
    Malformed,
    /// Perhaps a command of a later version: it stops the node.
    Later,
}

fn verdict(bytes: Option<&[u8]>) -> Verdict {
    let shape = |mut rest: &[u8]| {
        let key = prost::decode_length_delimiter(&mut rest).ok()?;
        let length = prost::decode_length_delimiter(&mut rest).ok()?;
        (key & 7 == 2 && length == rest.len()).then_some(key >> 3)
    };
    let Some((bytes, number)) = bytes.and_then(|bytes| Some((bytes, shape(bytes)?))) else { return Verdict::Malformed };
    match pb::Command::decode(bytes).map(codec::decode_command) {
        Ok(Ok(_)) => Verdict::Command,
        Ok(Err(codec::DecodeError::UnknownKind(_))) if (1..=1023).contains(&number) => Verdict::Later,
        _ => Verdict::Malformed,
    }
}

/// One verdict for each outcome that an entry has to have.
pub fn verdicts(entry: &AppliedEntry) -> Vec<Verdict> {
    let AppliedPayload::Batch(bytes) = &entry.payload else { return Vec::new() };
    match RawBatch::decode(bytes.clone()) {
        Ok(batch) if !batch.proposals.is_empty() => {
            batch.proposals.iter().map(|proposal| verdict(proposal.command.as_deref())).collect()
        }
        _ => vec![Verdict::Malformed],
    }
}

impl Do {
    /// The bytes of its command, if it has one.
    fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Some(bytes.clone()),
            other => other.command().map(|command| codec::encode_command(&command).encode_to_vec()),
        }
    }

    /// The command; nothing for bytes, and where there is none.
    fn command(&self) -> Option<Command> {
        Some(match self {
            Self::Create { name: number, request } => Command::CreateAccount {
                username: name(*number),
                password_hash: "hash".into(),
                request_id: (*request > 0).then_some(ClientId([*request % 8; 16])),
                invitation: None,
            },
            Self::Open { account, token, lifetime } => Command::OpenSession {
                account: AccountId(account.number()),
                token_hash: TokenHash([*token; 32]),
                lifetime_ms: lifetime.ms(),
                login: Login::default(),
            },
            Self::IssueJoinToken { token, lifetime } => {
                Command::IssueJoinToken { token_hash: TokenHash([*token; 32]), lifetime_ms: lifetime.ms() }
            }
            Self::RedeemJoinToken { token, admission } => {
                Command::RedeemJoinToken { token_hash: TokenHash([*token; 32]), admission: admission.number() }
            }
            Self::Close { session, all } => Command::CloseSession { session: SessionId(session.number()), all: *all },
            Self::DeleteAccount { session } => Command::DeleteAccount { session: SessionId(session.number()) },
            Self::BeginAccountDeletion { session } => {
                Command::BeginAccountDeletion { session: SessionId(session.number()) }
            }
            Self::EraseAccount { account, limit } => {
                Command::EraseAccount { account: AccountId(account.number()), limit: u32::from(*limit) }
            }
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
            Self::SetPrivacy { session, read_receipts, session_activity } => {
                let (read_receipts, session_activity) = (*read_receipts, *session_activity);
                let change = PrivacyChange { read_receipts, session_activity };
                Command::Account(AccountCommand::SetPrivacy { session: SessionId(session.number()), change })
            }
            Self::Bytes(_) | Self::Absent => return None,
        })
    }
}

/// The entries after the one at `after`. Clocks begin at `clock`.
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
                let proposal = |command| RawProposal { time_ms: time, traceparent: String::new(), command };
                let commands = commands.iter().take(COMMANDS_MAX).map(Do::bytes);
                let fit = commands.filter(|bytes| verdict(bytes.as_deref()) != Verdict::Later);
                let batch = RawBatch { proposals: fit.map(proposal).collect(), ..Default::default() };
                AppliedPayload::Batch(batch.encode_to_vec().into())
            }
            Step::Bytes(bytes) => AppliedPayload::Batch(bytes.clone().into()),
        };
        let entry = AppliedEntry { log_id: pb::LogId { term: 1, node_id: 1, index }, payload };
        match verdicts(&entry).contains(&Verdict::Later) {
            true => AppliedEntry { payload: AppliedPayload::Blank, ..entry },
            false => entry,
        }
    };
    steps.iter().take(ENTRIES_MAX).zip(after + 1..).map(entry).collect()
}
