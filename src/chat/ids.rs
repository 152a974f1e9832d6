//! Ids and positions, one type each, so that a seq is never taken for a revision.

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
    /// An account. Never used again after the account is deleted.
    AccountId
);
number!(
    /// A session: one login. Never used again.
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
    /// Counter of the changes of the state machine. It orders everything, and survives a restore into a new cluster.
    Revision
);
number!(
    /// Milliseconds since the Unix epoch, on the replicated clock: stamped by leaders, never running backwards.
    TimeMs
);

/// The id that a client gives to a message, so that a retry is recognized: a UUID's 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClientId(pub [u8; 16]);

/// What was applied up to a revision, as one number: equal on all nodes that have the same revision.
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

/// SHA-256 of a bearer token: all that is kept of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    // A hash of 256 random bits gives nothing away, but logs have no use for it either.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}
