//! Encoding and decoding of commands and outcomes, and of bytes that are neither.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn session() -> impl Strategy<Value = SessionId> {
    any::<u64>().prop_map(SessionId)
}

fn command() -> impl Strategy<Value = Command> {
    let to = prop_oneof![
        ".{0,8}".prop_map(Destination::Person),
        any::<u64>().prop_map(|id| Destination::Conversation(ConversationId(id))),
    ];
    let receipt = (session(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(session, c, seq, read)| {
        ReceiptItem { session, conversation: ConversationId(c), up_to: Seq(seq), read }
    });
    prop_oneof![
        (".{0,8}", ".{0,8}", any::<Option<[u8; 16]>>()).prop_map(|(username, password_hash, id)| {
            Command::CreateAccount { username, password_hash, request_id: id.map(ClientId), invitation: None }
        }),
        (any::<u64>(), any::<[u8; 32]>(), any::<u64>()).prop_map(|(account, hash, lifetime_ms)| {
            Command::OpenSession {
                account: AccountId(account),
                token_hash: chat::TokenHash(hash),
                lifetime_ms,
                login: chat::Login::default(),
            }
        }),
        (session(), any::<bool>()).prop_map(|(session, all)| Command::CloseSession { session, all }),
        session().prop_map(|session| Command::DeleteAccount { session }),
        session().prop_map(|session| Command::BeginAccountDeletion { session }),
        (any::<u64>(), any::<u32>())
            .prop_map(|(account, limit)| Command::EraseAccount { account: AccountId(account), limit }),
        (session(), to, any::<[u8; 16]>(), ".{0,64}").prop_map(|(session, to, id, body)| {
            Command::SendMessage { session, to, client_id: ClientId(id), body }
        }),
        prop::collection::vec(receipt, 0..4).prop_map(Command::Receipts),
        (session(), prop::collection::vec(any::<u64>(), 0..4), any::<bool>())
            .prop_map(|(session, messages, for_everyone)| Command::DeleteMessages { session, messages, for_everyone }),
        Just(Command::NoteDigest),
        (any::<[u8; 32]>(), any::<u64>())
            .prop_map(|(hash, lifetime_ms)| Command::IssueJoinToken { token_hash: TokenHash(hash), lifetime_ms }),
        (any::<[u8; 32]>(), any::<u64>())
            .prop_map(|(hash, admission)| Command::RedeemJoinToken { token_hash: TokenHash(hash), admission }),
        (any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(node_id, mark, digest)| {
            Command::ReportDigest(DigestReport { node_id, mark, digest: StateDigest(digest) })
        }),
    ]
}

fn rejection() -> impl Strategy<Value = Rejection> {
    prop_oneof![1..=8, 10..=11, Just(15), Just(20)].prop_map(|reason| decode_rejection(reason).expect("a known one"))
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let result = prop_oneof![
        (any::<u64>(), any::<u64>()).prop_map(|(seq, revision)| Ok((Seq(seq), Revision(revision)))),
        rejection().prop_map(Err),
    ];
    prop_oneof![
        rejection().prop_map(Outcome::Rejected),
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(account, revision, repeated)| {
            Outcome::AccountCreated { account: AccountId(account), revision: Revision(revision), repeated }
        }),
        (session(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(session, account, expires, revision)| {
            Outcome::SessionOpened {
                session,
                account: AccountId(account),
                expires_at: TimeMs(expires),
                revision: Revision(revision),
            }
        }),
        (any::<u32>(), any::<u64>())
            .prop_map(|(count, revision)| Outcome::SessionsClosed { count, revision: Revision(revision) }),
        (any::<u64>(), any::<u64>()).prop_map(|(revision, deleted_messages)| Outcome::AccountDeleted {
            revision: Revision(revision),
            deleted_messages
        }),
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
            |(conversation, seq, revision, time, repeated)| Outcome::MessageSent(MessageSent {
                conversation: ConversationId(conversation),
                seq: Seq(seq),
                revision: Revision(revision),
                time: TimeMs(time),
                repeated,
            })
        ),
        prop::collection::vec(result, 0..4).prop_map(Outcome::ReceiptsApplied),
        (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(deleted, ignored, revision)| {
            Outcome::MessagesDeleted { deleted, ignored, revision: Revision(revision) }
        }),
        Just(Outcome::DigestNoted),
        any::<u64>().prop_map(|time| Outcome::JoinTokenIssued { expires_at: TimeMs(time) }),
        Just(Outcome::JoinTokenRedeemed),
        (any::<u64>(), any::<bool>())
            .prop_map(|(revision, done)| Outcome::AccountErased { revision: Revision(revision), done }),
    ]
}

proptest! {
    #[test]
    fn commands_survive_the_disk(command in command()) {
        let bytes = encode_command(&command).encode_to_vec();
        let read = pb::Command::decode(bytes.as_slice()).expect("was encoded");
        prop_assert_eq!(decode_command(read), Ok(command));
    }

    #[test]
    fn outcomes_survive_the_wire(outcome in outcome()) {
        let bytes = encode_outcome(&outcome).encode_to_vec();
        let read = pb::Outcome::decode(bytes.as_slice()).expect("was encoded");
        prop_assert_eq!(decode_outcome(read), Ok(outcome));
    }

    #[test]
    fn garbage_is_an_error_or_a_command(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(command) = pb::Command::decode(bytes.as_slice()) {
            let _ = decode_command(command);
        }
        if let Ok(outcome) = pb::Outcome::decode(bytes.as_slice()) {
            let _ = decode_outcome(outcome);
        }
    }

    #[test]
    fn a_cut_or_changed_command_never_panics(command in command(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = encode_command(&command).encode_to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            for slice in [&bytes[..], &bytes[..at]] {
                if let Ok(command) = pb::Command::decode(slice) {
                    let _ = decode_command(command);
                }
            }
        }
    }
}

#[test]
fn a_kind_of_a_later_version_is_told() {
    // Field 99 with an empty message, like a command of a later version.
    let command = pb::Command::decode([0x9a, 0x06, 0x00].as_slice()).expect("unknown fields are skipped");
    assert_eq!(decode_command(command), Err(DecodeError::UnknownKind("a command")));
    let rejected = pb::Rejected { reason: 99 };
    let outcome = pb::Outcome { kind: Some(pb::outcome::Kind::Rejected(rejected)) };
    assert_eq!(decode_outcome(outcome), Err(DecodeError::UnknownReason(99)));
}

#[test]
fn steps_of_an_erasure_are_recognized_in_a_batch() {
    let batch = |command| {
        let proposal = pb::Proposal { command: Some(encode_command(&command)), ..Default::default() };
        pb::Batch { proposals: vec![proposal], ..Default::default() }.encode_to_vec()
    };
    assert!(may_erase(&batch(Command::EraseAccount { account: AccountId(1), limit: 256 })));
    assert!(!may_erase(&batch(Command::BeginAccountDeletion { session: SessionId(1) })));
    assert!(!may_erase(&batch(Command::NoteDigest)));
}

#[test]
fn ids_have_their_length() {
    let send = pb::SendMessage {
        to: Some(pb::send_message::To::ConversationId(1)),
        client_id: vec![0; 15],
        ..Default::default()
    };
    let command = pb::Command { kind: Some(pb::command::Kind::SendMessage(send)) };
    let expected = DecodeError::Length { field: "client_id", found: 15, expected: 16 };
    assert_eq!(decode_command(command), Err(expected));
}
