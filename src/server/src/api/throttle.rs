//! Limits the rate of password guesses and of registrations. Runs on the leader, which counts for the whole cluster.
//!
//! The limits are token buckets: an attempt takes a token before it is made, and a success gives it back. So attempts
//! in flight count as failures until their result is known, and an attempt whose result is never reported stays
//! counted.
//!
//! - A *known device* of an account has a bucket of its own and is subject to no other, so the failures of strangers
//!   never lock it out.
//! - All other attempts on an account share a bucket of the account. In addition, each address has a smaller bucket for
//!   each account, so that one address cannot use up the attempts that the account allows to strangers.
//! - All attempts of an address that are not those of known devices share a bucket of the address.
//!
//! A success refunds the account's buckets, but not the address's. Otherwise an attacker with one account could guess
//! forever. The buckets are in memory and bounded; the ones that were not touched for the longest time are dropped
//! first. After a failover the buckets are full, or as old as this node's last leadership. `docs/decisions/0030`
//! describes what an attacker gains from that.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::aging::AgingMap;
use chat::{AccountId, TokenHash};
use raft::{AttemptKey, AttemptLimiter};

/// Buckets of addresses that are kept. Twice as many are kept for accounts.
const ENTRIES_MAX: usize = 20_000;
const HOUR: Duration = Duration::from_secs(3600);

/// The parameters of a bucket.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// Tokens of a full bucket.
    burst: u32,
    /// Time after which one token is refilled.
    refill: Duration,
}

/// Attempts of strangers on one account.
const ACCOUNT: Allowance = Allowance { burst: 20, refill: Duration::from_secs(60) };
/// Attempts of strangers on one account from one address.
const ACCOUNT_FROM_ADDRESS: Allowance = Allowance { burst: 10, refill: Duration::from_secs(120) };
/// Attempts of one known device of an account.
const DEVICE: Allowance = Allowance { burst: 10, refill: Duration::from_secs(60) };

/// Attempts per hour that are allowed; settings of the leader.
#[derive(Debug, Clone, Copy)]
pub struct AttemptRates {
    /// Logins of strangers from one address, which many people may share. A sixth of them at once.
    pub logins_per_address: u32,
    /// Registrations from one address, all of them at once if need be.
    pub registrations_per_address: u32,
    /// Registrations in the cluster, all of them at once if need be.
    pub registrations: u32,
}

