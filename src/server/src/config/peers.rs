//! Protection of the peer port: a secret that all nodes share, certificates, or an explicit decision to go without.
//!
//! A caller on the peer port can read and change everything. So a node that others can reach, or that has other
//! members, starts only with one of these. A single node listens on loopback and needs none.

use std::{io, path::Path};

use super::{
    JoinToken,
    checker::Checker,
    formats::{Format, Wrong},
    keys::PREFIX,
    table::Parsed,
};
use net::tls::Secrets;

/// The remedies for an unprotected peer port.
pub const REMEDY: &str = "a secret that all nodes share (`chatd secret FILE` writes one, for CHAT_PEER_SECRET_FILE), \
                          or certificates (CHAT_PEER_TLS_CERT, _KEY and _CA), or CHAT_INSECURE_PEERS=1 to trust every \
                          host that reaches the peer port";

/// Secrets, separated by blanks.
pub(super) struct PeerSecrets;

impl Format for PeerSecrets {
    type Value = Secrets;

    fn parse(&self, text: &str) -> Result<Secrets, Vec<Wrong>> {
        match Secrets::parse(text) {
            Some(secrets) => Ok(secrets),
            None => Wrong::whole(text, Secrets::EXPECTED),
        }
    }

    fn show(&self, _value: &Secrets) -> String {
        "(hidden)".to_owned()
    }
}

impl Checker {
    /// Reads the secrets that are given as files.
    pub(super) fn secret_files(&mut self, parsed: &mut Parsed) {
        if let Some(Some(path)) = &parsed.peer_secret_file {
            let keys = ["PEER_SECRET", "PEER_SECRET_FILE"];
            parsed.peer_secrets = self.read_secret(keys, path, Secrets::EXPECTED, Secrets::read).map(Some);
        }
        if let Some(Some(path)) = &parsed.join_token_file {
            let keys = ["JOIN_TOKEN", "JOIN_TOKEN_FILE"];
            parsed.join_token = self.read_secret(keys, path, JoinToken::EXPECTED, JoinToken::read).map(Some);
        }
    }

    /// The value of the first key, from the file that the second one names.
    fn read_secret<T>(
        &mut self,
        [key, file_key]: [&str; 2],
        path: &Path,
        what: &str,
        read: impl FnOnce(&Path) -> io::Result<Option<T>>,
    ) -> Option<T> {
        let expected = if self.is_given(key) {
            format!("only one of this and {PREFIX}{key}")
        } else {
            match read(path) {
                Ok(Some(value)) => return Some(value),
                Ok(None) => format!("a file with {what}"),
                Err(error) => format!("a readable file ({error})"),
            }
        };
        self.mistake(file_key, &path.display().to_string(), expected);
        None
    }

    /// Checks that the peer port is protected by a secret or by certificates, but not by both. Neither is required if
    /// the configuration trusts every host, or if the node listens on loopback and has no others.
    pub(super) fn protection(&mut self, parsed: &Parsed) {
        let has_certificates = ["PEER_TLS_CERT", "PEER_TLS_KEY", "PEER_TLS_CA"].iter().any(|key| self.is_given(key));
        let secret = ["PEER_SECRET_FILE", "PEER_SECRET"].into_iter().find(|key| self.is_given(key));
        if let Some(secret) = secret
            && has_certificates
        {
            let expected =
                format!("only one of a secret and {PREFIX}PEER_TLS_*: with certificates a secret proves nothing");
            self.mistake(secret, "", expected);
        }
        let has_others = self.is_given("JOIN") || parsed.initial_nodes.as_ref().is_some_and(|nodes| nodes.len() > 1);
        let is_reachable = parsed.peer_listen.is_some_and(|listen| !listen.ip().is_loopback());
        let is_protected = secret.is_some() || has_certificates || parsed.insecure_peers != Some(false);
        if !is_protected && (has_others || is_reachable) {
            self.mistake(
                "PEER_SECRET",
                "",
                format!("{REMEDY}, because other hosts reach the peer port or are members"),
            );
        }
    }
}
