//! Argon2id, off the async threads and with bounded parallelism.
//!
//! One hash takes 19 MiB and some tens of milliseconds of a core, so at most a few are worked on at once, some more
//! may wait, and the rest is refused at once: logins must not starve the chat.

use std::{fmt, sync::Arc};

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::{self, SaltString},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::blocking;

/// Callers that may wait for their turn, for each that is worked on.
const WAITERS_PER_SLOT: usize = 256;
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Why a password was not worked on.
#[derive(Debug, thiserror::Error)]
pub(super) enum PasswordError {
    /// Too many are waiting, or the turn did not come in time.
    #[error("too many passwords are being checked")]
    Overloaded,
    /// A hash that cannot be read, or a computer without randomness.
    #[error("{0}")]
    Failed(String),
}

impl PasswordError {
    fn failed(cause: impl fmt::Display) -> Self {
        Self::Failed(cause.to_string())
    }
}

/// The hashing workers. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Passwords {
    /// Those who are worked on.
    slots: Arc<Semaphore>,
    /// Those, and those who wait.
    admitted: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new(parallelism: usize) -> Self {
        let slots = parallelism.max(1);
        Self {
            slots: Arc::new(Semaphore::new(slots)),
            admitted: Arc::new(Semaphore::new(slots.saturating_mul(1 + WAITERS_PER_SLOT))),
        }
    }

    /// The PHC string of a new hash.
    pub(super) async fn hash(&self, password: String, deadline: Instant) -> Result<String, PasswordError> {
        self.work(deadline, move || hash_now(&password)).await
    }

    /// Whether `password` is the one that `phc` was made of.
    pub(super) async fn verify(&self, password: String, phc: String, deadline: Instant) -> Result<bool, PasswordError> {
        self.work(deadline, move || verify_now(&password, &phc)).await
    }

    async fn work<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let permits = self.turn(deadline).await?;
        // The permits stay with the work: a caller that hangs up does not make it take less.
        let work = move || {
            let result = work();
            drop(permits);
            result
        };
        blocking::run(work).await.map_err(PasswordError::failed)?
    }

    async fn turn(&self, deadline: Instant) -> Result<[OwnedSemaphorePermit; 2], PasswordError> {
        let admitted = self.admitted.clone().try_acquire_owned().map_err(|_| PasswordError::Overloaded)?;
        match timeout_at(deadline, self.slots.clone().acquire_owned()).await {
            Ok(Ok(slot)) => Ok([admitted, slot]),
            Ok(Err(closed)) => Err(PasswordError::failed(closed)),
            Err(_) => Err(PasswordError::Overloaded),
        }
    }
}

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(PasswordError::failed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(PasswordError::failed)?;
    let salt = SaltString::encode_b64(&salt).map_err(PasswordError::failed)?;
    let hash = argon2()?.hash_password(password.as_bytes(), &salt).map_err(PasswordError::failed)?;
    Ok(hash.to_string())
}

fn verify_now(password: &str, phc: &str) -> Result<bool, PasswordError> {
    let hash = PasswordHash::new(phc).map_err(PasswordError::failed)?;
    // The parameters are those in the hash: old hashes stay good when the constants above change.
    match argon2()?.verify_password(password.as_bytes(), &hash) {
        Ok(()) => Ok(true),
        Err(password_hash::Error::Password) => Ok(false),
        Err(error) => Err(PasswordError::failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_hash_fits_its_password_only() {
        let passwords = Passwords::new(2);
        let phc = passwords.hash("correct horse".into(), soon()).await.unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(passwords.verify("correct horse".into(), phc.clone(), soon()).await.unwrap());
        assert!(!passwords.verify("Correct horse".into(), phc.clone(), soon()).await.unwrap());
        assert_ne!(phc, passwords.hash("correct horse".into(), soon()).await.unwrap(), "salted");
        let unreadable = passwords.verify("x".into(), "plain".into(), soon()).await;
        assert!(matches!(unreadable, Err(PasswordError::Failed(_))));
    }

    #[tokio::test]
    async fn those_who_wait_are_bounded() {
        let passwords = Passwords::new(1);
        let _all = passwords.admitted.clone().try_acquire_many_owned(1 + WAITERS_PER_SLOT as u32).unwrap();
        assert!(matches!(passwords.hash("password".into(), soon()).await, Err(PasswordError::Overloaded)));
    }

    #[tokio::test]
    async fn the_turn_has_a_deadline() {
        let passwords = Passwords::new(1);
        let _slot = passwords.slots.clone().try_acquire_owned().unwrap();
        assert!(matches!(passwords.hash("password".into(), Instant::now()).await, Err(PasswordError::Overloaded)));
        assert_eq!(passwords.admitted.available_permits(), 1 + WAITERS_PER_SLOT, "the place is given back");
    }
}
