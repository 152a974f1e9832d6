//! One `chatd` process: its settings, its lifecycle and its log.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{PEER_SECRET, eventually};

/// A node, running or not.
pub struct Node {
    pub name: String,
    pub grpc: SocketAddr,
    pub peer: SocketAddr,
    pub web: SocketAddr,
    pub metrics: SocketAddr,
    environment: BTreeMap<String, String>,
    log: PathBuf,
    process: Option<Child>,
    stopped: bool,
}

impl Node {
    /// A node with the files in `dir`; not started.
    pub fn new(dir: &Path, name: &str, [grpc, peer, web, metrics]: [SocketAddr; 4]) -> Self {
        let environment = [
            ("CHAT_NAME", name.to_owned()),
            ("CHAT_LISTEN", grpc.to_string()),
            ("CHAT_PEER_LISTEN", peer.to_string()),
            ("CHAT_WEB_LISTEN", web.to_string()),
            ("CHAT_METRICS_LISTEN", metrics.to_string()),
            ("CHAT_DATA_DIR", dir.join(name).display().to_string()),
            // Standard input is a pipe whose other end closes when this process ends, however it ends.
            ("CHAT_EXIT_WITH_PARENT", "1".to_owned()),
            ("CHAT_PEER_SECRET", PEER_SECRET.to_owned()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ];
        let environment = environment.map(|(key, value)| (key.to_owned(), value)).into();
        let log = dir.join(format!("{name}.log"));
        Self { name: name.to_owned(), grpc, peer, web, metrics, environment, log, process: None, stopped: false }
    }

    /// Sets a key of the configuration, with effect from the next start.
    pub fn set(&mut self, key: &str, value: impl Into<String>) -> &mut Self {
        self.environment.insert(key.to_owned(), value.into());
        self
    }

    /// The value of a configuration key.
    pub fn value(&self, key: &str) -> &str {
        &self.environment[key]
    }

    /// The directory of its databases.
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(&self.environment["CHAT_DATA_DIR"])
    }

    /// Starts the process.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        self.start_into(log.into());
    }

    /// Starts the process with its output redirected.
    pub fn start_into(&mut self, output: OwnedFd) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let process = Command::new(crate::programs::chatd())
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    /// Whether the process was started, and not killed, waited for or stopped since.
    pub fn is_up(&self) -> bool {
        self.process.is_some() && !self.stopped
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// `kill -9`. The process is gone when this returns.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.take().unwrap().wait().unwrap();
        self.stopped = false;
    }

    /// SIGTERM. The process still runs when this returns.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP: the process keeps its connections and does nothing.
    pub fn stop(&mut self) {
        self.signal(Signal::STOP);
        self.stopped = true;
    }

    /// SIGCONT.
    pub fn go_on(&mut self) {
        self.signal(Signal::CONT);
        self.stopped = false;
    }

    /// Whether the process has ended without having been waited for.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_some())
    }

    /// Makes the node build a snapshot, through its admin socket.
    pub async fn snapshot(&self) -> Result<(), String> {
        self.operate(&["snapshot"]).await
    }

    /// Transfers leadership to this node.
    pub async fn transfer_to_itself(&self) -> Result<(), String> {
        self.operate(&["members", "transfer", &self.name]).await
    }

    /// A command of `chatd` with the node's configuration, run as another process.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(crate::programs::chatd());
        command.args(words).env_clear().envs(&self.environment).stdin(Stdio::null());
        command
    }

    /// Runs such a command. Returns its exit code and its output.
    pub fn chatd(&self, words: &[&str]) -> (i32, String) {
        let output = self.command(words).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    async fn operate(&self, words: &[&str]) -> Result<(), String> {
        self.chatctl(words).await.map(|_| ())
    }

    /// Runs a command of `chatctl` through the node's admin socket. Returns its output.
    pub async fn chatctl(&self, words: &[&str]) -> Result<String, String> {
        let output = tokio::process::Command::new(crate::programs::chatctl())
            .args(words)
            .arg("--socket")
            .arg(self.data_dir().join("admin.sock"))
            .output()
            .await
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Waits for the process to end.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        eventually(&format!("the end of {}", self.name), async || {
            process.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned())
        })
        .await
    }

    /// Waits for the process to end without a signal. Returns its exit code.
    pub async fn exit_code(&mut self) -> i32 {
        self.ended().await.code().unwrap_or_else(|| panic!("{} was ended by a signal", self.name))
    }

    /// Lines of its log at level ERROR.
    pub fn errors(&self) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(" - ERROR - ")).map(str::to_owned).collect()
    }

    /// Waits for a line with these words in its log. A separate thread writes the log.
    pub async fn logged(&self, words: &str) {
        eventually(&format!("{words:?} in the log of {}", self.name), async || {
            self.log().contains(words).then_some(()).ok_or_else(|| "it is not there".to_owned())
        })
        .await;
    }

    /// The log of all its processes.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Queries `/readyz`. The error is the reason why the node is not ready.
    pub async fn readiness(&self) -> Result<(), String> {
        let answer = self.get("/readyz").await.map_err(|error| error.to_string())?;
        if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(answer) }
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, &[]).await
    }

    /// The value of the series that has these labels, each as `name="value"`.
    pub async fn metric_with(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = self.get("/metrics").await.unwrap();
        let value = answer.lines().find_map(|line| {
            let (metric, value) = line.rsplit_once(' ')?;
            let is_it = metric.split('{').next() == Some(name) && labels.iter().all(|label| metric.contains(label));
            is_it.then(|| value.parse().unwrap())
        });
        value.unwrap_or_else(|| panic!("{name} {labels:?} in\n{answer}"))
    }

    async fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.metrics).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Memory in use by the process, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let process = self.process.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Waits until the node is ready.
    pub async fn ready(&mut self) {
        let process = self.process.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name));
        if let Some(status) = process.try_wait().unwrap() {
            panic!("{} has ended: {status}", self.name);
        }
        eventually(&format!("{} ready", self.name), async || self.readiness().await).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Fails if the process has ended already, which is fine.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            const LINES: usize = 40;
            const CHARS: usize = 240;
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(LINES);
            eprintln!("--- log of {} ({skipped} earlier lines left out)", self.name);
            log.lines().skip(skipped).for_each(|line| eprintln!("{line:.CHARS$}"));
        }
    }
}
