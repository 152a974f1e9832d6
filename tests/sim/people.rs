//! Accounts that change: passwords, sessions, deletions, and an account that uses up its quota. Complements the
//! workload of `chatctl verify`, which does not change accounts and sessions.
//!
//! Checks, once a change is acknowledged:
//! - a session that was revoked, or ended by a change of the password, can neither send nor read;
//! - a linearizable read shows the messages of a deleted account as tombstones;
//! - the bodies of an account's acknowledged messages never exceed its quota.
//!
//! Does not cover: changes with unknown outcome. Their accounts are not checked further.

use std::{sync::Arc, time::Duration};

use client::{Client, ClientError, Consistency, Message, Options};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{member::Contradictions, rng::Rng};

/// Quota of each account, in MiB: the smallest possible. The other workload stores much less.
pub const QUOTA_MIB: u64 = 1;
/// Length of a body that uses up the quota, in bytes: the maximum.
const BODY_BYTES: usize = 16 * 1024;
/// Messages in flight while the quota is used up.
const AT_ONCE: usize = 16;

const PASSWORD: &str = "a password of the simulation";
const NEW_PASSWORD: &str = "another password of the simulation";

struct People {
    addresses: Vec<String>,
    options: Options,
    rng: Rng,
    found: Contradictions,
}

/// Changes accounts for the duration `lasts`. A failed call ends the current scenario of its account.
pub async fn run(addresses: Vec<String>, options: Options, lasts: Duration, rng: Rng, found: Contradictions) {
    let mut people = People { addresses, options, rng, found };
    // The names need not be unique, because each run has its own cluster.
    let Ok((stayer, ..)) = people.register("stayer").await else { return };
    let Ok((hoarder, ..)) = people.register("hoarder").await else { return };
    let end = Instant::now() + lasts;
    let mut stored = 0;
    for round in 0.. {
        if Instant::now() >= end {
            return;
        }
        stored += people.hoard(&hoarder, if round == 0 { 5 } else { 1 }).await;
        // If a call failed, its outcome is unknown, and there is nothing to check.
        let _ = people.leave(&stayer, &format!("leaver-{round}")).await;
        if stored > QUOTA_MIB << 20 {
            people.contradiction(format!("an account stored {stored} bytes, which is beyond its quota"));
            return;
        }
        sleep(people.rng.ms(200..1500)).await;
    }
}

impl People {
    fn contradiction(&self, what: String) {
        self.found.lock().expect("not poisoned").push(what);
    }

    async fn client(&self) -> Result<Client, ClientError> {
        Client::connect(self.addresses.clone(), self.options.clone()).await
    }

    /// Creates an account and logs in.
    async fn register(&self, name: &str) -> Result<(Client, String), ClientError> {
        let client = self.client().await?;
        client.create_account(name, PASSWORD).await?;
        let token = client.login(name, PASSWORD).await?.token;
        Ok((client, token))
    }

    /// Stores as much as possible in a few steps. Returns the acknowledged bytes.
    async fn hoard(&self, hoarder: &Client, steps: usize) -> u64 {
        let body: Arc<str> = "h".repeat(BODY_BYTES).into();
        let mut acknowledged = 0;
        for _ in 0..steps {
            let sent = join_all((0..AT_ONCE).map(|_| hoarder.send_message("hoarder", &body))).await;
            acknowledged += sent.iter().filter(|sent| sent.is_ok()).count();
        }
        (acknowledged * BODY_BYTES) as u64
    }

    /// The life of an account, from its creation to its deletion.
    async fn leave(&mut self, stayer: &Client, name: &str) -> Result<(), ClientError> {
        let (client, _) = self.register(name).await?;
        let other = self.client().await?;
        other.login(name, PASSWORD).await?;
        for number in 0..self.rng.range(1..12) {
            let by = if number % 2 == 0 { &client } else { &other };
            by.send_message("stayer", &format!("{name} writes {number}")).await?;
        }
        let password = self.end_session(&client).await?;
        self.check_ended(name, &other).await;
        sleep(self.rng.ms(0..300)).await;
        client.delete_account(password).await?;
        self.check_deleted(name, stayer).await
    }

    /// Ends the other session of an account in one of two ways. Returns the password that is valid afterwards.
    async fn end_session(&mut self, client: &Client) -> Result<&'static str, ClientError> {
        if self.rng.chance(50) {
            client.change_password(PASSWORD, NEW_PASSWORD).await?;
            return Ok(NEW_PASSWORD);
        }
        for session in client.sessions().await?.into_iter().filter(|session| !session.current) {
            client.revoke_session(session.session_id).await?;
        }
        Ok(PASSWORD)
    }

    async fn check_ended(&self, name: &str, ended: &Client) {
        if ended.send_message("stayer", "from a session that ended").await.is_ok() {
            self.contradiction(format!("a session of {name} that ended sends"));
        }
        if ended.read_conversation("stayer", 0, 1, Consistency::Linearizable).await.is_ok() {
            self.contradiction(format!("a session of {name} that ended reads"));
        }
    }

    async fn check_deleted(&self, name: &str, stayer: &Client) -> Result<(), ClientError> {
        let page = stayer.read_conversation(name, 0, 50, Consistency::Linearizable).await?;
        let is_shown = |message: &&Message| message.sender == name && !(message.deleted && message.body.is_empty());
        let shown = page.messages.iter().find(is_shown);
        if let Some(message) = shown {
            self.contradiction(format!("{name} is deleted, and its message {:?} is shown", message.body));
        }
        Ok(())
    }
}
