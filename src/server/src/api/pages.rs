//! Page tokens: opaque to clients, checked when they come back.
//!
//! A token is the hex text of one byte for the kind of the position, and the position.

use chat::{
    ConversationId, Revision,
    limits::{self, Invalid},
};
use storage::ConversationSummary;

const FIELD: &str = "page_token";
/// A token of accounts: the last name of the previous page.
const ACCOUNTS: u8 = b'a';
/// A token of conversations by activity: the revision of the newest activity of the last one, and that of the first
/// page.
const CONVERSATIONS: u8 = b'c';
/// A token of conversations that have moved: the revision of the first page, and the id of the last one.
const MOVED: u8 = b'm';
const BYTES_MAX: usize = 1 + limits::USERNAME_CHARS_MAX;

pub(super) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
    digits.map(char::from).collect()
}

/// Fills `bytes` from exactly twice as many hex digits.
pub(super) fn from_hex(text: &str, bytes: &mut [u8]) -> bool {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if text.len() != bytes.len() * 2 {
        return false;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return false };
        *byte = high << 4 | low;
    }
    true
}

fn bad() -> Invalid {
    Invalid::new(FIELD, "must be empty, or the next_page_token of this call's page before")
}

fn encode(kind: u8, position: &[u8]) -> String {
    to_hex(&[&[kind], position].concat())
}

fn decode(kind: u8, token: &str) -> Result<Option<Vec<u8>>, Invalid> {
    if token.is_empty() {
        return Ok(None);
    }
    let mut bytes = vec![0; token.len() / 2];
    if bytes.len() > BYTES_MAX || !from_hex(token, &mut bytes) || bytes.first() != Some(&kind) {
        return Err(bad());
    }
    bytes.remove(0);
    Ok(Some(bytes))
}

/// The token for the accounts after `name`.
pub(super) fn after_account(name: &str) -> String {
    encode(ACCOUNTS, name.as_bytes())
}

/// The name after which the page starts; `None` at the beginning.
pub(super) fn account(token: &str) -> Result<Option<String>, Invalid> {
    let Some(bytes) = decode(ACCOUNTS, token)? else { return Ok(None) };
    let name = String::from_utf8(bytes).map_err(|_| bad())?;
    limits::check_username(FIELD, &name).map_err(|_| bad())?;
    Ok(Some(name))
}

/// The start of a page of conversations. A list by activity moves while it is read: a conversation that gets a message
/// moves to the beginning, which no later page covers. So the list has a second part, with the conversations that have
/// moved since the first page was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Starts with the newest.
    Newest,
    /// Starts among the conversations that were idle since before `revision`. The first page was read at `since`.
    Before { revision: Revision, since: Revision },
    /// Starts after the conversation `after`, among those that got a message after `since`.
    Moved { since: Revision, after: ConversationId },
}

impl Place {
    /// The token of this place.
    pub(super) fn token(self) -> String {
        let both = |a: u64, b: u64| [a.to_be_bytes(), b.to_be_bytes()].concat();
        match self {
            Self::Newest => String::new(),
            Self::Before { revision, since } => encode(CONVERSATIONS, &both(revision.0, since.0)),
            Self::Moved { since, after } => encode(MOVED, &both(since.0, after.0)),
        }
    }

    /// Parses a token.
    pub(super) fn of(token: &str) -> Result<Self, Invalid> {
        let both = |bytes: Vec<u8>| {
            let (a, b) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
            let b = <[u8; 8]>::try_from(b).map_err(|_| bad())?;
            Ok((u64::from_be_bytes(*a), u64::from_be_bytes(b)))
        };
        if let Ok(Some(bytes)) = decode(MOVED, token) {
            return both(bytes)
                .map(|(since, after)| Self::Moved { since: Revision(since), after: ConversationId(after) });
        }
        let Some(bytes) = decode(CONVERSATIONS, token)? else { return Ok(Self::Newest) };
        both(bytes).map(|(revision, since)| Self::Before { revision: Revision(revision), since: Revision(since) })
    }

    /// The start of the next page; `None` if this is the last one. `last` is the last conversation of this page if its
    /// part has more, `now` the revision at which the page was read, and `has_moved` whether there is a second part.
    pub(super) fn next(self, last: Option<&ConversationSummary>, now: Revision, has_moved: bool) -> Option<Self> {
        let since = match self {
            Self::Newest => now,
            Self::Before { since, .. } | Self::Moved { since, .. } => since,
        };
        match (self, last) {
            (Self::Moved { .. }, last) => last.map(|last| Self::Moved { since, after: last.conversation }),
            (_, Some(last)) => Some(Self::Before { revision: last.last_revision, since }),
            (Self::Before { .. }, None) if has_moved => Some(Self::Moved { since, after: ConversationId(0) }),
            (_, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_there_and_back() {
        let name = "x".repeat(limits::USERNAME_CHARS_MAX);
        assert_eq!(account(&after_account(&name)), Ok(Some(name)));
        let before = Place::Before { revision: Revision(u64::MAX), since: Revision(7) };
        let moved = Place::Moved { since: Revision(7), after: ConversationId(u64::MAX) };
        for place in [Place::Newest, before, moved] {
            assert_eq!(Place::of(&place.token()), Ok(place));
        }
        assert_eq!(account(""), Ok(None));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let of_the_other_call = Place::Moved { since: Revision(5), after: ConversationId(5) }.token();
        let (long, odd_name) = ("61".repeat(1000), after_account("A B"));
        for token in ["x", "6", "61", "zz", "é", "6é1", &of_the_other_call, &long, &odd_name] {
            assert_eq!(account(token), Err(bad()), "{token}");
        }
        for token in ["63", "6301", "61", &after_account("bob"), &format!("{of_the_other_call}00")] {
            assert_eq!(Place::of(token), Err(bad()), "{token}");
        }
    }
}
