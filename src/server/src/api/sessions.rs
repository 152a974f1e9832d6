//! Login and logout, and the sessions of an account.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::{
    ChatApi,
    auth::{Caller, Token, still_open},
    call::Call,
    passwords::Verified,
    status, unexpected,
};
use chat::{
    AccountCommand, AccountId, Command, Login, Outcome, Revision, SessionId, TimeMs, TokenHash,
    limits::{self, Invalid},
};
use proto::chat::v1 as pb;
use raft::AttemptKey;
use storage::{AccountRow, Query};

/// Longest wait of a login until this node has the new session, so that its unread count is current.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// Tokens that a caller presents with its password.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Familiar {
    /// Hash of a device's token.
    pub(super) device: Option<TokenHash>,
    /// Hash of a session's token.
    pub(super) session: Option<TokenHash>,
}

/// An account whose password was verified.
pub(super) struct Verification {
    pub(super) account: AccountRow,
    /// Whether the account has logged in from the device before.
    known_device: bool,
    rehash: Option<String>,
}

/// A new session.
pub(super) struct Opened {
    pub(super) token: Token,
    pub(super) expires_at: TimeMs,
    pub(super) revision: Revision,
}

impl ChatApi {
    pub(super) async fn login(
        &self,
        call: &Call,
        session: Option<TokenHash>,
        request: pb::LoginRequest,
    ) -> Result<pb::LoginResponse, Status> {
        let pb::LoginRequest { username, password, device_token } = request;
        limits::check_username("username", &username).map_err(status::invalid)?;
        check_tried("password", &password)?;
        let device = Token::parse(&device_token);
        let familiar = Familiar { device: device.as_ref().map(Token::hash), session };
        let verified = self.verified(call, &username, password, familiar).await?;
        if verified.account.disabled {
            return Err(status::account_disabled());
        }
        // A token that the account does not have proves nothing, so the device gets a new one.
        let device = match device.filter(|_| verified.known_device) {
            Some(device) => device,
            None => Token::random()?,
        };
        let account = verified.account.id;
        let login = Login {
            password_revision: Some(verified.account.password_revision),
            device: Some(device.hash()),
            rehash: verified.rehash,
            ..Login::default()
        };
        let opened = self.open_session(call, account, &username, login).await?;
        Ok(pb::LoginResponse {
            token: opened.token.text(),
            expires_at_ms: opened.expires_at.0,
            account_id: account.0,
            revision: opened.revision.0,
            unread_count: self.unread_after_login(call, account, opened.revision).await?,
            device_token: device.text(),
        })
    }

