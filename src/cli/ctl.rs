//! Runs one command: finds the nodes and the session, executes the command, and converts the result into an exit code.

use std::{
    env, fmt,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser as _;
use serde_json::Value;

use super::{
    bench, ctl_account, ctl_accounts, ctl_admin,
    ctl_args::{Cli, Command, Global},
    ctl_backup, ctl_certs, ctl_chat, ctl_cluster, drill,
    output::{self, Output},
    panics,
    say::tell,
    session_file::{Session, SessionFile, Sessions},
    verify,
};
use crate::{
    chat::limits,
    client::{Client, ClientError, Options},
    net::tls::TlsError,
    trace::TraceContext,
};

/// The nodes of `chatd local`.
const DEFAULT_NODES: [&str; 5] =
    ["127.0.0.1:50051", "127.0.0.1:50052", "127.0.0.1:50053", "127.0.0.1:50054", "127.0.0.1:50055"];

/// The exit codes, which are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command succeeded.
    Done = 0,
    /// The service rejected the request, or a node is not healthy.
    Refused = 1,
    /// The usage is wrong, or something on this machine is missing.
    Usage = 2,
    /// No node was reached, or there is no leader: nothing was applied.
    Unreachable = 3,
    /// The request may have been applied.
    Unknown = 4,
    /// `verify` found a violated guarantee.
    Violated = 5,
    /// `verify` found no violation, but proved nothing.
    Inconclusive = 6,
}

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// A failure of the service or of the connection to it.
    Client(ClientError),
    /// Wrong usage, or something missing on this machine.
    Usage(String),
    /// Local input or output failed.
    Io(io::Error),
    /// A node does not serve. The details are already printed.
    Unhealthy,
    /// A guarantee was violated. The details are already printed.
    Violated,
    /// No violation was found, but nothing was proven, for this reason.
    Inconclusive(&'static str),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Self::Client(error) if error.outcome_unknown => Exit::Unknown,
            Self::Client(error) if error.is_unavailable() => Exit::Unreachable,
            // Detected here, before anything was sent.
            Self::Client(error) if error.reason.is_none() && error.field.as_deref() == Some("nodes") => Exit::Usage,
            Self::Client(_) | Self::Unhealthy => Exit::Refused,
            Self::Usage(_) | Self::Io(_) => Exit::Usage,
            Self::Violated => Exit::Violated,
            Self::Inconclusive(_) => Exit::Inconclusive,
        }
    }

    pub(super) fn json(&self) -> Value {
        match self {
            Self::Client(error) => output::failure_json(error, &self.to_string()),
            _ => output::local_failure_json(&self.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => {
                write!(f, "{error}")?;
                if error.has_reason("TOKEN_INVALID") {
                    f.write_str("; log in again with `chatctl login`")?;
                }
                let reason = error.reason.as_deref().map(|reason| format!(" [{reason}]"));
                let trace = error.trace_id.as_deref().map(|id| format!(" (trace {id})"));
                [reason, trace].into_iter().flatten().try_for_each(|part| f.write_str(&part))
            }
            Self::Usage(message) => f.write_str(message),
            Self::Io(error) => write!(f, "{error}"),
            Self::Unhealthy => f.write_str("not all nodes serve"),
            Self::Violated => f.write_str("a guarantee was violated"),
            Self::Inconclusive(why) => write!(f, "nothing was proven: {why}"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::Usage(format!("--tls-ca: {error}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The context of a command, in addition to its arguments.
pub(super) struct Context {
    pub(super) global: Global,
    pub(super) output: Output,
    nodes_from_environment: Option<String>,
    /// From the arguments, or from the environment.
    tls_ca: Option<PathBuf>,
    /// The trace from TRACEPARENT, or a new one.
    trace: Option<TraceContext>,
    file: Option<SessionFile>,
}

impl Context {
    fn new(global: Global, variable: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            output: Output::stdout(global.output),
            nodes_from_environment: variable("CHAT_NODES").filter(|nodes| !nodes.is_empty()),
            tls_ca: global.tls_ca.clone().or_else(|| {
                let variable = variable("CHAT_TLS_CA").filter(|path| !path.is_empty());
                variable.map(PathBuf::from)
            }),
            trace: variable("TRACEPARENT")
                .and_then(|text| text.parse().ok())
                .or_else(|| global.trace.then(new_trace).flatten()),
            file: SessionFile::locate(variable),
            global,
        }
    }

    pub(super) fn file(&self) -> Result<&SessionFile, Failure> {
        let missing = || Failure::Usage("no place for sessions: set HOME or CHAT_SESSION_FILE".to_owned());
        self.file.as_ref().ok_or_else(missing)
    }

    fn sessions(&self) -> Result<Sessions, Failure> {
        self.file.as_ref().map_or_else(|| Ok(Sessions::default()), |file| Ok(file.load()?))
    }

    /// Returns the node addresses: from the arguments, the environment, the session, or the local defaults, in this
    /// order.
    pub(super) fn nodes(&self, session: Option<&Session>) -> Vec<String> {
        let from_environment =
            || self.nodes_from_environment.as_ref().map(|nodes| nodes.split(',').map(str::to_owned).collect());
        self.global
            .nodes
            .clone()
            .or_else(from_environment)
            .or_else(|| session.map(|session| session.nodes.clone()))
            .unwrap_or_else(|| DEFAULT_NODES.map(str::to_owned).to_vec())
    }

    /// Returns the certificate authorities for the nodes, if TLS is to be used.
    pub(super) fn tls_ca(&self, session: Option<&Session>) -> Option<PathBuf> {
        self.tls_ca.clone().or_else(|| session.and_then(|session| session.tls_ca.clone()))
    }

    pub(super) fn options(&self, session: Option<&Session>) -> Result<Options, Failure> {
        let options = Options { deadline: self.global.timeout, trace: self.trace, ..Options::default() };
        match self.tls_ca(session) {
            Some(file) => Ok(options.with_tls(&file)?),
            None => Ok(options),
        }
    }

    /// Connects a client without a session, to open one.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(self.nodes(None), self.options(None)?).await?)
    }

    /// Connects a client that needs no session. If there is a session, connects to its cluster. The client uses the
    /// session if the nodes are those that it was opened with, or if `--user` names it, because the token must not be
    /// sent to another cluster.
    pub(super) async fn connect_to_cluster(&self) -> Result<Client, Failure> {
        let (nodes, options) = self.cluster()?;
        let sessions = self.sessions().unwrap_or_default();
        let session = sessions.find(self.global.user.as_deref()).map(|(_, session)| session);
        let is_known = |session: &&Session| nodes.iter().all(|node| session.nodes.contains(node));
        let token =
            session.filter(|session| self.global.user.is_some() || is_known(session)).map(|it| it.token.clone());
        let client = Client::connect(nodes, options).await?;
        match token {
            Some(token) => Ok(client.with_token(&token)?),
            None => Ok(client),
        }
    }

    /// Returns the nodes and options for the cluster of the session, if there is one, otherwise the defaults.
    pub(super) fn cluster(&self) -> Result<(Vec<String>, Options), Failure> {
        // A damaged session file must not prevent commands that only look at the cluster.
        let sessions = self.sessions().unwrap_or_default();
        let session = sessions.find(self.global.user.as_deref()).map(|(_, session)| session);
        Ok((self.nodes(session), self.options(session)?))
    }

    /// Connects a client with the session of `--user`, or of the user who logged in last.
    pub(super) async fn session(&self) -> Result<LoggedIn, Failure> {
        self.session_with(|options| options).await
    }

    pub(super) async fn session_with(&self, change: impl FnOnce(Options) -> Options) -> Result<LoggedIn, Failure> {
        let sessions = self.sessions()?;
        let Some((user, session)) = sessions.find(self.global.user.as_deref()) else {
            let who = self.global.user.as_deref().unwrap_or("NAME");
            return Err(Failure::Usage(format!("not logged in: chatctl login {who}")));
        };
        let options = change(self.options(Some(session))?);
        let client = Client::connect(self.nodes(Some(session)), options).await?.with_token(&session.token)?;
        Ok(LoggedIn { user: user.to_owned(), token: session.token.clone(), client })
    }

    /// Removes a session that has ended.
    pub(super) fn forget(&self, session: &LoggedIn) -> Result<(), Failure> {
        Ok(self.file()?.update(|sessions| sessions.remove(&session.user, &session.token))?)
    }
}

/// A client with a user's session.
pub(super) struct LoggedIn {
    pub(super) user: String,
    pub(super) token: String,
    pub(super) client: Client,
}

/// Runs `chatctl`: parses the arguments, runs the command and prints failures.
pub fn main() -> ExitCode {
    panics::abort_on_panic();
    let cli = Cli::parse();
    let format = cli.global.output;
    // One thread: a command waits for one thing at a time, and `bench` has to leave the processors to the nodes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Failure::from).and_then(|runtime| {
        let context = Context::new(cli.global, |name| env::var(name).ok());
        let result = runtime.block_on(run(context, cli.command));
        // A pending name resolution must not delay the exit.
        runtime.shutdown_background();
        result
    });
    let exit = match result {
        Ok(()) => Exit::Done,
        // The reader closed the pipe because it has enough.
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(failure) => {
            output::print_failure(format, &failure);
            failure.exit()
        }
    };
    ExitCode::from(exit as u8)
}

/// Creates a trace that starts here.
fn new_trace() -> Option<TraceContext> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).ok()?;
    let (trace_id, span_id) = bytes.split_first_chunk::<16>()?;
    TraceContext::new(u128::from_be_bytes(*trace_id), u64::from_be_bytes(span_id.try_into().ok()?), true)
}

