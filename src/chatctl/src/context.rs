//! The context of a command in addition to its arguments: the output, the nodes to connect to, and the session.
//!
//! Does not cover: admin sockets (`commands::operator`) and the format of the session file (`session_file`).

use std::{path::PathBuf, time::Duration};

use tokio::time::timeout;

use crate::{
    args::Global,
    failure::Failure,
    output::Output,
    session_file::{Session, SessionFile, Sessions},
};
use client::{Client, Options};
use terminal::tell;
use trace::TraceContext;

/// The nodes of `chatd local`.
const DEFAULT_NODES: [&str; 5] =
    ["127.0.0.1:50051", "127.0.0.1:50052", "127.0.0.1:50053", "127.0.0.1:50054", "127.0.0.1:50055"];

/// Silence after which a person learns that the command still tries.
const SILENCE: Duration = Duration::from_secs(2);

/// How many users with sessions a message names.
const USERS_SHOWN: usize = 5;

/// The context of a command. See the module.
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) output: Output,
    nodes_from_environment: Option<String>,
    /// From the arguments, or from the environment.
    tls_ca: Option<PathBuf>,
    /// The trace from TRACEPARENT, or a new one.
    trace: Option<TraceContext>,
    file: Option<SessionFile>,
}

/// Connects to the first node that answers.
pub(crate) async fn connect_to(nodes: Vec<String>, options: Options) -> Result<Client, Failure> {
    let (asked, seconds) = (nodes.join(", "), options.deadline.as_secs());
    let mut connecting = Box::pin(Client::connect(nodes, options));
    if let Ok(connected) = timeout(SILENCE, &mut connecting).await {
        return Ok(connected?);
    }
    tell!("No answer yet from {asked}: trying for {seconds} s in all");
    Ok(connecting.await?)
}

