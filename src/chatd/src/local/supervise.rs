//! The node processes: started together, supervised, stopped together.
//!
//! One task per child signals and reaps it, so that no signal can reach a reused process id. Children are in their own
//! process groups: Ctrl-C reaches only this process, which then stops each child. Each child reads from a pipe whose
//! writing end is here. When this process ends in any way, the pipe closes and the node stops
//! (`CHAT_EXIT_WITH_PARENT`).

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use super::{
    LocalArguments, LocalError, config_of, ensure_secret,
    file::{self, ClusterFile, NodeRecord},
    plan, text,
};
use crate::http;
use server::PORT_WAIT_MAX;
use terminal::say::Voice;

/// Interval at which the readiness of a node is polled.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// Timeout of one probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of the messages about a node that is not ready.
const REMIND_EVERY: Duration = Duration::from_secs(15);
/// Time in addition to its drain that a node has for its stop before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The desired state of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Wanted {
    Run,
    Stop,
    Kill,
}

/// The end of a child.
struct Ended {
    name: String,
    status: io::Result<ExitStatus>,
}

/// Runs a cluster until it is stopped or no node is left. Returns the exit code: 0 when all nodes that ran at the stop
/// exited successfully, otherwise 1.
pub async fn run(arguments: &LocalArguments, environment: Vec<(String, String)>) -> Result<u8, LocalError> {
    let data = &arguments.data;
    let mut nodes = plan::plan(file::read(data)?, arguments)?;
    ensure_secret(data, &environment)?;
    let mut drain = Duration::ZERO;
    for node in &nodes {
        drain = drain.max(config_of(node, &nodes, arguments, &environment)?.drain_timeout);
    }
    plan::check_free(&nodes, PORT_WAIT_MAX)?;
    // A stopped terminal must not block this process, because it supervises the nodes.
    let voice = Voice::start().map_err(LocalError::io("standard output and error cannot be written to"))?;
    // From here on, signals cause an orderly stop.
    let mut signals = Signals::new()?;
    fs::create_dir_all(data).map_err(LocalError::io(format!("{} cannot be made", data.display())))?;
    let executable = std::env::current_exe().map_err(LocalError::io("the path of chatd is unknown"))?;
    let here = std::env::current_dir().unwrap_or_default();
    let commands = text::Commands::new(&executable, &here);

    let mut children = Vec::new();
    for i in 0..nodes.len() {
        let own = plan::environment(&nodes[i], &nodes, data, &environment);
        let child = spawn(&executable, own).map_err(LocalError::io(format!("{} cannot be started", nodes[i].name)))?;
        nodes[i].pid = child.id().unwrap_or_default();
        children.push(child);
    }
    file::write(data, &ClusterFile { nodes: nodes.clone() })?;
    let mut cluster = Cluster::new(nodes, children, voice.clone());
    let code = match cluster.watch(&mut signals, data, &commands).await {
        true => 1,
        false => cluster.stop(&mut signals, drain + STOP_GRACE).await,
    };
    voice.finish();
    Ok(code)
}