    /// Opens a session with the lifetime and the idle timeout of the settings.
    pub(super) async fn open_session(
        &self,
        call: &Call,
        account: AccountId,
        username: &str,
        login: Login,
    ) -> Result<Opened, Status> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let token = Token::random()?;
        let command = Command::OpenSession {
            account,
            token_hash: token.hash(),
            lifetime_ms: millis(self.inner.settings.session_lifetime),
            login: Login { idle_ms: millis(self.inner.settings.session_idle), ..login },
        };
        match self.propose(call, command).await? {
            Ok(Outcome::SessionOpened { expires_at, revision, .. }) => Ok(Opened { token, expires_at, revision }),
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, username, "")),
        }
    }

    /// The account, if the password is right. The leader counts each attempt in advance. Attempts of strangers count
    /// for the account and the address. Attempts with a device or session of the account count for that alone.
    pub(super) async fn verified(
        &self,
        call: &Call,
        username: &str,
        password: String,
        familiar: Familiar,
    ) -> Result<Verification, Status> {
        let account = self.account_to_log_in(call, username).await?;
        let (known_device, device) = match &account {
            Some(account) => self.familiarity(call, account.id, familiar).await?,
            None => (false, None),
        };
        let key = AttemptKey {
            account: account.as_ref().map(|account| account.id),
            device,
            address: call.peer,
            registration: false,
        };
        let counted = self.inner.node.begin_attempt(key, call.deadline).await;
        counted.map_err(|error| status::read(&error))?.map_err(status::login_throttled)?;
        let Some(account) = account else { return Err(status::user_unknown(username)) };
        let hash = account.password_hash.clone();
        let verified = self.inner.passwords.verify(password, hash, call.deadline).await;
        let rehash = match verified {
            Ok(Verified::Right) => None,
            Ok(Verified::RightAndRehashed(hash)) => Some(hash),
            Ok(Verified::Wrong) => return Err(status::password_wrong()),
            Err(error) => {
                // The attempt revealed nothing about the password.
                self.inner.node.refund_attempt(key, call.deadline).await;
                return Err(status::password(&error));
            }
        };
        self.inner.node.refund_attempt(key, call.deadline).await;
        Ok(Verification { account, known_device, rehash })
    }

    /// Whether the account has the device, and the token by which its attempts are counted.
    async fn familiarity(
        &self,
        call: &Call,
        account: AccountId,
        familiar: Familiar,
    ) -> Result<(bool, Option<TokenHash>), Status> {
        let inner = &self.inner;
        if let Some(device) = familiar.device {
            let read = move |query: &Query<'_>| query.is_known_device(account, &device);
            if inner.database.read(call.deadline, read).await? {
                return Ok((true, Some(device)));
            }
        }
        if let Some(hash) = familiar.session
            && let Some((_, owner)) = inner.sessions.account_of(hash, &inner.database, call.deadline).await?
            && owner == account
        {
            return Ok((false, Some(hash)));
        }
        Ok((false, None))
    }

    /// The current account, including changes on other nodes up to now.
    async fn account_to_log_in(&self, call: &Call, username: &str) -> Result<Option<AccountRow>, Status> {
        self.barrier(call.deadline).await?;
        let name = username.to_owned();
        let found = self.inner.database.read(call.deadline, move |query| query.account_by_name(&name)).await?;
        Ok(found.filter(|account| !account.deleted))
    }

    async fn unread_after_login(&self, call: &Call, account: AccountId, revision: Revision) -> Result<u64, Status> {
        let until = call.deadline.min(Instant::now() + CATCH_UP_MAX);
        // The session is open even if this node is slow to apply it. The count is slightly outdated then.
        let _ = self.await_revision(revision, until).await;
        let unread = self.inner.database.scan(call.deadline, move |query| query.unread_total(account)).await;
        unread.map_err(status::after_apply)
    }

    pub(super) async fn logout(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::LogoutRequest,
    ) -> Result<pb::LogoutResponse, Status> {
        let command = Command::CloseSession { session: caller.session, all: request.all_sessions };
        match self.propose(call, command).await? {
            Ok(Outcome::SessionsClosed { count, revision }) => {
                Ok(pb::LogoutResponse { closed_sessions: count, revision: revision.0 })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &caller.username, "")),
        }
    }

    pub(super) async fn list_sessions(&self, call: &Call, caller: Caller) -> Result<pb::ListSessionsResponse, Status> {
        self.barrier(call.deadline).await?;
        let (me, account) = (caller.session, caller.account);
        let read = move |query: &Query<'_>| {
            let open = still_open(query, me)?;
            Ok(match open {
                Ok(()) => Ok(query.sessions_of(account)?),
                Err(refused) => Err(refused),
            })
        };
        let rows = self.inner.database.read(call.deadline, read).await??;
        let sessions = rows.into_iter().map(|row| pb::Session {
            session_id: row.id.0,
            created_ms: row.created_at.0,
            used_ms: row.used_at.unwrap_or_default().0,
            expires_at_ms: row.ends_at.0,
            current: row.id == me,
        });
        Ok(pb::ListSessionsResponse { sessions: sessions.collect() })
    }

    pub(super) async fn revoke_session(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::RevokeSessionRequest,
    ) -> Result<pb::RevokeSessionResponse, Status> {
        let target = SessionId(request.session_id);
        let command = Command::Account(AccountCommand::RevokeSession { session: caller.session, target });
        match self.propose_as(call, caller.account, command).await? {
            Ok(Outcome::SessionsClosed { revision, .. }) => Ok(pb::RevokeSessionResponse { revision: revision.0 }),
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &caller.username, "")),
        }
    }
}

/// Checks a password that is tried. A short one is merely wrong.
pub(super) fn check_tried(field: &'static str, password: &str) -> Result<(), Status> {
    if password.is_empty() || password.len() > limits::PASSWORD_BYTES_MAX {
        let problem = format!("must be 1-{} bytes", limits::PASSWORD_BYTES_MAX);
        return Err(status::invalid(Invalid::new(field, problem)));
    }
    Ok(())
}
