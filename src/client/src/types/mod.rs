//! What the calls return. These are types of this library, so that a program does not depend on the generated code of
//! the protocol, which has more fields and other defaults.
//!
//! All times are milliseconds since the Unix epoch. A *revision* is the position of a change in the order of all
//! changes; pass it to [`Consistency::AtLeast`](super::Consistency::AtLeast) for a read that reflects the change.

mod accounts;
mod conversations;
mod nodes;

pub use accounts::{
    Account, AccountCreated, AccountDeleted, AccountPage, Login, PasswordChanged, Privacy, PrivacyChange, Registration,
    Session,
};
pub use conversations::{
    ChatPartner, ConversationPage, Deletion, Member, MemberDeleted, Message, MessageStatus, MessagesDeleted,
    PartnerPage, ReadHeader, ReadMarked, Receipt, Sent,
};
pub use nodes::{DigestComparison, Leader, NodeInfo, NodeList, NodeRole};

/// Implements the conversion from a message of the protocol whose fields have the same names.
macro_rules! from_wire {
    ($own:ident, $wire:path { $($field:ident),* $(,)? }) => {
        impl From<$wire> for $own {
            fn from(wire: $wire) -> Self {
                Self { $($field: wire.$field.into()),* }
            }
        }
    };
}

use from_wire;

/// Converts each element.
fn each<W, T: From<W>>(wire: Vec<W>) -> Vec<T> {
    wire.into_iter().map(T::from).collect()
}
