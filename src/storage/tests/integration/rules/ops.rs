//! Random commands: the generators of [`Op`]s, and [`Given`], which turns them into commands.
//!
//! An [`Op`] references an object by its number among those of its kind. [`Given`] knows the ids that the objects got.

use chat::*;
use proptest::prelude::*;

/// A command with references to existing objects: the nth session, conversation, message.
#[derive(Debug, Clone)]
pub enum Op {
    Create { name: usize, request: Option<u8>, invitation: Option<u8> },
    Open { account: usize, token: u8, lifetime_ms: u64, idle_ms: u64, device: Option<u8> },
    ChangePassword { session: usize, verified: u64, hash: u8 },
    Operate(Operation, usize),
    Revoke { session: usize, target: usize },
    Touch(Vec<usize>),
    Privacy { session: usize, change: PrivacyChange },
    Registration(Registration),
    Invite { code: u8, uses: u32, lifetime_ms: u64 },
    RevokeInvitation { nth: usize },
    RemoveExpired { before: u64, limit: u32 },
    Close { session: usize, all: bool },
    DeleteAccount { session: usize },
    BeginAccountDeletion { session: usize },
    Erase { account: usize, limit: u32 },
    SendTo { session: usize, name: usize, client: u8, body: u8 },
    SendIn { session: usize, conversation: usize, client: u8, body: u8 },
    Receipts(Vec<(usize, usize, u64, bool)>),
    Delete { session: usize, messages: Vec<usize>, for_everyone: bool },
    IssueJoinToken { token: u8, lifetime_ms: u64 },
    RedeemJoinToken { token: u8, admission: u64 },
}

/// An operator's action on an account.
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    ResetPassword(u8),
    SetDisabled(bool),
    EndSessions,
    Purge,
}

const NAMES: [&str; 4] = ["ann", "bob", "cem", "dora"];

fn op() -> impl Strategy<Value = Op> {
    let receipt = (0..8_usize, 0..5_usize, prop_oneof![0..6_u64, Just(u64::MAX)], any::<bool>());
    prop_oneof![
        2 => (0..4_usize, prop::option::of(0..3_u8), prop::option::of(0..3_u8))
            .prop_map(|(name, request, invitation)| Op::Create { name, request, invitation }),
        3 => (0..5_usize, any::<u8>(), 50..2000_u64, prop_oneof![Just(0_u64), 20..500_u64], prop::option::of(0..40_u8))
            .prop_map(|(account, token, lifetime_ms, idle_ms, device)| {
                Op::Open { account, token, lifetime_ms, idle_ms, device }
            }),
        3 => op_on_accounts(),
        1 => (0..8_usize, any::<bool>()).prop_map(|(session, all)| Op::Close { session, all }),
        1 => (0..8_usize).prop_map(|session| Op::DeleteAccount { session }),
        1 => (0..8_usize).prop_map(|session| Op::BeginAccountDeletion { session }),
        3 => (0..4_usize, 0..7_u32).prop_map(|(account, limit)| Op::Erase { account, limit }),
        8 => (0..8_usize, 0..4_usize, 0..24_u8, 0..2_u8)
            .prop_map(|(session, name, client, body)| Op::SendTo { session, name, client, body }),
        4 => (0..8_usize, 0..5_usize, 0..24_u8, 0..2_u8)
            .prop_map(|(session, conversation, client, body)| Op::SendIn { session, conversation, client, body }),
        4 => prop::collection::vec(receipt, 1..4).prop_map(Op::Receipts),
        3 => (0..8_usize, prop::collection::vec(0..12_usize, 1..5), any::<bool>())
            .prop_map(|(session, messages, for_everyone)| Op::Delete { session, messages, for_everyone }),
        1 => (0..3_u8, 1..100_u64).prop_map(|(token, lifetime_ms)| Op::IssueJoinToken { token, lifetime_ms }),
        2 => (0..3_u8, 0..3_u64).prop_map(|(token, admission)| Op::RedeemJoinToken { token, admission }),
    ]
}

/// Commands about accounts, sessions, invitations and settings.
fn op_on_accounts() -> impl Strategy<Value = Op> {
    let operation = prop_oneof![
        2 => (0..3_u8).prop_map(Operation::ResetPassword),
        2 => any::<bool>().prop_map(Operation::SetDisabled),
        1 => Just(Operation::EndSessions),
        1 => Just(Operation::Purge),
    ];
    let registration = prop_oneof![
        2 => Just(Registration::Open),
        2 => Just(Registration::Invitation),
        1 => Just(Registration::Closed),
    ];
    prop_oneof![
        2 => (0..8_usize, prop_oneof![Just(0_u64), 1..80_u64], 0..3_u8)
            .prop_map(|(session, verified, hash)| Op::ChangePassword { session, verified, hash }),
        2 => (operation, 0..4_usize).prop_map(|(operation, name)| Op::Operate(operation, name)),
        1 => (0..8_usize, 0..8_usize).prop_map(|(session, target)| Op::Revoke { session, target }),
        2 => prop::collection::vec(0..8_usize, 1..5).prop_map(Op::Touch),
        3 => op_on_privacy(0..8_usize),
        1 => registration.prop_map(Op::Registration),
        1 => (0..3_u8, 0..3_u32, 10..500_u64)
            .prop_map(|(code, uses, lifetime_ms)| Op::Invite { code, uses, lifetime_ms }),
        1 => (0..4_usize).prop_map(|nth| Op::RevokeInvitation { nth }),
        2 => (900..2500_u64, 0..3_u32).prop_map(|(before, limit)| Op::RemoveExpired { before, limit }),
    ]
}

