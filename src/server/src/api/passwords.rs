//! Argon2id, off the async threads and with bounded parallelism.
//!
//! One hash takes 19 MiB and some tens of milliseconds of a core. So only a few run at once, a bounded number waits,
//! and the rest is rejected at once: logins must not starve the chat. There are two lanes with separate slots: the
//! passwords of existing accounts, whose attempts are counted before they get here, and the new passwords of
//! registrations. So registrations delay logins only by the processor time of the slots of their lane.
//!
//! Passwords are compared in one form (NFKC), because keyboards produce the same letter as one character or as two, and
//! different spaces that look alike. RFC 8265 requires a normalization, too. Hashes of passwords that were not
//! normalized stay valid, and are replaced at the next login.

use std::{fmt, sync::Arc};

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::{self, Output, SaltString},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use unicode_normalization::UnicodeNormalization as _;

use trace::blocking;

/// Slots of the other lane for each slot of the registration lane.
const REGISTRATION_SHARE: usize = 4;
/// Callers that may wait for each slot.
const WAITERS_PER_SLOT: usize = 256;
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Why a password was not processed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PasswordError {
    /// Too many callers are waiting, or the deadline passed before a slot was free.
    #[error("too many passwords are being checked")]
    Overloaded,
    /// The hash is unreadable, or the system has no randomness.
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
    known: Workers,
    registrations: Workers,
}

/// The workers of one lane.
#[derive(Debug, Clone)]
struct Workers {
    /// Permits for running work.
    slots: Arc<Semaphore>,
    /// Permits for running and waiting work.
    admitted: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new(parallelism: usize) -> Self {
        let registrations = Workers::new((parallelism / REGISTRATION_SHARE).max(1));
        Self { known: Workers::new(parallelism.max(1)), registrations }
    }

    /// The PHC string of a new hash, for an account that exists.
    pub(super) async fn hash(&self, password: String, deadline: Instant) -> Result<String, PasswordError> {
        self.known.work(deadline, move || hash_now(&password)).await
    }

    /// The PHC string of a new hash, for a registration.
    pub(super) async fn hash_for_registration(
        &self,
        password: String,
        deadline: Instant,
    ) -> Result<String, PasswordError> {
        self.registrations.work(deadline, move || hash_now(&password)).await
    }

    /// Whether `phc` is a hash of `password`.
    pub(super) async fn verify(
        &self,
        password: String,
        phc: String,
        deadline: Instant,
    ) -> Result<Verified, PasswordError> {
        self.known.work(deadline, move || verify_now(&password, &phc)).await
    }
}

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verified {
    /// The password is right.
    Right,
    /// The password is right, and its hash is outdated. This is a new hash with the current parameters.
    RightAndRehashed(String),
    /// The password is wrong.
    Wrong,
}

impl Workers {
    fn new(slots: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(slots)),
            admitted: Arc::new(Semaphore::new(slots.saturating_mul(1 + WAITERS_PER_SLOT))),
        }
    }

    async fn work<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let permits = self.turn(deadline).await?;
        // The permits belong to the work, which continues when its caller disconnects.
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

/// The normalized form of a password, which is hashed.
fn normalized(password: &str) -> String {
    password.nfkc().collect()
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    hash_exactly(&normalized(password))
}

fn hash_exactly(password: &str) -> Result<String, PasswordError> {
    let salt = salt()?;
    let hash = argon2()?.hash_password(password.as_bytes(), &salt).map_err(PasswordError::failed)?;
    Ok(hash.to_string())
}

fn salt() -> Result<SaltString, PasswordError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(PasswordError::failed)?;
    SaltString::encode_b64(&salt).map_err(PasswordError::failed)
}

/// A PHC string that no known password fits: the output is random. It has the usual form and parameters, so a login to
/// such an account takes as long as any other, and fails.
pub(super) fn without_password() -> Result<String, PasswordError> {
    let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
    getrandom::fill(&mut output).map_err(PasswordError::failed)?;
    let salt = salt()?;
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: argon2()?.params().try_into().map_err(PasswordError::failed)?,
        salt: Some(salt.as_salt()),
        hash: Some(Output::new(&output).map_err(PasswordError::failed)?),
    };
    Ok(hash.to_string())
}

fn verify_now(password: &str, phc: &str) -> Result<Verified, PasswordError> {
    let hash = PasswordHash::new(phc).map_err(PasswordError::failed)?;
    let usual = normalized(password);
    if fits(&usual, &hash)? {
        let weak = is_weaker(&hash);
        return Ok(if weak { Verified::RightAndRehashed(hash_exactly(&usual)?) } else { Verified::Right });
    }
    // The hash is from before passwords were normalized.
    if usual != password && fits(password, &hash)? {
        return Ok(Verified::RightAndRehashed(hash_exactly(&usual)?));
    }
    Ok(Verified::Wrong)
}

