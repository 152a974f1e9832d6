//! All limits of the product, and the checks of single values against them.

use std::fmt;

/// Maximum length of a user name, in characters (all of them ASCII).
pub const USERNAME_CHARS_MAX: usize = 32;
/// Minimum length of a password, in bytes.
pub const PASSWORD_BYTES_MIN: usize = 8;
/// Maximum length of a password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// Maximum length of the text of a password hash, in bytes.
pub const PASSWORD_HASH_BYTES_MAX: usize = 512;
/// Maximum lifetime of a session, in milliseconds: a hundred years.
pub const SESSION_LIFETIME_MS_MAX: u64 = 100 * 366 * 24 * 3600 * 1000;
/// Maximum length of a message body, in bytes of UTF-8.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// Maximum number of items on a page.
pub const PAGE_SIZE_MAX: u32 = 200;
/// Default number of messages on a page of a conversation.
pub const PAGE_SIZE_CONVERSATION: u32 = 50;
/// Default number of accounts on a page.
pub const PAGE_SIZE_ACCOUNTS: u32 = 10;
/// Default number of conversations on a page.
pub const PAGE_SIZE_PARTNERS: u32 = 50;
/// Maximum number of message ids in one deletion.
pub const DELETE_IDS_MAX: usize = 1000;
/// Maximum number of receipts in one acknowledgement.
pub const RECEIPTS_MAX: usize = 1000;
/// Maximum number of sessions of an account. A further login closes the least recently used one.
pub const SESSIONS_PER_ACCOUNT_MAX: usize = 64;
/// Maximum number of join tokens that have not expired. An operator adds nodes one by one.
pub const JOIN_TOKENS_MAX: usize = 64;
/// Lifetime of a join token, in milliseconds.
pub const JOIN_TOKEN_LIFETIME_MS: u64 = 60 * 60 * 1000;
/// Maximum units of work (a conversation notified, a message examined) in one step of the erasure of an account.
pub const ERASE_UNITS_MAX: u32 = 1024;
/// Maximum number of known devices of an account. A further login forgets the least recently used one.
pub const DEVICES_PER_ACCOUNT_MAX: usize = 16;
/// Maximum number of invitations of the cluster, including expired ones that are not removed yet.
pub const INVITATIONS_MAX: u32 = 1000;
/// Maximum number of sessions that one command records as used.
pub const TOUCHES_MAX: usize = 512;
/// Maximum number of expired rows of each kind that one command removes.
pub const REMOVED_MAX: u32 = 256;
/// Maximum number of open subscriptions of one account on one node.
pub const SUBSCRIPTIONS_PER_ACCOUNT_MAX: usize = 64;
/// Maximum size of a client request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of concurrent requests on one client connection.
pub const REQUESTS_PER_CONNECTION_MAX: u32 = 256;
/// Maximum number of concurrent requests on a node, over all connections. A stream counts until it begins. Each may
/// hold [`REQUEST_BYTES_MAX`] before its caller is authenticated.
pub const REQUESTS_AT_ONCE_MAX: usize = 4096;

/// A value that exceeds a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The field's name in the request.
    pub field: &'static str,
    /// The requirement, phrased for the caller.
    pub problem: String,
}

impl Invalid {
    /// Creates the error for `field`, because of `problem`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

impl std::error::Error for Invalid {}

/// Checks a search text for user names.
pub fn check_query(field: &'static str, query: &str) -> Result<(), Invalid> {
    match query.chars().count() > USERNAME_CHARS_MAX {
        true => Err(Invalid::new(field, format!("must be at most {USERNAME_CHARS_MAX} characters"))),
        false => Ok(()),
    }
}

/// Checks a user name: 1-32 characters of `[a-z0-9_.-]`.
pub fn check_username(field: &'static str, name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::new(field, "must not be empty"));
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-');
    if name.len() > USERNAME_CHARS_MAX || !name.bytes().all(allowed) {
        return Err(Invalid::new(field, format!("must be 1-{USERNAME_CHARS_MAX} characters of [a-z0-9_.-]")));
    }
    Ok(())
}

/// Checks a password: 8-256 bytes.
pub fn check_password(field: &'static str, password: &str) -> Result<(), Invalid> {
    if !(PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&password.len()) {
        return Err(Invalid::new(
            field,
            format!("must be {PASSWORD_BYTES_MIN}-{PASSWORD_BYTES_MAX} bytes, is {}", password.len()),
        ));
    }
    Ok(())
}

/// Checks the text of a password hash: 1-512 bytes of printable ASCII.
pub fn check_password_hash(field: &'static str, hash: &str) -> Result<(), Invalid> {
    if hash.is_empty() || hash.len() > PASSWORD_HASH_BYTES_MAX || !hash.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Invalid::new(field, format!("must be 1-{PASSWORD_HASH_BYTES_MAX} bytes of printable ASCII")));
    }
    Ok(())
}