async fn run(mut context: Context, command: Command) -> Result<(), Failure> {
    let context = &mut context;
    if let (true, Some(trace)) = (context.global.trace, context.trace) {
        tell!("trace {}", trace.trace_id_text());
    }
    match command {
        Command::Register { name, invitation } => ctl_account::register(context, &name, &invitation).await,
        Command::Login { name } => ctl_account::login(context, &name).await,
        Command::Logout { all } => ctl_account::logout(context, all).await,
        Command::DeleteAccount { yes } => ctl_account::delete_account(context, yes).await,
        Command::Send { to, text, id } => ctl_chat::send(context, &to, text, id).await,
        Command::Read { partner, limit, before, freshness } => {
            ctl_chat::read(context, &partner, limit, before, freshness).await
        }
        Command::Listen { after, count, no_ack } => ctl_chat::listen(context, after, count, !no_ack).await,
        Command::Accounts { query, action: None } => ctl_chat::accounts(context, &query).await,
        Command::Accounts { action: Some(action), .. } => ctl_accounts::accounts(context, action).await,
        Command::Password => ctl_account::password(context).await,
        Command::Sessions { action } => ctl_account::sessions(context, action).await,
        Command::Privacy { action } => ctl_account::privacy(context, action).await,
        Command::Settings { action, socket } => ctl_accounts::settings(context, action, &socket).await,
        Command::Invites { action, socket } => ctl_accounts::invites(context, action, &socket).await,
        Command::Partners => ctl_chat::partners(context).await,
        Command::MarkRead { partner, up_to } => ctl_chat::mark_read(context, &partner, up_to).await,
        Command::DeleteMessages { ids, for_everyone } => ctl_chat::delete(context, ids, for_everyone).await,
        Command::Leader => ctl_cluster::leader(context).await,
        Command::Status { socket } => ctl_cluster::status(context, socket.as_deref()).await,
        Command::Health { one } => ctl_cluster::health(context, one).await,
        Command::Members { change, socket } => ctl_admin::members(context, change, &socket).await,
        Command::Snapshot { socket } => ctl_admin::snapshot(context, &socket).await,
        Command::Backup { file, socket, force, local } => {
            ctl_backup::backup(context, &socket, &ctl_backup::Target { file, force, local }).await
        }
        Command::Certs { dir, named, days } => ctl_certs::certs(context, &dir, &named, days),
        Command::Bench(args) => bench::run(context, args).await,
        Command::Drill(args) => drill::run(context, args).await,
        Command::Verify(args) => verify::run(context, args).await,
    }
}

