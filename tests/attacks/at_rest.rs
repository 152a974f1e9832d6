//! The data directory: which users can read it, and which remains of deleted data it contains.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use support::{Cluster, PASSWORD, eventually};

/// A directory with all its files and directories.
fn everything(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        match path.is_dir() {
            true => found.extend(everything(&path)),
            false => found.push(path),
        }
    }
    found
}

/// The files of a data directory that other users than the owner may access.
fn open_to_others(dir: &Path) -> Vec<String> {
    let shown = |path: PathBuf| {
        let mode = fs::metadata(&path).ok()?.mode() & 0o7777;
        (mode & 0o077 != 0).then(|| format!("{} has mode {mode:04o}", path.display()))
    };
    everything(dir).into_iter().filter_map(shown).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_nodes_own_user_reads_its_files() {
    let mut cluster = Cluster::prepared(1);
    // The machine's usual umask, which must not matter.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    cluster.start_all().await;
    let (alice, _) = cluster.register("alice").await;
    alice.send_message("alice", "hello").await.unwrap();
    let dir = cluster[0].data_dir();
    let files = everything(&dir);
    assert!(files.iter().any(|path| fs::metadata(path).unwrap().file_type().is_socket()), "{files:?}");
    for ending in ["log.db", "log.db-wal", "chat.db", "chat.db-wal", "chat.db-shm", "lock"] {
        assert!(files.iter().any(|path| path.ends_with(ending)), "{ending} in {files:?}");
    }
    assert_eq!(open_to_others(&dir), [] as [String; 0]);

    // Permissions left behind by an earlier version are narrowed, and the log says so.
    cluster[0].terminate();
    cluster[0].ended().await;
    for path in everything(&dir) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    cluster.start_all().await;
    assert_eq!(open_to_others(&dir), [] as [String; 0]);
    let log = cluster[0].log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("accessible to other users")), "{log}");
}

/// The number of occurrences of a text in each of the files.
fn copies(dirs: &[PathBuf], text: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for path in dirs.iter().flat_map(|dir| everything(dir)).filter(|path| path.is_file()) {
        // The file was removed after it was listed.
        let Ok(bytes) = fs::read(&path) else { continue };
        let count = bytes.windows(text.len()).filter(|window| *window == text).count();
        if count > 0 {
            found.push(format!("{count} in {}", path.display()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_is_gone_from_every_file_after_the_delay() {
    const MARK: &[u8] = b"meet-me-behind-the-shed";
    const LEFT_MARK: &[u8] = b"the-key-is-under-the-mat";
    let mut cluster = Cluster::prepared(3);
    cluster.set_all("CHAT_ERASE_AFTER_S", "4");
    cluster.start_all().await;
    let (alice, token) = cluster.register("alice").await;
    let (bob, _) = cluster.register("bob").await;
    let dirs: Vec<PathBuf> = (0..3).map(|number| cluster[number].data_dir()).collect();
    // A third person changes the password, which closes the other session, and keeps the account.
    let (carol, _) = cluster.register("carol").await;
    let ended = cluster.client().await.login("carol", PASSWORD).await.unwrap();
    cluster.level(&token, ended.revision).await;
    let secrets: Vec<Vec<u8>> = {
        let conn = storage::open_file(&dirs[0].join("chat.db")).unwrap();
        let password = |name: &str| -> String {
            let sql = "SELECT password_hash FROM account WHERE username = ?1";
            conn.query_row(sql, [name], |row| row.get(0)).unwrap()
        };
        let sql = "SELECT token_hash FROM session WHERE id = ?1";
        let session: Vec<u8> = conn.query_row(sql, [ended.revision], |row| row.get(0)).unwrap();
        assert_eq!(session.len(), 32);
        vec![password("bob").into_bytes(), password("carol").into_bytes(), session]
    };
    // Long bodies have their own pages, short ones share pages with others that stay.
    let mut deleted = Vec::new();
    for number in 0..24 {
        let length = [100, 1200, 5000, 16_000][number % 4];
        let body = |mark: &[u8]| std::str::from_utf8(mark).unwrap().repeat(length / mark.len());
        deleted.push(alice.send_message("bob", &body(MARK)).await.unwrap().message_id);
        bob.send_message("alice", &body(LEFT_MARK)).await.unwrap();
        alice.send_message("bob", "this one stays").await.unwrap();
    }
    // Other copies in a node's directory: files that were moved aside.
    cluster[1].kill();
    fs::write(dirs[1].join("doubt"), "a test").unwrap();
    cluster.restart(1).await;
    for text in [MARK, LEFT_MARK].into_iter().chain(secrets.iter().map(Vec::as_slice)) {
        assert!(!copies(&dirs, text).is_empty(), "{}", String::from_utf8_lossy(text));
    }
    alice.delete_messages(deleted, true).await.unwrap();
    carol.change_password(PASSWORD, "another good password").await.unwrap();
    let revision = bob.delete_account(PASSWORD).await.unwrap().revision;
    cluster.level(&token, revision).await;
    for text in [MARK, LEFT_MARK].into_iter().chain(secrets.iter().map(Vec::as_slice)) {
        let what = String::from_utf8_lossy(text).into_owned();
        eventually(&what, async || match copies(&dirs, text).as_slice() {
            [] => Ok(()),
            found => Err(format!("{found:?}")),
        })
        .await;
    }
    assert!(!copies(&dirs, b"this one stays").is_empty(), "only what was deleted is gone");
    // The cluster still works like any other, also after a restart of all nodes.
    for number in 0..3 {
        cluster[number].kill();
    }
    cluster.start_all().await;
    let sent = alice.send_message("alice", "still here").await.unwrap();
    cluster.level(&token, sent.revision).await;
}
