//! Page tokens: opaque to clients, checked when they come back.
//!
//! The hex text of one byte that says what the position is, and the position.

use crate::chat::{
    Revision,
    limits::{self, Invalid},
};

const FIELD: &str = "page_token";
/// A token of accounts: the last name of the page before.
const ACCOUNTS: u8 = b'a';
/// A token of conversations: the revision of the last one's newest activity.
const CONVERSATIONS: u8 = b'c';
const BYTES_MAX: usize = 1 + limits::USERNAME_CHARS_MAX;

pub(super) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
    digits.map(char::from).collect()
}

/// Fills `bytes` from exactly as many pairs of hex digits.
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

/// The name after which the page starts; `None`: at the beginning.
pub(super) fn account(token: &str) -> Result<Option<String>, Invalid> {
    let Some(bytes) = decode(ACCOUNTS, token)? else { return Ok(None) };
    let name = String::from_utf8(bytes).map_err(|_| bad())?;
    limits::check_username(FIELD, &name).map_err(|_| bad())?;
    Ok(Some(name))
}

/// The token for the conversations that were quiet since before `revision`.
pub(super) fn before_revision(revision: Revision) -> String {
    encode(CONVERSATIONS, &revision.0.to_be_bytes())
}

/// The revision before which the page starts; `None`: with the newest.
pub(super) fn revision(token: &str) -> Result<Option<Revision>, Invalid> {
    let Some(bytes) = decode(CONVERSATIONS, token)? else { return Ok(None) };
    let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| bad())?;
    Ok(Some(Revision(u64::from_be_bytes(bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_there_and_back() {
        let name = "x".repeat(limits::USERNAME_CHARS_MAX);
        assert_eq!(account(&after_account(&name)), Ok(Some(name)));
        assert_eq!(revision(&before_revision(Revision(u64::MAX))), Ok(Some(Revision(u64::MAX))));
        assert_eq!((account(""), revision("")), (Ok(None), Ok(None)));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let of_the_other_call = before_revision(Revision(5));
        let (long, odd_name) = ("61".repeat(1000), after_account("A B"));
        for token in ["x", "6", "61", "zz", "é", "6é1", &of_the_other_call, &long, &odd_name] {
            assert_eq!(account(token), Err(bad()), "{token}");
        }
        for token in ["63", "6301", "61", &after_account("bob"), &format!("{of_the_other_call}00")] {
            assert_eq!(revision(token), Err(bad()), "{token}");
        }
    }
}
