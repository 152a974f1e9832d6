//! Login and logout.

use std::time::{Duration, Instant as Clock};

use tokio::time::Instant;
use tonic::Status;

use super::{
    ChatApi,
    auth::{Caller, Token},
    call::Call,
    status, unexpected,
};
use crate::{
    chat::{
        AccountId, Command, Outcome, Revision,
        limits::{self, Invalid},
    },
    proto::chat::v1 as pb,
    storage::AccountRow,
};

/// A login waits this long for this node to have the new session, so that its unread count is of now.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

impl ChatApi {
    pub(super) async fn login(&self, call: &Call, request: pb::LoginRequest) -> Result<pb::LoginResponse, Status> {
        let pb::LoginRequest { username, password } = request;
        limits::check_username("username", &username).map_err(status::invalid)?;
        // A short password is merely a wrong one.
        if password.is_empty() || password.len() > limits::PASSWORD_BYTES_MAX {
            let problem = format!("must be 1-{} bytes", limits::PASSWORD_BYTES_MAX);
            return Err(status::invalid(Invalid::new("password", problem)));
        }
        let account = self.verified(call, &username, password).await?;
        let token = Token::random()?;
        let lifetime_ms = u64::try_from(self.inner.settings.session_lifetime.as_millis()).unwrap_or(u64::MAX);
        let command = Command::OpenSession { account, token_hash: token.hash(), lifetime_ms };
        match self.propose(call, command).await? {
            Ok(Outcome::SessionOpened { account, expires_at, revision, .. }) => Ok(pb::LoginResponse {
                token: token.text(),
                expires_at_ms: expires_at.0,
                account_id: account.0,
                revision: revision.0,
                unread_count: self.unread_after_login(call, account, revision).await?,
            }),
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &username, "")),
        }
    }

    /// The account, if the password is its own. Failures slow down the account's and the address's next attempts.
    async fn verified(&self, call: &Call, username: &str, password: String) -> Result<AccountId, Status> {
        let throttle = &self.inner.throttle;
        let from_address = call.peer.map(|peer| throttle.address(peer, Clock::now())).transpose();
        let from_address = from_address.map_err(status::login_throttled)?;
        let address_failed = |attempt: Option<super::throttle::Attempt>| {
            if let Some(attempt) = attempt {
                attempt.failed(Clock::now());
            }
        };
        let Some(account) = self.account_to_log_in(call, username).await? else {
            address_failed(from_address);
            return Err(status::user_unknown(username));
        };
        let on_account = throttle.account(account.id, Clock::now()).map_err(status::login_throttled)?;
        let right = self.inner.passwords.verify(password, account.password_hash, call.deadline).await;
        if right.map_err(|error| status::password(&error))? {
            on_account.succeeded();
            return Ok(account.id);
        }
        on_account.failed(Clock::now());
        address_failed(from_address);
        Err(status::password_wrong())
    }

    /// The account as of now, so that one made or deleted on another node a moment ago is seen so.
    async fn account_to_log_in(&self, call: &Call, username: &str) -> Result<Option<AccountRow>, Status> {
        self.barrier(call.deadline).await?;
        let name = username.to_owned();
        let found = self.inner.database.read(call.deadline, move |query| query.account_by_name(&name)).await?;
        Ok(found.filter(|account| !account.deleted))
    }

    async fn unread_after_login(&self, call: &Call, account: AccountId, revision: Revision) -> Result<u64, Status> {
        let patience = call.deadline.min(Instant::now() + CATCH_UP_MAX);
        // The session is open, whether or not this node is quick to learn of it: then the count is of a moment ago.
        let _ = self.await_revision(revision, patience).await;
        let unread = self.inner.database.read(call.deadline, move |query| query.unread_total(account)).await;
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
}
