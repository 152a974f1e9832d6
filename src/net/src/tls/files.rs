//! Turns PEM files into rustls configurations, and checks that they fit together.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _, verify_server_name},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{
    TlsError,
    pem::{authorities, certificates, read},
    provider, server_name,
};

/// The end of the year 9999, the last that a certificate can name.
const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);

/// Paths of the certificate files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate and its intermediates, in PEM form.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// The authorities that sign the peers' certificates. If given, both sides have to present a certificate.
    pub authority: Option<PathBuf>,
}

/// The content of the files, or the material derived from secrets.
pub(super) struct Material {
    /// `None` if the material is derived from secrets.
    files: Option<Files>,
    /// The raw content of the files.
    bytes: (Vec<u8>, Vec<u8>, Option<Vec<u8>>),
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Option<Arc<RootCertStore>>,
}

/// Equal if the same content was read.
impl PartialEq for Material {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Files {
    pub(super) fn read(&self) -> Result<Material, TlsError> {
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let authority = self.authority.as_deref().map(read).transpose()?;
        let authorities = match (&authority, &self.authority) {
            (Some(bytes), Some(path)) => Some(Arc::new(authorities(bytes, path)?)),
            _ => None,
        };
        let no_key = |_| TlsError::Missing { path: self.key.clone(), what: "private key" };
        Ok(Material {
            files: Some(self.clone()),
            chain: certificates(&certificate, &self.certificate)?,
            key: PrivateKeyDer::from_pem_slice(&key).map_err(no_key)?,
            authorities,
            bytes: (certificate, key, authority),
        })
    }
}

impl Material {
    /// Material that was not read from files.
    pub(super) fn derived(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        authorities: Arc<RootCertStore>,
    ) -> Self {
        Self { files: None, bytes: Default::default(), chain, key, authorities: Some(authorities) }
    }

    pub(super) fn server_config(&self, protocols: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?;
        let builder = match self.caller_verifier()? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|source| self.unusable(source))?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// The configuration for calls to servers of the same authority; `None` without an authority.
    pub(super) fn client_config(&self, protocol: &[u8]) -> Result<Option<Arc<ClientConfig>>, TlsError> {
        let Some(authorities) = &self.authorities else { return Ok(None) };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?;
        let mut config = builder
            .with_root_certificates(Arc::clone(authorities))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|source| self.unusable(source))?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Some(Arc::new(config)))
    }

    /// The earliest expiry of the presented certificates; `None` for those derived from secrets, which do not expire.
    pub(super) fn expires_at(&self) -> Option<SystemTime> {
        self.files.as_ref().and_then(|_| first_end(&self.chain))
    }

    /// See [`super::Tls::check_host`].
    pub(super) fn check_host(&self, host: &str) -> Result<(), TlsError> {
        let name = server_name(host).map_err(|_| TlsError::Name { host: host.to_owned() })?;
        let (end, between) = self.chain.split_first().ok_or_else(|| self.unusable(empty()))?;
        let path = || self.path();
        let wrong = |source| TlsError::Host { path: path(), host: host.to_owned(), source };
        let Some(authorities) = &self.authorities else {
            let parsed = ParsedCertificate::try_from(end).map_err(|source| self.unusable(source))?;
            return verify_server_name(&parsed, &name).map_err(wrong);
        };
        let now = UnixTime::now();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(authorities), provider()).build();
        let verifier = verifier.map_err(|error| self.unusable(rustls::Error::General(error.to_string())))?;
        verifier.verify_server_cert(end, between, &name, &[], now).map_err(wrong)?;
        let called = self.caller_verifier()?.map(|verifier| verifier.verify_client_cert(end, between, now));
        let vouched: Result<Option<ClientCertVerified>, _> = called.transpose();
        vouched.map(|_| ()).map_err(|source| TlsError::Caller { path: path(), source })
    }

    fn caller_verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let Some(authorities) = &self.authorities else { return Ok(None) };
        let built = WebPkiClientVerifier::builder_with_provider(Arc::clone(authorities), provider()).build();
        built.map(Some).map_err(|error| self.unusable(rustls::Error::General(error.to_string())))
    }

    fn path(&self) -> PathBuf {
        self.files.as_ref().map(|files| files.certificate.clone()).unwrap_or_default()
    }

    fn unusable(&self, source: rustls::Error) -> TlsError {
        match &self.files {
            Some(files) => TlsError::Unusable { path: files.certificate.clone(), source },
            None => TlsError::Setup(source),
        }
    }
}

/// The earliest expiry of the certificates in `chain`.
///
/// The verifier is run at the end of time, so that its error contains the expiry. It checks the validity period first,
/// so any authority will do.
pub(super) fn first_end(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let never = UnixTime::since_unix_epoch(END_OF_TIME);
    let name = server_name("localhost").ok()?;
    let ends = chain.iter().map(|certificate| {
        let mut store = RootCertStore::empty();
        store.add(certificate.clone().into_owned()).ok()?;
        let verifier = WebPkiServerVerifier::builder_with_provider(store.into(), provider()).build().ok()?;
        match verifier.verify_server_cert(certificate, &[], &name, &[], never) {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                Some(SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
            }
            _ => None,
        }
    });
    ends.flatten().min()
}

fn empty() -> rustls::Error {
    rustls::Error::NoCertificatesPresented
}
