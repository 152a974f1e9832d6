//! The gRPC services for clients and operators: `chat.v1` over the replicated state.
//!
//! Owns what a call goes through: who the caller is (`auth`), whether the request is well formed, how long it may
//! take (`call`), which consistency a read has (`reads`), and what an error is called on the wire (`status`, the only
//! place that makes one). One file per concern; `service` joins them to the generated traits, `routes` to a server.
//!
//! Invariants:
//! - A change goes through the log and nothing else; a read is one transaction on this node, after the barrier that
//!   its consistency asks for. The caller's session is checked in the same transaction, or again on apply.
//! - Every call has a deadline, every queue a bound, and database and hashing work is never on an async thread.
//! - UNAVAILABLE means that nothing was applied.
//!
//! - Nothing of a call runs before its request is complete and has a place (`admission`).
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
// With the tests too: they are built more often.
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

use crate::{
    chat::{AccountId, Command, Outcome, Rejection},
    delivery::Hub,
    net::receive::Receiver,
    raft::{Node, ProposeError},
    storage::Readers,
    trace::Tracer,
};
use auth::Sessions;
use call::Call;
use database::Database;
use housekeeping::Touches;
use passwords::Passwords;
use receipts::Receipts;
use throttle::{Rates, Throttle};

pub use observe::{ApiObserver, METHODS, OTHER};
pub use routes::{admin_routes, client_routes};
pub use status::{DOMAIN, Fault};

/// What the services can be told.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// The node's name, for answers that say who answered.
    pub node_name: String,
    /// How long a session lasts after its login.
    pub session_lifetime: Duration,
    /// A session that is not used for this long ends; zero: never for that.
    pub session_idle: Duration,
    /// Accounts that may be created from one address, and in the cluster, in an hour.
    pub registrations_per_hour: (u32, u32),
    /// Passwords that are hashed at once.
    pub hash_parallelism: usize,
    /// A node that the leader has not heard from for longer counts as down.
    pub election_timeout: Duration,
    /// A subscriber is sent a heartbeat after this long without anything else.
    pub subscription_heartbeat: Duration,
    /// Whether the client port serves gRPC reflection.
    pub reflection: bool,
    /// Longest time that a call may take, also when its caller gives it more.
    pub deadline: Duration,
}

impl ApiSettings {
    /// Settings of which only these four differ from node to node; the rest is as the protocol documents it.
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
            registrations_per_hour: (200, 2000),
            hash_parallelism,
            election_timeout,
            subscription_heartbeat: Duration::from_secs(15),
            reflection: true,
            deadline: Duration::from_secs(10),
        }
    }
}

/// What the services are built from.
pub struct ApiParts {
    /// Consensus.
    pub node: Node,
    /// This node's copy of the state.
    pub readers: Arc<Readers>,
    /// What was applied, for subscribers.
    pub hub: Hub,
    /// See there.
    pub settings: ApiSettings,
    /// Who is told of calls.
    pub observer: Arc<dyn ApiObserver>,
    /// Records them.
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
    /// Builds the services. Needs a tokio runtime, for the task that gathers receipts; it ends with the last clone.
    pub fn new(parts: ApiParts) -> Self {
        let ApiParts { node, readers, hub, settings, observer, tracer, receiver } = parts;
        let (per_address, per_cluster) = settings.registrations_per_hour;
        node.limit_attempts(Arc::new(Throttle::new(Rates { per_address, per_cluster })));
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

    /// What is known of a call before its body is looked at.
    fn call<T>(&self, request: &tonic::Request<T>) -> Call {
        Call::of(request, self.inner.settings.deadline)
    }

    /// Proposes a change of the caller, which counts for the rates of the account.
    async fn propose_as(
        &self,
        call: &Call,
        account: AccountId,
        command: Command,
    ) -> Result<Result<Outcome, Rejection>, Status> {
        let outcome = self.inner.node.propose_for(account, command, call.trace, call.deadline).await;
        judged(outcome, call)
    }

    /// Proposes a change that counts for nobody's rates. A rejection comes back as `Err` of the inner result, for the caller to give it words.
    async fn propose(&self, call: &Call, command: Command) -> Result<Result<Outcome, Rejection>, Status> {
        self.propose_as(call, AccountId(0), command).await
    }

    /// After it, this node has everything that was acknowledged before the call.
    async fn barrier(&self, deadline: Instant) -> Result<(), Status> {
        self.inner.node.read_barrier(deadline).await.map_err(|error| status::read(&error))
    }
}

impl fmt::Debug for ChatApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatApi").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// What became of a proposal, with a rejection apart.
fn judged(outcome: Result<Outcome, ProposeError>, call: &Call) -> Result<Result<Outcome, Rejection>, Status> {
    match outcome.map_err(|error| status::propose(&error, call.deadline))? {
        Outcome::Rejected(rejection) => Ok(Err(rejection)),
        other => Ok(Ok(other)),
    }
}

/// An outcome that the command cannot have: a fault of this program.
fn unexpected(outcome: &Outcome) -> Status {
    status::internal("the change has the outcome of another command", &format!("{outcome:?}"))
}