/// Checks the lifetime of a session, an invitation or a token: at most a hundred years.
pub fn check_lifetime(field: &'static str, lifetime_ms: u64) -> Result<(), Invalid> {
    if lifetime_ms > SESSION_LIFETIME_MS_MAX {
        return Err(Invalid::new(field, format!("must be at most {SESSION_LIFETIME_MS_MAX} ms, is {lifetime_ms}")));
    }
    Ok(())
}

/// Checks a message body: 1 byte to 16 KiB.
pub fn check_body(field: &'static str, body: &str) -> Result<(), Invalid> {
    if body.is_empty() {
        return Err(Invalid::new(field, "must not be empty"));
    }
    if body.len() > BODY_BYTES_MAX {
        return Err(Invalid::new(field, format!("must be at most {BODY_BYTES_MAX} bytes, is {}", body.len())));
    }
    Ok(())
}

/// Bytes of bodies after which a page ends early, so that a client that requests pages without reading them costs
/// little memory.
pub const PAGE_BYTES_MAX: usize = 256 * 1024;

/// The page size to use: `default` for 0, an error above [`PAGE_SIZE_MAX`].
pub fn page_size(field: &'static str, asked: u32, default: u32) -> Result<u32, Invalid> {
    match asked {
        0 => Ok(default),
        1..=PAGE_SIZE_MAX => Ok(asked),
        _ => Err(Invalid::new(field, format!("must be 1-{PAGE_SIZE_MAX}, is {asked}"))),
    }
}

/// Number of items that fit on a page of `bytes_max`, by their sizes. It is at least one, so that every page makes
/// progress.
pub fn fitting(sizes: impl IntoIterator<Item = usize>, bytes_max: usize) -> usize {
    let mut bytes = 0_usize;
    let whole = sizes.into_iter().take_while(|size| {
        bytes = bytes.saturating_add(*size);
        bytes <= bytes_max
    });
    whole.count().max(1)
}

/// Checks the number of items of a list that may be empty: at most `max`.
pub fn check_count_at_most(field: &'static str, count: usize, max: usize) -> Result<(), Invalid> {
    if count > max {
        return Err(Invalid::new(field, format!("must have at most {max} items, has {count}")));
    }
    Ok(())
}

/// Checks the number of items of a list: 1 to `max`.
pub fn check_count(field: &'static str, count: usize, max: usize) -> Result<(), Invalid> {
    if count == 0 || count > max {
        return Err(Invalid::new(field, format!("must have 1-{max} items, has {count}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames() {
        for good in ["a", "bob", "a.b-c_9", &"x".repeat(32)] {
            assert_eq!(check_username("username", good), Ok(()), "{good}");
        }
        for bad in ["", "Bob", "a b", "é", "a\0", "a\n", "../x", &"x".repeat(33)] {
            let error = check_username("username", bad).expect_err(bad);
            assert_eq!(error.field, "username");
        }
    }

    #[test]
    fn a_page_has_what_fits_and_at_least_one() {
        assert_eq!([fitting([5, 5, 1], 10), fitting([5, 5], 10), fitting([5, 6, 1], 10)], [2, 2, 1]);
        assert_eq!([fitting([11, 1], 10), fitting([usize::MAX, usize::MAX], 10)], [1, 1]);
    }

    #[test]
    fn bounds_are_inclusive() {
        assert!(check_password("password", &"p".repeat(7)).is_err());
        assert!(check_password("password", &"p".repeat(8)).is_ok());
        assert!(check_password("password", &"p".repeat(256)).is_ok());
        assert!(check_password("password", &"p".repeat(257)).is_err());
        assert!(check_body("body", "").is_err());
        assert!(check_body("body", &"b".repeat(BODY_BYTES_MAX)).is_ok());
        assert!(check_body("body", &"b".repeat(BODY_BYTES_MAX + 1)).is_err());
        assert_eq!(page_size("limit", 0, 50), Ok(50));
        assert_eq!(page_size("limit", 200, 50), Ok(200));
        assert!(page_size("limit", 201, 50).is_err());
        assert!(check_count("message_ids", 0, 1000).is_err());
        assert!(check_count("message_ids", 1000, 1000).is_ok());
        assert!(check_count("message_ids", 1001, 1000).is_err());
    }
}