/// Whether a hash was made from exactly this password. The parameters are those in the hash, so old hashes stay valid
/// when the constants above change.
fn fits(password: &str, hash: &PasswordHash<'_>) -> Result<bool, PasswordError> {
    match argon2()?.verify_password(password.as_bytes(), hash) {
        Ok(()) => Ok(true),
        Err(password_hash::Error::Password) => Ok(false),
        Err(error) => Err(PasswordError::failed(error)),
    }
}

/// Whether a hash was made with less work or memory than the current parameters require.
fn is_weaker(hash: &PasswordHash<'_>) -> bool {
    let argon2id = hash.algorithm == Algorithm::Argon2id.ident();
    let parameter = |name| hash.params.get_decimal(name).unwrap_or_default();
    !argon2id || parameter("m") < MEMORY_KIB || parameter("t") < PASSES
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
        let right = passwords.verify("correct horse".into(), phc.clone(), soon()).await.unwrap();
        assert_eq!(right, Verified::Right);
        let wrong = passwords.verify("Correct horse".into(), phc.clone(), soon()).await.unwrap();
        assert_eq!(wrong, Verified::Wrong);
        assert_ne!(phc, passwords.hash("correct horse".into(), soon()).await.unwrap(), "salted");
        let unreadable = passwords.verify("x".into(), "plain".into(), soon()).await;
        assert!(matches!(unreadable, Err(PasswordError::Failed(_))));
    }

    #[test]
    fn an_account_without_a_password_has_a_hash_of_the_usual_form() {
        let phc = without_password().unwrap();
        let usual = hash_now("correct horse").unwrap();
        let parameters = |phc: &str| phc.split('$').take(4).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((parameters(&phc), phc.len()), (parameters(&usual), usual.len()));
        assert_eq!(verify_now("correct horse", &phc).unwrap(), Verified::Wrong, "and not outdated");
        assert_ne!(phc, without_password().unwrap());
    }

    #[tokio::test]
    async fn those_who_wait_are_bounded() {
        let passwords = Passwords::new(1);
        let _all = passwords.known.admitted.clone().try_acquire_many_owned(1 + WAITERS_PER_SLOT as u32).unwrap();
        assert!(matches!(passwords.hash("password".into(), soon()).await, Err(PasswordError::Overloaded)));
    }

    #[tokio::test]
    async fn the_turn_has_a_deadline() {
        let passwords = Passwords::new(1);
        let _slot = passwords.known.slots.clone().try_acquire_owned().unwrap();
        assert!(matches!(passwords.hash("password".into(), Instant::now()).await, Err(PasswordError::Overloaded)));
        assert_eq!(passwords.known.admitted.available_permits(), 1 + WAITERS_PER_SLOT, "the place is given back");
    }

    #[tokio::test]
    async fn registrations_do_not_take_the_slots_of_logins() {
        let passwords = Passwords::new(1);
        let _slot = passwords.registrations.slots.clone().try_acquire_owned().unwrap();
        let refused = passwords.hash_for_registration("password".into(), Instant::now()).await;
        assert!(matches!(refused, Err(PasswordError::Overloaded)));
        assert!(passwords.hash("password".into(), soon()).await.is_ok());
    }

    #[test]
    fn a_password_is_the_same_however_its_letters_are_composed() {
        let (composed, decomposed) = ("gr\u{fc}\u{df}e aus K\u{f6}ln", "gru\u{308}\u{df}e\u{a0}aus Ko\u{308}ln");
        for (registered, typed) in [(composed, decomposed), (decomposed, composed)] {
            let phc = hash_now(registered).unwrap();
            assert_eq!(verify_now(typed, &phc).unwrap(), Verified::Right);
            assert_eq!(verify_now("gruse aus Koln", &phc).unwrap(), Verified::Wrong);
        }
        // An account from before the normalization: the password as it was typed still works, and afterwards its
        // equivalents do, too.
        let before = hash_exactly(decomposed).unwrap();
        assert_eq!(verify_now(composed, &before).unwrap(), Verified::Wrong);
        let Verified::RightAndRehashed(now) = verify_now(decomposed, &before).unwrap() else { panic!("not replaced") };
        assert_eq!(verify_now(composed, &now).unwrap(), Verified::Right);
    }

    #[test]
    fn a_hash_with_weaker_parameters_is_replaced() {
        let weak = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
        let salt = SaltString::encode_b64(&[7; 16]).unwrap();
        let weak = weak.hash_password(b"correct horse", &salt).unwrap().to_string();
        let Verified::RightAndRehashed(strong) = verify_now("correct horse", &weak).unwrap() else {
            panic!("was not replaced");
        };
        assert_eq!(verify_now("correct horse", &strong).unwrap(), Verified::Right);
        assert_eq!(verify_now("wrong horse", &weak).unwrap(), Verified::Wrong);
    }
}
