//! Domain types of the chat: ids, limits, commands, outcomes, events.
//!
//! Owns the types that all other layers share, and the checks that need only the value itself. Uses only the standard
//! library, without I/O, clock or randomness, so that the same input has the same meaning on every node. With the
//! feature `sqlite`, the ids are also values of SQLite.
//!
//! Does not cover: the effect of a command on the state (`storage::apply`), and wire and disk formats.

mod accounts;
mod command;
mod context;
mod event;
mod ids;
pub mod limits;
mod outcome;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use accounts::{AccountCommand, Login, Privacy, PrivacyChange, Registration};
pub use command::{Command, Destination, DigestReport, ReceiptItem};
pub use context::TraceContext;
pub use event::{Event, EventKind, Member};
pub use ids::{AccountId, ClientId, ConversationId, Revision, Seq, SessionId, StateDigest, TimeMs, TokenHash};
pub use outcome::{MessageSent, Outcome, ReceiptResult, Rejection};
