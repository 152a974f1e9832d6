//! Tests of the whole program: command lines are parsed, and commands run against nodes that are faked.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::CommandFactory as _;
use serde_json::Value;

use super::*;
use crate::{args::Format, output::Output, session_file::Session};
use client::fake::{self, Fake};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_go_anywhere() {
    for line in [
        "chatctl --nodes a:1,b:2 --output json --user bob --timeout 2.5 send alice hi",
        "chatctl send alice hi --nodes a:1,b:2 --output json --user bob --timeout 2.5",
    ] {
        let cli = parse(line).expect(line);
        assert_eq!(cli.global.nodes.as_deref(), Some(&["a:1".to_owned(), "b:2".to_owned()][..]));
        assert_eq!(cli.global.output, Format::Json);
        assert_eq!(cli.global.user.as_deref(), Some("bob"));
        assert_eq!(cli.global.timeout, Duration::from_millis(2500));
        let Command::Send(arguments) = cli.command else { panic!("{line}") };
        assert_eq!((arguments.text.as_deref(), arguments.id), (Some("hi"), None));
    }
}

#[test]
fn every_command_of_the_manual_parses() {
    for line in [
        "register alice",
        "login alice",
        "logout --all",
        "send bob",
        "send bob hi --id 01890a5d-ac96-774b-bcce-b302099a8057",
        "read bob --limit 10 --before 5 --local",
        "read bob --at-least 17",
        "listen --after 3 --count 2 --no-ack",
        "accounts",
        "accounts ali",
        "accounts list ali --socket /tmp/admin.sock",
        "accounts show alice --socket /tmp/admin.sock",
        "accounts reset-password alice --socket /tmp/admin.sock",
        "accounts disable alice --socket /tmp/admin.sock",
        "accounts enable alice --socket /tmp/admin.sock",
        "accounts logout alice --socket /tmp/admin.sock",
        "accounts delete alice --yes --socket /tmp/admin.sock",
        "register alice --invitation 0123456789abcdef",
        "password",
        "sessions list",
        "sessions revoke 7",
        "settings get registration --socket /tmp/admin.sock",
        "settings set registration invitation --socket /tmp/admin.sock",
        "invites create --uses 3 --hours 24 --socket /tmp/admin.sock",
        "invites list --socket /tmp/admin.sock",
        "invites revoke 7 --socket /tmp/admin.sock",
        "partners",
        "mark-read bob --up-to 4",
        "delete-messages 1 2 3 --for-everyone",
        "delete-account --yes",
        "leader",
        "status",
        "health",
        "health --one 127.0.0.1:50051",
        "members add n6.example.org:50052 --socket /tmp/admin.sock",
        "members remove n6 --socket /tmp/admin.sock",
        "members token --socket /tmp/admin.sock",
        "members transfer --socket /tmp/admin.sock",
        "snapshot --socket /tmp/admin.sock",
        "backup /tmp/chat.backup --socket /tmp/admin.sock --force --local",
        "certs /tmp/certs n1 n2=n2.example.org,10.0.0.2 --days 7",
        "status --tls-ca /tmp/certs/ca.pem",
        "bench --clients 8 --seconds 2 --body-bytes 128 --accounts 4",
        "bench --workload day --rate 100 --accounts 5000 --socket /tmp/admin.sock",
        "bench --workload pages",
        "accounts add bot --socket /tmp/admin.sock",
        "accounts add bot --invitation 0123",
        "verify",
        "verify --clients 8 --seconds 2 --seed 7 --history /tmp/history.jsonl",
        "drill guide",
        "drill compose --project-directory /srv/chat --yes --hold 3 --seed 7 --clients 4",
        "drill --yes kubectl --namespace chat",
        "drill program /usr/local/bin/break",
    ] {
        parse(&format!("chatctl {line}")).expect(line);
    }
}

#[test]
fn nonsense_is_refused_as_usage() {
    for line in [
        "",
        "login alice secret",
        "send",
        "send bob hi --id 7",
        "read bob --local --at-least 3",
        "delete-messages",
        "delete-messages x",
        "members",
        "members remove --socket /tmp/admin.sock",
        "backup --socket /tmp/admin.sock",
        "backup /tmp/chat.backup",
        "bench --clients 0",
        "bench --body-bytes 20000",
        "bench --workload night",
        "bench --rate 0",
        "accounts add",
        "certs /tmp/certs",
        "certs /tmp/certs ca",
        "certs /tmp/certs a/b",
        "certs /tmp/certs n1 --days 0",
        "verify --clients 0",
        "verify --clients 257",
        "verify --seed x",
        "drill",
        "drill program",
        "drill guide --hold 0",
        "status --timeout 0",
        "status --timeout nan",
    ] {
        let error = parse(&format!("chatctl {line}")).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

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
    let session = Session { token: "t".to_owned(), expires_at_ms: 0, nodes: vec![node.address.clone()], tls_ca: None };
    context.session_file()?.update(|sessions| sessions.insert("alice", session))?;
    let printed = Printed::default();
    context.output = Output::to(context.global.output, Box::new(printed.clone()));
    execute(context, cli.command).await?;
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
