//! Clients that keep sending while nodes fail and restart, and a check of the messages that they sent.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use client::{Client, ClientError, Sent};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{Cluster, Direct, Listener, eventually, history};

/// The account that all others write to, and that listens.
const HUB: &str = "hub";

/// Senders, each with one message in flight, and a listener.
pub struct Workload {
    hub: Client,
    listener: Listener,
    senders: Vec<Sender>,
    stop: Arc<AtomicBool>,
    longest_us: Arc<AtomicU64>,
}

struct Sender {
    name: String,
    partner: String,
    client: Client,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<Vec<Acknowledged>>,
}

/// A message that was sent until it was acknowledged.
struct Acknowledged {
    body: String,
    id: Uuid,
    message_id: u64,
    seq: u64,
    failures: Vec<ClientError>,
}

/// The route of a sender's messages.
enum Way {
    /// Through the library, which goes to the leader.
    Library(Client),
    /// Through one node at a time. A failed call moves on to the next one.
    Nodes(Vec<Direct>, usize),
}

impl Way {
    async fn send(&mut self, id: Uuid, to: &str, body: &str) -> Result<(u64, u64), ClientError> {
        match self {
            Self::Library(client) => {
                let Sent { message_id, seq, .. } = client.send_message_with_id(id, to, body).await?;
                Ok((message_id, seq))
            }
            Self::Nodes(nodes, at) => {
                let sent = nodes[*at].send(id, to, body).await;
                if sent.is_err() {
                    *at = (*at + 1) % nodes.len();
                }
                sent.map(|sent| (sent.message_id, sent.seq))
            }
        }
    }
}

impl Workload {
    /// Starts `by_library` senders that use the library and, if `by_node`, one sender for each node of the cluster,
    /// which sends through that node. All write to one account, which writes back to the first sender and listens.
    pub async fn start(cluster: &Cluster, by_library: usize, by_node: bool) -> Self {
        let (hub, _) = cluster.register(HUB).await;
        let mut ways = Vec::new();
        for i in 0..by_library {
            let name = format!("library-{i}");
            let (client, _) = cluster.register(&name).await;
            ways.push((name, HUB.to_owned(), client.clone(), Way::Library(client)));
        }
        for i in 0..if by_node { cluster.len() } else { 0 } {
            let name = format!("node-{i}");
            let (client, token) = cluster.register(&name).await;
            ways.push((name, HUB.to_owned(), client, Way::Nodes(cluster.directs(&token), i)));
        }
        let first = ways.first().map(|(name, ..)| name.clone()).unwrap_or_default();
        ways.push((HUB.to_owned(), first, hub.clone(), Way::Library(hub.clone())));
        let listener = Listener::start(&hub).await;
        let stop = Arc::<AtomicBool>::default();
        let longest_us = Arc::<AtomicU64>::default();
        let start =
            |(name, partner, client, way)| Sender::start(name, partner, client, way, stop.clone(), longest_us.clone());
        let senders = ways.into_iter().map(start).collect();
        Self { hub, listener, senders, stop, longest_us }
    }

    /// The longest time that any message has taken to be acknowledged.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    /// Waits until every sender has had `count` further messages acknowledged.
    pub async fn advance(&self, count: u64) {
        let acknowledged = || self.senders.iter().map(|sender| sender.acknowledged.load(Ordering::Relaxed));
        let goals: Vec<u64> = acknowledged().map(|had| had + count).collect();
        eventually("the senders go on", async || {
            let behind = self.senders.iter().zip(acknowledged().zip(&goals)).find(|(_, (has, goal))| has < goal);
            behind.map_or(Ok(()), |(sender, (has, goal))| {
                assert!(!sender.task.is_finished(), "{} gave up", sender.name);
                Err(format!("{} is at {has}, not {goal}", sender.name))
            })
        })
        .await;
    }

    /// Stops sending, and checks all guarantees about the messages.
    pub async fn finish(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        let longest_us = self.longest_us;
        let mut stored = BTreeSet::new();
        for sender in self.senders {
            let acknowledged = sender.task.await.expect("a sender does not fail");
            let messages = history(&sender.client, &sender.partner).await;
            let seqs: Vec<u64> = messages.iter().map(|message| message.seq).collect();
            assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "seqs of {} have gaps: {seqs:?}", sender.name);
            let order: Vec<u64> = messages.iter().map(|message| message.message_id).collect();
            assert!(order.is_sorted_by(|a, b| a < b), "ids and seqs of {} disagree: {order:?}", sender.name);
            stored.extend(order);
            // The sender's messages, in conversation order: all that were acknowledged, once each, in the order of
            // sending.
            let own: Vec<_> = messages.iter().filter(|message| message.sender == sender.name).collect();
            for (message, sent) in own.iter().zip(&acknowledged) {
                let found = (&message.body, message.client_message_id, message.message_id, message.seq);
                let expected = (&sent.body, Some(sent.id), sent.message_id, sent.seq);
                assert_eq!(found, expected, "stored and acknowledged differ for {}", sender.name);
            }
            assert_eq!(own.len(), acknowledged.len(), "{} has another number of messages than it sent", sender.name);
            for sent in acknowledged {
                report.acknowledged += 1;
                let by_library = sender.name.starts_with("library") || sender.name == HUB;
                let failures = if by_library { &mut report.failures } else { &mut report.direct_failures };
                failures.extend(sent.failures);
            }
        }
        let stored: Vec<u64> = stored.into_iter().collect();
        self.listener.heard(&stored).await;
        report.longest = Duration::from_micros(longest_us.load(Ordering::Relaxed));
        drop(self.hub);
        report
    }
}

/// The result of a workload.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of messages that were acknowledged and found again.
    pub acknowledged: usize,
    /// The longest time that any message took to be acknowledged.
    pub longest: Duration,
    /// Errors that the library did not hide.
    pub failures: Vec<ClientError>,
    /// Errors of single calls to single nodes.
    pub direct_failures: Vec<ClientError>,
}

impl Sender {
    fn start(
        name: String,
        partner: String,
        client: Client,
        mut way: Way,
        stop: Arc<AtomicBool>,
        longest_us: Arc<AtomicU64>,
    ) -> Self {
        let acknowledged = Arc::<AtomicU64>::default();
        let (counted, from, to) = (acknowledged.clone(), name.clone(), partner.clone());
        let task = tokio::spawn(async move {
            let mut sent = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let (id, body) = (Uuid::now_v7(), format!("{from} {}", sent.len()));
                let (started, mut failures) = (Instant::now(), Vec::new());
                let (message_id, seq) = loop {
                    match way.send(id, &to, &body).await {
                        Ok(stored) => break stored,
                        Err(error) => failures.push(error),
                    }
                };
                longest_us.fetch_max(started.elapsed().as_micros() as u64, Ordering::Relaxed);
                sent.push(Acknowledged { body, id, message_id, seq, failures });
                counted.fetch_add(1, Ordering::Relaxed);
            }
            sent
        });
        Self { name, partner, client, acknowledged, task }
    }
}
