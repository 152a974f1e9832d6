//! Admission of requests and calls, with budgets that apply before anything is executed.
//!
//! A request goes through four steps. Its token is looked up, which proves the connection. Its body is received within
//! a budget of bytes and of time (`net::receive`). A complete request takes a permit of its account, or of its address
//! if it has no session. Its answer counts against a budget until the connection has taken it. All budgets are divided
//! by [`Shares`], so no owner can exhaust one, and requests without a session have their own budgets.
//!
//! Does not cover: connections (`net::gate`), and the operator's socket, whose callers own the node.

use std::{convert::Infallible, sync::Arc};

use axum::{body::Body, extract::Request, http::HeaderMap, middleware::Next, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::{ChatApi, auth, status};
use chat::limits::{REQUEST_BYTES_MAX, REQUESTS_AT_ONCE_MAX};
use net::{
    answer::Held,
    gate::{Owner, Ticket},
    receive::{NotReceived, Receiver},
    shares::{Share, Shares},
};
use proto::PREFIX_BYTES;

/// Concurrent calls without a session: logins, registrations, and requests for the leader.
const STRANGERS_AT_ONCE_MAX: usize = 512;
/// Concurrent token look-ups in this node's database, each of which takes about a millisecond.
const LOOK_UPS_MAX: usize = 512;
/// Concurrent streams of reflection and of health watches.
const STREAMS_MAX: usize = 128;
/// Bytes of answers that are not taken yet.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// The method that probes call.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// Calls with large answers, which are paged.
const READS: [&str; 3] = ["ReadConversation", "ListChatPartners", "ListAccounts"];

/// The budgets of a node.
pub(super) struct Admission {
    api: ChatApi,
    receiver: Arc<Receiver>,
    strangers: Arc<Shares>,
    known: Arc<Shares>,
    streams: Arc<Shares>,
    look_ups: Arc<Shares>,
    answers: Arc<Shares>,
}

impl Admission {
    pub(super) fn new(api: ChatApi) -> Arc<Self> {
        let receiver = Arc::clone(&api.inner.receiver);
        Arc::new(Self {
            api,
            receiver,
            strangers: Shares::new(STRANGERS_AT_ONCE_MAX),
            // One account alone gets half, which leaves it `REQUESTS_AT_ONCE_MAX`.
            known: Shares::new(2 * REQUESTS_AT_ONCE_MAX),
            streams: Shares::new(STREAMS_MAX),
            look_ups: Shares::new(LOOK_UPS_MAX),
            answers: Shares::new(ANSWER_BYTES_MAX),
        })
    }

    /// Runs a request within the budgets, or rejects it.
    pub(super) async fn admit(self: Arc<Self>, request: Request, next: Next) -> Response {
        match self.run(request, next).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_http(),
        }
    }

    async fn run(&self, request: Request, next: Next) -> Result<Response, Status> {
        let Some(ticket) = request.extensions().get::<Arc<Ticket>>().cloned() else {
            return Ok(next.run(request).await);
        };
        let path = request.uri().path();
        let has_one_request = path.starts_with("/chat.v1.") || path == HEALTH_CHECK;
        if !has_one_request {
            return self.stream(&ticket, request, next).await;
        }
        let is_read = READS.iter().any(|name| path.ends_with(name));
        let is_stream = path.ends_with("/Subscribe");
        let deadline = Instant::now() + self.api.inner.settings.deadline;
        let (head, body) = request.into_parts();
        let stranger = ticket.stranger(&head.extensions);
        let owner = self.session(&ticket, stranger, &head.headers, deadline).await?.map_or(stranger, Owner::Account);
        // A connection that has presented a session uses its account's budget for all its requests. The budget of
        // strangers is reserved for strangers.
        let bytes_of = ticket.proven_account().filter(|_| owner == stranger).unwrap_or(owner);
        let received = self.receiver.receive(&ticket, bytes_of, body, PREFIX_BYTES + REQUEST_BYTES_MAX).await;
        let (body, _bytes) = received.map_err(not_received)?;
        let _place = self.place(owner)?;
        let request = Request::from_parts(head, Body::from(body));
        if is_stream {
            return Ok(next.run(request).await);
        }
        // A read waits while its connection leaves earlier answers unread.
        let page = match is_read {
            true => {
                let page =
                    timeout_at(deadline, Arc::clone(ticket.pages()).acquire_owned()).await.ok().and_then(Result::ok);
                Some(page.ok_or_else(|| status::overloaded("earlier answers are not taken"))?)
            }
            false => None,
        };
        let (mut head, body) = next.run(request).await.into_parts();
        // Copies the complete answer. Its original buffer is larger, and would be kept until the last byte is taken.
        let body = body.collect().await.map_err(|error| status::internal("the answer cannot be read", &error))?;
        let trailers = body.trailers().cloned().map(Frame::trailers);
        let data = Bytes::copy_from_slice(&body.to_bytes());
        let answer = self.answers.take(owner, data.len());
        // Other answers are small and report executed changes, so they are sent in any case.
        if is_read && answer.is_none() {
            return Err(status::overloaded("too many answers are not taken"));
        }
        head.extensions.insert(Held(Arc::new((page, answer))));
        if data.is_empty() && trailers.is_none() {
            return Ok(Response::from_parts(head, Body::empty()));
        }
        // An empty data frame costs the receiver as much as a full one, and h2 ends connections that receive many of
        // them.
        let frames = Some(data).filter(|data| !data.is_empty()).map(Frame::data).into_iter().chain(trailers);
        let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
        Ok(Response::from_parts(head, Body::new(body)))
    }

    /// Runs calls of reflection and health. Their requests may be streams, so they are not received here.
    async fn stream(&self, ticket: &Ticket, request: Request, next: Next) -> Result<Response, Status> {
        let share = self.streams.take(ticket.stranger(request.extensions()), 1);
        let share = share.ok_or_else(|| status::overloaded("too many streams are open"))?;
        let response = next.run(request).await;
        Ok(response.map(|body| {
            // The permit is held as long as the body of the stream exists.
            let body = BodyStream::new(body).map(move |frame| {
                let _open = &share;
                frame
            });
            Body::new(StreamBody::new(body))
        }))
    }

    /// The account whose session the caller has presented; `None` without a valid session. The method decides whether
    /// it needs one.
    async fn session(
        &self,
        ticket: &Arc<Ticket>,
        stranger: Owner,
        headers: &HeaderMap,
        deadline: Instant,
    ) -> Result<Option<u64>, Status> {
        let Some(token) = auth::bearer_in(headers) else { return Ok(None) };
        let hash = token.hash();
        let account = match self.api.inner.sessions.recent_account(&hash) {
            Some(account) => Some(account),
            None => {
                let look = self
                    .look_ups
                    .take(stranger, 1)
                    .ok_or_else(|| status::overloaded("too many tokens are looked up"))?;
                let inner = &self.api.inner;
                let known =
                    inner.sessions.account_of(hash, &inner.database, deadline).await?.map(|(_, account)| account);
                drop(look);
                match known {
                    Some(account) => Some(account),
                    None => {
                        // This look-up costs a request to the leader, which counts against the budget of strangers.
                        let _place = self.place(stranger)?;
                        self.api.identify(hash, deadline).await.ok().map(|caller| caller.account)
                    }
                }
            }
        };
        if let Some(account) = account {
            ticket.prove(Owner::Account(account.0));
        }
        Ok(account.map(|account| account.0))
    }

    /// Takes a permit for a call.
    fn place(&self, owner: Owner) -> Result<Share, Status> {
        let (places, full) = match owner {
            Owner::Account(_) => (&self.known, "the account has too many requests at once"),
            Owner::Address(_) => (&self.strangers, "there are too many requests without a session at once"),
        };
        places.take(owner, 1).ok_or_else(|| status::overloaded(full))
    }
}

fn not_received(problem: NotReceived) -> Status {
    match problem {
        NotReceived::TooLarge => status::too_large("the request is larger than 64 KiB"),
        NotReceived::Incomplete => status::request_incomplete(),
        NotReceived::BrokenOff => status::broken_off(),
        NotReceived::Full => status::overloaded("too many requests are being received"),
    }
}
