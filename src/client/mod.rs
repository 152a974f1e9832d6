//! The client library: a [`Client`] that follows the leader, and an [`EventStream`] that resumes by itself.
//!
//! A client is given some of the cluster's addresses and finds the rest: the other nodes and which of them leads. It
//! sends to the leader directly, and when that fails it looks for the new one and tries again, as long as the
//! caller's deadline allows. Every call is safe to repeat: a message carries an id that is kept over all tries, so
//! that it is stored once. Where the outcome stays unknown the error says so ([`ClientError::outcome_unknown`]).
//!
//! ```no_run
//! use quorum_chat::client::{Client, EventKind, Options};
//!
//! # async fn chat() -> Result<(), quorum_chat::client::ClientError> {
//! let nodes = ["127.0.0.1:50051", "127.0.0.1:50052"].map(String::from);
//! let alice = Client::connect(nodes, Options::default()).await?;
//! alice.login("alice", "correct horse").await?;
//! let sent = alice.send_message("bob", "hello").await?;
//! println!("stored as number {} of the conversation", sent.seq);
//!
//! let mut events = alice.events(None);
//! while let Some(event) = events.next().await {
//!     if let EventKind::Message(message) = event?.kind {
//!         println!("{}: {}", message.sender, message.body);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Inside: `nodes` knows addresses, connections and the leader; `retry` holds the loop that every call goes through
//! and `error` what a failure means for it; `calls` are the calls; `resume` decides what an event stream passes on,
//! `events` keeps it connected, `acks` tells the senders; [`unary`] is for load generators,
//! [`verify`] for those who do not believe the service. Left out: TLS, and a memory of what was read.

mod acks;
mod calls;
mod error;
mod events;
#[cfg(test)]
pub(crate) mod fake;
// With the tests too: they are built more often.
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
pub(crate) mod nodes;
mod options;
pub(crate) mod random;
mod resume;
mod retry;
#[cfg(test)]
mod tests;
pub mod unary;
pub mod verify;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tonic::{
    Code,
    metadata::{Ascii, MetadataValue},
};

pub use calls::{Consistency, Sent};
pub use error::{ClientError, ERROR_DOMAIN};
pub use events::{Event, EventKind, EventStream};
pub use options::Options;

use nodes::{Nodes, Target};
use retry::{Backoff, silence};

/// The messages of the protocol that the calls answer with.
pub use crate::proto::chat::v1 as types;

/// A connection to the cluster, and the session that [`Client::login`] opened.
///
/// Clones are cheap; they share connections and session. See the [module](self) for an example.
#[derive(Clone)]
pub struct Client {
    nodes: Arc<Nodes>,
    options: Arc<Options>,
    session: Arc<RwLock<Option<MetadataValue<Ascii>>>>,
    /// Tokens by which accounts know this client.
    devices: Arc<RwLock<BTreeMap<String, String>>>,
}

impl Client {
    /// Connects to whichever of the `addresses` (`host:port`) answers, and learns the others and the leader from it.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT when an address is malformed; UNAVAILABLE when no node answered within
    /// [`Options::deadline`]. A cluster without a leader is not an error here: local reads still work.
    pub async fn connect(addresses: impl IntoIterator<Item = String>, options: Options) -> Result<Self, ClientError> {
        let nodes = Arc::new(Nodes::new(addresses, options.clone())?);
        let deadline = Instant::now() + options.deadline;
        // Each in its own time: one that is silent, or far away, does not hold up how often the others are asked.
        let targets = nodes.all();
        let mut answers: FuturesUnordered<_> =
            targets.iter().map(|target| first_answer(&nodes, target, &options, deadline)).collect();
        let mut error: Option<ClientError> = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(()) => {
                    drop(answers);
                    nodes.find_leader(deadline).await;
                    return Ok(Self {
                        nodes,
                        options: Arc::new(options),
                        session: Arc::default(),
                        devices: Arc::default(),
                    });
                }
                // What a node said tells more than that another one was silent.
                Err(failure) if error.is_some() && failure.is_silence() => {}
                Err(failure) => error = Some(failure),
            }
        }
        let error = error.unwrap_or_else(|| ClientError::local(Code::Unavailable, "there was no time to ask"));
        let asked: Vec<String> = nodes.all().iter().map(|target| target.address.to_string()).collect();
        let message = format!("none of {} answered (one of them: {})", asked.join(", "), error.message);
        Err(ClientError { message, code: Code::Unavailable, ..error })
    }

    /// A client with the same connections and a session of its own, opened by an earlier login with `token`.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED when the token has characters that no token has. Whether it is valid shows in the first call.
    pub fn with_token(&self, token: &str) -> Result<Self, ClientError> {
        let session = Arc::new(RwLock::new(Some(bearer(token)?)));
        Ok(Self { nodes: self.nodes.clone(), options: self.options.clone(), session, devices: self.devices.clone() })
    }

    /// Address of the node that leads, as far as this client knows; see [`Client::leader`] to ask.
    pub fn known_leader(&self) -> Option<String> {
        self.nodes.leader().map(|address| address.to_string())
    }

    /// Keeps the device token of an earlier login to an account, for its next one.
    pub fn keep_device(&self, username: &str, token: &str) {
        if !token.is_empty() {
            let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
            devices.insert(username.to_owned(), token.to_owned());
        }
    }

    fn device(&self, username: &str) -> String {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).get(username).cloned().unwrap_or_default()
    }

    fn keep_session(&self, session: Option<MetadataValue<Ascii>>) {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = session;
    }

    fn session(&self) -> Option<MetadataValue<Ascii>> {
        self.session.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Asks one node who there is, until it answers or the deadline has passed.
async fn first_answer(nodes: &Nodes, target: &Target, options: &Options, deadline: Instant) -> Result<(), ClientError> {
    let mut backoff = Backoff::new(options.backoff_min, options.backoff_max);
    let mut error: Option<ClientError> = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match nodes.list(target, target.time_for(options.attempt_timeout).min(left)).await {
            Ok(_) => return Ok(()),
            // The last attempt may have had no time left: its silence tells less than what was said before.
            Err(failure) if error.is_some() && failure.is_silence() => {}
            Err(failure) => error = Some(failure),
        }
        let next = Instant::now() + backoff.next(None);
        if next >= deadline {
            return Err(error.unwrap_or_else(|| silence(target)));
        }
        sleep_until(next).await;
    }
}

/// The metadata value that carries a token; never shown in debug output.
pub(crate) fn bearer(token: &str) -> Result<MetadataValue<Ascii>, ClientError> {
    let mut value = MetadataValue::try_from(format!("Bearer {token}"))
        .map_err(|_| ClientError::local(Code::Unauthenticated, "the token is malformed"))?;
    value.set_sensitive(true);
    Ok(value)
}
