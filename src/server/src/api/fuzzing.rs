//! The decoders of this layer for bytes of clients. Only the fuzz targets in `fuzz/` use this module.
//!
//! Each function is one decoder, as the calls use it. Does not cover: the properties that a target checks.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, metadata::MetadataMap};

use super::{
    auth::{self, Caller},
    call::Call,
    convert, messages, observe, pages,
    reads::Target,
};
use chat::{AccountId, ClientId, Command, Event, SessionId, TimeMs, limits::Invalid};
use proto::chat::v1 as pb;
use trace::TraceContext;

/// The session of [`send`].
pub const SESSION: SessionId = SessionId(7);

/// The command of a request.
pub fn send(request: pb::SendMessageRequest) -> Result<Command, Invalid> {
    let caller = Caller {
        session: SESSION,
        account: AccountId(1),
        username: "alice".into(),
        expires_at: TimeMs(u64::MAX),
        touch_due: super::auth::TouchDue::default(),
    };
    messages::send_command(&caller, request).map(|(command, _)| command)
}

/// The name of a partner.
pub fn partner(name: String) -> Result<String, Invalid> {
    Target::partner(name).map(|target| match target {
        Target::Partner(name) => name,
        Target::Id(id) => id.to_string(),
    })
}

/// A message's id.
pub fn client_id(text: &str) -> Result<ClientId, Invalid> {
    convert::client_id("client_message_id", text)
}

/// A page token of accounts.
pub fn account_page(token: &str) -> Result<Option<String>, Invalid> {
    pages::account(token)
}

/// The token that [`account_page`] reads.
pub fn account_token(name: &str) -> String {
    pages::after_account(name)
}

/// A page token of conversations, in its canonical text; `None` if it is rejected.
pub fn conversation_page(token: &str) -> Option<String> {
    pages::Place::of(token).ok().map(pages::Place::token)
}

/// The token of a call, as text again; `None` if the caller is rejected.
pub fn bearer(metadata: &MetadataMap) -> Option<String> {
    auth::bearer(metadata).ok().map(|token| token.text())
}

/// The remaining time of a call with the limit `limit`, and its trace context.
pub fn frame(metadata: MetadataMap, limit: Duration) -> (Duration, Option<TraceContext>) {
    let trace = observe::trace(metadata.as_ref());
    let mut request = Request::new(());
    *request.metadata_mut() = metadata;
    let began = Instant::now();
    let call = Call::of(&request, limit);
    (call.deadline.saturating_duration_since(began), trace)
}

/// An event as `me` may see it.
pub fn event(event: &Event, me: AccountId) -> pb::SubscribeResponse {
    convert::event(event, me, event.revision)
}
