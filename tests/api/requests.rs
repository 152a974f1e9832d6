//! Malformed requests: bytes that are not a message, too many bytes, methods that do not exist.

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

use super::{
    node::{Node, soon},
    person::{Answer, Person, message, new_id, refused, with_token},
};

/// A codec that passes bytes through unchanged.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        *self
    }

    fn decoder(&mut self) -> Raw {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

async fn call(channel: &Channel, method: &str, request: Request<Bytes>) -> Answer<Bytes> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    soon(method, grpc.unary(request, method.parse::<PathAndQuery>().expect("a path"), Raw)).await
}

/// A message whose only field, `number`, contains `bytes`.
fn field(number: u8, bytes: &[u8]) -> Bytes {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
    out.extend_from_slice(bytes);
    out.into()
}

#[tokio::test]
async fn text_that_is_not_utf8_is_blamed_on_its_field() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let channel = node.channel().await;
    for (method, number, name) in [
        ("CreateAccount", 1, "username"),
        ("CreateAccount", 2, "password"),
        ("CreateAccount", 3, "request_id"),
        ("Login", 1, "username"),
        ("Login", 2, "password"),
        ("ListAccounts", 1, "query"),
        ("ListAccounts", 3, "page_token"),
        ("SendMessage", 1, "recipient"),
        ("SendMessage", 3, "body"),
        ("SendMessage", 4, "client_message_id"),
        ("ReadConversation", 1, "partner"),
        ("ListChatPartners", 2, "page_token"),
        ("MarkRead", 1, "partner"),
    ] {
        for text in [&b"\xff"[..], b"caf\xe9", b"\xed\xa0\x80", b"\xc0\x80"] {
            let request = with_token(&alice.token, field(number, text));
            let answer = call(&channel, &format!("/chat.v1.ChatService/{method}"), request).await;
            refused(answer, Code::InvalidArgument, "INVALID_FIELD", name);
        }
    }
    alice.send("alice", "still here").await;
}

#[tokio::test]
async fn bytes_that_are_no_message_are_the_callers_mistake() {
    let node = Node::start().await;
    let alice = Person::join(&node, "alice").await;
    let channel = node.channel().await;
    let methods = ["CreateAccount", "Login", "SendMessage", "DeleteMessages", "AcknowledgeDelivery", "Logout"];
    // An endless number, a wire type that does not exist, field 0, a group without an end.
    for garbage in [&[0xff; 20][..], b"\x0f\x01", b"\x02\x01x", b"\x7b\x7b\x7b"] {
        for method in methods {
            let request = with_token(&alice.token, Bytes::copy_from_slice(garbage));
            let answer = call(&channel, &format!("/chat.v1.ChatService/{method}"), request).await;
            refused(answer, Code::InvalidArgument, "INVALID_REQUEST", "");
        }
    }
    // Fields that this version does not know are not an error, because a newer client may send them.
    let request = with_token(&alice.token, Bytes::from_static(b"\xfa\x07\x01x"));
    call(&channel, "/chat.v1.ChatService/Logout", request).await.expect("unknown fields are skipped");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_costs_nothing() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let before = node.resident_bytes();
    let large = "x".repeat(10 << 20);
    for _ in 0..20 {
        let answer = alice.try_send(message("alice", &large, &new_id())).await;
        refused(answer, Code::ResourceExhausted, "REQUEST_TOO_LARGE", "");
    }
    let channel = node.channel().await;
    let request = Request::new(Bytes::from(vec![0; 10 << 20]));
    let answer = call(&channel, "/chat.v1.ClusterService/ListNodes", request).await;
    refused(answer, Code::ResourceExhausted, "REQUEST_TOO_LARGE", "");
    // The connection still works.
    alice.send("alice", "still here").await;
    let grown = node.resident_bytes().saturating_sub(before);
    assert!(grown < 20 << 20, "{} KiB more", grown >> 10);
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let node = Node::start().await;
    let alice = Person::join(&node, "alice").await;
    let channel = node.channel().await;
    // The operator's service and the peers' service are not on the client port.
    for method in [
        "/chat.v1.ChatService/Nothing",
        "/chat.v1.Nothing/Login",
        "/chat.v1.AdminService/Snapshot",
        "/chat.v1.AdminService/TransferLeadership",
        "/raft.v1.RaftService/Append",
        "/raft.v1.RaftService/Probe",
        "/",
    ] {
        let answer = call(&channel, method, with_token(&alice.token, Bytes::new())).await;
        assert_eq!(answer.expect_err(method).code(), Code::Unimplemented, "{method}");
    }
}

#[tokio::test]
async fn headers_have_a_limit() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let channel = node.channel().await;
    let mut request = with_token(&alice.token, Bytes::new());
    for i in 0..64 {
        let key = format!("x-filler-{i}").parse::<tonic::metadata::MetadataKey<_>>().expect("a key");
        request.metadata_mut().insert(key, "x".repeat(1024).parse().expect("visible characters"));
    }
    call(&channel, "/chat.v1.ClusterService/ListNodes", request).await.expect_err("64 KiB of headers");
    alice.send("alice", "still here").await;
}
