//! Admission of nodes that join later: the names that need no token, and the token of this node.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{
    formats::{Format, List, Wrong},
    members::is_name,
};

/// Digits of a join token.
const TOKEN_DIGITS: usize = 64;
/// Largest token file that is read. Bounds files such as `/dev/zero`.
const FILE_BYTES_MAX: u64 = 1024;

/// Names of nodes, each with an optional `*` at the end. Each joining node is compared with all of them.
pub(super) const EXPECTED_NODES: List<String> = List {
    item: |text| (text == "*" || is_name(text.strip_suffix('*').unwrap_or(text))).then(|| text.to_owned()),
    max: 64,
    what: "names of nodes separated by commas, such as n6,n7 or chat-*",
};

/// A token of `chatctl members token`. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken(String);

impl JoinToken {
    pub(super) const EXPECTED: &str = "the 64 hex digits that `chatctl members token` prints";

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_token = text.len() == TOKEN_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_token.then(|| Self(text.to_ascii_lowercase()))
    }

    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut content = String::new();
        File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut content)?;
        Ok(Self::parse(&content))
    }

    /// The token, to be presented to a member.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

/// A token in its own words.
pub(super) struct Token;

impl Format for Token {
    type Value = JoinToken;

    fn parse(&self, text: &str) -> Result<JoinToken, Vec<Wrong>> {
        match JoinToken::parse(text) {
            Some(token) => Ok(token),
            None => Wrong::whole(text, JoinToken::EXPECTED),
        }
    }

    fn show(&self, _value: &JoinToken) -> String {
        "(hidden)".to_owned()
    }
}
