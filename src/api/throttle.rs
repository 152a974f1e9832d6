//! Slows down those who guess passwords: per account and per peer address.
//!
//! A number of failures is free; each further one doubles the time until the next attempt is looked at, from 1 s to
//! 60 s. Failures are forgotten one by one as time goes by. A success forgives the account's, not the address's: else
//! an attacker with one account of its own could guess for ever.
//!
//! Attempts under way are counted too, so that a thousand guesses at once are not all looked at before the first has
//! failed. State is per node, in memory and bounded: an attacker gets the allowance on each node.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::aging::AgingMap;
use crate::chat::AccountId;

/// Accounts, and addresses, remembered.
const ENTRIES_MAX: usize = 20_000;
const DELAY_MIN: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(60);
/// Doublings until `DELAY_MAX` is reached: failures beyond are not counted, so that they are forgotten in time.
const DOUBLINGS_MAX: u32 = 6;

/// Allowances of one kind of key.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// Failures without a delay.
    free: u32,
    /// One failure is forgotten after this long.
    forget: Duration,
    /// Attempts under way at once, while failures are free. Afterwards: one.
    at_once: u32,
}

const ACCOUNT: Allowance = Allowance { free: 5, forget: DELAY_MAX, at_once: 64 };
// Many people may share an address, so it has a wider one.
const ADDRESS: Allowance = Allowance { free: 100, forget: Duration::from_secs(6), at_once: 4096 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Account(AccountId),
    Address(IpAddr),
}

impl Key {
    fn allowance(self) -> Allowance {
        match self {
            Key::Account(_) => ACCOUNT,
            Key::Address(_) => ADDRESS,
        }
    }
}

#[derive(Debug)]
struct Bucket {
    failures: u32,
    under_way: u32,
    /// Up to when failures were forgotten.
    counted: Instant,
    blocked_until: Instant,
}

impl Bucket {
    fn forget(&mut self, allowance: Allowance, now: Instant) {
        let periods = now.saturating_duration_since(self.counted).as_nanos() / allowance.forget.as_nanos();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if periods >= self.failures {
            self.failures = 0;
            self.counted = now;
        } else {
            self.failures -= periods;
            self.counted += allowance.forget * periods;
        }
    }
}

type Buckets = AgingMap<Key, Bucket>;

/// Who failed lately. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Throttle {
    accounts: Arc<Mutex<Buckets>>,
    addresses: Arc<Mutex<Buckets>>,
}

/// An attempt under way. Dropped without a word, it does not count.
#[derive(Debug)]
pub(super) struct Attempt {
    throttle: Throttle,
    key: Key,
}

impl Throttle {
    pub(super) fn new() -> Self {
        let map = || Arc::new(Mutex::new(AgingMap::new(ENTRIES_MAX)));
        Self { accounts: map(), addresses: map() }
    }

    fn buckets(&self, key: Key) -> MutexGuard<'_, Buckets> {
        let map = match key {
            Key::Account(_) => &self.accounts,
            Key::Address(_) => &self.addresses,
        };
        map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an attempt on an account; or says how long to wait.
    pub(super) fn account(&self, account: AccountId, now: Instant) -> Result<Attempt, Duration> {
        self.begin(Key::Account(account), now)
    }

    /// Starts an attempt from an address; or says how long to wait. A home has a whole /64 of IPv6, so that counts as
    /// one address.
    pub(super) fn address(&self, address: IpAddr, now: Instant) -> Result<Attempt, Duration> {
        let address = match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => IpAddr::V4(v4),
                None => {
                    let [a, b, c, d, ..] = v6.segments();
                    IpAddr::from([a, b, c, d, 0, 0, 0, 0])
                }
            },
        };
        self.begin(Key::Address(address), now)
    }

    fn begin(&self, key: Key, now: Instant) -> Result<Attempt, Duration> {
        let allowance = key.allowance();
        let mut buckets = self.buckets(key);
        match buckets.get_mut(&key) {
            None => {
                buckets.insert(key, Bucket { failures: 0, under_way: 1, counted: now, blocked_until: now });
            }
            Some(bucket) => {
                let wait = bucket.blocked_until.saturating_duration_since(now);
                if !wait.is_zero() {
                    return Err(wait);
                }
                bucket.forget(allowance, now);
                let at_once = if bucket.failures >= allowance.free { 1 } else { allowance.at_once };
                if bucket.under_way >= at_once {
                    return Err(DELAY_MIN);
                }
                bucket.under_way += 1;
            }
        }
        drop(buckets);
        Ok(Attempt { throttle: self.clone(), key })
    }
}

