//! TLS: certificates from files or from a shared secret, connections that use them, and their replacement at run time.
//!
//! Owns the only use of rustls, in three forms. [`Tls`] presents a certificate to every caller (the ports of clients
//! and browsers). [`Tls`] with an authority also requires a certificate of that authority from the other side (the peer
//! port, as server and as client). [`Connector::trusting`] only verifies the server (the client library); it is all
//! that there is without the feature `server`.
//!
//! Invariants: TLS 1.3 only. Sessions are not resumed across a replacement of certificates, so the current authorities
//! decide about every new connection. Connections with certificates on both sides end when a certificate is replaced or
//! expires ([`Mortal`]).
//!
//! Does not cover: open connections of clients and browsers, which outlive a replacement.

#[cfg(feature = "server")]
mod certificates;
mod error;
#[cfg(feature = "server")]
mod files;
#[cfg(feature = "server")]
pub mod issue;
mod lifetime;
mod pem;
#[cfg(feature = "server")]
mod port;
#[cfg(feature = "server")]
mod secret;
#[cfg(feature = "server")]
#[cfg(test)]
mod tests;
#[cfg(feature = "server")]
mod watch;

use std::{fmt, io, net::IpAddr, path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

#[cfg(feature = "server")]
pub use {
    certificates::{Protocol, Tls},
    files::Files,
    port::{Peer, Port, Stream},
    secret::Secrets,
    watch::follow,
};

pub use error::TlsError;
pub use lifetime::Mortal;

/// The ALPN name of HTTP/2.
const HTTP_2: &[u8] = b"h2";
/// The ALPN name of HTTP/1.1.
const HTTP_1: &[u8] = b"http/1.1";

/// Secures outgoing connections, each with the certificates in use at that moment.
#[derive(Clone)]
pub struct Connector(Trust);

#[derive(Clone)]
enum Trust {
    /// Verifies only the server.
    Fixed(Arc<ClientConfig>),
    /// Uses certificates on both sides.
    #[cfg(feature = "server")]
    Peer(Arc<Tls>),
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// Trusts the servers whose certificates the authorities in a file have signed. For clients, which present no
    /// certificate.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn trusting(authorities: &Path) -> Result<Self, TlsError> {
        let roots = pem::authorities(&pem::read(authorities)?, authorities)?;
        Ok(Self(Trust::Fixed(Arc::new(anonymous(roots)?))))
    }

    /// The same with HTTP/1.1 instead of HTTP/2, for servers of other programs. No effect with certificates on both
    /// sides.
    pub fn with_http1(self) -> Self {
        match self.0 {
            Trust::Fixed(config) => {
                let mut config = (*config).clone();
                config.alpn_protocols = vec![HTTP_1.to_vec()];
                Self(Trust::Fixed(Arc::new(config)))
            }
            #[cfg(feature = "server")]
            Trust::Peer(tls) => Self(Trust::Peer(tls)),
        }
    }

    /// Secures a connection to `host` for HTTP/2, or for HTTP/1.1 after [`Self::with_http1`].
    ///
    /// # Errors
    /// The server does not answer in TLS, or its certificate is not valid for this host. With a shared secret: the
    /// server does not have the secret.
    pub(super) async fn secure<S>(&self, stream: S, host: &str) -> io::Result<Mortal<TlsStream<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match &self.0 {
            Trust::Fixed(config) => {
                let stream = TlsConnector::from(Arc::clone(config)).connect(server_name(host)?, stream).await?;
                Ok(Mortal::immortal(stream))
            }
            #[cfg(feature = "server")]
            Trust::Peer(tls) => tls.secure(stream, host).await,
        }
    }
}

fn anonymous(roots: RootCertStore) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![HTTP_2.to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(ServerName::from(address));
    }
    ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
