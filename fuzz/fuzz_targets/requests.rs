//! `chat.v1`: what clients send, before it is a command.
//!
//! What is accepted keeps the limits, and is applied by every node as it was checked; tokens are what this program gave
//! out; what goes into the log of a caller's header has the form that it has to have.

#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use chat::{
    Command, Destination,
    limits::{self, BODY_BYTES_MAX, USERNAME_CHARS_MAX},
};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use proto::chat::v1 as pb;
use server::api::fuzzing;
use storage::codec;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Send(&'a [u8]),
    Name(String),
    ClientId(&'a str),
    AccountPage(&'a str),
    ConversationPage(&'a str),
    Bearer(&'a [u8]),
    Frame { timeout: &'a [u8], traceparent: &'a [u8], limit_ms: u16 },
    Numbers { asked: u32, count: u16 },
}

fuzz_target!(|input: Input| match input {
    Input::Send(bytes) => send(bytes),
    Input::Name(name) => {
        let good = !name.is_empty()
            && name.len() <= USERNAME_CHARS_MAX
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c));
        assert_eq!(limits::check_username("username", &name).is_ok(), good, "{name:?}");
        assert_eq!(fuzzing::partner(name.clone()).ok(), good.then_some(name));
    }
    Input::ClientId(text) => {
        let Ok(id) = fuzzing::client_id(text) else { return };
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let digits = digits.to_ascii_lowercase();
        let hex: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(digits.ends_with(&hex), "{text:?} is another id");
    }
    Input::AccountPage(token) => {
        let Ok(Some(name)) = fuzzing::account_page(token) else { return };
        assert_eq!(limits::check_username("username", &name), Ok(()));
        assert_eq!(fuzzing::account_token(&name), token.to_ascii_lowercase());
    }
    Input::ConversationPage(token) => {
        let Some(again) = fuzzing::conversation_page(token) else { return };
        assert_eq!(again, token.to_ascii_lowercase());
    }
    Input::Bearer(bytes) => {
        let Some(metadata) = metadata(&[("authorization", bytes)]) else { return };
        let Some(token) = fuzzing::bearer(&metadata) else { return };
        assert!(token.len() == 64 && bytes.to_ascii_lowercase().ends_with(token.as_bytes()) || ends_in_space(bytes));
    }
    Input::Frame { timeout, traceparent, limit_ms } => {
        let Some(metadata) = metadata(&[("grpc-timeout", timeout), ("traceparent", traceparent)]) else { return };
        let limit = Duration::from_millis(limit_ms.into());
        let (time, trace) = fuzzing::frame(metadata, limit);
        // The clock has moved between the two readings.
        assert!(time <= limit + Duration::from_secs(5), "nobody gets more time than there is");
        let Some(trace) = trace.map(|trace| trace.to_string()) else { return };
        assert_eq!(trace.as_bytes()[2..53], traceparent[2..53]);
        let is_good = trace.len() == 55 && trace.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
        assert!(is_good, "{trace:?} goes into the log");
    }
    Input::Numbers { asked, count } => {
        let size = limits::page_size("limit", asked, limits::PAGE_SIZE_CONVERSATION);
        assert!(size.is_ok_and(|size| (1..=limits::PAGE_SIZE_MAX).contains(&size)) || asked > limits::PAGE_SIZE_MAX);
        let count = usize::from(count);
        let accepted = limits::check_count("message_ids", count, limits::DELETE_IDS_MAX).is_ok();
        assert_eq!(accepted, (1..=limits::DELETE_IDS_MAX).contains(&count));
    }
});

fn send(bytes: &[u8]) {
    let Ok(request) = pb::SendMessageRequest::decode(bytes) else { return };
    let Ok(command) = fuzzing::send(request.clone()) else { return };
    assert_eq!(codec::decode_command(codec::encode_command(&command)).as_ref(), Ok(&command), "it can be applied");
    let Command::SendMessage { session, to, client_id, body } = command else { panic!("another command") };
    assert_eq!(session, fuzzing::SESSION);
    assert!((1..=BODY_BYTES_MAX).contains(&body.len()) && body == request.body);
    assert_eq!(fuzzing::client_id(&request.client_message_id), Ok(client_id));
    match to {
        Destination::Person(name) => assert_eq!(limits::check_username("recipient", &name), Ok(())),
        Destination::Conversation(id) => assert_ne!(id.0, 0),
    }
}

/// What a caller can send as a header; `None` for what HTTP does not allow.
fn metadata(values: &[(&'static str, &[u8])]) -> Option<MetadataMap> {
    let mut metadata = MetadataMap::new();
    for (key, value) in values {
        metadata.insert(*key, AsciiMetadataValue::try_from(*value).ok()?);
    }
    Some(metadata)
}

fn ends_in_space(bytes: &[u8]) -> bool {
    bytes.last().is_some_and(u8::is_ascii_whitespace)
}
