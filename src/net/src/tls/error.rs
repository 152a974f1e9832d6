//! Errors of certificates, with the name of the file.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why certificates are rejected.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file lacks the expected content.
    #[error("{}: no {what} in PEM form", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The expected content.
        what: &'static str,
    },
    /// The certificate in a file is unusable, or the key does not belong to it.
    #[error("{}: {source}", path.display())]
    Unusable {
        /// The file of the certificate.
        path: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// The certificate is not valid for a host.
    #[error("{}: not valid for the host {host:?}: {source}", path.display())]
    Host {
        /// The file of the certificate.
        path: PathBuf,
        /// The host.
        host: String,
        /// The cause.
        source: rustls::Error,
    },
    /// The host of an address is neither a name nor an address that a certificate could be valid for.
    #[error("{host:?} is no name that a certificate could hold for")]
    Name {
        /// The host.
        host: String,
    },
    /// The certificate may not be presented to servers.
    #[error("{}: not valid for a node that calls others (extended key usage clientAuth): {source}", path.display())]
    Caller {
        /// The file of the certificate.
        path: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// There is no authority to verify the peers with.
    #[error("no certificate authority was given")]
    NoAuthority,
    /// TLS itself cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
    /// No certificate could be made from the secrets.
    #[cfg(feature = "server")]
    #[error("no certificate could be made from the peer secret: {0}")]
    Derived(String),
    /// A file does not hold valid secrets.
    #[cfg(feature = "server")]
    #[error("{}: expected {}", path.display(), super::Secrets::EXPECTED)]
    Secrets {
        /// The file.
        path: PathBuf,
    },
}

impl TlsError {
    #[cfg(feature = "server")]
    pub(super) fn derived(error: impl std::fmt::Display) -> Self {
        Self::Derived(error.to_string())
    }

    /// The file at fault, if the error concerns one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Read { path, .. }
            | Self::Missing { path, .. }
            | Self::Unusable { path, .. }
            | Self::Host { path, .. }
            | Self::Caller { path, .. } => Some(path),
            #[cfg(feature = "server")]
            Self::Secrets { path } => Some(path),
            #[cfg(feature = "server")]
            Self::Derived(_) => None,
            Self::Name { .. } | Self::NoAuthority | Self::Setup(_) => None,
        }
    }
}
