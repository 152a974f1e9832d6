//! Limits what the leader lets into the log: rates per account, and growth only while there is space.
//!
//! All commands of the cluster pass through the leader's proposer, so a bucket there counts for the whole cluster
//! without being replicated. A new leader begins with full buckets, so a failover permits one more burst. Buckets are
//! kept for recently active accounts. A bucket that is full again is the same as none, so dropping it changes nothing.
//! Invariants: a refused command was not appended; a refusal concerns one command, never the others of its batch.
//!
//! Receipts, which a node gathers from many accounts into one command, are charged on the node that receives them, on
//! each node separately.
//!
//! Does not cover: logins, which the cost of hashing the password bounds, and where a node keeps its buckets
//! (`proposer` and `node::charges`).

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use thiserror::Error;

use chat::AccountId;
use proto::log::{v1 as pb, v1::command::Kind};

/// A full bucket holds the tokens of this time.
const BURST: Duration = Duration::from_secs(10);
/// Most accounts with a bucket. Beyond that, buckets that are full again after any debt are dropped. If that does not
/// help, all of them are.
const ACCOUNTS_MAX: usize = 100_000;
/// Bytes that a message takes in addition to its body: its row, its index, its entry in the log.
const MESSAGE_OVERHEAD_BYTES: u64 = 128;
/// Messages that a rejected one counts for, in addition to itself.
const REJECTED_MESSAGES: f64 = 99.0;

/// Rates per account; 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// Messages per second.
    pub messages: u64,
    /// Bytes of messages per second.
    pub bytes: u64,
    /// Changes of any kind per second. A deletion counts once for each message.
    pub changes: u64,
}

/// The kinds of rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// [`Rates::messages`].
    Messages,
    /// [`Rates::bytes`].
    Bytes,
    /// [`Rates::changes`].
    Changes,
}

impl Rate {
    const ALL: [Self; 3] = [Self::Messages, Self::Bytes, Self::Changes];

    /// The name of the limit, as callers and metrics see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Bytes => "bytes",
            Self::Changes => "changes",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rate| rate.name() == name)
    }
}

/// Why the leader did not append a command. Nothing was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The account exceeds one of its rates.
    #[error("the account exceeds its rate of {}: nothing was applied", .rate.name())]
    RateLimited {
        /// The exceeded rate.
        rate: Rate,
        /// Time after which another attempt may succeed.
        retry: Duration,
    },
    /// The volume of the leader, or those of too many voters, are low on space.
    #[error("the volumes are low on space: nothing was applied")]
    StorageLow,
}
/// Commands that this node refused, as the leader or before they were proposed.
#[derive(Debug, Default)]
pub(crate) struct RefusalCounts {
    rates: [AtomicU64; 3],
    storage_low: AtomicU64,
}

impl RefusalCounts {
    fn note(&self, refusal: &Refusal) {
        let count = match refusal {
            Refusal::RateLimited { rate, .. } => &self.rates[*rate as usize],
            Refusal::StorageLow => &self.storage_low,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// The name of each limit, and the number of commands that it has refused.
    pub(crate) fn get(&self) -> Vec<(&'static str, u64)> {
        let rates = Rate::ALL.into_iter().zip(&self.rates).map(|(rate, count)| (rate.name(), count));
        let all = rates.chain([("storage", &self.storage_low)]);
        all.map(|(name, count)| (name, count.load(Ordering::Relaxed))).collect()
    }
}

/// Tokens of one account, each in units of its rate. A negative number is a debt.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: [f64; 3],
    at: Instant,
}

/// The buckets of all accounts.
#[derive(Debug)]
pub(crate) struct Admission {
    rates: [u64; 3],
    buckets: HashMap<u64, Bucket>,
}

impl Admission {
    /// Full buckets for all accounts.
    pub(crate) fn new(rates: Rates) -> Self {
        Self { rates: [rates.messages, rates.bytes, rates.changes], buckets: HashMap::new() }
    }

