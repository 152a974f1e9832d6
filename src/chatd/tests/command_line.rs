//! `chatd` as a program: what it prints, and its exit codes, without a cluster.

use std::process::{Command, Output};

/// The exit code for a wrong configuration, after `sysexits.h`.
const USAGE: i32 = 64;

fn chatd(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatd"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).output().expect("chatd starts")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn a_wrong_configuration_is_told_completely() {
    let wrong = [("CHAT_NAME", "n 1"), ("CHAT_LISTEN", "nowhere"), ("CHAT_DRAIN_TIMEOUT_MS", "soon")];
    for arguments in [&[][..], &["config"]] {
        let output = chatd(arguments, &wrong);
        assert_eq!(output.status.code(), Some(USAGE), "{output:?}");
        assert_eq!(text(&output.stdout), "");
        for (key, _) in wrong {
            assert!(text(&output.stderr).contains(key), "{key}: {}", text(&output.stderr));
        }
    }
}

#[test]
fn the_configuration_in_effect_is_one_again_and_shows_no_secret() {
    const SECRET: &str = "a-secret-that-nobody-sees";
    let given = [("CHAT_NAME", "n1"), ("CHAT_PEER_SECRET", SECRET)];
    let output = chatd(&["config"], &given);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = text(&output.stdout);
    assert!(shown.lines().any(|line| line == "CHAT_NAME=n1"), "{shown}");
    assert!(!shown.contains(SECRET) && !text(&output.stderr).contains(SECRET), "{output:?}");
    let mut again: Vec<(&str, &str)> = shown.lines().map(|line| line.split_once('=').unwrap()).collect();
    again.retain(|(key, _)| *key != "CHAT_PEER_SECRET");
    again.push(("CHAT_PEER_SECRET", SECRET));
    assert_eq!(text(&chatd(&["config"], &again).stdout), shown);
}

#[test]
fn the_help_names_every_key() {
    let help = chatd(&["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    let shown = chatd(&["config"], &[("CHAT_NAME", "n1"), ("CHAT_PEER_SECRET", "the-secret-of-this-test")]);
    for (key, _) in text(&shown.stdout).lines().map(|line| line.split_once('=').unwrap()) {
        assert!(text(&help.stdout).contains(key), "{key}");
    }
}
