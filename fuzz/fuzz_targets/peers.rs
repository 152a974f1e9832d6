//! `raft.v1`: what other nodes send, behind the peer port.
//!
//! What is understood of a message is the same when it is sent on; a call is let in only with the credentials of this
//! cluster and this node; a snapshot is taken only when it is, byte for byte, what its header says, and leaves nothing
//! behind when it is not.

#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use arbitrary::Arbitrary;
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::Full;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::{log::v1 as pb, raft::v1 as wire};
use quorum_chat_fuzz::{
    edits::{self, Edit},
    fixtures,
    scratch::Scratch,
};
use raft::{convert::Malformed, fuzzing, peers::Credentials};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Message(u8, &'a [u8]),
    Call {
        name: [Word<'a>; 2],
    },
    Snapshot(Snapshot),
    /// The stream as it comes.
    Stream(&'a [u8]),
}

/// What a call says, in one of the fields that matter.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Word<'a> {
    Right,
    Absent,
    Bytes(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
struct Snapshot {
    edits: Vec<Edit>,
    chunk_pages: u8,
    /// The chunks do not end where pages do.
    is_askew: bool,
    longer: i8,
    has_other_checksum: bool,
    second_header: bool,
    cut: u8,
}

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::default);
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("starts"));

fuzz_target!(|input: Input| match input {
    Input::Message(kind, bytes) => message(kind, bytes),
    Input::Call { name } => call(name),
    Input::Snapshot(snapshot) => receive(&snapshot),
    Input::Stream(bytes) => {
        let dir = SCRATCH.emptied();
        let header = header(bytes);
        // It would have to be a database, with its length in front.
        let _ = RUNTIME.block_on(fuzzing::receive_snapshot(dir, &header, Full::new(Bytes::copy_from_slice(bytes))));
        nothing_is_left(dir);
    }
});

fn message(kind: u8, bytes: &[u8]) {
    match kind % 8 {
        0 => there_and_back::<pb::Entry>(bytes, fuzzing::entry),
        1 => there_and_back::<pb::StoredMembership>(bytes, fuzzing::stored_membership),
        2 => there_and_back::<wire::AppendRequest>(bytes, fuzzing::append_request),
        3 => there_and_back::<wire::AppendResponse>(bytes, fuzzing::append_response),
        4 => there_and_back::<wire::AppendResponse>(bytes, fuzzing::stream_result),
        5 => there_and_back::<wire::VoteRequest>(bytes, fuzzing::vote_request),
        6 => there_and_back::<wire::VoteResponse>(bytes, fuzzing::vote_response),
        _ => there_and_back::<wire::TransferLeaderRequest>(bytes, fuzzing::transfer_request),
    }
}

fn there_and_back<M>(bytes: &[u8], understand: fn(M) -> Result<M, Malformed>)
where
    M: Message + Default + Clone + PartialEq + std::fmt::Debug,
{
    let Ok(message) = M::decode(bytes) else { return };
    let Ok(understood) = understand(message) else { return };
    let sent_on = M::decode(understood.encode_to_vec().as_slice()).expect("what was encoded is decoded");
    assert_eq!(understand(sent_on).ok(), Some(understood), "the same once more");
}

fn call(name: [Word<'_>; 2]) {
    let own = Credentials::new("c1", 2, "n2", "n2:50052").expect("plain text");
    let mut metadata = MetadataMap::new();
    let mut right = true;
    for ((key, expected), word) in [("quorum-cluster", "c1"), ("quorum-target", "2")].into_iter().zip(name) {
        let given = match word {
            Word::Right => expected.as_bytes(),
            Word::Absent => b"",
            Word::Bytes(bytes) => bytes,
        };
        right &= given == expected.as_bytes();
        let Ok(value) = AsciiMetadataValue::try_from(given) else { return };
        if !matches!(word, Word::Absent) {
            metadata.insert(key, value);
        }
    }
    assert_eq!(own.check(&metadata).is_ok(), right, "{metadata:?}");
}

fn header(bytes: &[u8]) -> wire::SnapshotHeader {
    wire::SnapshotHeader { length_bytes: bytes.len() as u64, ..Default::default() }
}

fn frame(message: &wire::SnapshotChunk, into: &mut BytesMut) {
    into.put_u8(0);
    into.put_u32(message.encoded_len() as u32);
    message.encode(into).expect("there is room");
}

fn receive(snapshot: &Snapshot) {
    use wire::snapshot_chunk::Part;
    let dir = SCRATCH.emptied();
    let mut bytes = fixtures::SNAPSHOT.to_vec();
    edits::damage(&mut bytes, &snapshot.edits);
    let mut header = header(&bytes);
    header.length_bytes = header.length_bytes.saturating_add_signed(snapshot.longer.into());
    let mut stream = BytesMut::new();
    let chunk = usize::from(snapshot.chunk_pages).max(1) * 4096 + usize::from(snapshot.is_askew);
    for data in bytes.chunks(chunk) {
        frame(&wire::SnapshotChunk { part: Some(Part::Data(Bytes::copy_from_slice(data))) }, &mut stream);
    }
    if snapshot.second_header {
        frame(&wire::SnapshotChunk { part: Some(Part::Header(header.clone())) }, &mut stream);
    }
    let crc32 = crc32fast::hash(&bytes) ^ u32::from(snapshot.has_other_checksum);
    frame(&wire::SnapshotChunk { part: Some(Part::End(wire::SnapshotEnd { crc32 })) }, &mut stream);
    stream.truncate(stream.len() - usize::from(snapshot.cut).min(stream.len()));
    // In one part, the pages are where they belong.
    let is_askew = snapshot.is_askew && bytes.len() > chunk;
    let is_whole = !snapshot.second_header && snapshot.cut == 0 && !is_askew;
    let is_good = is_whole && snapshot.longer == 0 && !snapshot.has_other_checksum;
    let received = RUNTIME.block_on(fuzzing::receive_snapshot(dir, &header, Full::new(stream.freeze())));
    match received {
        Ok(_received) => {
            assert!(is_good, "a snapshot that is not what its header and its end say");
            assert_eq!(the_one_file(dir).as_deref(), Some(bytes.as_slice()), "what was received is what was sent");
        }
        Err(_) => {
            assert!(!is_good || bytes != fixtures::SNAPSHOT, "a good snapshot is refused");
            nothing_is_left(dir);
        }
    }
}

fn the_one_file(dir: &Path) -> Option<Vec<u8>> {
    let mut files = fs::read_dir(dir.join("snapshots")).expect("made");
    let file = files.next()?.expect("listed").path();
    assert!(files.next().is_none(), "one file");
    Some(fs::read(file).expect("read"))
}

fn nothing_is_left(dir: &Path) {
    assert_eq!(the_one_file(dir), None, "what was refused stays");
}
