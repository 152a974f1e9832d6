//! The keys that name certificates: given together, readable, and valid for the names of this node.
//!
//! A certificate that peers would reject prevents the start, because such a node could neither call them nor be called.
//! A certificate that clients would reject only causes a warning, because they may use another address and another
//! name.

use std::{path::PathBuf, sync::Arc};

use super::{checker::Checker, keys::PREFIX, table::Parsed};
use net::tls::{Files, Tls, host_of};

const CERT: &str = "TLS_CERT";
const KEY: &str = "TLS_KEY";
const PEER_CERT: &str = "PEER_TLS_CERT";
const PEER_KEY: &str = "PEER_TLS_KEY";
const PEER_CA: &str = "PEER_TLS_CA";

impl Checker {
    /// The certificate that clients receive. Warns if it is not valid for the advertised host.
    pub(super) fn tls(&mut self, parsed: &Parsed) -> Option<Arc<Tls>> {
        let [certificate, key] = self.together([(CERT, &parsed.tls_cert), (KEY, &parsed.tls_key)])?;
        let tls = self.loaded(Files { certificate, key, authority: None }, [CERT, KEY, CERT])?;
        if let Some(advertised) = &parsed.advertise
            && let Err(error) = tls.check_host(host_of(advertised))
        {
            self.warnings.push(format!("{PREFIX}{CERT} does not fit {PREFIX}ADVERTISE ({advertised}): {error}"));
        }
        Some(tls)
    }

    /// The certificate that the other nodes receive, and the authorities of theirs. It must be valid for the host that
    /// is advertised to them.
    pub(super) fn peer_tls(&mut self, parsed: &Parsed) -> Option<Arc<Tls>> {
        let given =
            [(PEER_CERT, &parsed.peer_tls_cert), (PEER_KEY, &parsed.peer_tls_key), (PEER_CA, &parsed.peer_tls_ca)];
        let [certificate, key, authority] = self.together(given)?;
        let shown = certificate.display().to_string();
        let files = Files { certificate, key, authority: Some(authority) };
        let tls = self.loaded(files, [PEER_CERT, PEER_KEY, PEER_CA])?;
        let host = host_of(parsed.peer_advertise.as_deref()?);
        if let Err(error) = tls.check_host(host) {
            let expected = format!(
                "a certificate that {PREFIX}{PEER_CA} vouches for, good for {host:?}, the host of \
                 {PREFIX}PEER_ADVERTISE ({error})"
            );
            self.mistake(PEER_CERT, &shown, expected);
            return None;
        }
        Some(tls)
    }

    /// All files, or `None` if none is given. It is a mistake if only some are given.
    fn together<const N: usize>(&mut self, keys: [(&str, &Option<Option<PathBuf>>); N]) -> Option<[PathBuf; N]> {
        if keys.iter().all(|(name, _)| !self.is_given(name)) {
            return None;
        }
        let names: Vec<String> = keys.iter().map(|(name, _)| format!("{PREFIX}{name}")).collect();
        for (name, _) in &keys {
            if !self.is_given(name) {
                self.mistake(name, "", format!("a file, as {} are given together", names.join(", ")));
            }
        }
        let files: Option<Vec<PathBuf>> = keys.into_iter().map(|(_, file)| file.clone().flatten()).collect();
        files?.try_into().ok()
    }

    /// Loads `files`. `keys` are the keys of the certificate, of its key, and of the authorities.
    fn loaded(&mut self, files: Files, keys: [&str; 3]) -> Option<Arc<Tls>> {
        let [certificate, key, authority] = keys;
        let error = match Tls::load(files.clone()) {
            Ok(tls) => return Some(tls),
            Err(error) => error,
        };
        let path = error.path().unwrap_or(&files.certificate);
        let name = match path {
            path if path == files.key => key,
            path if Some(path) == files.authority.as_deref() => authority,
            _ => certificate,
        };
        self.mistake(name, &path.display().to_string(), format!("a file that can be used ({error})"));
        None
    }
}
