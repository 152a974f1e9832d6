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
    pub token: String,
    /// When it expires, in milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
    /// The node addresses that were given at the login.
    pub nodes: Vec<String>,
    /// The certificate authorities for those nodes; absent without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
}

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// The user who logged in last.
    pub current: Option<String>,
    /// Sessions by user.
    pub sessions: BTreeMap<String, Session>,
    /// Device tokens by account, which identify this computer. They stay after a logout.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, String>,
}

impl Sessions {
    /// Returns the session of `user`, or of the user who logged in last.
    pub fn find(&self, user: Option<&str>) -> Option<(&str, &Session)> {
        let user = user.or(self.current.as_deref())?;
        self.sessions.get_key_value(user).map(|(name, session)| (name.as_str(), session))
    }

    /// Stores a session, and makes it the current one.
    pub fn insert(&mut self, user: &str, session: Session) {
        self.sessions.insert(user.to_owned(), session);
        self.current = Some(user.to_owned());
    }

    /// Removes a session, if it still has this token.
    pub fn remove(&mut self, user: &str, token: &str) {
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

    /// Changes the content. Returns when the change is on disk.
    pub fn update(&self, change: impl FnOnce(&mut Sessions)) -> io::Result<()> {
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| self.context(e))?;
        let lock = private().truncate(false).open(self.beside(".lock"));
        let lock = lock.map_err(|e| self.context(e))?;
        // Held until the file is dropped. Other holders only do the same update, so the wait is short.
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| self.context(e.into()))?;
        let mut sessions = self.load()?;
        change(&mut sessions);
        self.replace(folder, &sessions).map_err(|e| self.context(e))
    }

    fn replace(&self, folder: &Path, sessions: &Sessions) -> io::Result<()> {
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
        File::open(folder)?.sync_all()
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
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn session(token: &str) -> Session {
        Session { token: token.to_owned(), expires_at_ms: 7, nodes: vec!["a:1".to_owned()], tls_ca: None }
    }

    fn file(folder: &Path) -> SessionFile {
        let path = folder.join("deep/sessions.json").display().to_string();
        SessionFile::locate(|name| (name == "CHAT_SESSION_FILE").then(|| path.clone())).expect("named")
    }

    #[test]
    fn the_environment_says_where() {
        let locate = |variables: &[(&str, &str)]| {
            let found = SessionFile::locate(|name| {
                variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string())
            });
            found.map(|file| file.path.display().to_string())
        };
        let home = ("HOME", "/h");
        assert_eq!(locate(&[home]).as_deref(), Some("/h/.local/state/quorum-chat/sessions.json"));
        assert_eq!(locate(&[home, ("XDG_STATE_HOME", "/s")]).as_deref(), Some("/s/quorum-chat/sessions.json"));
        assert_eq!(locate(&[home, ("CHAT_SESSION_FILE", "/f.json")]).as_deref(), Some("/f.json"));
        assert_eq!(locate(&[("HOME", "")]), None);
    }

    #[test]
    fn sessions_are_kept_for_the_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = file(folder.path());
        assert_eq!(file.load().expect("readable"), Sessions::default());
        file.update(|sessions| sessions.insert("alice", session("t1"))).expect("written");
        file.update(|sessions| sessions.insert("bob", session("t2"))).expect("written");
        let sessions = file.load().expect("readable");
        assert_eq!(sessions.find(None), Some(("bob", &session("t2"))), "who logged in last");
        assert_eq!(sessions.find(Some("alice")), Some(("alice", &session("t1"))));
        assert_eq!(sessions.find(Some("carol")), None);
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&file.path), 0o600);
        assert_eq!(mode(&folder.path().join("deep")), 0o700);
    }

    #[test]
    fn a_logout_forgets_only_its_own_session() {
        let mut sessions = Sessions::default();
        sessions.insert("alice", session("old"));
        sessions.insert("alice", session("new"));
        sessions.remove("alice", "old");
        assert_eq!(sessions.find(None), Some(("alice", &session("new"))));
        sessions.remove("alice", "new");
        assert_eq!(sessions, Sessions::default());
    }

    #[test]
    fn a_damaged_file_is_reported_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = file(folder.path());
        file.update(|sessions| sessions.insert("alice", session("t"))).expect("written");
        fs::write(&file.path, "{").expect("written");
        assert!(file.load().is_err());
        let error = file.update(|sessions| sessions.insert("bob", session("t"))).expect_err("damaged");
        assert!(error.to_string().contains("sessions.json"), "{error}");
        assert_eq!(fs::read(&file.path).expect("there"), b"{");
    }
}
