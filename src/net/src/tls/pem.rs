//! Certificates in files in PEM form.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::TlsError;

/// Largest file that is read. It leaves room for many authorities, and bounds files such as `/dev/zero`.
const FILE_BYTES_MAX: u64 = 4 << 20;

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {FILE_BYTES_MAX} bytes"));
    let read = read.and_then(|length| if length as u64 > FILE_BYTES_MAX { Err(too_large()) } else { Ok(()) });
    read.map(|()| bytes).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

pub(super) fn certificates(bytes: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let missing = || TlsError::Missing { path: path.to_owned(), what: "certificate" };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(missing)
}

pub(super) fn authorities(bytes: &[u8], path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(bytes, path)? {
        store.add(certificate).map_err(|source| TlsError::Unusable { path: path.to_owned(), source })?;
    }
    Ok(store)
}
