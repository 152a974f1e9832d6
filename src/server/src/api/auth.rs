//! Authentication: from bearer token to session.
//!
//! A token is 32 random bytes, shown as 64 hex digits. The state holds only its SHA-256. A bounded cache holds recent
//! sessions, so that the hot path needs no database read. A cached session may have ended since: a change carries the
//! session and is checked on apply, and a read checks it in its own transaction.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::{Status, metadata::MetadataMap};

use super::{ChatApi, aging::AgingMap, database::Database, status};
use crate::delivery::{Closed, Hub};
use chat::{AccountId, Command, SessionId, TimeMs, TokenHash};
use storage::{Query, SessionRow, StorageError};

/// Sessions in the cache.
const SESSIONS_MAX: usize = 20_000;
const TOKEN_BYTES: usize = 32;

/// Shortest interval between two records of a session's use. An eighth of the idle limit applies if that is shorter.
const TOUCH_MS: u64 = 3600 * 1000;

/// The time at which the next use of a session has to be recorded. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct TouchDue {
    at_ms: Arc<AtomicU64>,
    every_ms: u64,
}

impl TouchDue {
    fn new(used_at: TimeMs, idle_ms: u64) -> Self {
        let every_ms = if idle_ms == 0 { TOUCH_MS } else { TOUCH_MS.min(idle_ms / 8) };
        Self { at_ms: Arc::new(AtomicU64::new(used_at.0.saturating_add(every_ms))), every_ms }
    }

    /// Whether the use has to be recorded now. Returns true once per interval.
    fn take(&self, now: TimeMs) -> bool {
        let due = self.at_ms.load(Ordering::Relaxed);
        let next = now.0.saturating_add(self.every_ms);
        now.0 >= due && self.at_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Default for TouchDue {
    /// A session whose use is never recorded.
    fn default() -> Self {
        Self { at_ms: Arc::new(AtomicU64::new(u64::MAX)), every_ms: 0 }
    }
}

impl PartialEq for TouchDue {
    /// Always equal, as it does not identify the caller.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for TouchDue {}

/// The authenticated caller of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) session: SessionId,
    pub(super) account: AccountId,
    pub(super) username: Arc<str>,
    /// The time at which the session ends if it is not used again.
    pub(super) expires_at: TimeMs,
    pub(super) touch_due: TouchDue,
}

impl From<SessionRow> for Caller {
    fn from(row: SessionRow) -> Self {
        let touch_due = TouchDue::new(row.used_at, row.idle_ms);
        Self {
            session: row.id,
            account: row.account,
            username: row.username.into(),
            expires_at: row.expires_at,
            touch_due,
        }
    }
}

/// A secret that the caller receives once. It has no `Debug`, so that it cannot be logged.
pub(super) struct Token([u8; TOKEN_BYTES]);

impl Token {
    pub(super) fn random() -> Result<Self, Status> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| status::internal("no randomness for a token", &error))?;
        Ok(Self(bytes))
    }

    /// Parses 64 hex digits; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; TOKEN_BYTES];
        super::pages::from_hex(text, &mut bytes).then_some(Self(bytes))
    }

    pub(super) fn text(&self) -> String {
        super::pages::to_hex(&self.0)
    }

    pub(super) fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }
}

/// The token in `authorization: Bearer <token>`.
pub(super) fn bearer(metadata: &MetadataMap) -> Result<Token, Status> {
    let value = metadata.get("authorization").ok_or_else(status::token_missing)?;
    parse(value.to_str().map_err(|_| status::token_invalid())?)
}

/// The token in the headers of a request; `None` if there is none.
pub(super) fn bearer_in(headers: &axum::http::HeaderMap) -> Option<Token> {
    parse(headers.get("authorization")?.to_str().ok()?).ok()
}

fn parse(text: &str) -> Result<Token, Status> {
    let (scheme, token) = text.trim().split_once(' ').ok_or_else(status::token_missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(status::token_missing());
    }
    Token::parse(token.trim()).ok_or_else(status::token_invalid)
}

struct Cache {
    callers: AgingMap<TokenHash, Caller>,
    hashes: AgingMap<SessionId, TokenHash>,
    /// Counts the closings, so that a look-up that began before a closing is not cached after it.
    closings: u64,
}

/// Cache of recently looked-up sessions.
pub(super) struct Sessions {
    cache: Arc<Mutex<Cache>>,
}

fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// An empty cache that drops the sessions that the hub reports as closed.
    pub(super) fn new(hub: &Hub) -> Self {
        let cache = Cache { callers: AgingMap::new(SESSIONS_MAX), hashes: AgingMap::new(SESSIONS_MAX), closings: 0 };
        let cache = Arc::new(Mutex::new(cache));
        let weak = Arc::downgrade(&cache);
        hub.on_closed(move |closed| {
            let Some(cache) = weak.upgrade() else { return };
            let mut cache = lock(&cache);
            cache.closings += 1;
            match closed {
                Closed::Sessions(sessions) => {
                    for session in sessions {
                        if let Some(hash) = cache.hashes.remove(session) {
                            cache.callers.remove(&hash);
                        }
                    }
                }
                Closed::Any => {
                    cache.hashes.clear();
                    cache.callers.clear();
                }
            }
        });
        Self { cache }
    }

    fn remembered(&self, hash: &TokenHash) -> (Option<Caller>, u64) {
        let mut cache = lock(&self.cache);
        // The two maps receive the same touches, so they evict the same sessions.
        let caller = cache.callers.get_mut(hash).cloned();
        if let Some(caller) = &caller {
            cache.hashes.get_mut(&caller.session);
        }
        (caller, cache.closings)
    }

    /// The account of a cached session.
    pub(super) fn recent_account(&self, hash: &TokenHash) -> Option<AccountId> {
        self.remembered(hash).0.map(|caller| caller.account)
    }

    /// Caches the result of a look-up that began after `closings` closings.
    fn remember(&self, hash: TokenHash, caller: &Caller, closings: u64) {
        let mut cache = lock(&self.cache);
        if cache.closings == closings {
            cache.callers.insert(hash, caller.clone());
            cache.hashes.insert(caller.session, hash);
        }
    }

    /// Extends the cached expiry of a session.
    fn extend(&self, hash: TokenHash, expires_at: TimeMs) {
        if let Some(caller) = lock(&self.cache).callers.get_mut(&hash) {
            caller.expires_at = expires_at;
        }
    }

    /// The account of the open session of a token, according to this node's state.
    pub(super) async fn account_of(
        &self,
        hash: TokenHash,
        database: &Database,
        deadline: Instant,
    ) -> Result<Option<(SessionId, AccountId)>, Status> {
        let row = database.read(deadline, move |query| {
            let Some(row) = query.session_by_token(&hash)? else { return Ok(None) };
            Ok(Some(row).filter(|row| query.clock().is_ok_and(|clock| !is_expired(row.expires_at, clock))))
        });
        Ok(row.await?.map(|row| (row.id, row.account)))
    }

    /// The session of a token, from the cache or this node's database.
    async fn find(&self, hash: TokenHash, database: &Database, deadline: Instant) -> Result<Option<Caller>, Status> {
        let (remembered, closings) = self.remembered(&hash);
        if remembered.is_some() {
            return Ok(remembered);
        }
        let found = database.read(deadline, move |query| query.session_by_token(&hash)).await?.map(Caller::from);
        if let Some(caller) = &found {
            self.remember(hash, caller, closings);
        }
        Ok(found)
    }
}

impl ChatApi {
    /// The caller, or the reason why there is none.
    pub(super) async fn authenticate(&self, metadata: &MetadataMap, deadline: Instant) -> Result<Caller, Status> {
        self.identify(bearer(metadata)?.hash(), deadline).await
    }

    /// The caller with a token of this hash, or the reason why there is none.
    pub(super) async fn identify(&self, hash: TokenHash, deadline: Instant) -> Result<Caller, Status> {
        let inner = &self.inner;
        let mut found = inner.sessions.find(hash, &inner.database, deadline).await?;
        if found.is_none() {
            // The session may have been opened on another node just now, so search again after the barrier.
            self.barrier(deadline).await?;
            found = inner.sessions.find(hash, &inner.database, deadline).await?;
        }
        let mut caller = found.ok_or_else(status::token_invalid)?;
        let now = now(&inner.hub);
        if is_expired(caller.expires_at, now) {
            caller.expires_at = self.confirm_clock(&caller, deadline).await?;
            inner.sessions.extend(hash, caller.expires_at);
        }
        if caller.touch_due.take(now) {
            inner.touches.note(caller.session);
        }
        Ok(caller)
    }

