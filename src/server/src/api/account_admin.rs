//! Operator calls: accounts, and the permission to register.

use tonic::{Request, Response, Status};

use super::{
    ChatApi,
    accounts::{invitation_hash, presented},
    auth::Token,
    call::Call,
    pages,
    passwords::without_password,
    reads::truncated,
    status, unexpected,
};
use chat::{
    AccountCommand, Command, Login, Outcome, Registration, Revision,
    limits::{self, Invalid},
};
use proto::chat::{v1 as pb, v1::account_admin_service_server::AccountAdminService};
use storage::{AccountRow, Query};

type Answer<T> = Result<Response<T>, Status>;

const INVITATION_USES_MAX: u32 = 1000;
const INVITATION_HOURS_MAX: u32 = 8760;
const INVITATION_HOURS: u32 = 168;
const HOUR_MS: u64 = 3_600_000;

impl ChatApi {
    /// Proposes a change. Returns the number of changed items and the revision.
    async fn change(&self, call: &Call, username: &str, command: AccountCommand) -> Result<(u64, Revision), Status> {
        match self.propose(call, Command::Account(command)).await? {
            Ok(Outcome::Changed { count, revision }) => Ok((count, revision)),
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, username, "")),
        }
    }
}

fn state(row: AccountRow) -> pb::AccountState {
    pb::AccountState { account_id: row.id.0, username: row.username, deleted: row.deleted, disabled: row.disabled }
}

/// Returns `asked` if it is between 1 and `max`. 0 means `default`.
fn bounded(field: &'static str, asked: u32, default: u32, max: u32) -> Result<u32, Status> {
    match asked {
        0 => Ok(default),
        _ if asked <= max => Ok(asked),
        _ => Err(status::invalid(Invalid::new(field, format!("must be 1-{max}, is {asked}")))),
    }
}

#[tonic::async_trait]
impl AccountAdminService for ChatApi {
    async fn get_settings(&self, request: Request<pb::GetSettingsRequest>) -> Answer<pb::GetSettingsResponse> {
        let call = self.call(&request);
        self.barrier(call.deadline).await?;
        let registration = match self.inner.database.read(call.deadline, |query| query.registration()).await? {
            Registration::Open => pb::Registration::Open,
            Registration::Invitation => pb::Registration::Invitation,
            Registration::Closed => pb::Registration::Closed,
        };
        Ok(Response::new(pb::GetSettingsResponse { registration: registration.into() }))
    }

    async fn set_registration(
        &self,
        request: Request<pb::SetRegistrationRequest>,
    ) -> Answer<pb::SetRegistrationResponse> {
        let call = self.call(&request);
        let registration = match request.into_inner().registration() {
            pb::Registration::Open => Registration::Open,
            pb::Registration::Invitation => Registration::Invitation,
            pb::Registration::Closed => Registration::Closed,
            pb::Registration::Unspecified => {
                return Err(status::invalid(Invalid::new("registration", "must be open, invitation or closed")));
            }
        };
        let (_, revision) = self.change(&call, "", AccountCommand::SetRegistration(registration)).await?;
        Ok(Response::new(pb::SetRegistrationResponse { revision: revision.0 }))
    }

