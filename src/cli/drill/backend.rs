//! How faults are injected into nodes: Docker Compose, Kubernetes, a program of the user, or instructions to the user.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use super::super::{ctl::Failure, ctl_args::DrillBy};

/// Time limit for one command. Long, because an orderly stop takes time.
const COMMAND_MAX: Duration = Duration::from_secs(120);

/// An action on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Kill the node without an orderly stop.
    Kill,
    /// Start the node again.
    Start,
    /// Suspend the node.
    Pause,
    /// Resume the suspended node.
    Resume,
    /// Stop the node in order and start it again.
    Restart,
}

impl Act {
    fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Restart => "restart",
        }
    }

    /// Returns the instruction to the user.
    fn request(self, node: &str) -> String {
        match self {
            Self::Kill => format!("Kill {node} now: kill -9, docker kill, pull the plug"),
            Self::Start => format!("Start {node} again"),
            Self::Pause => format!("Let {node} stand still: kill -STOP, docker pause"),
            Self::Resume => format!("Let {node} go on: kill -CONT, docker unpause"),
            Self::Restart => format!("Restart {node} in order: SIGTERM, and start it again when it has ended"),
        }
    }
}

/// The way in which faults are injected. See the module.
pub(super) enum Backend {
    /// Docker Compose. Services have the names of the nodes.
    Compose(Vec<String>),
    /// Kubernetes. Pods have the names of the nodes, and restart automatically.
    Kubectl(Vec<String>),
    /// A program that is called with the action and the node's name.
    Program(PathBuf),
    /// The user gets instructions.
    Guide,
}

impl Backend {
    /// Opens the backend, and finds the commands that it needs.
    ///
    /// # Errors
    /// A program is missing, or does not know the nodes.
    pub(super) async fn open(by: &DrillBy, names: &[String]) -> Result<Self, Failure> {
        match by {
            DrillBy::Compose { project_directory } => {
                let mut words = compose().await?;
                if let Some(directory) = project_directory {
                    words.extend(["--project-directory".to_owned(), directory.display().to_string()]);
                    // Compose v1 looks for the file in its working directory.
                    words.extend(["-f".to_owned(), directory.join("docker-compose.yml").display().to_string()]);
                }
                let services = said(&words, &["config", "--services"]).await?;
                must_know(
                    names,
                    |name| services.lines().any(|line| line == name),
                    "is no service of the compose file",
                )?;
                Ok(Self::Compose(words))
            }
            DrillBy::Kubectl { namespace } => {
                let mut words = vec!["kubectl".to_owned()];
                if let Some(namespace) = namespace {
                    words.push(format!("--namespace={namespace}"));
                }
                let pods = said(&words, &["get", "pods", "--output=name"]).await?;
                let known = |name: &str| pods.lines().any(|line| line == format!("pod/{name}"));
                must_know(names, known, "is no pod of the namespace")?;
                Ok(Self::Kubectl(words))
            }
            DrillBy::Program { path } => Ok(Self::Program(path.clone())),
            DrillBy::Guide => Ok(Self::Guide),
        }
    }

    /// Whether it acts without the user.
    pub(super) fn acts_alone(&self) -> bool {
        !matches!(self, Self::Guide)
    }

    /// Describes the backend to the user.
    pub(super) fn how(&self) -> String {
        match self {
            Self::Compose(words) | Self::Kubectl(words) => format!("with {}", words.join(" ")),
            Self::Program(path) => format!("with {}", path.display()),
            Self::Guide => "by your hand".to_owned(),
        }
    }

    /// Whether it supports the action.
    pub(super) fn can(&self, act: Act) -> bool {
        !matches!((self, act), (Self::Kubectl(_), Act::Pause | Act::Resume))
    }

    /// Whether a killed node stays down until it is started.
    pub(super) fn keeps_dead(&self) -> bool {
        !matches!(self, Self::Kubectl(_))
    }

