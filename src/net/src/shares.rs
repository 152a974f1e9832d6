//! A shared budget that no owner can exhaust.
//!
//! An owner is granted a share while it holds less than what is free. One owner alone gets half of the budget, n owners
//! get 1/(n+1) each, and a newcomer always gets something. This is the dynamic threshold of Choudhury and Hahne
//! ("Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998) with a factor of one.
//!
//! Does not cover: waiting for a share.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, futures::OwnedNotified};

use super::gate::Owner;

/// A budget. The unit (bytes or calls) is up to the caller.
pub struct Shares {
    max: usize,
    held: Mutex<Held>,
    released: Arc<Notify>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_owner: HashMap<Owner, usize>,
}

impl Shares {
    /// A budget of `max`.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, held: Mutex::default(), released: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when something is given back after this call.
    pub fn released(&self) -> OwnedNotified {
        Arc::clone(&self.released).notified_owned()
    }

    fn add(&self, owner: Owner, amount: usize) -> bool {
        let mut held = self.lock();
        let free = self.max - held.total;
        let own = held.by_owner.get(&owner).copied().unwrap_or_default();
        if own + amount > free {
            return false;
        }
        held.total += amount;
        held.by_owner.insert(owner, own + amount);
        true
    }

    fn give_back(&self, owner: Owner, amount: usize) {
        let mut held = self.lock();
        held.total -= amount;
        let left = held.by_owner.get(&owner).map_or(0, |own| own - amount);
        if left == 0 {
            held.by_owner.remove(&owner);
        } else {
            held.by_owner.insert(owner, left);
        }
        drop(held);
        self.released.notify_waiters();
    }

    /// A share for `owner`; `None` if that would exceed its current limit.
    pub fn take(self: &Arc<Self>, owner: Owner, amount: usize) -> Option<Share> {
        self.add(owner, amount).then(|| Share { shares: Arc::clone(self), owner, amount })
    }
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shares").field("max", &self.max).field("total", &self.lock().total).finish_non_exhaustive()
    }
}

/// A part of a budget, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    owner: Owner,
    amount: usize,
}

impl Share {
    /// Takes more. Returns false, and leaves the share unchanged, if that would exceed the owner's current limit.
    pub fn grow(&mut self, amount: usize) -> bool {
        let grown = self.shares.add(self.owner, amount);
        self.amount += if grown { amount } else { 0 };
        grown
    }

    /// Gives a part back.
    pub fn shrink(&mut self, amount: usize) {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        self.shares.give_back(self.owner, amount);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.give_back(self.owner, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner = Owner::Account(1);
    const B: Owner = Owner::Account(2);

    #[test]
    fn an_owner_alone_gets_half_and_a_newcomer_finds_something() {
        let shares = Shares::new(100);
        let mut own = shares.take(A, 30).unwrap();
        assert!(own.grow(20));
        assert!(!own.grow(1) && shares.take(A, 1).is_none());
        let other = shares.take(B, 25).unwrap();
        assert!(shares.take(B, 1).is_none());
        drop(own);
        assert!(shares.take(B, 25).is_some());
        drop(other);
        assert_eq!(shares.lock().total, 0);
        assert!(shares.lock().by_owner.is_empty());
    }
}