fn spawn(executable: &Path, own: Vec<(String, String)>) -> io::Result<Child> {
    Command::new(executable)
        .envs(own)
        .env("CHAT_EXIT_WITH_PARENT", "1")
        .stdin(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// The signals that stop the cluster.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, LocalError> {
        let listen = |kind| signal(kind).map_err(LocalError::io("signals cannot be received"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// The running cluster.
struct Cluster {
    nodes: Vec<NodeRecord>,
    voice: Voice,
    wanted: watch::Sender<Wanted>,
    /// One task per running child.
    minders: JoinSet<Ended>,
    /// One task per running child that was not ready yet. Each returns its node's name.
    unready: JoinSet<String>,
    unready_by_name: BTreeMap<String, AbortHandle>,
    /// The writing ends of the children's standard input. Closing one stops the child.
    _lifelines: Vec<Option<ChildStdin>>,
}

impl Cluster {
    fn new(nodes: Vec<NodeRecord>, mut children: Vec<Child>, voice: Voice) -> Self {
        let (wanted, _) = watch::channel(Wanted::Run);
        // Taken out first, because waiting for a child closes the standard input that it still owns.
        let lifelines = children.iter_mut().map(|child| child.stdin.take()).collect();
        let mut minders = JoinSet::new();
        let mut unready = JoinSet::new();
        let mut unready_by_name = BTreeMap::new();
        for (node, child) in nodes.iter().zip(children) {
            minders.spawn(mind(node.name.clone(), child, wanted.subscribe(), voice.clone()));
            let probe = unready.spawn(becomes_ready(node.name.clone(), node.metrics, voice.clone()));
            unready_by_name.insert(node.name.clone(), probe);
        }
        Self { nodes, voice, wanted, minders, unready, unready_by_name, _lifelines: lifelines }
    }

    /// Announces when all running nodes are ready, and reports nodes that die. Returns `false` when a stop is
    /// requested, and `true` when no node is left.
    async fn watch(&mut self, signals: &mut Signals, data: &Path, commands: &text::Commands) -> bool {
        let mut dead: Vec<String> = Vec::new();
        let mut announced = false;
        loop {
            tokio::select! {
                () = signals.any() => return false,
                ended = self.minders.join_next() => {
                    let Some(ended) = ended else {
                        self.voice.tell(format_args!("chatd local: no node is left"));
                        return true;
                    };
                    // A task that runs mind() neither panics nor is aborted.
                    let Ok(Ended { name, status }) = ended else { continue };
                    if let Some(probe) = self.unready_by_name.remove(&name) {
                        probe.abort();
                    }
                    let pid = self.nodes.iter().find(|node| node.name == name).map_or(0, |node| node.pid);
                    let start = commands.start(data, &name);
                    self.voice.tell(format_args!(
                        "chatd local: {name} (pid {pid}) ended: {}; to start it again: {start}",
                        shown(&status)
                    ));
                    dead.push(name);
                }
                Some(ready) = self.unready.join_next() => {
                    if let Ok(name) = ready {
                        self.unready_by_name.remove(&name);
                    }
                }
            }
            if !announced && self.unready_by_name.is_empty() && !self.minders.is_empty() {
                announced = true;
                let living: Vec<&NodeRecord> = self.nodes.iter().filter(|node| !dead.contains(&node.name)).collect();
                self.voice.show(&text::welcome(&living, data, commands));
            }
        }
    }

    /// Stops all children: in order first, and with SIGKILL after `time_limit` or another signal.
    async fn stop(&mut self, signals: &mut Signals, time_limit: Duration) -> u8 {
        self.unready.abort_all();
        self.wanted.send_replace(Wanted::Stop);
        let deadline = Instant::now() + time_limit;
        let mut code = 0;
        loop {
            tokio::select! {
                ended = self.minders.join_next() => match ended {
                    None => return code,
                    Some(Ok(Ended { status: Ok(status), .. })) if status.success() => {}
                    Some(Ok(Ended { name, status })) => {
                        self.voice.tell(format_args!("chatd local: {name} did not stop well: {}", shown(&status)));
                        code = 1;
                    }
                    Some(Err(_)) => code = 1,
                },
                () = signals.any() => { self.wanted.send_replace(Wanted::Kill); }
                () = sleep_until(deadline), if *self.wanted.borrow() < Wanted::Kill => {
                    self.wanted.send_replace(Wanted::Kill);
                }
            }
        }
    }
}

fn shown(status: &io::Result<ExitStatus>) -> String {
    status.as_ref().map_or_else(ToString::to_string, ToString::to_string)
}

/// Waits for the end of a child, and signals it when the desired state changes.
async fn mind(name: String, mut child: Child, mut wanted: watch::Receiver<Wanted>, voice: Voice) -> Ended {
    loop {
        tokio::select! {
            status = child.wait() => return Ended { name, status },
            Ok(()) = wanted.changed() => {
                let signal = match *wanted.borrow_and_update() {
                    Wanted::Run => continue,
                    Wanted::Stop => Signal::TERM,
                    Wanted::Kill => Signal::KILL,
                };
                // The process id is present until the child is reaped, so it still belongs to the child.
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                if let Some(pid) = pid
                    && let Err(error) = kill_process(pid, signal)
                {
                    voice.tell(format_args!("chatd local: {name} cannot be signalled: {error}"));
                }
            }
        }
    }
}

/// Polls until the node is ready. The caller aborts this when the node ends.
async fn becomes_ready(name: String, metrics: SocketAddr, voice: Voice) -> String {
    let mut reminder = Instant::now() + REMIND_EVERY;
    loop {
        let reason = match http::get(metrics, "/readyz", PROBE_TIMEOUT).await {
            Ok(answer) if answer.status.is_success() => return name,
            Ok(answer) => answer.reason(),
            Err(error) => error.to_string(),
        };
        if Instant::now() >= reminder {
            reminder += REMIND_EVERY;
            voice.tell(format_args!("chatd local: {name} is not ready yet: {reason}"));
        }
        sleep(PROBE_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use net::gate::Gate;
    use server::web::{Readiness, metrics_router, serve};

    fn child(program: &str, argument: &str) -> Child {
        Command::new(program).arg(argument).stdin(Stdio::piped()).process_group(0).kill_on_drop(true).spawn().unwrap()
    }

    #[tokio::test]
    async fn a_child_is_told_to_stop_and_reaped() {
        let (wanted, wants) = watch::channel(Wanted::Run);
        let minder = tokio::spawn(mind("n1".into(), child("sleep", "1000"), wants, Voice::start().unwrap()));
        wanted.send_replace(Wanted::Stop);
        let ended = minder.await.unwrap();
        assert_eq!(ended.name, "n1");
        assert_eq!(shown(&ended.status), "signal: 15 (SIGTERM)");
    }

    #[tokio::test]
    async fn a_child_lives_on_while_it_is_minded_and_ends_when_its_lifeline_closes() {
        let mut cat = child("cat", "-");
        let lifeline = cat.stdin.take();
        let (_wanted, wants) = watch::channel(Wanted::Run);
        let minder = tokio::spawn(mind("n1".into(), cat, wants, Voice::start().unwrap()));
        tokio::task::yield_now().await;
        assert!(!minder.is_finished());
        drop(lifeline);
        assert!(minder.await.unwrap().status.unwrap().success());
    }

    #[tokio::test]
    async fn readiness_is_asked_for_until_it_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (set, readiness) = watch::channel(Readiness::NotReady("no leader".into()));
        let router = metrics_router("text/plain", String::new, readiness);
        tokio::spawn(serve(listener, Gate::uncounted(8), router, Default::default(), std::future::pending()));
        assert_eq!(http::get(address, "/readyz", PROBE_TIMEOUT).await.unwrap().reason(), "no leader");
        let waiter = tokio::spawn(becomes_ready("n1".into(), address, Voice::start().unwrap()));
        set.send_replace(Readiness::Ready);
        assert_eq!(waiter.await.unwrap(), "n1");
    }
}
