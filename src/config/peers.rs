//! Protection of the peer port: a secret that all nodes share, certificates, or an explicit decision to go without.
//!
//! A caller on the peer port can read and change everything. So a node that others can reach, or that has other
//! members, starts only with one of these. A single node listens on loopback and needs none.

use std::{net::SocketAddr, path::PathBuf};

use super::{
    keys::PREFIX,
    parse::{Checker, Raw},
};
use crate::net::tls::Secrets;

/// The default peer port of a single, unprotected node.
const ALONE: &str = "127.0.0.1:50052";
/// The default peer port of all other nodes.
const WITH_OTHERS: &str = "[::]:50052";

/// The remedies for an unprotected peer port.
pub const REMEDY: &str = "a secret that all nodes share (`chatd secret FILE` writes one, for CHAT_PEER_SECRET_FILE), or \
                          certificates (CHAT_PEER_TLS_CERT, _KEY and _CA), or CHAT_INSECURE_PEERS=1 to trust every host \
                          that reaches the peer port";

/// The keys that protect the peer port, besides those of certificates.
pub(super) struct Given {
    pub secret: Option<String>,
    pub secret_file: Option<String>,
    pub insecure: Option<String>,
}

/// The checked values of [`Given`].
pub(super) struct Protected {
    pub secrets: Option<Secrets>,
    pub secret_file: Option<PathBuf>,
    pub insecure: bool,
}

impl Checker {
    /// The peer listen address. By default it is on loopback for a single, unprotected node.
    pub(super) fn peer_listen(&mut self, raw: &Raw) -> Option<SocketAddr> {
        let is_alone = [&raw.initial_nodes, &raw.join, &raw.peer_secret, &raw.peer_secret_file, &raw.peer_tls_cert]
            .iter()
            .all(|value| value.is_none());
        let default = if is_alone { ALONE } else { WITH_OTHERS };
        let value = raw.peer_listen.clone().unwrap_or_else(|| default.to_owned());
        self.listen("PEER_LISTEN", Some(value), true)
    }

    /// Checks that the peer port is protected by a secret or by certificates, but not by both. Neither is required if
    /// the configuration trusts every host, or if the node listens on loopback and has no others. A node has others if
    /// INITIAL_NODES or JOIN is given.
    pub(super) fn protection(
        &mut self,
        given: Given,
        has_certificates: bool,
        has_others: bool,
        listen: Option<SocketAddr>,
    ) -> Option<Protected> {
        const SECRET: &str = "PEER_SECRET";
        let before = self.mistake_count();
        let named = if given.secret_file.is_some() { "PEER_SECRET_FILE" } else { SECRET };
        let has_secret = given.secret.is_some() || given.secret_file.is_some();
        if has_secret && has_certificates {
            let expected =
                format!("only one of a secret and {PREFIX}PEER_TLS_*: with certificates a secret proves nothing");
            self.mistake(named, "", expected);
        }
        let insecure = self.switch("INSECURE_PEERS", given.insecure);
        let is_reachable = listen.is_some_and(|listen| !listen.ip().is_loopback());
        if !has_secret && !has_certificates && insecure == Some(false) && (has_others || is_reachable) {
            self.mistake(SECRET, "", format!("{REMEDY}, because other hosts reach the peer port or are members"));
        }
        let secret_file = given.secret_file.clone().map(PathBuf::from);
        let secrets = self.peer_secrets(given.secret, given.secret_file);
        (self.mistake_count() == before).then_some(Protected { secrets, secret_file, insecure: insecure? })
    }

    fn peer_secrets(&mut self, value: Option<String>, file: Option<String>) -> Option<Secrets> {
        const FILE: &str = "PEER_SECRET_FILE";
        match (value, file) {
            (Some(_), Some(file)) => {
                self.mistake(FILE, &file, format!("only one of this and {PREFIX}PEER_SECRET"));
                None
            }
            (Some(text), None) => self.parsed("PEER_SECRET", Some(text), Secrets::EXPECTED, Secrets::parse),
            (None, Some(file)) => {
                let expected = match Secrets::read(file.as_ref()) {
                    Ok(Some(secrets)) => return Some(secrets),
                    Ok(None) => format!("a file with {}", Secrets::EXPECTED),
                    Err(error) => format!("a readable file ({error})"),
                };
                self.mistake(FILE, &file, expected);
                None
            }
            (None, None) => None,
        }
    }
}
