//! Ids and positions. Each has a type of its own, so that a seq is never mistaken for a revision.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// An account. Never reused after the account is deleted.
    AccountId
);
number!(
    /// A session: one login. Never reused.
    SessionId
);
number!(
    /// A conversation.
    ConversationId
);
number!(
    /// Position of a message in its conversation: 1, 2, 3 ... without gaps.
    Seq
);
number!(
    /// Counter of the changes of the state machine. It orders all changes, and survives a restore into a new cluster.
    Revision
);
number!(
    /// Milliseconds since the Unix epoch, on the replicated clock. Assigned by leaders; never decreases.
    TimeMs
);

/// The id that a client assigns to a message, so that a retry is recognized: the 16 bytes of a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClientId(pub [u8; 16]);

/// Digest of everything applied up to a revision. Equal on all nodes that have the same revision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StateDigest(pub [u8; 32]);

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateDigest({self})")
    }
}

/// SHA-256 of a bearer token. The token itself is not stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    // A hash of 256 random bits reveals nothing, but logs have no use for it either.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}