fn op_on_privacy(session: std::ops::Range<usize>) -> impl Strategy<Value = Op> {
    let change = (any::<Option<bool>>(), any::<Option<bool>>());
    let change = change.prop_map(|(read_receipts, session_activity)| PrivacyChange { read_receipts, session_activity });
    (session, change).prop_map(|(session, change)| Op::Privacy { session, change })
}

/// Commands of two people in one conversation, which get deep into its history.
fn op_of_two() -> impl Strategy<Value = Op> {
    let receipt = (0..2_usize, Just(0_usize), 0..20_u64, any::<bool>());
    prop_oneof![
        8 => (0..2_usize, any::<u8>(), 0..2_u8)
            .prop_map(|(session, client, body)| Op::SendIn { session, conversation: 0, client, body }),
        4 => prop::collection::vec(receipt, 1..3).prop_map(Op::Receipts),
        1 => op_on_privacy(0..2),
        4 => (0..2_usize, prop::collection::vec(0..20_usize, 1..4), any::<bool>())
            .prop_map(|(session, messages, for_everyone)| Op::Delete { session, messages, for_everyone }),
    ]
}

fn erase() -> impl Strategy<Value = Op> {
    (0..2_usize, 1..7_u32).prop_map(|(account, limit)| Op::Erase { account, limit })
}

/// Random commands, each with a step of the clock before it, after a prefix that makes them effective.
pub fn ops() -> impl Strategy<Value = Vec<(i64, Op)>> {
    let of_all = prop::collection::vec((-20..40_i64, op()), 1..60);
    let of_two = prop::collection::vec((-5..5_i64, op_of_two()), 1..60);
    let deletion = prop::option::of((0..2_usize, any::<bool>()));
    let after = prop::collection::vec((-5..5_i64, prop_oneof![op_of_two(), erase()]), 0..12);
    let of_two = (of_two, deletion, after).prop_map(|(mut ops, deletion, after)| {
        ops.insert(0, (1, Op::SendTo { session: 0, name: 1, client: 0, body: 0 }));
        ops.extend(deletion.map(|(session, at_once)| match at_once {
            true => (1, Op::DeleteAccount { session }),
            false => (1, Op::BeginAccountDeletion { session }),
        }));
        ops.extend(after);
        ops
    });
    prop_oneof![of_all, of_two].prop_map(|mut ops| {
        let mut all = Vec::new();
        for account in 0..3 {
            all.push((1, Op::Create { name: account, request: None, invitation: None }));
            all.push((1, Op::Open { account, token: account as u8, lifetime_ms: 1500, idle_ms: 0, device: None }));
        }
        all.append(&mut ops);
        all
    })
}

/// The quota of an account: usually unlimited.
pub fn quota() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![2 => Just((0, 0)), 1 => (3..9_u64, Just(0)), 1 => (Just(0), 20..400_u64)]
}

/// The ids assigned so far.
#[derive(Default)]
pub struct Given {
    accounts: Vec<AccountId>,
    sessions: Vec<SessionId>,
    conversations: Vec<ConversationId>,
    messages: Vec<u64>,
    invitations: Vec<Revision>,
}

