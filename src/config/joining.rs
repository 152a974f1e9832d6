//! Admission of nodes that join later: the names that need no token, and the token of this node.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
};

use super::{
    keys::PREFIX,
    parse::{Checker, is_name},
};

/// Digits of a join token.
const TOKEN_DIGITS: usize = 64;
/// Largest token file that is read. Bounds files such as `/dev/zero`.
const FILE_BYTES_MAX: u64 = 1024;
/// Most names of expected nodes, as each joining node is compared with all of them.
const EXPECTED_NODES_MAX: usize = 64;

/// A token of `chatctl members token`. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken(String);

impl JoinToken {
    const EXPECTED: &str = "the 64 hex digits that `chatctl members token` prints";

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_token = text.len() == TOKEN_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_token.then(|| Self(text.to_ascii_lowercase()))
    }

    fn read(path: &str) -> io::Result<Option<Self>> {
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

/// Credentials for nodes that join later.
#[derive(Debug, Clone, Default)]
pub struct Joining {
    /// Names of nodes that need no token, besides members and `initial_nodes`. A `*` at the end matches any rest.
    pub expected_nodes: Vec<String>,
    /// Token that this node presents when it joins.
    pub token: Option<JoinToken>,
}

impl Checker {
    /// Checks all three keys.
    pub(super) fn joining(
        &mut self,
        expected_nodes: Option<String>,
        token: Option<String>,
        token_file: Option<String>,
    ) -> Option<Joining> {
        let expected_nodes = self.expected_nodes(expected_nodes);
        let token = self.join_token(token, token_file);
        Some(Joining { expected_nodes: expected_nodes?, token: token? })
    }

    /// Names of nodes, each with an optional `*` at the end.
    fn expected_nodes(&mut self, value: Option<String>) -> Option<Vec<String>> {
        let Some(text) = value else { return Some(Vec::new()) };
        let names: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
        let is_pattern = |name: &String| name == "*" || is_name(name.strip_suffix('*').unwrap_or(name));
        if names.len() <= EXPECTED_NODES_MAX && names.iter().all(is_pattern) {
            return Some(names);
        }
        let expected = format!("1-{EXPECTED_NODES_MAX} names of nodes separated by commas, such as n6,n7 or chat-*");
        self.mistake("EXPECTED_NODES", &text, expected);
        None
    }

    /// The outer `None` means a mistake.
    fn join_token(&mut self, value: Option<String>, file: Option<String>) -> Option<Option<JoinToken>> {
        const FILE: &str = "JOIN_TOKEN_FILE";
        match (value, file) {
            (None, None) => Some(None),
            (Some(_), Some(file)) => {
                self.mistake(FILE, &file, format!("only one of this and {PREFIX}JOIN_TOKEN"));
                None
            }
            (Some(text), None) => {
                self.parsed("JOIN_TOKEN", Some(text), JoinToken::EXPECTED, JoinToken::parse).map(Some)
            }
            (None, Some(file)) => {
                let expected = match JoinToken::read(&file) {
                    Ok(Some(token)) => return Some(Some(token)),
                    Ok(None) => format!("a file with {}", JoinToken::EXPECTED),
                    Err(error) => format!("a readable file ({error})"),
                };
                self.mistake(FILE, &file, expected);
                None
            }
        }
    }
}
