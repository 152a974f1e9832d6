//! Certificates in use: of files, or derived from secrets; and their replacement at run time.
//!
//! Invariants: loaded certificates are consistent: the key belongs to the certificate, and the authority of a peer's
//! certificate has signed it. Inconsistent files are never used, and the previous certificates stay in use.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{ClientConfig, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch::Sender,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Connector, HTTP_1, HTTP_2, Mortal, TlsError, Trust,
    files::{Files, Material, first_end},
    lifetime::Lifetime,
    secret::{SERVER_NAME, Secrets},
    server_name,
};

/// The protocol of a port, as the handshake negotiates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC: HTTP/2.
    Grpc,
    /// The protocols of browsers: HTTP/2, where a page's stream does not take one of six connections, and HTTP/1.1.
    Http,
}

/// Certificates in use. [`Tls::reload`] replaces them when their source has changed.
pub struct Tls {
    pub(super) source: Source,
    current: RwLock<Current>,
    /// Notified when `current` is replaced.
    replaced: Sender<()>,
}

/// The source of certificates.
pub(super) enum Source {
    Files(Files),
    /// Secrets, and the file to read them from again.
    Secrets(Option<PathBuf>),
}

pub(super) struct Current {
    /// The raw material, to detect changes.
    material: Material,
    secrets: Option<Secrets>,
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    /// Present with mutual authentication.
    pub(super) client: Option<Arc<ClientConfig>>,
    expires_at: Option<SystemTime>,
}

impl Current {
    fn of_secrets(secrets: Secrets) -> Result<Self, TlsError> {
        let material = secrets.material()?;
        Ok(Self { secrets: Some(secrets), ..Self::new(material)? })
    }

    fn new(material: Material) -> Result<Self, TlsError> {
        let grpc = material.server_config(&[HTTP_2])?;
        let http = material.server_config(&[HTTP_2, HTTP_1])?;
        let client = material.client_config(HTTP_2)?;
        let expires_at = material.expires_at();
        Ok(Self { material, secrets: None, grpc, http, client, expires_at })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Files(files) => f.debug_tuple("Tls").field(files).finish(),
            Source::Secrets(file) => f.debug_tuple("Tls").field(file).finish(),
        }
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, has the wrong content, or does not fit the others.
    pub fn load(files: Files) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(Current::new(files.read()?)?);
        Ok(Arc::new(Self { source: Source::Files(files), current, replaced: Sender::default() }))
    }

    /// Certificates for both sides, derived from the secrets that all peers share. [`Tls::reload`] reads `file` again.
    /// Takes about 50 ms for each secret, so call it on a thread that may block.
    ///
    /// # Errors
    /// No certificate could be made.
    pub fn shared(secrets: Secrets, file: Option<PathBuf>) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(Current::of_secrets(secrets)?);
        Ok(Arc::new(Self { source: Source::Secrets(file), current, replaced: Sender::default() }))
    }

    /// The files that hold the certificates; `None` when they are derived from secrets.
    pub fn files(&self) -> Option<&Files> {
        match &self.source {
            Source::Files(files) => Some(files),
            Source::Secrets(_) => None,
        }
    }

    /// The earliest expiry of the certificates in use; `None` if it is unknown.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.read().expires_at
    }

    /// Reads the files again. Returns true if they have changed; then their content is in use from now on.
    ///
    /// # Errors
    /// As for [`Tls::load`]. The previous certificates stay in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let next = match &self.source {
            Source::Files(files) => {
                let material = files.read()?;
                if self.read().material == material {
                    return Ok(false);
                }
                Current::new(material)?
            }
            Source::Secrets(None) => return Ok(false),
            Source::Secrets(Some(file)) => {
                let found = Secrets::read(file).map_err(|source| TlsError::Read { path: file.clone(), source })?;
                let secrets = found.ok_or_else(|| TlsError::Secrets { path: file.clone() })?;
                if self.read().secrets.as_ref() == Some(&secrets) {
                    return Ok(false);
                }
                Current::of_secrets(secrets)?
            }
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        self.replaced.send_replace(());
        Ok(true)
    }

    pub(super) fn read(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the certificate is valid for `host`. With mutual authentication, also checks that the authority has
    /// signed it and that it is valid now, as a server's and as a client's certificate.
    ///
    /// # Errors
    /// The certificate is not valid.
    pub fn check_host(&self, host: &str) -> Result<(), TlsError> {
        self.read().material.check_host(host)
    }

    pub(super) fn server(&self, protocol: Protocol) -> Arc<ServerConfig> {
        let current = self.read();
        Arc::clone(match protocol {
            Protocol::Grpc => &current.grpc,
            Protocol::Http => &current.http,
        })
    }

    /// Whether both sides present a certificate.
    pub(super) fn is_mutual(&self) -> bool {
        self.read().client.is_some()
    }

    /// The lifetime of a connection whose handshake begins now; `None` if it outlives the certificates. Taken before
    /// the certificates are read, so that no replacement is missed.
    pub(super) fn lifetime(&self) -> Option<Lifetime> {
        let replaced = self.replaced.subscribe();
        self.is_mutual().then(|| (replaced, self.expires_at()))
    }

    /// A connector to servers of the same authority, which presents the certificate to them.
    ///
    /// # Errors
    /// There is no authority, so authentication is not mutual.
    pub fn connector(self: &Arc<Self>) -> Result<Connector, TlsError> {
        if !self.is_mutual() {
            return Err(TlsError::NoAuthority);
        }
        Ok(Connector(Trust::Peer(Arc::clone(self))))
    }

    /// Secures a connection to a server of the same authority; see [`Connector::secure`].
    pub(super) async fn secure<S>(&self, stream: S, host: &str) -> io::Result<Mortal<TlsStream<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let lifetime = self.lifetime();
        let config = self.read().client.clone().ok_or(io::ErrorKind::InvalidInput)?;
        let shared = matches!(self.source, Source::Secrets(_));
        let name = server_name(if shared { SERVER_NAME } else { host })?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| match error.get_ref() {
            Some(inner) if shared && inner.is::<rustls::Error>() => {
                io::Error::new(error.kind(), format!("the server does not have this node's peer secret: {inner}"))
            }
            _ => error,
        })?;
        let Some((replaced, own_end)) = lifetime else { return Ok(Mortal::immortal(stream)) };
        let their_end = (!shared).then(|| stream.get_ref().1.peer_certificates().and_then(first_end)).flatten();
        Ok(Mortal::until(stream, replaced, own_end.into_iter().chain(their_end).min()))
    }
}
