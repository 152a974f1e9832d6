//! The gRPC services for clients and operators: `chat.v1` over the replicated state.
//!
//! Owns the stages of a call: authentication (`auth`), validation of the request, the deadline (`call`), the
//! consistency of reads (`reads`), and the mapping of errors to the wire (`status`, the only place that makes a
//! status). Each file covers one concern. `service` connects them to the generated traits, `routes` to a server.
//!
//! Invariants:
//! - A change goes only through the log. A read is one transaction on this node, after the barrier that its consistency
//!   requires. The caller's session is checked in the same transaction, or again on apply.
//! - Every call has a deadline and every queue a bound. Database and hashing work never runs on an async thread.
//! - UNAVAILABLE means that nothing was applied.
//! - Nothing of a call runs before its request is complete and has a permit (`admission`).
//!
//! Does not cover: TLS, connections and keepalive (`net`), and the service for peers.

mod account_admin;
mod accounts;
mod admin;
mod admission;
mod aging;
mod auth;
mod backup;
mod call;
mod cluster;
mod convert;
mod database;
mod feed;
// Also built for tests, which are compiled more often than the fuzz targets.
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod housekeeping;
mod messages;
mod observe;
mod pages;
mod passwords;
mod privacy;
mod reads;
mod receipts;
mod routes;
mod service;
mod sessions;
mod status;
mod subscribe;
mod throttle;
mod wire;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::Status;

use crate::delivery::Hub;
use auth::Sessions;
use call::Call;
use chat::{AccountId, Command, Outcome, Rejection};
use database::Database;
use housekeeping::Touches;
use net::receive::Receiver;
use passwords::Passwords;
use raft::{Node, ProposeError};
use receipts::Receipts;
use storage::Readers;
use throttle::Throttle;
use trace::Tracer;

pub use observe::{ApiObserver, OTHER};
pub use routes::{admin_routes, client_routes};
pub use status::{DOMAIN, Fault};
pub use throttle::AttemptRates;

/// API settings.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// The name of this node, for answers that contain it.
    pub node_name: String,
    /// The lifetime of a session after its login.
    pub session_lifetime: Duration,
    /// Idle time after which a session ends; zero if sessions do not end by idleness.
    pub session_idle: Duration,
    /// Attempts to log in and to register that are allowed while this node leads.
    pub attempts_per_hour: AttemptRates,
    /// Passwords that are hashed concurrently.
    pub hash_parallelism: usize,
    /// Time without contact to the leader after which a node counts as down.
    pub election_timeout: Duration,
    /// Idle time of a subscription after which a heartbeat is sent.
    pub subscription_heartbeat: Duration,
    /// Whether the client port serves gRPC reflection.
    pub reflection: bool,
    /// Time limit for a call, even if its caller allows more.
    pub deadline: Duration,
}

impl ApiSettings {
    /// Settings of which only these four differ between nodes. The rest is as the protocol documents it.
    pub fn new(
        node_name: String,
        session_lifetime: Duration,
        hash_parallelism: usize,
        election_timeout: Duration,
    ) -> Self {
        Self {
            node_name,
            session_lifetime,
            session_idle: Duration::ZERO,
            attempts_per_hour: AttemptRates::default(),
            hash_parallelism,
            election_timeout,
            subscription_heartbeat: Duration::from_secs(15),
            reflection: true,
            deadline: Duration::from_secs(10),
        }
    }
}

/// The parts that the services are built from.
pub struct ApiParts {
    /// Consensus.
    pub node: Node,
    /// This node's copy of the state.
    pub readers: Arc<Readers>,
    /// The applied events, for subscribers.
    pub hub: Hub,
    /// The settings.
    pub settings: ApiSettings,
    /// Observes calls.
    pub observer: Arc<dyn ApiObserver>,
    /// Records the traces of calls.
    pub tracer: Tracer,
    /// Receives the bodies of requests.
    pub receiver: Arc<Receiver>,
}

/// All services of a node for clients and operators. Clones share everything.
#[derive(Clone)]
pub struct ChatApi {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    hub: Hub,
    database: Database,
    sessions: Sessions,
    passwords: Passwords,
    touches: Touches,
    receipts: Receipts,
    settings: ApiSettings,
    observer: Arc<dyn ApiObserver>,
    tracer: Tracer,
    receiver: Arc<Receiver>,
}

impl ChatApi {
    /// Builds the services. Needs a tokio runtime for the task that batches receipts, which ends with the last clone.
    pub fn new(parts: ApiParts) -> Self {
        let ApiParts { node, readers, hub, settings, observer, tracer, receiver } = parts;
        node.limit_attempts(Arc::new(Throttle::new(settings.attempts_per_hour)));
        let database = Database::new(readers);
        housekeeping::remove_expired(node.clone(), &hub, database.clone());
        let touches = Touches::start(node.clone(), database.clone());
        let inner = Inner {
            database,
            sessions: Sessions::new(&hub),
            passwords: Passwords::new(settings.hash_parallelism),
            touches,
            receipts: Receipts::start(node.clone()),
            node,
            hub,
            settings,
            observer,
            tracer,
            receiver,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The context of a call, before its body is examined.
    fn call<T>(&self, request: &tonic::Request<T>) -> Call {
        Call::of(request, self.inner.settings.deadline)
    }

    /// Proposes a change of the caller, which counts against the rates of the account.
    async fn propose_as(
        &self,
        call: &Call,
        account: AccountId,
        command: Command,
    ) -> Result<Result<Outcome, Rejection>, Status> {
        let outcome = self.inner.node.propose_for(account, command, call.trace, call.deadline).await;
        judged(outcome, call)
    }

    /// Proposes a change that counts against no account's rates. A rejection is the `Err` of the inner result, so that
    /// the caller can map it.
    async fn propose(&self, call: &Call, command: Command) -> Result<Result<Outcome, Rejection>, Status> {
        self.propose_as(call, AccountId(0), command).await
    }

    /// After this, the node has applied everything that was acknowledged before the call.
    async fn barrier(&self, deadline: Instant) -> Result<(), Status> {
        self.inner.node.read_barrier(deadline).await.map_err(|error| status::read(&error))
    }
}

impl fmt::Debug for ChatApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatApi").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// The outcome of a proposal, with a rejection as the inner error.
fn judged(outcome: Result<Outcome, ProposeError>, call: &Call) -> Result<Result<Outcome, Rejection>, Status> {
    match outcome.map_err(|error| status::propose(&error, call.deadline))? {
        Outcome::Rejected(rejection) => Ok(Err(rejection)),
        other => Ok(Ok(other)),
    }
}

/// A status for an outcome that the command cannot have, which is a bug.
fn unexpected(outcome: &Outcome) -> Status {
    status::internal("the change has the outcome of another command", &format!("{outcome:?}"))
}