impl Context {
    /// Creates the context; `variable` looks up an environment variable.
    pub(crate) fn new(global: Global, variable: impl Fn(&str) -> Option<String>) -> Self {
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

    /// Returns the trace whose id the user wants to see.
    pub(crate) fn requested_trace(&self) -> Option<TraceContext> {
        self.trace.filter(|_| self.global.trace)
    }

    /// Returns the session file. Commands that open a session call this before they prompt for a password, so that a
    /// missing place for the session, or one that cannot be written, is reported first.
    pub(crate) fn session_file(&self) -> Result<&SessionFile, Failure> {
        let missing = || Failure::Usage("no place for sessions: set HOME or CHAT_SESSION_FILE".to_owned());
        let file = self.file.as_ref().ok_or_else(missing)?;
        file.prepare()?;
        Ok(file)
    }

    fn sessions(&self) -> Result<Sessions, Failure> {
        self.file.as_ref().map_or_else(|| Ok(Sessions::default()), |file| Ok(file.load()?))
    }

    /// Returns the node addresses: from the arguments, the environment, the session, or the local defaults, in this
    /// order.
    fn nodes(&self, session: Option<&Session>) -> Vec<String> {
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
    fn tls_ca(&self, session: Option<&Session>) -> Option<PathBuf> {
        self.tls_ca.clone().or_else(|| session.and_then(|session| session.tls_ca.clone()))
    }

    fn options(&self, session: Option<&Session>) -> Result<Options, Failure> {
        let options = Options { deadline: self.global.timeout, trace: self.trace, ..Options::default() };
        match self.tls_ca(session) {
            Some(file) => Ok(options.with_tls(&file)?),
            None => Ok(options),
        }
    }

    /// Returns the nodes and options for the cluster of the session, if there is one, otherwise the defaults.
    pub(crate) fn cluster(&self) -> Result<(Vec<String>, Options), Failure> {
        // A damaged session file must not prevent commands that only look at the cluster.
        let sessions = self.sessions().unwrap_or_default();
        let session = sessions.find(self.global.user.as_deref()).map(|(_, session)| session);
        Ok((self.nodes(session), self.options(session)?))
    }

    /// Connects a client without a session, to open one.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        connect_to(self.nodes(None), self.options(None)?).await
    }

    /// Connects a client that needs no session. If there is a session, connects to its cluster. The client uses the
    /// session if the nodes are those that it was opened with, or if `--user` names it, because the token must not be
    /// sent to another cluster.
    pub(crate) async fn connect_to_cluster(&self) -> Result<Client, Failure> {
        let (nodes, options) = self.cluster()?;
        let sessions = self.sessions().unwrap_or_default();
        let session = sessions.find(self.global.user.as_deref()).map(|(_, session)| session);
        let is_known = |session: &&Session| nodes.iter().all(|node| session.nodes.contains(node));
        let token =
            session.filter(|session| self.global.user.is_some() || is_known(session)).map(|it| it.token.clone());
        let client = connect_to(nodes, options).await?;
        match token {
            Some(token) => Ok(client.with_token(&token)?),
            None => Ok(client),
        }
    }

    /// Connects a client with the session of `--user`, or of the user who logged in last.
    pub(crate) async fn session(&self) -> Result<LoggedIn, Failure> {
        self.session_with(|options| options).await
    }

    /// Like [`Context::session`], with changed options.
    pub(crate) async fn session_with(&self, change: impl FnOnce(Options) -> Options) -> Result<LoggedIn, Failure> {
        let sessions = self.sessions()?;
        let Some((user, session)) = sessions.find(self.global.user.as_deref()) else {
            let who = self.global.user.as_deref().unwrap_or("NAME");
            let others = sessions
                .sessions
                .keys()
                .take(USERS_SHOWN)
                .map(|user| format!("--user {user}"))
                .collect::<Vec<_>>()
                .join(", ");
            let others = if others.is_empty() { others } else { format!(", or use {others}") };
            return Err(Failure::Usage(format!("not logged in: chatctl login {who}{others}")));
        };
        let options = change(self.options(Some(session))?);
        let client = connect_to(self.nodes(Some(session)), options).await?.with_token(&session.token)?;
        Ok(LoggedIn { user: user.to_owned(), token: session.token.clone(), client })
    }

    /// Logs in and stores the session.
    pub(crate) async fn log_in(&self, client: &Client, name: &str, password: &str) -> Result<NewSession, Failure> {
        if let Some(device) = self.session_file()?.load()?.devices.get(name) {
            client.keep_device(name, device);
        }
        let answer = client.login(name, password).await?;
        // An absolute path, because the session is also used from other directories.
        let tls_ca = self.tls_ca(None).map(std::path::absolute).transpose()?;
        let (token, expires_at_ms) = (answer.token, answer.expires_at_ms);
        let session = Session { token, expires_at_ms, nodes: self.nodes(None), tls_ca };
        let device = answer.device_token;
        self.session_file()?.update(|sessions| {
            sessions.insert(name, session);
            sessions.devices.insert(name.to_owned(), device);
        })?;
        Ok(NewSession { expires_at_ms, unread_count: answer.unread_count })
    }

    /// Removes a session that has ended.
    pub(crate) fn forget(&self, session: &LoggedIn) -> Result<(), Failure> {
        Ok(self.session_file()?.update(|sessions| sessions.remove(&session.user, &session.token))?)
    }
}

/// A client with a user's session.
pub(crate) struct LoggedIn {
    pub(crate) user: String,
    pub(crate) client: Client,
    token: String,
}

/// The result of a login.
pub(crate) struct NewSession {
    pub(crate) expires_at_ms: u64,
    pub(crate) unread_count: u64,
}

/// Creates a trace that starts here.
fn new_trace() -> Option<TraceContext> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).ok()?;
    let (trace_id, span_id) = bytes.split_first_chunk::<16>()?;
    TraceContext::new(u128::from_be_bytes(*trace_id), u64::from_be_bytes(span_id.try_into().ok()?), true)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A command line without a command.
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        global: Global,
    }

    fn context(line: &str, environment: Option<&'static str>) -> Context {
        let line = Line::parse_from(line.split_whitespace());
        Context::new(line.global, |name| environment.filter(|_| name == "CHAT_NODES").map(str::to_owned))
    }

    #[test]
    fn the_addresses_come_from_the_closest_place() {
        let session = Session { token: String::new(), expires_at_ms: 0, nodes: vec!["s:1".to_owned()], tls_ca: None };
        let typed = context("chatctl --nodes t:1,t:2", Some("e:1,e:2"));
        assert_eq!(typed.nodes(Some(&session)), ["t:1", "t:2"]);
        let environment = context("chatctl", Some("e:1,e:2"));
        assert_eq!(environment.nodes(Some(&session)), ["e:1", "e:2"]);
        let plain = context("chatctl", None);
        assert_eq!(plain.nodes(Some(&session)), ["s:1"]);
        assert_eq!(plain.nodes(None), DEFAULT_NODES);
    }
}
