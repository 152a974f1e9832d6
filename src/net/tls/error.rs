//! What can be wrong with certificates, with the file named.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why certificates are not taken into use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: no {what} in PEM form", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The certificate in a file is no use, or the key is not its key.
    #[error("{}: {source}", path.display())]
    Unusable {
        /// The file of the certificate.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The certificate does not hold for a host.
    #[error("{}: not valid for the host {host:?}: {source}", path.display())]
    Host {
        /// The file of the certificate.
        path: PathBuf,
        /// Under which name it is looked for.
        host: String,
        /// Why.
        source: rustls::Error,
    },
    /// The host of an address is neither a name nor an address that a certificate could be for.
    #[error("{host:?} is no name that a certificate could hold for")]
    Name {
        /// What it is.
        host: String,
    },
    /// The certificate may not be shown to servers.
    #[error("{}: not valid for a node that calls others (extended key usage clientAuth): {source}", path.display())]
    Caller {
        /// The file of the certificate.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// There is no authority to check others with.
    #[error("no certificate authority was given")]
    NoAuthority,
    /// TLS itself cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
    /// No certificate could be made from the secrets.
    #[error("no certificate could be made from the peer secret: {0}")]
    Derived(String),
    /// A file does not hold secrets.
    #[error("{}: expected {}", path.display(), super::Secrets::EXPECTED)]
    Secrets {
        /// Which file.
        path: PathBuf,
    },
}

impl TlsError {
    pub(super) fn derived(error: impl std::fmt::Display) -> Self {
        Self::Derived(error.to_string())
    }

    /// The file that is wrong, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Read { path, .. }
            | Self::Missing { path, .. }
            | Self::Unusable { path, .. }
            | Self::Host { path, .. }
            | Self::Caller { path, .. }
            | Self::Secrets { path } => Some(path),
            Self::Name { .. } | Self::NoAuthority | Self::Setup(_) | Self::Derived(_) => None,
        }
    }
}