impl Given {
    pub fn command(&self, op: &Op) -> Command {
        // Objects that do not exist (yet) are referenced too.
        let session = |n: &usize| self.sessions.get(*n).copied().unwrap_or(SessionId(u64::MAX));
        let conversation = |n: &usize| self.conversations.get(*n).copied().unwrap_or(ConversationId(77_777));
        let client_id = |n: u8| ClientId([n; 16]);
        match op {
            Op::Create { name, request, invitation } => Command::CreateAccount {
                username: NAMES[*name].into(),
                password_hash: "hash".into(),
                request_id: request.map(client_id),
                invitation: invitation.map(|code| TokenHash([code; 32])),
            },
            Op::Open { account, token, lifetime_ms, idle_ms, device } => Command::OpenSession {
                account: self.accounts.get(*account).copied().unwrap_or(AccountId(u64::MAX)),
                token_hash: TokenHash([*token; 32]),
                lifetime_ms: *lifetime_ms,
                login: Login {
                    idle_ms: *idle_ms,
                    // Valid until the password is changed. Every third one is not checked.
                    password_revision: (token % 3 != 0).then_some(Revision(0)),
                    device: device.map(|device| TokenHash([device; 32])),
                    rehash: (token % 16 == 1).then(|| "rehashed".to_owned()),
                },
            },
            Op::ChangePassword { .. }
            | Op::Operate(..)
            | Op::Revoke { .. }
            | Op::Touch(_)
            | Op::Privacy { .. }
            | Op::Registration(_)
            | Op::Invite { .. }
            | Op::RevokeInvitation { .. }
            | Op::RemoveExpired { .. } => Command::Account(self.account_command(op)),
            Op::Close { session: n, all } => Command::CloseSession { session: session(n), all: *all },
            Op::BeginAccountDeletion { session: n } => Command::BeginAccountDeletion { session: session(n) },
            Op::Erase { account, limit } => Command::EraseAccount {
                account: self.accounts.get(*account).copied().unwrap_or(AccountId(u64::MAX)),
                limit: *limit,
            },
            Op::DeleteAccount { session: n } => Command::DeleteAccount { session: session(n) },
            Op::SendTo { session: n, name, client, body } => Command::SendMessage {
                session: session(n),
                to: Destination::Person(NAMES[*name].into()),
                client_id: client_id(*client),
                body: format!("body {body}"),
            },
            Op::SendIn { session: n, conversation: c, client, body } => Command::SendMessage {
                session: session(n),
                to: Destination::Conversation(conversation(c)),
                client_id: client_id(*client),
                body: format!("body {body}"),
            },
            Op::Receipts(items) => {
                let item = |(n, c, up_to, read): &(usize, usize, u64, bool)| ReceiptItem {
                    session: session(n),
                    conversation: conversation(c),
                    up_to: Seq(*up_to),
                    read: *read,
                };
                Command::Receipts(items.iter().map(item).collect())
            }
            Op::IssueJoinToken { token, lifetime_ms } => {
                Command::IssueJoinToken { token_hash: TokenHash([*token; 32]), lifetime_ms: *lifetime_ms }
            }
            Op::RedeemJoinToken { token, admission } => {
                Command::RedeemJoinToken { token_hash: TokenHash([*token; 32]), admission: *admission }
            }
            Op::Delete { session: n, messages, for_everyone } => Command::DeleteMessages {
                session: session(n),
                messages: messages.iter().map(|m| self.messages.get(*m).copied().unwrap_or(u64::MAX)).collect(),
                for_everyone: *for_everyone,
            },
        }
    }

    fn account_command(&self, op: &Op) -> AccountCommand {
        let session = |n: &usize| self.sessions.get(*n).copied().unwrap_or(SessionId(u64::MAX));
        match op {
            Op::ChangePassword { session: n, verified, hash } => AccountCommand::ChangePassword {
                session: session(n),
                password_revision: Revision(*verified),
                password_hash: format!("hash {hash}"),
            },
            Op::Operate(operation, name) => {
                let username = NAMES[*name].to_owned();
                match operation {
                    Operation::ResetPassword(hash) => {
                        AccountCommand::ResetPassword { username, password_hash: format!("hash {hash}") }
                    }
                    Operation::SetDisabled(disabled) => AccountCommand::SetDisabled { username, disabled: *disabled },
                    Operation::EndSessions => AccountCommand::EndSessions { username },
                    Operation::Purge => AccountCommand::Purge { username },
                }
            }
            Op::Revoke { session: n, target } => {
                AccountCommand::RevokeSession { session: session(n), target: session(target) }
            }
            Op::Touch(sessions) => AccountCommand::TouchSessions(sessions.iter().map(session).collect()),
            Op::Privacy { session: n, change } => AccountCommand::SetPrivacy { session: session(n), change: *change },
            Op::Registration(registration) => AccountCommand::SetRegistration(*registration),
            Op::Invite { code, uses, lifetime_ms } => AccountCommand::CreateInvitation {
                code_hash: TokenHash([*code; 32]),
                uses: *uses,
                lifetime_ms: *lifetime_ms,
            },
            Op::RevokeInvitation { nth } => {
                let invitation = self.invitations.get(*nth).copied().unwrap_or(Revision(77_777));
                AccountCommand::RevokeInvitation { invitation }
            }
            Op::RemoveExpired { before, limit } => {
                AccountCommand::RemoveExpired { before: TimeMs(*before), limit: *limit }
            }
            other => unreachable!("{other:?} is about something else"),
        }
    }

    pub fn note(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::InvitationCreated { revision, .. } => self.invitations.push(*revision),
            Outcome::AccountCreated { account, repeated: false, .. } => self.accounts.push(*account),
            Outcome::SessionOpened { session, .. } if !self.sessions.contains(session) => self.sessions.push(*session),
            Outcome::MessageSent(sent) if !sent.repeated => {
                self.messages.push(sent.revision.0);
                if sent.seq == Seq(1) {
                    self.conversations.push(sent.conversation);
                }
            }
            _ => {}
        }
    }
}
