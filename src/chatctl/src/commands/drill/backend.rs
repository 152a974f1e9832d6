//! How faults are injected into nodes: Docker Compose, Kubernetes, a program of the user, or instructions to the user.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use clap::Subcommand;
use tokio::{process::Command, time::timeout};

use crate::failure::Failure;

/// Time limit for one command. Long, because an orderly stop takes time.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// How to control the nodes.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Control {
    /// Docker Compose; the services have the names of the nodes
    Compose {
        /// Directory of docker-compose.yml [default: the current one]
        #[arg(long, value_name = "DIR")]
        project_directory: Option<PathBuf>,
    },
    /// Kubernetes; the pods have the names of the nodes
    Kubectl {
        /// Namespace of the pods [default: that of the current context]
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
    },
    /// A program that is run as PROGRAM kill|start|pause|resume|restart NODE
    Program {
        /// Path of the program
        #[arg(value_name = "PROGRAM")]
        path: PathBuf,
    },
    /// Yourself: print each step, and verify it
    Guide,
}

/// An action on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeAction {
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

impl NodeAction {
    fn verb(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Restart => "restart",
        }
    }

    /// Returns the instruction to the user.
    fn instruction(self, node: &str) -> String {
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
    pub(super) async fn open(control: &Control, names: &[String]) -> Result<Self, Failure> {
        match control {
            Control::Compose { project_directory } => {
                let mut words = find_compose().await?;
                if let Some(directory) = project_directory {
                    words.extend(["--project-directory".to_owned(), directory.display().to_string()]);
                    // Compose v1 looks for the file in its working directory.
                    words.extend(["-f".to_owned(), directory.join("docker-compose.yml").display().to_string()]);
                }
                let services = output_of(&words, &["config", "--services"]).await?;
                require_all(
                    names,
                    |name| services.lines().any(|line| line == name),
                    "is no service of the compose file",
                )?;
                Ok(Self::Compose(words))
            }
            Control::Kubectl { namespace } => {
                let mut words = vec!["kubectl".to_owned()];
                if let Some(namespace) = namespace {
                    words.push(format!("--namespace={namespace}"));
                }
                let pods = output_of(&words, &["get", "pods", "--output=name"]).await?;
                let known = |name: &str| pods.lines().any(|line| line == format!("pod/{name}"));
                require_all(names, known, "is no pod of the namespace")?;
                Ok(Self::Kubectl(words))
            }
            Control::Program { path } => Ok(Self::Program(path.clone())),
            Control::Guide => Ok(Self::Guide),
        }
    }

    /// Whether it injects faults without the user.
    pub(super) fn is_automatic(&self) -> bool {
        !matches!(self, Self::Guide)
    }

    /// Describes to the user how faults are injected.
    pub(super) fn description(&self) -> String {
        match self {
            Self::Compose(words) | Self::Kubectl(words) => format!("with {}", words.join(" ")),
            Self::Program(path) => format!("with {}", path.display()),
            Self::Guide => "by your hand".to_owned(),
        }
    }

    /// Whether it supports the action.
    pub(super) fn supports(&self, action: NodeAction) -> bool {
        !matches!((self, action), (Self::Kubectl(_), NodeAction::Pause | NodeAction::Resume))
    }

    /// Whether a killed node stays down until it is started.
    pub(super) fn keeps_killed_down(&self) -> bool {
        !matches!(self, Self::Kubectl(_))
    }

    /// Executes the action or requests it. It may take effect a moment after this returns.
    ///
    /// # Errors
    /// The command failed; the error contains its output.
    pub(super) async fn execute(&self, action: NodeAction, node: &str) -> Result<(), Failure> {
        match (self, action) {
            (Self::Compose(words), NodeAction::Resume) => output_of(words, &["unpause", node]).await.map(drop),
            (Self::Compose(words), action) => output_of(words, &[action.verb(), node]).await.map(drop),
            (Self::Kubectl(words), NodeAction::Kill) => {
                output_of(words, &["delete", "pod", node, "--grace-period=0", "--force", "--wait=false"])
                    .await
                    .map(drop)
            }
            (Self::Kubectl(words), NodeAction::Restart) => output_of(words, &["delete", "pod", node]).await.map(drop),
            // The cluster starts its pods on its own.
            (Self::Kubectl(_), NodeAction::Start | NodeAction::Pause | NodeAction::Resume) => Ok(()),
            (Self::Program(path), action) => {
                output_of(&[path.display().to_string()], &[action.verb(), node]).await.map(drop)
            }
            (Self::Guide, action) => {
                // An instruction that cannot be printed is an error.
                writeln!(io::stderr().lock(), ">>> {}", action.instruction(node))?;
                Ok(())
            }
        }
    }
}

/// Checks that the backend knows all nodes; `otherwise` says what an unknown one is not.
fn require_all(names: &[String], known: impl Fn(&str) -> bool, otherwise: &str) -> Result<(), Failure> {
    match names.iter().find(|name| !known(name)) {
        Some(name) => Err(Failure::Usage(format!("the node {name} {otherwise}"))),
        None => Ok(()),
    }
}

/// Finds Compose, which is a plug-in of Docker or a separate program.
async fn find_compose() -> Result<Vec<String>, Failure> {
    for words in [&["docker", "compose"][..], &["docker-compose"]] {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        if output_of(&words, &["version"]).await.is_ok() {
            return Ok(words);
        }
    }
    Err(Failure::Usage("neither docker compose nor docker-compose can be run".to_owned()))
}

/// Runs a command with more arguments. Returns what it wrote to standard output.
async fn output_of(command: &[String], more: &[&str]) -> Result<String, Failure> {
    let shown = || command.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>().join(" ");
    let failed = |why: String| Failure::Usage(format!("{}: {why}", shown()));
    let (program, arguments) = command.split_first().ok_or_else(|| failed("no program".to_owned()))?;
    let mut command = Command::new(program);
    let run = command.args(arguments).args(more).stdin(Stdio::null()).kill_on_drop(true).output();
    let Output { status, stdout, stderr } = timeout(COMMAND_TIMEOUT, run)
        .await
        .map_err(|_| failed(format!("not done within {} s", COMMAND_TIMEOUT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        let errors = String::from_utf8_lossy(&stderr);
        return Err(failed(errors.trim().lines().last().unwrap_or("it failed and said nothing").to_owned()));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

#[cfg(test)]
mod tests;
