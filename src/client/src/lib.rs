//! The client library: a [`Client`] that follows the leader, and an [`EventStream`] that resumes automatically.
//!
//! A client starts from some of the cluster's addresses and discovers the others, and which node leads. It sends
//! requests to the leader directly. When an attempt fails, the client looks for the new leader and retries until the
//! caller's deadline. Every call is safe to retry: all attempts of a message carry the same id, so that the message is
//! stored once. An error whose outcome is unknown says so ([`ClientError::outcome_unknown`]).
//!
//! ```no_run
//! use quorum_chat_client::{Client, EventKind, Options};
//!
//! # async fn chat() -> Result<(), quorum_chat_client::ClientError> {
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
//! Structure: `nodes` holds the addresses, the connections and the known leader. `retry` is the loop that every call
//! goes through, and `error` classifies failures for it. `calls` contains the calls. `events` keeps an event stream
//! connected, `resume` decides which events it passes on, and `acks` acknowledges their delivery. TLS is optional: see
//! [`Options::with_tls`].
//!
//! Does not cover: caching of messages that were read.

mod acks;
mod calls;
pub mod direct;
mod error;
mod events;
#[cfg(any(test, feature = "test-util"))]
pub mod fake;
// Compiled with the tests too, because they are built more often than the fuzz targets.
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod nodes;
mod options;
mod random;
mod resume;
mod retry;
#[cfg(test)]
mod tests;
mod types;

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

pub use calls::Consistency;
pub use chat::TraceContext;
pub use error::{ClientError, ERROR_DOMAIN};
pub use events::{Event, EventKind, EventStream};
pub use net::{Dialer, tls::TlsError};
pub use options::Options;
pub use types::{
    Account, AccountCreated, AccountDeleted, AccountPage, ChatPartner, ConversationPage, Deletion, DigestComparison,
    Leader, Login, Member, MemberDeleted, Message, MessageStatus, MessagesDeleted, NodeInfo, NodeList, NodeRole,
    PartnerPage, PasswordChanged, Privacy, PrivacyChange, ReadHeader, ReadMarked, Receipt, Registration, Sent, Session,
};

use nodes::{Nodes, Target};
use retry::Backoff;

/// A connection to the cluster, and the session that [`Client::login`] opened.
///
/// Clones are cheap; they share connections and session. See the [module](self) for an example.
#[derive(Clone)]
pub struct Client {
    nodes: Arc<Nodes>,
    options: Arc<Options>,
    session: Arc<RwLock<Option<MetadataValue<Ascii>>>>,
    /// Device tokens by account name.
    devices: Arc<RwLock<BTreeMap<String, String>>>,
}

impl Client {
    /// Connects to any of the `addresses` (`host:port`) that answers, and learns the other nodes and the leader from
    /// it.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT when an address is malformed; UNAVAILABLE when no node answered within
    /// [`Options::deadline`]. A cluster without a leader is not an error here: local reads still work.
    pub async fn connect(addresses: impl IntoIterator<Item = String>, options: Options) -> Result<Self, ClientError> {
        let nodes = Arc::new(Nodes::new(addresses, options.clone())?);
        let deadline = Instant::now() + options.deadline;
        // Each node is retried on its own schedule, so that a silent or distant node does not delay the others.
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
                // An answer from one node is more informative than the silence of another.
                Err(failure) if error.is_some() && failure.is_silence() => {}
                Err(failure) => error = Some(failure),
            }
        }
        let error = error.unwrap_or_else(|| ClientError::local(Code::Unavailable, "there was no time to ask"));
        let asked: Vec<String> = nodes.all().iter().map(|target| target.address.to_string()).collect();
        let message = format!("none of {} answered (one of them: {})", asked.join(", "), error.message);
        Err(ClientError { message, code: Code::Unavailable, ..error })
    }

    /// Returns a client with the same connections and its own session, which an earlier login with `token` opened.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED when the token contains characters that no token has. The first call shows whether it is valid.
    pub fn with_token(&self, token: &str) -> Result<Self, ClientError> {
        let session = Arc::new(RwLock::new(Some(bearer(token)?)));
        Ok(Self { nodes: self.nodes.clone(), options: self.options.clone(), session, devices: self.devices.clone() })
    }

    /// Returns the address of the leader, as far as this client knows. [`Client::leader`] asks the cluster.
    pub fn known_leader(&self) -> Option<String> {
        self.nodes.leader().map(|address| address.to_string())
    }

    /// Stores the device token from an earlier login to an account, for the next login to it.
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

/// Asks one node for the list of nodes until it answers or the deadline has passed.
async fn first_answer(nodes: &Nodes, target: &Target, options: &Options, deadline: Instant) -> Result<(), ClientError> {
    let mut backoff = Backoff::new(options.backoff_min, options.backoff_max);
    let mut error: Option<ClientError> = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match nodes.list(target, target.time_for(options.attempt_timeout).min(left)).await {
            Ok(_) => return Ok(()),
            // The last attempt may have had no time left: its timeout is less informative than an earlier error.
            Err(failure) if error.is_some() && failure.is_silence() => {}
            Err(failure) => error = Some(failure),
        }
        let next = Instant::now() + backoff.next(None);
        if next >= deadline {
            return Err(error.unwrap_or_else(|| target.silence()));
        }
        sleep_until(next).await;
    }
}

/// Returns the metadata value that carries a token. Debug output never shows it.
pub(crate) fn bearer(token: &str) -> Result<MetadataValue<Ascii>, ClientError> {
    let mut value = MetadataValue::try_from(format!("Bearer {token}"))
        .map_err(|_| ClientError::local(Code::Unauthenticated, "the token is malformed"))?;
    value.set_sensitive(true);
    Ok(value)
}
