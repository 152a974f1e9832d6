//! Many idle subscribers: their cost in memory, and their effect on the latency of others.
//!
//! The figures are printed (`cargo test -- --nocapture api::crowd`). Only memory is asserted, because latencies
//! depend on the load of the machine. There are a thousand, unless `SUBSCRIPTIONS` is set.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{task::JoinSet, time::Instant};

use super::{
    node::{Node, soon, until},
    person::{Chat, Person, next, up_to_heartbeat},
};

/// Subscriptions of an account. It may have 64 on a node.
const OF_EACH: usize = 50;
const SENDS: usize = 500;
const BYTES_EACH_MAX: usize = 100 << 10;

fn subscriptions() -> usize {
    std::env::var("SUBSCRIPTIONS").map_or(1000, |text| text.parse().expect("SUBSCRIPTIONS is a number"))
}

/// The latency of consecutive sends: the median, and the 99th percentile.
async fn latencies(person: &mut Person) -> (Duration, Duration) {
    let mut times = Vec::with_capacity(SENDS);
    for _ in 0..SENDS {
        let start = Instant::now();
        person.send("speaker", "hello").await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    (times[SENDS / 2], times[SENDS * 99 / 100])
}

#[tokio::test]
async fn idle_subscriptions_cost_little() {
    let count = subscriptions();
    // This process has the other ends of all connections.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).expect("it may have as many as it may");
    // All accounts are made and log in at once.
    let any = ("CHAT_LOGIN_ATTEMPTS_PER_ADDRESS", "1000000");
    let node = Node::start_with(&[any, ("CHAT_REGISTRATIONS_PER_ADDRESS", "1000000")]).await;
    let mut speaker = Person::join(&node, "speaker").await;
    let mut people = Vec::new();
    let accounts = count.div_ceil(OF_EACH);
    for i in 0..accounts {
        people.push(Person::join(&node, &format!("listener-{i}")).await);
    }
    latencies(&mut speaker).await;
    let alone = latencies(&mut speaker).await;
    let before = node.resident_bytes();
    let mut streams = Vec::new();
    for i in 0..count {
        // One connection each, as from as many devices.
        let mut person = people[i % accounts].clone();
        person.chat = Chat::new(node.channel().await);
        let mut stream = person.subscribe(None).await;
        up_to_heartbeat(&mut stream).await;
        streams.push((person, stream));
    }
    until("all are counted", || node.metric("chat_subscriptions") == count as f64).await;
    let idle = node.resident_bytes().saturating_sub(before);
    let in_company = latencies(&mut speaker).await;
    let after_sends = node.resident_bytes().saturating_sub(before);
    println!(
        "{count} idle subscriptions: {} KiB, and {} KiB after {SENDS} sends of somebody else; \
         sends took {alone:?} (p50, p99) before and {in_company:?} with them",
        idle >> 10,
        after_sends >> 10
    );
    let max = (count * BYTES_EACH_MAX) as u64;
    assert!(idle < max && after_sends < max, "{} KiB, {} KiB", idle >> 10, after_sends >> 10);
    // The subscriptions work: all accounts receive their messages.
    let mut sent = Vec::new();
    for i in 0..accounts {
        sent.push(speaker.send(&format!("listener-{i}"), "hello").await.revision);
    }
    let mut heard = JoinSet::new();
    for (i, (person, mut stream)) in streams.into_iter().enumerate() {
        let expected = sent[i % accounts];
        heard.spawn(async move {
            while next(&mut stream).await.revision < expected {}
            (person, stream)
        });
    }
    while let Some(one) = soon("everybody hears it", heard.join_next()).await {
        one.unwrap();
    }
}
