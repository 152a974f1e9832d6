//! What a server sends to the client: answers of the hand-written calls, errors with their details, events.
//!
//! An answer is one message with the status of success, or an error. An outcome is called known only when the service
//! said so. Pauses are ones that a client can wait for. Events come in order and once.

#![no_main]

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use arbitrary::Arbitrary;
use bytes::Bytes;
use client::{ERROR_DOMAIN, EventKind, fuzzing};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use proto::chat::v1 as pb;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tonic::{
    Code, Status,
    codegen::http::{HeaderMap, HeaderName, HeaderValue, Response},
};
use tonic_types::StatusExt as _;
use verify::connection::Connection;

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// Bytes where HTTP/2 is expected.
    Bytes(&'a [u8]),
    Answer(Answer<'a>),
    Failure {
        code: u8,
        message: &'a str,
        details: &'a [u8],
    },
    Events {
        after: Option<u8>,
        responses: Vec<Told>,
    },
}

/// An answer in HTTP/2.
#[derive(Debug, Arbitrary)]
struct Answer<'a> {
    head: Vec<(Header, &'a [u8])>,
    parts: Vec<&'a [u8]>,
    trailers: Option<Vec<(Header, &'a [u8])>>,
    /// The connection ends instead of the trailers.
    reset: bool,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Header {
    Status,
    Message,
    Details,
    Other,
}

#[derive(Debug, Clone, Arbitrary)]
enum Told {
    Heartbeat(u8),
    Message(u8),
    Receipt(u8),
    Bytes(Vec<u8>),
}

/// Nothing that a server sends may make a client wait longer.
const PAUSE_MAX: Duration = Duration::from_secs(120);

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().expect("starts"));

fuzz_target!(|input: Input| match input {
    Input::Bytes(bytes) => {
        let answer = RUNTIME.block_on(async {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            far.write_all(bytes).await.expect("there is room");
            // What the client says goes nowhere; there is no more to come.
            far.shutdown().await.expect("open");
            call(near).await
        });
        assert!(answer.is_err(), "nobody made an answer");
    }
    Input::Answer(answer) => check_answer(&answer),
    Input::Failure { code, message, details } => {
        let code = Code::from(i32::from(code % 17));
        judge(Status::with_details(code, message, Bytes::copy_from_slice(details)));
    }
    Input::Events { after, responses } => events(after.map(u64::from), &responses),
});

fn check_answer(answer: &Answer<'_>) {
    let body = answer.parts.concat();
    let result = RUNTIME.block_on(async {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (result, _) = tokio::join!(call(near), respond(far, answer));
        result
    });
    match result {
        Ok(message) => {
            let (prefix, rest) = body.split_first_chunk::<5>().expect("a message has a prefix");
            assert_eq!(prefix[0], 0, "nothing is compressed");
            assert_eq!(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize, rest.len());
            assert_eq!(pb::SendMessageResponse::decode(rest), Ok(message));
            assert!(answer.trailers.is_some() && !answer.reset, "an answer has a status");
        }
        Err(status) => judge(status),
    }
}

/// Makes one call over an existing connection.
async fn call(stream: DuplexStream) -> Result<pb::SendMessageResponse, Status> {
    let connection = Connection::over(stream, "test").await;
    let mut connection = connection.map_err(|error| Status::unavailable(error.to_string()))?;
    connection.call("/chat.v1.ChatService/SendMessage", None, &pb::SendMessageRequest::default()).await
}

/// Plays the server. What HTTP/2 does not let it send is not sent.
async fn respond(stream: DuplexStream, answer: &Answer<'_>) -> Option<()> {
    let mut server = h2::server::handshake(stream).await.ok()?;
    let (_request, mut respond) = server.accept().await?.ok()?;
    let mut response = Response::new(());
    *response.headers_mut() = headers(&answer.head);
    let mut body = respond.send_response(response, false).ok()?;
    for part in &answer.parts {
        body.send_data(Bytes::copy_from_slice(part), false).ok()?;
    }
    match &answer.trailers {
        _ if answer.reset => body.send_reset(h2::Reason::INTERNAL_ERROR),
        Some(trailers) => body.send_trailers(headers(trailers)).ok()?,
        None => body.send_data(Bytes::new(), true).ok()?,
    }
    server.graceful_shutdown();
    while let Some(Ok(_)) = server.accept().await {}
    Some(())
}

fn headers(given: &[(Header, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (header, value) in given {
        let name = match header {
            Header::Status => "grpc-status",
            Header::Message => "grpc-message",
            Header::Details => "grpc-status-details-bin",
            Header::Other => "other",
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            map.insert(HeaderName::from_static(name), value);
        }
    }
    map
}

fn judge(status: Status) {
    let of_service = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN);
    let code = status.code();
    let judged = fuzzing::judge(status, Duration::from_millis(20), Duration::from_secs(2));
    assert_eq!(judged.error.code, code);
    assert_eq!(judged.error.reason, of_service.as_ref().map(|info| info.reason.clone()));
    let silent = matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown);
    assert!(of_service.is_some() || !silent || judged.unknown, "{code:?}: only the service can say what came of it");
    assert!(!(judged.is_final && judged.unknown));
    assert!(judged.pause <= PAUSE_MAX, "{:?}: nobody waits so long", judged.pause);
    // As the calls do.
    let _ = Instant::now() + judged.pause;
    let _ = judged.error.to_string();
}

fn events(after: Option<u64>, responses: &[Told]) {
    use pb::subscribe_response::Event as Wire;
    let response = |response: &Told| {
        let (revision, event) = match response {
            Told::Heartbeat(revision) => (*revision, Wire::Heartbeat(pb::Heartbeat::default())),
            Told::Message(id) => {
                let message = pb::Message { message_id: (*id).into(), ..Default::default() };
                (*id, Wire::Message(pb::MessageEvent { message: Some(message), members: vec![] }))
            }
            Told::Receipt(revision) => (*revision, Wire::Receipt(pb::ReceiptEvent::default())),
            Told::Bytes(bytes) => {
                return pb::SubscribeResponse::decode(bytes.as_slice()).ok().filter(well_formed);
            }
        };
        Some(pb::SubscribeResponse { revision: revision.into(), event: Some(event), ..Default::default() })
    };
    let responses: Vec<_> = responses.iter().filter_map(response).collect();
    let (events, cursor) = fuzzing::passed_on(after, responses);
    // Without a cursor only messages are certain to come in order: a node sends nothing else then.
    let ordered: Vec<u64> = events
        .iter()
        .filter(|event| after.is_some() || matches!(event.kind, EventKind::Message(_)))
        .map(|event| event.revision)
        .collect();
    assert!(ordered.is_sorted_by(|a, b| a < b), "{ordered:?}: in order and once");
    if let (Some(after), Some(first)) = (after, ordered.first()) {
        assert!(*first > after);
    }
    assert!(after.is_none() || cursor >= ordered.last().copied().max(after), "nothing is asked for again");
}

/// A message's id is its revision.
fn well_formed(response: &pb::SubscribeResponse) -> bool {
    match &response.event {
        Some(pb::subscribe_response::Event::Message(event)) => {
            event.message.as_ref().is_some_and(|message| message.message_id == response.revision)
        }
        _ => true,
    }
}
