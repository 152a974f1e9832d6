//! `storage::codec`: commands, outcomes and entries, as they are in the log and between nodes.
//!
//! What is decoded and encoded again is the same when it is decoded once more; what is encoded is a command of this
//! version, so every node can apply it.

#![no_main]

use chat::Outcome;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::log::v1 as pb;
use storage::codec::{self, DecodeError};

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    match kind % 4 {
        0 => there_and_back(bytes, codec::decode_command, codec::encode_command),
        1 => there_and_back(bytes, codec::decode_outcome, codec::encode_outcome),
        2 => {
            let Ok(batch) = pb::Batch::decode(bytes) else { return };
            for command in batch.proposals.into_iter().filter_map(|proposal| proposal.command) {
                let command = command.encode_to_vec();
                there_and_back(&command, codec::decode_command, codec::encode_command);
            }
        }
        _ => {
            // With the lengths of an entry and of a batch before it: cut off or too long is an error and no other
            // entry.
            let Ok(entry) = pb::Entry::decode_length_delimited(bytes) else { return };
            let whole = entry.encode_length_delimited_to_vec();
            assert_eq!(pb::Entry::decode_length_delimited(whole.as_slice()), Ok(entry));
            assert!(pb::Entry::decode_length_delimited(&whole[..whole.len() - 1]).is_err());
        }
    }
});

fn there_and_back<M, T>(bytes: &[u8], decode: fn(M) -> Result<T, DecodeError>, encode: fn(&T) -> M)
where
    M: Message + Default + Clone + PartialEq + std::fmt::Debug,
    T: PartialEq + std::fmt::Debug + Bounded,
{
    let Ok(message) = M::decode(bytes) else { return };
    let Ok(value) = decode(message) else { return };
    value.check(bytes.len());
    let encoded = encode(&value).encode_to_vec();
    let message = M::decode(encoded.as_slice()).expect("what was encoded is decoded");
    assert_eq!(encode(&value), message, "encoding is the same each time");
    assert_eq!(decode(message).as_ref(), Ok(&value));
}

/// Nothing is made up: what was decoded is no larger than what it was decoded from.
trait Bounded {
    fn check(&self, bytes: usize);
}

impl Bounded for chat::Command {
    fn check(&self, bytes: usize) {
        use chat::Command as C;
        let size = match self {
            C::CreateAccount { username, password_hash, .. } => username.len() + password_hash.len(),
            C::SendMessage { body, .. } => body.len(),
            C::Receipts(items) => items.len(),
            C::DeleteMessages { messages, .. } => messages.len(),
            _ => 0,
        };
        assert!(size <= bytes);
    }
}

impl Bounded for Outcome {
    fn check(&self, bytes: usize) {
        let Self::ReceiptsApplied(items) = self else { return };
        assert!(items.len() <= bytes);
    }
}
