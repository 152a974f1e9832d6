//! Tests of the session file: where it is, who can read it, and what a damaged file does.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

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
        let found =
            SessionFile::locate(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()));
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
fn what_cannot_be_written_is_reported_before_there_is_anything_to_write() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = file(folder.path());
    file.prepare().expect("can be written");
    assert_eq!(file.load().expect("readable"), Sessions::default());
    fs::write(&file.path, "{").expect("written");
    assert!(file.prepare().expect_err("damaged").to_string().contains("sessions.json"));
    fs::remove_dir_all(folder.path().join("deep")).expect("removed");
    fs::write(folder.path().join("deep"), "no folder").expect("written");
    let error = file.prepare().expect_err("a file is in the way");
    assert!(error.to_string().contains("deep/sessions.json"), "{error}");
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
