//! `chatd secret`: creates the secret that the nodes of a cluster share.
//!
//! Invariants: an existing secret is never replaced by a random one, even if processes run concurrently. The file is
//! complete or absent, and only its owner may read it. Idempotent. The operator's own secrets, in CHAT_PEER_SECRET,
//! replace the existing content.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use tokio::runtime::Builder;

use super::kubernetes::Api;
use net::tls::Secrets;
use server::config::ConfigErrors;
use terminal::{show, tell};

/// Exit code when the file cannot be written, after `sysexits.h`.
const CANNOT_CREATE: u8 = 73;

/// Arguments of `chatd secret`.
#[derive(Debug, Args)]
pub struct SecretArguments {
    /// File for the secret, readable by its owner only. An existing secret is kept, unless CHAT_PEER_SECRET is set,
    /// which replaces it.
    #[arg(required_unless_present = "kubernetes")]
    file: Option<PathBuf>,
    /// Store it as this Kubernetes Secret instead, unless it exists. For a pod whose account can create Secrets.
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    kubernetes: Option<String>,
}

/// Why the secret could not be created.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file contains something else.
    #[error("{} exists and is not replaced, but is no secret: expected {}", .0.display(), Secrets::EXPECTED)]
    Other(PathBuf),
    /// The system has no randomness.
    #[error("no random bytes: {0}")]
    Random(String),
}

/// Runs the command. Returns the exit code.
pub(super) fn run(arguments: &SecretArguments, environment: &[(String, String)]) -> Result<u8, u8> {
    if let Some(name) = &arguments.kubernetes {
        return store(name, environment);
    }
    let path = arguments.file.as_deref().unwrap_or(Path::new(""));
    let given = environment.iter().find(|(key, value)| key == "CHAT_PEER_SECRET" && !value.is_empty());
    let done = match given {
        Some((_, text)) if Secrets::parse(text).is_none() => {
            tell!("chatd secret: CHAT_PEER_SECRET: expected {}", Secrets::EXPECTED);
            return Err(ConfigErrors::EXIT_CODE);
        }
        Some((_, text)) => replace(path, text).map(|replaced| if replaced { "written" } else { "kept" }),
        None => ensure(path).map(|made| if made { "made" } else { "kept" }),
    };
    let done = done.map_err(|error| {
        tell!("chatd secret: {error}");
        CANNOT_CREATE
    })?;
    let _ = show!("{}: {done}", path.display());
    Ok(0)
}

/// Stores a random secret as a Kubernetes Secret.
fn store(name: &str, environment: &[(String, String)]) -> Result<u8, u8> {
    let failed = |error: &dyn std::fmt::Display| {
        tell!("chatd secret: {error}");
        CANNOT_CREATE
    };
    let secret = generate().map_err(|error| failed(&error))?;
    let api = Api::of_pod(environment).map_err(|error| failed(&error))?;
    let runtime = super::runtime::runtime(Builder::new_current_thread())?;
    let created = runtime.block_on(api.create_secret(name, &secret)).map_err(|error| failed(&error))?;
    let _ = show!("Secret {name}: {}", if created { "made" } else { "kept" });
    Ok(0)
}

/// Writes the operator's secrets into a file. False: the file contains them already.
fn replace(path: &Path, text: &str) -> Result<bool, SecretError> {
    let failed = |source| SecretError::File { path: path.to_owned(), source };
    if Secrets::read(path).is_ok_and(|found| found == Secrets::parse(text)) {
        return Ok(false);
    }
    let unfinished = unfinished(path);
    write(&unfinished, text).and_then(|()| fs::rename(&unfinished, path)).map_err(failed)?;
    sync_parent(path).map_err(failed)?;
    Ok(true)
}

/// Creates a secret in a file, unless it contains one. True: it was created.
pub(super) fn ensure(path: &Path) -> Result<bool, SecretError> {
    let failed = |source| SecretError::File { path: path.to_owned(), source };
    match Secrets::read(path) {
        Ok(Some(_)) => return Ok(false),
        Ok(None) => return Err(SecretError::Other(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let text = generate()?;
    let unfinished = unfinished(path);
    let linked = write(&unfinished, &text).and_then(|()| fs::hard_link(&unfinished, path));
    // The secret now has its final name, or is not needed.
    let _ = fs::remove_file(&unfinished);
    match linked {
        Ok(()) => {
            sync_parent(path).map_err(failed)?;
            Ok(true)
        }
        // Another process created it first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => ensure(path),
        Err(error) => Err(failed(error)),
    }
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension(format!("{}.new", std::process::id()))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// Returns 256 random bits as text.
fn generate() -> Result<String, SecretError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| SecretError::Random(error.to_string()))?;
    Ok(hex::encode(bytes))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // The file was left behind by a killed process with the same id.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert!(ensure(&path).unwrap());
        let made = fs::read_to_string(&path).unwrap();
        assert!(Secrets::parse(&made).is_some());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!ensure(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        let own = [("CHAT_PEER_SECRET".to_owned(), "a-secret-of-my-own".to_owned())];
        assert_eq!(run(&SecretArguments { file: Some(path.clone()), kubernetes: None }, &own), Ok(0));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a-secret-of-my-own\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let short = [("CHAT_PEER_SECRET".to_owned(), "short".to_owned())];
        assert_eq!(run(&SecretArguments { file: Some(path.clone()), kubernetes: None }, &short), Err(64));
        fs::write(&path, "short").unwrap();
        assert!(matches!(ensure(&path), Err(SecretError::Other(_))));
    }

    #[test]
    fn processes_at_the_same_time_agree_on_one_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(dir.path().join("other"), "from-another-process").unwrap();
        // Simulates another process that creates the file between the check and the link.
        fs::hard_link(dir.path().join("other"), &path).unwrap();
        assert!(!ensure(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "from-another-process");
    }
}
