//! The sessions that `chatctl` stores: `$CHAT_SESSION_FILE`, or `quorum-chat/sessions.json` in the user's state folder.
//!
//! Tokens are as sensitive as passwords, so only the owner can read the file from the moment it exists. The file is
//! replaced as a whole, so that a crash leaves the old or the new one. A lock file prevents concurrent commands from
//! overwriting each other's changes.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// One login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The bearer token.
    pub(crate) token: String,
    /// When it expires, in milliseconds since the Unix epoch.
    pub(crate) expires_at_ms: u64,
    /// The node addresses that were given at the login.
    pub(crate) nodes: Vec<String>,
    /// The certificate authorities for those nodes; absent without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tls_ca: Option<PathBuf>,
}

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// The user who logged in last.
    pub(crate) current: Option<String>,
    /// Sessions by user.
    pub(crate) sessions: BTreeMap<String, Session>,
    /// Device tokens by account, which identify this computer. They stay after a logout.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) devices: BTreeMap<String, String>,
}

impl Sessions {
    /// Returns the session of `user`, or of the user who logged in last.
    pub fn find(&self, user: Option<&str>) -> Option<(&str, &Session)> {
        let user = user.or(self.current.as_deref())?;
        self.sessions.get_key_value(user).map(|(name, session)| (name.as_str(), session))
    }

    /// Stores a session, and makes it the current one.
    pub(crate) fn insert(&mut self, user: &str, session: Session) {
        self.sessions.insert(user.to_owned(), session);
        self.current = Some(user.to_owned());
    }

    /// Removes a session, if it still has this token.
    pub(crate) fn remove(&mut self, user: &str, token: &str) {
        if self.sessions.get(user).is_some_and(|session| session.token == token) {
            self.sessions.remove(user);
            if self.current.as_deref() == Some(user) {
                self.current = None;
            }
        }
    }
}

/// The session file.
#[derive(Debug, Clone)]
pub struct SessionFile {
    path: PathBuf,
}

impl SessionFile {
    /// Locates the file by environment variables; `variable` looks one up. `None` when they name neither a file nor a
    /// home.
    pub fn locate(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = set("CHAT_SESSION_FILE").map(PathBuf::from).or_else(|| {
            let state = set("XDG_STATE_HOME").map(PathBuf::from);
            let state = state.or_else(|| set("HOME").map(|home| Path::new(&home).join(".local/state")))?;
            Some(state.join("quorum-chat/sessions.json"))
        })?;
        Some(Self { path })
    }

    /// Returns the content; empty when there is no file.
    pub fn load(&self) -> io::Result<Sessions> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let message = format!("{} is not a file of sessions: {error}", self.path.display());
                io::Error::new(io::ErrorKind::InvalidData, message)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Sessions::default()),
            Err(error) => Err(self.context(error)),
        }
    }

    /// Fails if the file is damaged or could not be written, before there is anything to write.
    pub fn prepare(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        self.load()?;
        let new = self.beside(".new");
        private().open(&new).and_then(|_| fs::remove_file(&new)).map_err(|e| self.context(e))
    }

    /// Prevents changes by other commands until the result is dropped. Makes the folder, if need be.
    fn lock(&self) -> io::Result<File> {
        let lock = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder())?;
            let lock = private().truncate(false).open(self.beside(".lock"))?;
            // Other holders only do the same update, so the wait is short.
            flock(&lock, FlockOperation::LockExclusive)?;
            Ok(lock)
        };
        lock().map_err(|e| self.context(e))
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Changes the content. Returns when the change is on disk.
    pub fn update(&self, change: impl FnOnce(&mut Sessions)) -> io::Result<()> {
        let _lock = self.lock()?;
        let mut sessions = self.load()?;
        change(&mut sessions);
        self.replace(&sessions).map_err(|e| self.context(e))
    }

    fn replace(&self, sessions: &Sessions) -> io::Result<()> {
        let new = self.beside(".new");
        // A file left behind by an interrupted command may have other permissions, so it is removed first.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = private().create_new(true).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(sessions)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(self.folder())?.sync_all()
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }

    fn context(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

/// Options to open a file for writing, created for the owner only.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests;
