//! What a message costs with few and with many conversations, without a network and without flushes:
//! `cargo test --release --package quorum-chat-storage --lib cost -- --ignored --nocapture`.

use std::time::Instant;

use super::*;

/// Messages between two commits, about as many as there are in 100 ms.
const COMMIT: u64 = 1000;

/// Random enough for a choice, and the same in each run.
pub(super) fn random(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 29)
}

/// A message of one of the `senders` to anybody else.
fn message(number: u64, accounts: u64, senders: u64) -> (u64, Command) {
    let sender = random(2 * number) % senders;
    let recipient = (sender + 1 + random(2 * number + 1) % (accounts - 1)) % accounts;
    let command = Command::SendMessage {
        session: SessionId(accounts + sender + 1),
        to: Destination::Person(format!("account{recipient}")),
        // As UUIDs with a time: increasing.
        client_id: ClientId(u128::from(number).rotate_left(32).to_be_bytes()),
        body: "x".repeat(128),
    };
    (1000 + number, command)
}

/// Applies messages until nearly all conversations exist, and then some more. Returns the nanoseconds for each of
/// those.
fn measure(accounts: u64, senders: u64, cache_mib: u64) -> u128 {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut machine = StateMachine::open(dir.path()).expect("open");
    machine.set_cache_size(CacheSize::of(cache_mib << 20)).expect("set");
    let made: Vec<_> = (0..accounts).map(|account| create(&format!("account{account}"))).collect();
    let logins: Vec<_> = (0..senders)
        .map(|account| {
            let (time, mut command) = login(account + 1, 0);
            if let Command::OpenSession { token_hash, .. } = &mut command {
                token_hash.0[..8].copy_from_slice(&account.to_be_bytes());
            }
            (time, command)
        })
        .collect();
    machine.apply(vec![entry(1, &made), entry(2, &logins)]).expect("apply");
    let conversations = senders * (accounts - 1) - senders * (senders - 1) / 2;
    let warm_up = (conversations * 4).div_ceil(COMMIT);
    let measured = 200;
    let mut took = 0;
    for commit in 0..warm_up + measured {
        let messages: Vec<_> = (0..COMMIT).map(|at| message(commit * COMMIT + at, accounts, senders)).collect();
        let batch = entry(commit + 3, &messages);
        let began = Instant::now();
        let applied = machine.apply(vec![batch]).expect("apply");
        if commit >= warm_up {
            took += began.elapsed().as_nanos();
        }
        let is_sent = |outcome: &Outcome| matches!(outcome, Outcome::MessageSent(_));
        assert!(applied.outcomes[0].iter().all(is_sent), "{:?}", applied.outcomes[0][0]);
    }
    took / u128::from(measured * COMMIT)
}

#[test]
#[ignore = "a measurement"]
fn what_a_message_costs_with_many_conversations() {
    for round in 1..=3 {
        let few = measure(16, 16, 64);
        println!("round {round}: 120 conversations: {few} ns a message");
        for cache_mib in [32, 64, 128, 512] {
            let many = measure(440, 256, cache_mib);
            println!("79,744 conversations, {cache_mib} MiB of caches: {many} ns, {:.2}", many as f64 / few as f64);
        }
    }
}