    /// Decides whether a session that has expired by this machine's clock has expired for the cluster. The leader's
    /// clock decides, and its decision goes through the log. Otherwise a session that was rejected here could be
    /// accepted by a node whose clock is behind.
    ///
    /// Returns the time at which the session expires if it is not used again. A session that was used meanwhile lasts
    /// longer than the cache has recorded.
    pub(super) async fn confirm_clock(&self, caller: &Caller, deadline: Instant) -> Result<TimeMs, Status> {
        let inner = &self.inner;
        let session = caller.session;
        let row = inner.database.read(deadline, move |query| query.session(session)).await?;
        let expires_at = row.map_or(caller.expires_at, |row| row.expires_at);
        if !is_expired(expires_at, inner.hub.current().1) {
            // Any command carries the leader's time. This one has no other effect.
            let nothing = Command::Receipts(Vec::new());
            let proposed = inner.node.propose(nothing, None, deadline).await;
            proposed.map_err(|error| status::propose(&error, deadline))?;
            self.barrier(deadline).await?;
        }
        if is_expired(expires_at, inner.hub.current().1) { Err(status::token_expired()) } else { Ok(expires_at) }
    }
}

/// The current time: the later of the replicated clock and this machine's.
pub(super) fn now(hub: &Hub) -> TimeMs {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = TimeMs(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
    wall.max(hub.current().1)
}

pub(super) fn is_expired(expires_at: TimeMs, now: TimeMs) -> bool {
    now >= expires_at
}

/// Whether the session is still open and unexpired, in the transaction of a read.
pub(super) fn still_open(query: &Query<'_>, session: SessionId) -> Result<Result<(), Status>, StorageError> {
    let Some(row) = query.session(session)? else { return Ok(Err(status::token_invalid())) };
    Ok(if is_expired(row.expires_at, query.clock()?) { Err(status::token_expired()) } else { Ok(()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chat::Revision;

    fn metadata(authorization: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", authorization.parse().unwrap());
        metadata
    }

    fn caller(session: u64) -> Caller {
        Caller {
            session: SessionId(session),
            account: AccountId(1),
            username: "alice".into(),
            expires_at: TimeMs(100),
            touch_due: TouchDue::default(),
        }
    }

    #[test]
    fn tokens_go_there_and_back() {
        let token = Token::random().unwrap();
        assert_eq!(token.text().len(), 64);
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let parsed = bearer(&metadata(&format!("{scheme} {}", token.text()))).unwrap();
            assert_eq!(parsed.hash(), token.hash());
        }
        assert_ne!(Token::random().unwrap().hash(), token.hash());
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let message = |m: &MetadataMap| bearer(m).err().map(|s| s.message().to_owned());
        let (missing, invalid) = (status::token_missing(), status::token_invalid());
        assert_eq!(message(&MetadataMap::new()).as_deref(), Some(missing.message()));
        for text in ["", "Bearer", "Basic abc"] {
            assert_eq!(message(&metadata(text)).as_deref(), Some(missing.message()), "{text}");
        }
        let long = format!("Bearer {}", "a".repeat(65));
        let not_hex = format!("Bearer {}", "g".repeat(64));
        for text in ["Bearer x", &long, &not_hex] {
            assert_eq!(message(&metadata(text)).as_deref(), Some(invalid.message()), "{text}");
        }
    }

    #[test]
    fn a_closed_session_is_forgotten() {
        let hub = Hub::new(Revision(0), TimeMs(0));
        let sessions = Sessions::new(&hub);
        let (one, two) = (TokenHash([1; 32]), TokenHash([2; 32]));
        sessions.remember(one, &caller(1), 0);
        sessions.remember(two, &caller(2), 0);
        assert_eq!(sessions.remembered(&one).0, Some(caller(1)));
        hub.publish(vec![], &[SessionId(1)], Revision(1), TimeMs(1));
        assert_eq!(sessions.remembered(&one).0, None);
        assert_eq!(sessions.remembered(&two).0, Some(caller(2)));
        hub.reset(Revision(2), TimeMs(2));
        assert_eq!(sessions.remembered(&two).0, None);
    }

    #[test]
    fn a_look_up_from_before_a_closing_is_not_remembered() {
        let hub = Hub::new(Revision(0), TimeMs(0));
        let sessions = Sessions::new(&hub);
        let hash = TokenHash([1; 32]);
        let (_, closings) = sessions.remembered(&hash);
        hub.publish(vec![], &[SessionId(1)], Revision(1), TimeMs(1));
        sessions.remember(hash, &caller(1), closings);
        assert_eq!(sessions.remembered(&hash).0, None);
    }

    #[test]
    fn expiry_takes_the_later_clock() {
        let hub = Hub::new(Revision(0), TimeMs(u64::MAX));
        assert_eq!(now(&hub), TimeMs(u64::MAX));
        assert!(now(&Hub::new(Revision(0), TimeMs(0))) > TimeMs(1_600_000_000_000));
        assert!(is_expired(TimeMs(5), TimeMs(5)) && !is_expired(TimeMs(5), TimeMs(4)));
    }
}
