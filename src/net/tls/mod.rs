//! TLS: certificates from files, connections that are made and taken with them, and their replacement while all runs.
//!
//! Owns the only use of rustls. Three ways to have it: [`Tls`] shows a certificate to whoever connects (the ports of clients
//! and browsers), with an authority it also asks the other side for one of the same authority (the port of peers, both as server and
//! as client), and [`Connector::trusting`] only checks who answers (the client library).
//!
//! Invariants: TLS 1.3 and nothing older; what is loaded fits together (the key belongs to the certificate, and of a peer's
//! the authority vouches for it); files that do not are never taken into use, and what was in use stays. Sessions are not resumed across a
//! replacement, so that the authorities of today decide about every new connection.
//!
//! Left out: connections that are open when files are replaced. They end when one of both sides restarts.

mod error;
mod files;
pub mod issue;
mod port;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    fmt, io,
    net::IpAddr,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::CryptoProvider, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    codegen::http::{Uri, uri::Scheme},
    transport::Endpoint,
};

pub use error::TlsError;
pub use files::Files;
pub use port::Port;
pub use watch::follow;

use files::Material;

/// What HTTP/2 is called in a handshake.
const HTTP_2: &[u8] = b"h2";
/// What HTTP/1.1 is called in a handshake.
const HTTP_1: &[u8] = b"http/1.1";

/// What is spoken on a port, as the handshake has to say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC: HTTP/2.
    Grpc,
    /// What browsers speak: HTTP/2, in which a page's stream does not take one of six connections, and HTTP/1.1.
    Http,
}

/// Certificates in use. They change when [`Tls::reload`] finds other ones in the files.
pub struct Tls {
    files: Files,
    current: RwLock<Current>,
}

struct Current {
    /// What was read, to see whether it changed.
    material: Material,
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    /// Of a mutual one.
    client: Option<Arc<ClientConfig>>,
    expires_at: Option<SystemTime>,
}

impl Current {
    fn new(material: Material) -> Result<Self, TlsError> {
        let grpc = material.server_config(&[HTTP_2])?;
        let http = material.server_config(&[HTTP_2, HTTP_1])?;
        let client = material.client_config(HTTP_2)?;
        let expires_at = material.expires_at();
        Ok(Self { material, grpc, http, client, expires_at })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.files).finish()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them cannot be read, is not what it should be, or does not fit the others.
    pub fn load(files: Files) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(Current::new(files.read()?)?);
        Ok(Arc::new(Self { files, current }))
    }

    /// Where it reads them.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// When the first of the certificates in use ends; `None` when that cannot be told.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).expires_at
    }

    /// Reads the files again. True: they have changed, and what is in them is in use from now on.
    ///
    /// # Errors
    /// As for [`Tls::load`]; then what was in use stays.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let material = self.files.read()?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).material == material {
            return Ok(false);
        }
        let next = Current::new(material)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(true)
    }

    /// Whether the certificate holds for whoever connects to `host`, and, of a mutual one, whether the authority vouches for it
    /// today, as a server and as a client.
    ///
    /// # Errors
    /// It does not.
    pub fn check_host(&self, host: &str) -> Result<(), TlsError> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).material.check_host(host)
    }

    fn server(&self, protocol: Protocol) -> Arc<ServerConfig> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(match protocol {
            Protocol::Grpc => &current.grpc,
            Protocol::Http => &current.http,
        })
    }

    /// Connects to servers of the same authority, and shows them the certificate.
    ///
    /// # Errors
    /// There is no authority: it is not a mutual one.
    pub fn connector(self: &Arc<Self>) -> Result<Connector, TlsError> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let first = current.client.clone().ok_or(TlsError::NoAuthority)?;
        drop(current);
        let tls = Arc::clone(self);
        Ok(Connector(Arc::new(move || {
            let current = tls.current.read().unwrap_or_else(PoisonError::into_inner);
            // Once mutual, always mutual: the files that are read are the same.
            current.client.clone().unwrap_or_else(|| Arc::clone(&first))
        })))
    }
}

/// Makes connections, each with the certificates of its moment.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// Trusts the servers that the authorities in a file vouch for; for clients, who show no certificate.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn trusting(authorities: &Path) -> Result<Self, TlsError> {
        let roots = files::authorities(&files::read(authorities)?, authorities)?;
        let config = Arc::new(anonymous(roots)?);
        Ok(Self(Arc::new(move || Arc::clone(&config))))
    }

    pub(super) fn channel(&self, endpoint: Endpoint) -> tonic::transport::Channel {
        let connector = self.clone();
        let dial = tower::service_fn(move |uri: Uri| {
            let connector = connector.clone();
            async move {
                let authority = uri.authority().ok_or(io::ErrorKind::InvalidInput)?;
                connector.connect(authority.as_str()).await.map(TokioIo::new)
            }
        });
        // To tonic the connection is one that needs no TLS of its own; those who read the requests see what it is.
        let mut parts = endpoint.uri().clone().into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        let endpoint = match Uri::from_parts(parts) {
            Ok(origin) => endpoint.origin(origin),
            Err(_) => endpoint,
        };
        endpoint.connect_with_connector_lazy(dial)
    }

    /// Connects to `host:port`, with HTTP/2 to follow.
    ///
    /// # Errors
    /// Nobody answers, or not in TLS, or with a certificate that does not hold for this host.
    pub async fn connect(&self, address: &str) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        // Without it requests may be late, but they come.
        let _ = stream.set_nodelay(true);
        TlsConnector::from((self.0)()).connect(server_name(host_of(address))?, stream).await
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

/// The host of `host:port`; of `[::1]:port` without the brackets.
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