impl Attempt {
    /// The password was wrong, or the user unknown.
    pub(super) fn failed(self, now: Instant) {
        let allowance = self.key.allowance();
        let mut buckets = self.throttle.buckets(self.key);
        // Forgotten when there were too many others: then it is not known, and starts anew.
        let Some(bucket) = buckets.get_mut(&self.key) else { return };
        bucket.forget(allowance, now);
        if bucket.failures == 0 {
            bucket.counted = now;
        }
        bucket.failures = (bucket.failures + 1).min(allowance.free + 1 + DOUBLINGS_MAX);
        if bucket.failures > allowance.free {
            let doublings = bucket.failures - allowance.free - 1;
            let delay = (DELAY_MIN * 2u32.pow(doublings)).min(DELAY_MAX);
            bucket.blocked_until = bucket.blocked_until.max(now + delay);
        }
    }

    /// The password was right.
    pub(super) fn succeeded(self) {
        if matches!(self.key, Key::Account(_))
            && let Some(bucket) = self.throttle.buckets(self.key).get_mut(&self.key)
        {
            bucket.failures = 0;
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut buckets = self.throttle.buckets(self.key);
        let Some(bucket) = buckets.get_mut(&self.key) else { return };
        bucket.under_way = bucket.under_way.saturating_sub(1);
        if bucket.under_way == 0 && bucket.failures == 0 {
            buckets.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: AccountId = AccountId(1);

    fn fail(throttle: &Throttle, now: Instant) {
        throttle.account(ALICE, now).expect("not throttled").failed(now);
    }

    #[test]
    fn five_failures_are_free_then_the_wait_doubles_up_to_a_minute() {
        let throttle = Throttle::new();
        let mut now = Instant::now();
        (0..5).for_each(|_| fail(&throttle, now));
        let mut waits = Vec::new();
        for _ in 0..9 {
            fail(&throttle, now);
            let wait = throttle.account(ALICE, now).expect_err("throttled");
            waits.push(wait.as_secs());
            now += wait;
        }
        // After the first minute of waiting, one failure is forgotten: so there are two waits of 32 s.
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32, 60, 60]);
        assert!(throttle.account(AccountId(2), now).is_ok(), "others are not slowed down");
    }

    #[test]
    fn success_forgives_the_account() {
        let throttle = Throttle::new();
        let now = Instant::now();
        (0..5).for_each(|_| fail(&throttle, now));
        throttle.account(ALICE, now).expect("not throttled").succeeded();
        (0..5).for_each(|_| fail(&throttle, now));
        assert!(throttle.account(ALICE, now).is_ok());
    }

    #[test]
    fn time_forgives() {
        let throttle = Throttle::new();
        let now = Instant::now();
        (0..6).for_each(|_| fail(&throttle, now));
        assert!(throttle.account(ALICE, now).is_err());
        let later = now + Duration::from_secs(600);
        (0..5).for_each(|_| fail(&throttle, later));
        assert!(throttle.account(ALICE, later).is_ok());
    }

    #[test]
    fn guesses_at_once_are_bounded() {
        let throttle = Throttle::new();
        let now = Instant::now();
        let open: Vec<_> = (0..1000).map_while(|_| throttle.account(ALICE, now).ok()).collect();
        assert_eq!(open.len(), 64);
        open.into_iter().for_each(|attempt| attempt.failed(now));
        assert_eq!(throttle.account(ALICE, now).expect_err("throttled"), DELAY_MAX);
        let later = now + Duration::from_secs(61);
        let _one = throttle.account(ALICE, later).expect("one at a time");
        assert_eq!(throttle.account(ALICE, later).expect_err("one is under way"), DELAY_MIN);
    }

    #[test]
    fn an_address_has_a_wider_allowance_and_success_does_not_clear_it() {
        let throttle = Throttle::new();
        let now = Instant::now();
        let home = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        for host in 0..101 {
            throttle.address(home(host), now).expect("not throttled").failed(now);
            if host < 100 {
                throttle.address(home(host), now).expect("not throttled").succeeded();
            }
        }
        assert_eq!(throttle.address(home(7), now).expect_err("throttled"), DELAY_MIN);
        assert!(throttle.address(IpAddr::from([127, 0, 0, 1]), now).is_ok());
    }

    #[test]
    fn an_attempt_that_came_to_nothing_leaves_nothing() {
        let throttle = Throttle::new();
        drop(throttle.account(ALICE, Instant::now()));
        assert!(throttle.buckets(Key::Account(ALICE)).get_mut(&Key::Account(ALICE)).is_none());
    }
}