    /// Executes the action or requests it. It may take effect a moment after this returns.
    ///
    /// # Errors
    /// The command failed; the error contains its output.
    pub(super) async fn act(&self, act: Act, node: &str) -> Result<(), Failure> {
        match (self, act) {
            (Self::Compose(words), Act::Resume) => said(words, &["unpause", node]).await.map(drop),
            (Self::Compose(words), act) => said(words, &[act.word(), node]).await.map(drop),
            (Self::Kubectl(words), Act::Kill) => {
                said(words, &["delete", "pod", node, "--grace-period=0", "--force", "--wait=false"]).await.map(drop)
            }
            (Self::Kubectl(words), Act::Restart) => said(words, &["delete", "pod", node]).await.map(drop),
            // The cluster starts its pods on its own.
            (Self::Kubectl(_), Act::Start | Act::Pause | Act::Resume) => Ok(()),
            (Self::Program(path), act) => said(&[path.display().to_string()], &[act.word(), node]).await.map(drop),
            (Self::Guide, act) => {
                // An instruction that cannot be printed is an error.
                writeln!(io::stderr().lock(), ">>> {}", act.request(node))?;
                Ok(())
            }
        }
    }
}

fn must_know(names: &[String], known: impl Fn(&str) -> bool, otherwise: &str) -> Result<(), Failure> {
    match names.iter().find(|name| !known(name)) {
        Some(name) => Err(Failure::Usage(format!("the node {name} {otherwise}"))),
        None => Ok(()),
    }
}

/// Finds Compose, which is a plug-in of Docker or a separate program.
async fn compose() -> Result<Vec<String>, Failure> {
    for words in [&["docker", "compose"][..], &["docker-compose"]] {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        if said(&words, &["version"]).await.is_ok() {
            return Ok(words);
        }
    }
    Err(Failure::Usage("neither docker compose nor docker-compose can be run".to_owned()))
}

/// Runs a command. Returns its output.
async fn said(command: &[String], more: &[&str]) -> Result<String, Failure> {
    let shown = || command.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>().join(" ");
    let failed = |why: String| Failure::Usage(format!("{}: {why}", shown()));
    let (program, arguments) = command.split_first().ok_or_else(|| failed("no program".to_owned()))?;
    let mut command = Command::new(program);
    let run = command.args(arguments).args(more).stdin(Stdio::null()).kill_on_drop(true).output();
    let Output { status, stdout, stderr } = timeout(COMMAND_MAX, run)
        .await
        .map_err(|_| failed(format!("not done within {} s", COMMAND_MAX.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        return Err(failed(said.trim().lines().last().unwrap_or("it failed and said nothing").to_owned()));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[tokio::test]
    async fn commands_are_run_and_their_failures_told() {
        assert_eq!(said(&words(&["echo", "a"]), &["b"]).await.unwrap(), "a b\n");
        let error = said(&words(&["sh", "-c", "echo first >&2; echo why >&2; exit 3"]), &["kill"]).await.unwrap_err();
        assert!(error.to_string().ends_with(": why"), "{error}");
        let error = said(&words(&["/nowhere/program"]), &["kill", "n1"]).await.unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/program kill n1: No such file"), "{error}");
    }

    const ALL: [Act; 5] = [Act::Kill, Act::Start, Act::Pause, Act::Resume, Act::Restart];

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
        for act in ALL {
            compose.act(act, "n1").await.unwrap();
        }
        for act in ALL {
            kubectl.act(act, "chat-0").await.unwrap();
        }
        let expected = "kill n1\nstart n1\npause n1\nunpause n1\nrestart n1\n\
                        --namespace=chat delete pod chat-0 --grace-period=0 --force --wait=false\n\
                        --namespace=chat delete pod chat-0\n";
        assert_eq!(std::fs::read_to_string(recorded).unwrap(), expected);
        assert!(!kubectl.can(Act::Pause) && !kubectl.keeps_dead(), "pods are started again by themselves");
    }

    #[tokio::test]
    async fn a_program_is_told_what_to_do_with_whom() {
        let dir = tempfile::tempdir().unwrap();
        let (program, recorded) = recorder(dir.path());
        let backend = Backend::open(&DrillBy::Program { path: program }, &words(&["n1"])).await.unwrap();
        for act in ALL {
            assert!(backend.can(act));
            backend.act(act, "n1").await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(recorded).unwrap(), "kill n1\nstart n1\npause n1\nresume n1\nrestart n1\n");
    }

    #[test]
    fn nodes_that_nobody_knows_stop_the_drill() {
        let error = must_know(&words(&["n1", "n2"]), |name| name == "n1", "is no pod").unwrap_err();
        assert_eq!(error.to_string(), "the node n2 is no pod");
    }
}
