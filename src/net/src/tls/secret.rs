//! Certificates from a shared secret. The secret yields the key of an authority, so each node issues its own
//! certificate.
//!
//! The secret is stretched (Argon2id, parameters below) into the seed of an Ed25519 key, which is the key of an
//! authority. At its start, a node issues itself a certificate with it. It accepts certificates of the authorities of
//! all secrets that it has. The first secret issues; the others are only accepted, so that a secret can be replaced one
//! node at a time. The secret itself never leaves the process. It is stretched because anybody who connects receives a
//! certificate, and can test guesses against it offline.
//!
//! The certificates are valid for one fixed name, not for hosts, as all nodes with the secret are equal. They do not
//! expire in practice, so that a wrong clock does not cut off a node. Their keys exist in memory only.
//!
//! Does not cover: distinguishing the nodes. That takes certificates of an authority whose key the nodes do not have.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use argon2::{Algorithm, Argon2, Params, Version};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519};
use rustls::{
    RootCertStore,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use super::{TlsError, files::Material, issue};

/// The name in every such certificate. `.invalid` is reserved (RFC 2606), so it cannot be the name of a host.
pub(super) const SERVER_NAME: &str = "peer.quorum-chat.invalid";
/// Fixed, because all nodes must derive the same key. Any change of the derivation needs a new salt.
const SALT: &[u8] = b"quorum-chat peer authority, version 1";
/// Parameters of the stretching: memory in KiB, passes, lanes.
const STRETCH: (u32, u32, u32) = (32 * 1024, 3, 1);
/// The PKCS #8 prefix of the 32 bytes of an Ed25519 seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Shortest secret, in characters.
const CHARS_MIN: usize = 16;
/// Longest secret, in characters.
const CHARS_MAX: usize = 256;
/// Most secrets: the current, the previous and the next one, and one in reserve.
const COUNT_MAX: usize = 4;
/// Largest file that is read. It leaves room for all secrets and line ends, and bounds files such as `/dev/zero`.
const FILE_BYTES_MAX: u64 = 4096;

/// Secrets that all nodes share. The first one is in use, the others are accepted. `Debug` hides them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// The format that [`Secrets::parse`] accepts, for error messages.
    pub const EXPECTED: &str =
        "16-256 printable ASCII characters without spaces (up to four such secrets, separated by white space)";

    /// The secrets in a text, separated by white space; `None` if there are none, too many, or an invalid one.
    pub fn parse(text: &str) -> Option<Self> {
        let good = |secret: &&str| {
            (CHARS_MIN..=CHARS_MAX).contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let valid = (1..=COUNT_MAX).contains(&words.len()) && words.iter().all(good);
        valid.then(|| Self(words.into_iter().map(str::to_owned).collect()))
    }

    /// The secrets in a file; `None` as for [`Secrets::parse`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut content = String::new();
        File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut content)?;
        Ok(Self::parse(&content))
    }

    /// Issues a certificate of the first secret's authority, accepted together with those of all others. Takes about
    /// 50 ms for each secret.
    pub(super) fn material(&self) -> Result<Material, TlsError> {
        let mut authorities = RootCertStore::empty();
        let mut issuer = None;
        for secret in &self.0 {
            let pair = authority_key(secret)?;
            let params = issue::authority_params(&pair).map_err(TlsError::derived)?;
            let own = params.self_signed(&pair).map_err(TlsError::derived)?;
            authorities.add(own.der().clone()).map_err(TlsError::Setup)?;
            issuer.get_or_insert(Issuer::new(params, pair));
        }
        let issuer = issuer.ok_or(TlsError::NoAuthority)?;
        let key = KeyPair::generate().map_err(TlsError::derived)?;
        let certificate = leaf()?.signed_by(&key, &issuer).map_err(TlsError::derived)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Material::derived(vec![certificate.der().clone()], key, Arc::new(authorities)))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// The validity is rcgen's default, 1975 to 4096.
fn leaf() -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new([SERVER_NAME.to_owned()]).map_err(TlsError::derived)?;
    params.distinguished_name.push(DnType::CommonName, "quorum-chat node");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Deterministic: the same secret always yields the same key.
fn authority_key(secret: &str) -> Result<KeyPair, TlsError> {
    let (memory_kib, passes, lanes) = STRETCH;
    let mut seed = [0; 32];
    let params = Params::new(memory_kib, passes, lanes, Some(seed.len())).map_err(TlsError::derived)?;
    let stretch = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    stretch.hash_password_into(secret.as_bytes(), SALT, &mut seed).map_err(TlsError::derived)?;
    let der = [&PKCS8_PREFIX[..], &seed].concat();
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ED25519).map_err(TlsError::derived)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_always_gives_the_same_authority() {
        let key = |secret| authority_key(secret).unwrap().public_key_raw().to_vec();
        let first = key("correct-horse-battery");
        assert_eq!(first, key("correct-horse-battery"));
        assert_ne!(first, key("correct-horse-batterx"));
        // Nodes of different builds have to agree, so the derivation never changes under this salt.
        assert_eq!(hex::encode(first), "deb2d604dc9e598d19f67fc41685354bb67b51e53741855fa1100b97d1947733");
    }

    #[test]
    fn one_to_four_secrets_of_16_to_256_characters_are_taken() {
        let count = |text: &str| Secrets::parse(text).map(|secrets| secrets.0.len());
        let (shortest, longest) = ("x".repeat(16), "x".repeat(256));
        assert_eq!(count(&shortest), Some(1));
        assert_eq!(count(&format!("{shortest}\n{longest} \t{shortest}\r\n")), Some(3));
        assert_eq!(count(&[&shortest[..]; 4].join(" ")), Some(4));
        for bad in ["", "   ", "too-short", &"x".repeat(257), "sixteen-chars-é-", &[&shortest[..]; 5].join(" ")] {
            assert_eq!(count(bad), None, "{bad}");
        }
        assert!(!format!("{:?}", Secrets::parse(&shortest)).contains('x'));
    }
}