    async fn create_invitation(
        &self,
        request: Request<pb::CreateInvitationRequest>,
    ) -> Answer<pb::CreateInvitationResponse> {
        let call = self.call(&request);
        let request = request.into_inner();
        let uses = bounded("uses", request.uses, 1, INVITATION_USES_MAX)?;
        let hours = bounded("hours", request.hours, INVITATION_HOURS, INVITATION_HOURS_MAX)?;
        // 128 random bits: short enough to be read aloud, too many to be guessed.
        let code = Token::random()?.text()[..32].to_owned();
        let lifetime_ms = u64::from(hours) * HOUR_MS;
        let code_hash = invitation_hash(&code);
        let command = Command::Account(AccountCommand::CreateInvitation { code_hash, uses, lifetime_ms });
        match self.propose(&call, command).await? {
            Ok(Outcome::InvitationCreated { expires_at, revision }) => {
                Ok(Response::new(pb::CreateInvitationResponse {
                    code,
                    invitation_id: revision.0,
                    expires_at_ms: expires_at.0,
                }))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, "", "")),
        }
    }

    async fn list_invitations(
        &self,
        request: Request<pb::ListInvitationsRequest>,
    ) -> Answer<pb::ListInvitationsResponse> {
        let call = self.call(&request);
        self.barrier(call.deadline).await?;
        let rows = self.inner.database.read(call.deadline, |query| query.invitations()).await?;
        let invitations = rows.into_iter().map(|row| pb::Invitation {
            invitation_id: row.id.0,
            uses: row.uses,
            used: row.used,
            created_ms: row.created_at.0,
            expires_at_ms: row.expires_at.0,
        });
        Ok(Response::new(pb::ListInvitationsResponse { invitations: invitations.collect() }))
    }

    async fn revoke_invitation(
        &self,
        request: Request<pb::RevokeInvitationRequest>,
    ) -> Answer<pb::RevokeInvitationResponse> {
        let call = self.call(&request);
        let invitation = Revision(request.into_inner().invitation_id);
        let (count, _) = self.change(&call, "", AccountCommand::RevokeInvitation { invitation }).await?;
        Ok(Response::new(pb::RevokeInvitationResponse { revoked: count > 0 }))
    }

    async fn add_account(&self, request: Request<pb::AddAccountRequest>) -> Answer<pb::AddAccountResponse> {
        let call = self.call(&request);
        let pb::AddAccountRequest { username, invitation } = request.into_inner();
        limits::check_username("username", &username).map_err(status::invalid)?;
        let command = Command::CreateAccount {
            username: username.clone(),
            password_hash: without_password().map_err(|error| status::password(&error))?,
            request_id: None,
            invitation: presented(&invitation),
        };
        let account = match self.propose(&call, command).await? {
            Ok(Outcome::AccountCreated { account, .. }) => account,
            Ok(other) => return Err(unexpected(&other)),
            Err(rejection) => return Err(status::rejection(rejection, &username, "")),
        };
        let opened = self.open_session(&call, account, &username, Login::default()).await?;
        Ok(Response::new(pb::AddAccountResponse {
            account_id: account.0,
            token: opened.token.text(),
            expires_at_ms: opened.expires_at.0,
        }))
    }

    async fn find_accounts(&self, request: Request<pb::FindAccountsRequest>) -> Answer<pb::FindAccountsResponse> {
        let call = self.call(&request);
        let request = request.into_inner();
        let limit = limits::page_size("page_size", request.page_size, limits::PAGE_SIZE_ACCOUNTS);
        let limit = limit.map_err(status::invalid)?;
        let after = pages::account(&request.page_token).map_err(status::invalid)?;
        limits::check_query("query", &request.query).map_err(status::invalid)?;
        self.barrier(call.deadline).await?;
        let contains = request.query;
        let read = move |query: &Query<'_>| query.accounts(&contains, after.as_deref(), limit + 1);
        let (mut rows, total) = self.inner.database.read(call.deadline, read).await?;
        let next = truncated(&mut rows, limit).map(|last| pages::after_account(&last.username));
        Ok(Response::new(pb::FindAccountsResponse {
            accounts: rows.into_iter().map(state).collect(),
            next_page_token: next.unwrap_or_default(),
            total_count: total,
        }))
    }

    async fn show_account(&self, request: Request<pb::ShowAccountRequest>) -> Answer<pb::ShowAccountResponse> {
        let call = self.call(&request);
        let name = request.into_inner().username;
        self.barrier(call.deadline).await?;
        let wanted = name.clone();
        let read = move |query: &Query<'_>| {
            let Some(row) = query.account_by_name(&wanted)? else { return Ok(None) };
            let created = query.account_created_at(row.id)?.unwrap_or_default();
            Ok(Some((query.sessions_of(row.id)?, created, row)))
        };
        let found = self.inner.database.read(call.deadline, read).await?;
        let (sessions, created, row) = found.ok_or_else(|| status::user_unknown(&name))?;
        let sessions = sessions.into_iter().map(|row| pb::SessionState {
            session_id: row.id.0,
            created_ms: row.created_at.0,
            used_ms: row.used_at.unwrap_or_default().0,
            expires_at_ms: row.ends_at.0,
        });
        Ok(Response::new(pb::ShowAccountResponse {
            account: Some(state(row)),
            created_ms: created.0,
            sessions: sessions.collect(),
        }))
    }

    async fn reset_password(&self, request: Request<pb::ResetPasswordRequest>) -> Answer<pb::ResetPasswordResponse> {
        let call = self.call(&request);
        let pb::ResetPasswordRequest { username, password } = request.into_inner();
        limits::check_password("password", &password).map_err(status::invalid)?;
        let hash = self.inner.passwords.hash(password, call.deadline).await;
        let password_hash = hash.map_err(|error| status::password(&error))?;
        let command = AccountCommand::ResetPassword { username: username.clone(), password_hash };
        let (closed_sessions, revision) = self.change(&call, &username, command).await?;
        Ok(Response::new(pb::ResetPasswordResponse { closed_sessions, revision: revision.0 }))
    }

    async fn set_account_disabled(
        &self,
        request: Request<pb::SetAccountDisabledRequest>,
    ) -> Answer<pb::SetAccountDisabledResponse> {
        let call = self.call(&request);
        let pb::SetAccountDisabledRequest { username, disabled } = request.into_inner();
        let command = AccountCommand::SetDisabled { username: username.clone(), disabled };
        let (closed_sessions, revision) = self.change(&call, &username, command).await?;
        Ok(Response::new(pb::SetAccountDisabledResponse { closed_sessions, revision: revision.0 }))
    }

    async fn end_sessions(&self, request: Request<pb::EndSessionsRequest>) -> Answer<pb::EndSessionsResponse> {
        let call = self.call(&request);
        let username = request.into_inner().username;
        let command = AccountCommand::EndSessions { username: username.clone() };
        let (closed_sessions, revision) = self.change(&call, &username, command).await?;
        Ok(Response::new(pb::EndSessionsResponse { closed_sessions, revision: revision.0 }))
    }

    async fn purge_account(&self, request: Request<pb::PurgeAccountRequest>) -> Answer<pb::PurgeAccountResponse> {
        let call = self.call(&request);
        let username = request.into_inner().username;
        let command = Command::Account(AccountCommand::Purge { username: username.clone() });
        match self.propose(&call, command).await? {
            Ok(Outcome::AccountDeleted { revision, deleted_messages }) => {
                Ok(Response::new(pb::PurgeAccountResponse { deleted_messages, revision: revision.0 }))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &username, "")),
        }
    }
}
