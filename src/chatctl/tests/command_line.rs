//! `chatctl` as a program: its exit codes and where it prints, without a cluster.

use std::{
    net::TcpListener,
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

const USAGE: i32 = 2;
const UNREACHABLE: i32 = 3;

fn chatctl(home: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatctl"));
    command.args(arguments).env_clear().env("HOME", home.path()).output().expect("the program runs")
}

/// Returns an address that refuses connections.
fn refusing_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let home = TempDir::new().unwrap();
    for arguments in [&["nonsense"][..], &["--nodes", "no port", "leader"], &["send", "bob"], &[]] {
        let output = chatctl(&home, arguments);
        assert_eq!(output.status.code(), Some(USAGE), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn unreachable_nodes_have_their_own_exit_code() {
    let home = TempDir::new().unwrap();
    let address = refusing_address();
    let output = chatctl(&home, &["--nodes", &address, "--timeout", "0.3", "leader"]);
    assert_eq!(output.status.code(), Some(UNREACHABLE), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&address), "{output:?}");
    // As JSON, a failure is on standard output, too.
    let output = chatctl(&home, &["--output", "json", "--nodes", &address, "--timeout", "0.3", "leader"]);
    assert_eq!(output.status.code(), Some(UNREACHABLE), "{output:?}");
    let failure =
        [&output.stdout, &output.stderr].into_iter().find_map(|text| serde_json::from_slice::<Value>(text).ok());
    assert_eq!(failure.unwrap()["error"]["code"], "Unavailable");
}