    /// Takes the cost of an account's command, or returns why it is refused. Account 0 is the cluster itself.
    pub(crate) fn admit(
        &mut self,
        account: u64,
        command: &pb::Command,
        space_low: bool,
        counts: &RefusalCounts,
    ) -> Result<(), Refusal> {
        let refused = match space_low && grows(command) {
            true => Err(Refusal::StorageLow),
            false => self.take(account, costs(command), Instant::now()),
        };
        refused.inspect_err(|refusal| counts.note(refusal))
    }

    /// Charges changes that are not proposed in the account's name.
    pub(crate) fn charge(&mut self, account: AccountId, changes: usize, counts: &RefusalCounts) -> Result<(), Refusal> {
        let charged = self.take(account.0, [0.0, 0.0, changes as f64], Instant::now());
        charged.inspect_err(|refusal| counts.note(refusal))
    }

    /// Charges the account for a rejected message, which did not fit into the quota or had no such recipient. Its id is
    /// remembered all the same, so it costs as much as many messages. Otherwise rejected messages would fill the
    /// volumes.
    pub(crate) fn slow_down(&mut self, account: AccountId) {
        if let Some(bucket) = self.buckets.get_mut(&account.0) {
            let tokens = &mut bucket.tokens[Rate::Messages as usize];
            // Many rejected messages in flight together cause no longer debt than a burst.
            let least = -burst(self.rates[Rate::Messages as usize]).max(REJECTED_MESSAGES);
            *tokens = (*tokens - REJECTED_MESSAGES).max(least);
        }
    }

    fn take(&mut self, account: u64, costs: [f64; 3], now: Instant) -> Result<(), Refusal> {
        if account == 0 || self.rates == [0; 3] {
            return Ok(());
        }
        let full = self.rates.map(burst);
        if self.buckets.len() >= ACCOUNTS_MAX && !self.buckets.contains_key(&account) {
            self.buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < 2 * BURST);
            if self.buckets.len() >= ACCOUNTS_MAX {
                self.buckets.clear();
            }
        }
        let bucket = self.buckets.entry(account).or_insert(Bucket { tokens: full, at: now });
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.at = now;
        for (at, tokens) in bucket.tokens.iter_mut().enumerate() {
            *tokens = (*tokens + elapsed * self.rates[at] as f64).min(full[at]);
        }
        for rate in Rate::ALL {
            let at = rate as usize;
            // A command that costs more than a full bucket passes when the bucket is full, and leaves a debt. Otherwise
            // it would be refused for ever.
            if self.rates[at] > 0 && costs[at] > 0.0 && bucket.tokens[at] < costs[at].min(full[at]) {
                let missing = costs[at].min(full[at]) - bucket.tokens[at];
                let retry = Duration::from_secs_f64((missing / self.rates[at] as f64).clamp(0.01, 60.0));
                return Err(Refusal::RateLimited { rate, retry });
            }
        }
        bucket.tokens.iter_mut().zip(costs).for_each(|(tokens, cost)| *tokens -= cost);
        Ok(())
    }
}

/// The tokens of a full bucket.
fn burst(rate: u64) -> f64 {
    rate as f64 * BURST.as_secs_f64()
}

/// The body of the message that a command stores. A new kind of command that stores one belongs here: without it, the
/// kind would escape the rates of messages and bytes, and the reserve of space.
pub(crate) fn message_of(command: &pb::Command) -> Option<&str> {
    match &command.kind {
        Some(Kind::SendMessage(send)) => Some(&send.body),
        _ => None,
    }
}

/// Cost of a command, by rate.
fn costs(command: &pb::Command) -> [f64; 3] {
    if let Some(body) = message_of(command) {
        return [1.0, (body.len() as u64 + MESSAGE_OVERHEAD_BYTES) as f64, 1.0];
    }
    match &command.kind {
        Some(Kind::DeleteMessages(delete)) => [0.0, 0.0, delete.message_ids.len() as f64],
        _ => [0.0, 0.0, 1.0],
    }
}