// The readers below block the only thread. That is intended: there is no other work until they return.

/// Reads a password, from the terminal without echo or from the first line of standard input.
pub(super) fn read_password(twice: bool) -> Result<String, Failure> {
    prompt_password("Password: ", twice)
}

/// Like [`read_password`], with a given prompt. A further call reads the next line of standard input.
pub(super) fn prompt_password(prompt: &str, twice: bool) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return first_line(limits::PASSWORD_BYTES_MAX + 2);
    }
    let password = rpassword::prompt_password(prompt)?;
    if twice && rpassword::prompt_password("Once more: ")? != password {
        return Err(Failure::Usage("the two passwords differ".to_owned()));
    }
    Ok(password)
}

/// Asks on the terminal, or reads piped input.
pub(super) fn ask(question: &str) -> Result<String, Failure> {
    write!(io::stderr().lock(), "{question}")?;
    first_line(limits::USERNAME_CHARS_MAX + 2)
}

fn first_line(bytes_max: usize) -> Result<String, Failure> {
    let mut line = String::new();
    io::stdin().lock().take(bytes_max as u64 + 1).read_line(&mut line)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// Reads all of standard input as a message, without the last line break, which shells add.
pub(super) fn read_text() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(limits::BODY_BYTES_MAX as u64 + 2).read_to_end(&mut bytes)?;
    let mut text = String::from_utf8(bytes).map_err(|_| Failure::Usage("body: the text is not UTF-8".to_owned()))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::{self, Fake};
    use std::sync::{Arc, Mutex};
    use tonic::Code;

    /// The printed output.
    #[derive(Clone, Default)]
    struct Printed(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Printed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs a command line with a session. Returns the output, if it succeeded.
    async fn typed(line: &str, node: &Fake) -> Result<String, Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.json").display().to_string();
        let cli = Cli::parse_from(line.split_whitespace());
        let mut context = Context::new(cli.global, |name| (name == "CHAT_SESSION_FILE").then(|| path.clone()));
        let session =
            Session { token: "t".to_owned(), expires_at_ms: 0, nodes: vec![node.address.clone()], tls_ca: None };
        context.file()?.update(|sessions| sessions.insert("alice", session))?;
        let printed = Printed::default();
        context.output = Output::to(context.global.output, Box::new(printed.clone()));
        run(context, cli.command).await?;
        let bytes = std::mem::take(&mut *printed.0.lock().expect("lock"));
        Ok(String::from_utf8(bytes).expect("text"))
    }

    #[tokio::test]
    async fn commands_use_the_session_and_its_nodes() {
        let nodes = Fake::cluster(2).await;
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let sent = typed(&format!("chatctl send bob hello --id {id} --output json"), &nodes[1]).await.expect("sent");
        let sent: Value = serde_json::from_str(&sent).expect("one object");
        assert_eq!((&sent["seq"], &sent["client_message_id"]), (&1.into(), &id.into()));
        assert_eq!(nodes[0].with(|shared| shared.tokens.clone()), [Some("Bearer t".to_owned())]);
        let again = typed(&format!("chatctl send bob hello --id {id}"), &nodes[1]).await.expect("sent");
        assert!(again.contains("sent to bob as #1") && again.contains("sent before"), "{again}");
        let leader = typed("chatctl leader", &nodes[1]).await.expect("answered");
        assert!(leader.contains(&nodes[0].address) && leader.contains("term 1"), "{leader}");
        let failure = typed("chatctl --user carol partners", &nodes[1]).await.expect_err("not logged in");
        assert_eq!(failure.exit(), Exit::Usage);
    }

    #[tokio::test]
    async fn listening_ends_after_the_messages_asked_for() {
        let nodes = Fake::cluster(1).await;
        let events = [fake::message(3), fake::receipt(4), fake::message(5), fake::message(6)];
        nodes[0].with(|shared| shared.streams.push_back(events.map(Ok).to_vec()));
        let heard = typed("chatctl listen --after 2 --count 2 --output json", &nodes[0]).await.expect("heard");
        let heard: Vec<Value> = heard.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!(heard.iter().map(|event| &event["revision"]).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(heard[0]["message"]["message_id"], 3);
        assert!(heard[1]["receipt"].is_object());
        assert_eq!(nodes[0].acked.borrow().last(), Some(&(1, 5)), "what was shown is acknowledged");
    }

    #[tokio::test]
    async fn logging_out_forgets_the_session() {
        let nodes = Fake::cluster(1).await;
        let out = typed("chatctl logout", &nodes[0]).await.expect("logged out");
        assert_eq!(out, "alice logged out\n");
    }

    fn context(line: &str, environment: Option<&'static str>) -> Context {
        let cli = Cli::parse_from(line.split_whitespace());
        Context::new(cli.global, |name| environment.filter(|_| name == "CHAT_NODES").map(str::to_owned))
    }

    #[test]
    fn the_addresses_come_from_the_closest_place() {
        let session = Session { token: String::new(), expires_at_ms: 0, nodes: vec!["s:1".to_owned()], tls_ca: None };
        let typed = context("chatctl --nodes t:1,t:2 status", Some("e:1,e:2"));
        assert_eq!(typed.nodes(Some(&session)), ["t:1", "t:2"]);
        let environment = context("chatctl status", Some("e:1,e:2"));
        assert_eq!(environment.nodes(Some(&session)), ["e:1", "e:2"]);
        let plain = context("chatctl status", None);
        assert_eq!(plain.nodes(Some(&session)), ["s:1"]);
        assert_eq!(plain.nodes(None), DEFAULT_NODES);
    }

    #[test]
    fn each_failure_has_its_exit_code() {
        let client =
            |code, outcome_unknown| Failure::Client(ClientError { outcome_unknown, ..ClientError::local(code, "") });
        for (failure, exit) in [
            (client(Code::NotFound, false), Exit::Refused),
            (client(Code::InvalidArgument, false), Exit::Refused),
            (client(Code::Unauthenticated, false), Exit::Refused),
            (client(Code::Unavailable, false), Exit::Unreachable),
            (client(Code::DeadlineExceeded, false), Exit::Unreachable),
            (client(Code::DeadlineExceeded, true), Exit::Unknown),
            (client(Code::Unavailable, true), Exit::Unknown),
            (Failure::Usage(String::new()), Exit::Usage),
            (Failure::Unhealthy, Exit::Refused),
            (Failure::Violated, Exit::Violated),
            (Failure::Inconclusive(""), Exit::Inconclusive),
        ] {
            assert_eq!(failure.exit(), exit, "{failure:?}");
        }
    }

    #[test]
    fn a_failure_says_its_reason_and_field() {
        let error = ClientError {
            reason: Some("FIELD_INVALID".to_owned()),
            field: Some("body".to_owned()),
            ..ClientError::local(Code::InvalidArgument, "body: must not be empty")
        };
        let traced = ClientError { trace_id: Some("0af7".to_owned()), ..error.clone() };
        assert_eq!(Failure::from(traced.clone()).to_string(), "body: must not be empty [FIELD_INVALID] (trace 0af7)");
        assert_eq!(Failure::from(traced).json()["error"]["trace_id"], "0af7");
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "body: must not be empty [FIELD_INVALID]");
        let json = failure.json();
        assert_eq!(json["error"]["code"], "InvalidArgument");
        assert_eq!(json["error"]["reason"], "FIELD_INVALID");
        assert_eq!(json["error"]["field"], "body");
    }
}
