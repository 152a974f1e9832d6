//! A small certificate authority, for trials and for clusters that have no other.
//!
//! An authority is a directory with `ca.pem`, which is public, and `ca.key`, which must stay secret. Its certificates
//! are valid for servers and for clients, as a node is both.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use sha2::{Digest as _, Sha256};

use super::{Files, Tls, TlsError};

/// Validity of an authority.
const AUTHORITY_DAYS: u64 = 3650;
/// Backdating of certificates, as clocks differ.
const BACK: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Prefix of the name of an authority. A few digits of its key follow, to distinguish authorities.
const AUTHORITY_NAME: &str = "quorum-chat authority";

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A requested value cannot be part of a certificate, or the authority's key is invalid.
    #[error("{what}: {source}")]
    Certificate {
        /// The value or the file.
        what: String,
        /// The cause.
        source: rcgen::Error,
    },
    /// The issued certificate would be rejected. Either a wildcard is too wide (`*.peers`), or `ca.pem` and `ca.key`
    /// are not a pair that was made here.
    #[error("what was issued would not be accepted: {0}")]
    NoUse(TlsError),
}

/// A directory with an authority.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    created: bool,
}

impl Authority {
    /// Opens the authority in `dir`, and creates it if there is none.
    ///
    /// # Errors
    /// The files cannot be read or written, or are not those of an authority.
    pub fn open(dir: &Path) -> Result<Self, IssueError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        let wrong = |what: &Path| {
            let what = what.display().to_string();
            move |source| IssueError::Certificate { what, source }
        };
        let (pair, created) = match fs::read_to_string(&key) {
            Ok(pem) => (KeyPair::from_pem(&pem).map_err(wrong(&key))?, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = KeyPair::generate().map_err(wrong(&key))?;
                let own = authority_params(&pair).and_then(|params| params.self_signed(&pair));
                let own = own.map_err(wrong(&certificate))?;
                write(&key, &pair.serialize_pem(), 0o600)?;
                write(&certificate, &own.pem(), 0o644)?;
                (pair, true)
            }
            Err(error) => return Err(at(&key)(error)),
        };
        let params = authority_params(&pair).map_err(wrong(&certificate))?;
        Ok(Self { dir: dir.to_owned(), issuer: Issuer::new(params, pair), created })
    }

    /// Whether [`Self::open`] created the authority.
    pub fn is_new(&self) -> bool {
        self.created
    }

    /// Writes a certificate for `hosts` (names, with or without `*.`, and addresses) and its key into `NAME.pem` and
    /// `NAME.key` in the directory of the authority. Existing files of these names are replaced.
    ///
    /// # Errors
    /// A host is invalid, a file cannot be written, or the authority was not made here.
    pub fn issue(&self, name: &str, hosts: &[String], days: u64) -> Result<Files, IssueError> {
        self.issue_for(name, hosts, of_days(days))
    }

    /// Like [`Self::issue`], with the validity as a duration. Certificates store it in whole seconds.
    pub(super) fn issue_for(&self, name: &str, hosts: &[String], time: Duration) -> Result<Files, IssueError> {
        let wrong = |source| IssueError::Certificate { what: format!("{name} for {}", hosts.join(", ")), source };
        let mut params = CertificateParams::new(hosts).map_err(wrong)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        valid_for(&mut params, time);
        let pair = KeyPair::generate().map_err(wrong)?;
        let certificate = params.signed_by(&pair, &self.issuer).map_err(wrong)?;
        let files = Files {
            certificate: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
            authority: Some(self.dir.join("ca.pem")),
        };
        write(&files.key, &pair.serialize_pem(), 0o600)?;
        write(&files.certificate, &certificate.pem(), 0o644)?;
        let tls = Tls::load(files.clone()).map_err(IssueError::NoUse)?;
        for host in hosts {
            tls.check_host(&host.replace('*', "any")).map_err(IssueError::NoUse)?;
        }
        Ok(files)
    }
}

/// Deterministic for a given key, because only the key is read again.
pub(super) fn authority_params(pair: &KeyPair) -> Result<CertificateParams, rcgen::Error> {
    let digest = Sha256::digest(pair.public_key_raw());
    let name = format!("{AUTHORITY_NAME} {}", hex::encode(&digest[..4]));
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, of_days(AUTHORITY_DAYS));
    Ok(params)
}

fn of_days(days: u64) -> Duration {
    DAY * u32::try_from(days).unwrap_or(u32::MAX)
}

fn valid_for(params: &mut CertificateParams, time: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACK).into();
    params.not_after = (now + time).into();
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> IssueError {
    let path = path.to_owned();
    move |source| IssueError::File { path, source }
}

/// Writes to a temporary name first, so that no reader sees half of the file.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), IssueError> {
    let unfinished = path.with_added_extension("new");
    let open = || File::options().write(true).create(true).truncate(true).mode(mode).open(&unfinished);
    let written = open().and_then(|mut file| file.write_all(content.as_bytes()).and_then(|()| file.sync_all()));
    written.and_then(|()| fs::rename(&unfinished, path)).map_err(at(path))
}
