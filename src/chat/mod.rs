//! The vocabulary of the chat: ids, limits, commands, outcomes, events.
//!
//! Owns the words that every other layer speaks and the checks that need nothing but the value itself. Standard
//! library only: no I/O, no clock, no randomness, so that the same input means the same on every node.
//!
//! Left out: what a command does to the state (that is `storage::apply`), and every wire or disk format.

mod accounts;
mod command;
mod event;
mod ids;
pub mod limits;
mod outcome;

pub use accounts::{AccountCommand, Login, Privacy, PrivacyChange, Registration};
pub use command::{Command, Destination, DigestReport, ReceiptItem};
pub use event::{Event, EventKind, Member};
pub use ids::{AccountId, ClientId, ConversationId, Revision, Seq, SessionId, StateDigest, TimeMs, TokenHash};
pub use outcome::{MessageSent, Outcome, ReceiptResult, Rejection};