impl Default for AttemptRates {
    fn default() -> Self {
        Self { logins_per_address: 600, registrations_per_address: 200, registrations: 2000 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Account(AccountId),
    AccountFromAddress(AccountId, IpAddr),
    Device(AccountId, TokenHash),
    Address(IpAddr),
    RegistrationsFrom(IpAddr),
    Registrations,
}

/// The time at which the bucket will be full. Each token that is taken moves it by one refill.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

#[derive(Debug)]
struct Buckets {
    accounts: AgingMap<Key, Bucket>,
    addresses: AgingMap<Key, Bucket>,
}

impl Buckets {
    fn map(&mut self, key: &Key) -> &mut AgingMap<Key, Bucket> {
        match key {
            Key::Account(_) | Key::AccountFromAddress(..) | Key::Device(..) => &mut self.accounts,
            Key::Address(_) | Key::RegistrationsFrom(_) | Key::Registrations => &mut self.addresses,
        }
    }
}

/// Counts attempts while this node leads.
#[derive(Debug)]
pub(super) struct Throttle {
    rates: AttemptRates,
    buckets: Mutex<Buckets>,
}

impl Throttle {
    pub(super) fn new(rates: AttemptRates) -> Self {
        let buckets = Buckets { accounts: AgingMap::new(2 * ENTRIES_MAX), addresses: AgingMap::new(ENTRIES_MAX) };
        Self { rates, buckets: Mutex::new(buckets) }
    }

    fn allowance(&self, key: &Key) -> Allowance {
        let per_hour = |count: u32, at_once: u32| Allowance { burst: at_once.max(1), refill: HOUR / count.max(1) };
        let AttemptRates { logins_per_address, registrations_per_address, registrations } = self.rates;
        match key {
            Key::Account(_) => ACCOUNT,
            Key::AccountFromAddress(..) => ACCOUNT_FROM_ADDRESS,
            Key::Device(..) => DEVICE,
            Key::Address(_) => per_hour(logins_per_address, logins_per_address / 6),
            Key::RegistrationsFrom(_) => per_hour(registrations_per_address, registrations_per_address),
            Key::Registrations => per_hour(registrations, registrations),
        }
    }

    /// Takes a token of every bucket that the attempt is subject to. If one is empty, takes none and returns the time
    /// until all have a token.
    fn take(&self, key: &AttemptKey, now: Instant) -> Result<(), Duration> {
        let keys = keys(key);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wait = Duration::ZERO;
        for key in &keys {
            let Allowance { burst, refill } = self.allowance(key);
            if let Some(bucket) = buckets.map(key).get_mut(key) {
                // The bucket has its first token back one burst, less one refill, before it is full.
                let has_token_at = bucket.full_at.checked_sub(refill * (burst - 1)).unwrap_or(now);
                wait = wait.max(has_token_at.saturating_duration_since(now));
            }
        }
        if !wait.is_zero() {
            return Err(wait);
        }
        for key in keys {
            let refill = self.allowance(&key).refill;
            let map = buckets.map(&key);
            match map.get_mut(&key) {
                Some(bucket) => bucket.full_at = bucket.full_at.max(now) + refill,
                None => map.insert(key, Bucket { full_at: now + refill }),
            }
        }
        Ok(())
    }

    fn give_back(&self, key: &AttemptKey) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys(key) {
            if matches!(key, Key::Address(_)) {
                continue;
            }
            let refill = self.allowance(&key).refill;
            if let Some(bucket) = buckets.map(&key).get_mut(&key) {
                bucket.full_at = bucket.full_at.checked_sub(refill).unwrap_or(bucket.full_at);
            }
        }
    }
}

/// The buckets that an attempt is subject to.
fn keys(key: &AttemptKey) -> Vec<Key> {
    let address = key.address.map(network);
    if key.registration {
        return [Some(Key::Registrations), address.map(Key::RegistrationsFrom)].into_iter().flatten().collect();
    }
    if let (Some(account), Some(device)) = (key.account, key.device) {
        return vec![Key::Device(account, device)];
    }
    let on_account = key.account.map(Key::Account);
    let from_address = key.account.zip(address).map(|(account, address)| Key::AccountFromAddress(account, address));
    [on_account, from_address, address.map(Key::Address)].into_iter().flatten().collect()
}

/// The unit that counts as one address: for IPv6 the /64, which a home has as a whole.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

impl AttemptLimiter for Throttle {
    fn begin(&self, key: &AttemptKey) -> Result<(), Duration> {
        self.take(key, Instant::now())
    }