/// Whether a command makes the state larger. Deletions write little and give space back, and a login is needed for
/// them.
pub(crate) fn grows(command: &pb::Command) -> bool {
    message_of(command).is_some() || matches!(&command.kind, Some(Kind::CreateAccount(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(bytes: usize) -> pb::Command {
        let send = pb::SendMessage { body: "x".repeat(bytes), ..Default::default() };
        pb::Command { kind: Some(Kind::SendMessage(send)) }
    }

    fn rates() -> Rates {
        Rates { messages: 10, bytes: 10_000, changes: 100 }
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds_for_that_account_only() {
        let (mut admission, now) = (Admission::new(rates()), Instant::now());
        for _ in 0..100 {
            admission.take(1, costs(&send(1)), now).unwrap();
        }
        let Err(Refusal::RateLimited { rate: Rate::Messages, retry }) = admission.take(1, costs(&send(1)), now) else {
            panic!("the burst has no end");
        };
        assert!(retry <= Duration::from_millis(101), "{retry:?}");
        admission.take(2, costs(&send(1)), now).unwrap();
        admission.take(0, costs(&send(1)), now).unwrap();
        admission.take(1, costs(&send(1)), now + retry).unwrap();
        admission.take(1, costs(&send(1)), now + retry).unwrap_err();
    }

    #[test]
    fn bytes_and_deletions_count() {
        let (mut admission, now) = (Admission::new(rates()), Instant::now());
        while admission.take(1, costs(&send(16 * 1024)), now).is_ok() {}
        let refused = admission.take(1, costs(&send(16 * 1024)), now).unwrap_err();
        assert!(matches!(refused, Refusal::RateLimited { rate: Rate::Bytes, .. }));
        let delete = pb::DeleteMessages { message_ids: vec![1; 1000], ..Default::default() };
        let delete = pb::Command { kind: Some(Kind::DeleteMessages(delete)) };
        admission.take(2, costs(&delete), now).unwrap();
        let refused = admission.take(2, costs(&delete), now).unwrap_err();
        assert!(matches!(refused, Refusal::RateLimited { rate: Rate::Changes, .. }));
    }

    #[test]
    fn what_is_rejected_costs_as_much_as_many() {
        let (mut admission, now) = (Admission::new(rates()), Instant::now());
        admission.take(1, costs(&send(1)), now).unwrap();
        admission.slow_down(AccountId(1));
        let refused = admission.take(1, costs(&send(1)), now).unwrap_err();
        assert!(matches!(refused, Refusal::RateLimited { rate: Rate::Messages, .. }));
        admission.take(1, costs(&send(1)), now + Duration::from_secs(1)).unwrap();
        (0..1000).for_each(|_| admission.slow_down(AccountId(1)));
        admission.take(1, costs(&send(1)), now + Duration::from_secs(1) + 2 * BURST).unwrap();
    }

    #[test]
    fn what_is_off_limits_nothing() {
        let (mut admission, now) = (Admission::new(Rates::default()), Instant::now());
        for _ in 0..10_000 {
            admission.take(1, costs(&send(1000)), now).unwrap();
        }
        assert!(admission.buckets.is_empty());
    }

    #[test]
    fn without_space_only_growth_is_refused() {
        let (mut admission, counts) = (Admission::new(Rates::default()), RefusalCounts::default());
        assert_eq!(admission.admit(1, &send(1), true, &counts), Err(Refusal::StorageLow));
        let delete = pb::Command { kind: Some(Kind::DeleteMessages(pb::DeleteMessages::default())) };
        admission.admit(1, &delete, true, &counts).unwrap();
        admission.admit(1, &send(1), false, &counts).unwrap();
        assert!(counts.get().contains(&("storage", 1)));
    }

    #[test]
    fn the_buckets_are_bounded() {
        let (mut admission, now) = (Admission::new(rates()), Instant::now());
        for account in 1..=ACCOUNTS_MAX as u64 + 10 {
            admission.take(account, costs(&send(1)), now).unwrap();
        }
        assert!(admission.buckets.len() <= ACCOUNTS_MAX);
    }
}
