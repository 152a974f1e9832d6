//! An untrusted member: it appends malformed entries while it leads, and forwards commands that no leader may accept.
//!
//! All nodes have to reject malformed entries in the same way, and a good command next to one keeps its outcome. Unfit
//! commands are rejected before they reach a log.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chat::{Command, Outcome, Rejection};
use futures_util::future::join_all;
use prost::Message as _;
use proto::{log::v1 as pb, raft::v1 as wire};
use raft::{
    Node,
    peers::{Credentials, Lane, Peers},
};
use storage::codec;
use tokio::time::timeout;

use super::{host::dialer, rng::Rng};

/// Time limit for the answer to a forwarded batch.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Contradictions to what the nodes guarantee, found by tasks on their hosts.
pub type Contradictions = Arc<Mutex<Vec<String>>>;

/// A malformed entry's payload, and the number of outcomes before that of its good command, if it has one.
struct Malformed {
    payload: Vec<u8>,
    rejections: usize,
    good: bool,
}

/// A command that is accepted once, because `name` is free.
fn good(name: String) -> pb::Command {
    codec::encode_command(&Command::CreateAccount {
        username: name,
        password_hash: "no login".into(),
        request_id: None,
        invitation: None,
    })
}

/// A command of a known kind with a field of wrong length, or without a required field.
fn broken(rng: &mut Rng) -> pb::Command {
    use pb::command::Kind;
    let bytes = |rng: &mut Rng, length| (0..length).map(|_| rng.next() as u8).collect::<Vec<u8>>();
    let kind = match rng.range(0..4) {
        0 => Kind::OpenSession(pb::OpenSession { token_hash: bytes(rng, 31), ..Default::default() }),
        1 => Kind::ReportDigest(pb::ReportDigest { digest: bytes(rng, 5), ..Default::default() }),
        2 => Kind::SendMessage(pb::SendMessage { client_id: bytes(rng, 16), to: None, ..Default::default() }),
        _ => return pb::Command { kind: None },
    };
    pb::Command { kind: Some(kind) }
}

fn batch(commands: impl IntoIterator<Item = Option<pb::Command>>) -> Vec<u8> {
    let proposal = |command| pb::Proposal { time_ms: 0, traceparent: String::new(), command };
    pb::Batch { proposals: commands.into_iter().map(proposal).collect(), ..Default::default() }.encode_to_vec()
}

fn malformed(rng: &mut Rng) -> Malformed {
    let noise = rng.range(1..2000);
    match rng.range(0..5) {
        0 => Malformed { payload: Vec::new(), rejections: 1, good: false },
        // The first byte has wire type 7, which does not exist.
        1 => {
            let payload = std::iter::once(0xff).chain((1..noise).map(|_| rng.next() as u8)).collect();
            Malformed { payload, rejections: 1, good: false }
        }
        2 => Malformed { payload: batch([None]), rejections: 1, good: false },
        _ => {
            let rejections = rng.range(1..4) as usize;
            let name = format!("beside-{:016x}", rng.next());
            let commands: Vec<_> = (0..rejections).map(|_| broken(rng)).chain([good(name)]).map(Some).collect();
            Malformed { payload: batch(commands), rejections, good: true }
        }
    }
}

/// Appends several malformed entries concurrently on `node`, the leader.
pub fn append_malformed(rng: &mut Rng, found: &Contradictions) -> impl FnOnce(Node) + Send + 'static {
    let entries: Vec<Malformed> = (0..rng.range(1..6)).map(|_| malformed(rng)).collect();
    let found = Arc::clone(found);
    move |node| {
        tokio::spawn(async move {
            let appended = entries.into_iter().map(|entry| {
                let node = node.clone();
                async move {
                    // A leader that loses its leadership does not get the outcomes.
                    let outcomes = node.append_unchecked(entry.payload.into()).await.ok()?;
                    let rejected = |outcome: &&Outcome| matches!(outcome, Outcome::Rejected(Rejection::Malformed));
                    let leading = outcomes.iter().take_while(rejected).count();
                    let rest = &outcomes[leading..];
                    let right = match entry.good {
                        true => matches!(rest, [Outcome::AccountCreated { repeated: false, .. }]),
                        false => rest.is_empty(),
                    };
                    (leading != entry.rejections || !right).then(|| {
                        format!("{} malformed commands, a good one: {}: {outcomes:?}", entry.rejections, entry.good)
                    })
                }
            });
            let wrong = join_all(appended).await.into_iter().flatten();
            found.lock().expect("not poisoned").extend(wrong);
        });
    }
}

/// Forwards unfit commands from `node` to the leader that it knows.
pub fn forward_unfit(rng: &mut Rng, found: &Contradictions) -> impl FnOnce(Node) + Send + 'static {
    let name = format!("unfit-{:016x}", rng.next());
    let unfit = match rng.range(0..3) {
        0 => None,
        1 => Some(broken(rng)),
        _ => Some(good("Not A Name".into())),
    };
    let commands = vec![Some(good(name)), unfit];
    let found = Arc::clone(found);
    move |node| {
        tokio::spawn(async move {
            let status = node.status();
            let Some(leader) = status.leader.filter(|leader| leader.node_id != status.node_id) else { return };
            let credentials =
                Credentials::new(&status.cluster_id, status.node_id, &status.name, "").expect("plain text");
            let mut client = Peers::new(dialer()).client(&leader.peer_address, Lane::Forward).expect("valid");
            let forwarded = |command| wire::ForwardedCommand { command, ..Default::default() };
            let request = wire::ProposeRequest { commands: commands.into_iter().map(forwarded).collect() };
            let answer = timeout(ANSWER_MAX, client.propose(credentials.sign(leader.node_id, request))).await;
            if let Ok(Ok(answer)) = answer {
                let outcomes = answer.into_inner().outcomes;
                let wrong = format!("{} took commands that are unfit: {outcomes:?}", leader.name);
                found.lock().expect("not poisoned").push(wrong);
            }
        });
    }
}