    fn refund(&self, key: &AttemptKey) {
        self.give_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: AttemptRates =
        AttemptRates { logins_per_address: 600, registrations_per_address: 3, registrations: 5 };

    fn attempt(account: u64, address: [u8; 4], device: Option<u8>) -> AttemptKey {
        AttemptKey {
            account: Some(AccountId(account)),
            device: device.map(|device| TokenHash([device; 32])),
            address: Some(IpAddr::from(address)),
            registration: false,
        }
    }

    /// The number of attempts that are allowed from `now` on, with one per second and key.
    fn allowed(throttle: &Throttle, keys: &[AttemptKey], now: Instant, seconds: u64) -> usize {
        let tries = (0..seconds).flat_map(|second| keys.iter().map(move |key| (second, key)));
        tries.filter(|(second, key)| throttle.take(key, now + Duration::from_secs(*second)).is_ok()).count()
    }

    #[test]
    fn an_hour_of_guessing_from_everywhere_is_bounded() {
        let throttle = Throttle::new(RATES);
        let keys: Vec<_> = (0..100).map(|address| attempt(1, [10, 0, 0, address], None)).collect();
        let first = allowed(&throttle, &keys, Instant::now(), 3600);
        assert!((70..=80).contains(&first), "{first}");
    }

    #[test]
    fn an_address_has_as_many_attempts_as_are_set() {
        let throttle = Throttle::new(AttemptRates { logins_per_address: 60, ..RATES });
        let now = Instant::now();
        let keys: Vec<_> = (0..1000).map(|account| attempt(account, [10, 0, 0, 1], None)).collect();
        let at_once = keys.iter().filter(|key| throttle.take(key, now).is_ok()).count();
        assert_eq!(at_once, 10);
        assert_eq!(throttle.take(&keys[0], now).expect_err("throttled"), Duration::from_secs(60));
    }

    #[test]
    fn one_address_leaves_something_to_the_others() {
        let throttle = Throttle::new(RATES);
        let now = Instant::now();
        let first = allowed(&throttle, &[attempt(1, [10, 0, 0, 1], None)], now, 3600);
        assert!((35..=40).contains(&first), "{first}");
        let now = now + HOUR;
        assert!(throttle.take(&attempt(1, [10, 0, 0, 2], None), now).is_ok());
    }

    #[test]
    fn a_known_device_is_never_locked_out_by_others() {
        let throttle = Throttle::new(RATES);
        let now = Instant::now();
        // Attempts on this account, on others behind the same address, and of another device.
        for key in
            [attempt(1, [10, 0, 0, 1], None), attempt(2, [10, 0, 0, 1], None), attempt(1, [10, 0, 0, 1], Some(2))]
        {
            for _ in 0..200 {
                let _ = throttle.take(&key, now);
            }
        }
        let mine = attempt(1, [10, 0, 0, 1], Some(1));
        for _ in 0..10 {
            assert!(throttle.take(&mine, now).is_ok());
        }
        let wait = throttle.take(&mine, now).expect_err("its own failures count");
        assert_eq!(wait, DEVICE.refill);
        throttle.give_back(&mine);
        assert!(throttle.take(&mine, now).is_ok());
    }

    #[test]
    fn a_refused_attempt_takes_nothing() {
        let throttle = Throttle::new(RATES);
        let now = Instant::now();
        let (here, there) = (attempt(1, [10, 0, 0, 1], None), attempt(1, [10, 0, 0, 2], None));
        assert_eq!(allowed(&throttle, &[here], now, 1000), 10 + 8);
        // The account had 20 tokens and gets one each minute. The attempts that the address was denied took none of
        // them.
        assert!(throttle.take(&there, now + Duration::from_secs(1000)).is_ok());
    }

    #[test]
    fn success_does_not_clear_the_address() {
        let throttle = Throttle::new(RATES);
        let now = Instant::now();
        for account in 0..100 {
            let key = attempt(account, [10, 0, 0, 1], None);
            throttle.take(&key, now).expect("allowed");
            throttle.give_back(&key);
        }
        assert_eq!(
            throttle.take(&attempt(7, [10, 0, 0, 1], None), now).expect_err("throttled"),
            Duration::from_secs(6)
        );
    }

    #[test]
    fn registrations_are_bounded_for_an_address_and_the_cluster() {
        let throttle = Throttle::new(RATES);
        let now = Instant::now();
        let from = |last| AttemptKey { account: None, registration: true, ..attempt(0, [10, 0, 0, last], None) };
        (0..3).for_each(|_| throttle.take(&from(1), now).expect("allowed"));
        assert_eq!(throttle.take(&from(1), now).expect_err("throttled"), HOUR / 3);
        (0..2).for_each(|_| throttle.take(&from(2), now).expect("allowed"));
        assert_eq!(throttle.take(&from(3), now).expect_err("throttled"), HOUR / 5);
        throttle.give_back(&from(2));
        assert!(throttle.take(&from(3), now).is_ok());
    }

    #[test]
    fn a_home_is_one_address() {
        let here = "2001:db8:1:2::5".parse().unwrap();
        assert_eq!(network(here), network("2001:db8:1:2:ffff::1".parse().unwrap()));
        assert_ne!(network(here), network("2001:db8:1:3::5".parse().unwrap()));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn an_unknown_user_counts_for_the_address() {
        let throttle = Throttle::new(RATES);
        let now = Instant::now();
        let key = AttemptKey { account: None, ..attempt(0, [10, 0, 0, 1], None) };
        assert_eq!((0..200).filter(|_| throttle.take(&key, now).is_ok()).count(), 100);
    }
}
