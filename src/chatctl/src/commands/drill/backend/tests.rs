//! Tests of the backends, with programs that record how they are called.

use super::*;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn commands_are_run_and_their_failures_told() {
    assert_eq!(output_of(&words(&["echo", "a"]), &["b"]).await.unwrap(), "a b\n");
    let error = output_of(&words(&["sh", "-c", "echo first >&2; echo why >&2; exit 3"]), &["kill"]).await.unwrap_err();
    assert!(error.to_string().ends_with(": why"), "{error}");
    let error = output_of(&words(&["/nowhere/program"]), &["kill", "n1"]).await.unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/program kill n1: No such file"), "{error}");
}

const ALL: [NodeAction; 5] =
    [NodeAction::Kill, NodeAction::Start, NodeAction::Pause, NodeAction::Resume, NodeAction::Restart];

/// Creates a program that writes its arguments to a file. Returns both paths.
fn recorder(dir: &std::path::Path) -> (PathBuf, PathBuf) {
    let (program, recorded) = (dir.join("program"), dir.join("recorded"));
    std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" >> {}\n", recorded.display())).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    (program, recorded)
}

#[tokio::test]
async fn compose_and_kubectl_are_called_with_their_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let (program, recorded) = recorder(dir.path());
    let program = program.display().to_string();
    let compose = Backend::Compose(vec![program.clone()]);
    let kubectl = Backend::Kubectl(vec![program, "--namespace=chat".to_owned()]);
    for action in ALL {
        compose.execute(action, "n1").await.unwrap();
    }
    for action in ALL {
        kubectl.execute(action, "chat-0").await.unwrap();
    }
    let expected = "kill n1\nstart n1\npause n1\nunpause n1\nrestart n1\n\
                    --namespace=chat delete pod chat-0 --grace-period=0 --force --wait=false\n\
                    --namespace=chat delete pod chat-0\n";
    assert_eq!(std::fs::read_to_string(recorded).unwrap(), expected);
    assert!(
        !kubectl.supports(NodeAction::Pause) && !kubectl.keeps_killed_down(),
        "pods are started again by themselves"
    );
}

#[tokio::test]
async fn a_program_is_told_what_to_do_with_whom() {
    let dir = tempfile::tempdir().unwrap();
    let (program, recorded) = recorder(dir.path());
    let backend = Backend::open(&Control::Program { path: program }, &words(&["n1"])).await.unwrap();
    for action in ALL {
        assert!(backend.supports(action));
        backend.execute(action, "n1").await.unwrap();
    }
    assert_eq!(std::fs::read_to_string(recorded).unwrap(), "kill n1\nstart n1\npause n1\nresume n1\nrestart n1\n");
}

#[test]
fn nodes_that_nobody_knows_stop_the_drill() {
    let error = require_all(&words(&["n1", "n2"]), |name| name == "n1", "is no pod").unwrap_err();
    assert_eq!(error.to_string(), "the node n2 is no pod");
}
