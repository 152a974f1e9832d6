//! Small files and the environment: configuration, `chatctl`'s sessions, `cluster.json`, marks in the data directory.
//!
//! What is read and written again is the same; what is accepted keeps the rules; a mark that is there counts, whatever
//! it says.

#![no_main]

use std::{fs, sync::LazyLock};

use arbitrary::Arbitrary;
use chatctl::session_file::SessionFile;
use chatd::local;
use libfuzzer_sys::fuzz_target;
use quorum_chat_fuzz::scratch::Scratch;
use server::config::{Config, keys};
use storage::{StateMachine, StorageError, integrity};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Config(Vec<(u8, &'a str)>),
    SecretFile(&'a [u8]),
    Sessions(&'a [u8]),
    Cluster(&'a [u8]),
    Doubt(&'a [u8]),
    Diverged(&'a [u8]),
}

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::default);

fuzz_target!(|input: Input| match input {
    Input::Config(values) => {
        let of = |(key, value): (u8, &str)| {
            let name = keys::KEYS[usize::from(key) % keys::KEYS.len()].name;
            // Files are read by another input.
            (name != "PEER_SECRET_FILE").then(|| (format!("CHAT_{name}"), value.to_owned()))
        };
        let name = ("CHAT_NAME".to_owned(), "n1".to_owned());
        config([name].into_iter().chain(values.into_iter().filter_map(of)).collect());
    }
    Input::SecretFile(bytes) => {
        let path = SCRATCH.emptied().join("secret");
        fs::write(&path, bytes).expect("written");
        let value = |key: &str, value: &str| (format!("CHAT_{key}"), value.to_owned());
        config(vec![value("NAME", "n1"), value("PEER_SECRET_FILE", path.to_str().expect("plain text"))]);
    }
    Input::Sessions(bytes) => sessions(bytes),
    Input::Cluster(bytes) => {
        let dir = SCRATCH.emptied();
        fs::write(dir.join("cluster.json"), bytes).expect("written");
        match local::rewrite(dir) {
            Ok(found) => assert_eq!(found, Some(true), "what is written is what was read"),
            Err(_) => assert_eq!(fs::read(dir.join("cluster.json")).expect("there"), bytes, "it is left alone"),
        }
    }
    Input::Doubt(bytes) => {
        let dir = SCRATCH.emptied();
        fs::write(dir.join("doubt"), bytes).expect("written");
        let reason = integrity::quarantine_reason(dir).expect("it is there").expect("there is a doubt");
        let aside = integrity::move_aside(dir, &reason).expect("moved");
        assert!(aside.join("reason").exists() && integrity::had_history(dir));
        assert_eq!(integrity::quarantine_reason(dir).expect("read"), None, "the doubt is gone with the files");
    }
    Input::Diverged(bytes) => {
        let dir = SCRATCH.emptied();
        fs::write(dir.join("chat.db-diverged"), bytes).expect("written");
        let refused = StateMachine::open(dir).err();
        assert!(matches!(refused, Some(StorageError::Diverged { .. })), "{refused:?}");
    }
});

/// What is accepted is accepted again, as `chatd config` shows it, and means the same.
fn config(source: Vec<(String, String)>) {
    const SECRET: &str = "hunter2-hunter2-";
    let told_elsewhere =
        |(key, value): &(String, String)| key.contains(SECRET) || key != "CHAT_PEER_SECRET" && value.contains(SECRET);
    let secret_elsewhere = source.iter().any(told_elsewhere);
    let config = match Config::load(source) {
        Ok(config) => config,
        Err(errors) => {
            assert!(!errors.0.is_empty() && errors.0.iter().all(|mistake| mistake.key.starts_with("CHAT_")));
            return;
        }
    };
    assert!(config.heartbeat * 2 <= config.election_min && config.election_min < config.election_max);
    let mut names: Vec<&str> = config.initial_nodes.iter().map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    assert!(names.is_sorted_by(|a, b| a < b), "names are unique");
    assert!(names.contains(&config.name.as_str()) || config.join.is_some());
    assert!(secret_elsewhere || !format!("{config:?}").contains(SECRET), "a secret is never shown");
    // The secret cannot be given again: it is hidden. Another one protects the node in its place.
    let shown = |config: &Config| -> Vec<_> {
        config.effective().into_iter().filter(|(key, _)| key != "CHAT_PEER_SECRET").collect()
    };
    let mut given = shown(&config);
    let expected = given.clone();
    if config.peer_secrets.is_some() {
        given.push(("CHAT_PEER_SECRET".to_owned(), SECRET.to_owned()));
    }
    let again = Config::load(given).expect("what is in effect is a configuration");
    assert_eq!(shown(&again), expected);
}

fn sessions(bytes: &[u8]) {
    let dir = SCRATCH.emptied();
    let path = dir.join("sessions.json");
    fs::write(&path, bytes).expect("written");
    let name = path.to_str().expect("plain text").to_owned();
    let file = SessionFile::locate(|key| (key == "CHAT_SESSION_FILE").then(|| name.clone())).expect("named");
    let Ok(before) = file.load() else {
        assert!(file.update(|_| {}).is_err());
        assert_eq!(fs::read(&path).expect("there"), bytes, "it is left alone");
        return;
    };
    if let Some((user, session)) = before.find(None) {
        assert_eq!(before.find(Some(user)), Some((user, session)));
    }
    file.update(|_| {}).expect("written");
    assert_eq!(file.load().expect("read"), before, "what is written is what was read");
}
