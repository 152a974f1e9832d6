//! Creation and deletion of accounts, and changes of their passwords.

use tonic::Status;

use super::{
    ChatApi,
    auth::Caller,
    call::Call,
    convert,
    sessions::{Familiar, check_tried},
    status, unexpected,
};
use chat::{AccountCommand, ClientId, Command, Outcome, Registration, Rejection, TokenHash, limits};
use proto::chat::v1 as pb;
use raft::AttemptKey;
use storage::Query;

/// The expected result of a registration, known before its password is hashed.
enum Prospect {
    /// An earlier call with the same request id has created the account.
    Made(u64),
    /// The registration would be rejected.
    Refused(Rejection),
    /// The registration would succeed.
    Welcome,
}

/// The hash of the code that a caller presents, if it presents one.
pub(super) fn presented(invitation: &str) -> Option<TokenHash> {
    match invitation.trim() {
        "" => None,
        code => Some(invitation_hash(code)),
    }
}

impl ChatApi {
    pub(super) async fn create_account(
        &self,
        call: &Call,
        request: pb::CreateAccountRequest,
    ) -> Result<pb::CreateAccountResponse, Status> {
        let pb::CreateAccountRequest { username, password, request_id, invitation } = request;
        limits::check_username("username", &username).map_err(status::invalid)?;
        limits::check_password("password", &password).map_err(status::invalid)?;
        let request_id = match request_id.as_str() {
            "" => None,
            text => Some(convert::client_id("request_id", text).map_err(status::invalid)?),
        };
        let refused = |rejection| status::rejection(rejection, &username, "request_id");
        let invitation = presented(&invitation);
        // Rejects what would be rejected anyway before it costs a password hash.
        match self.prospect(call, &username, request_id, invitation).await? {
            Prospect::Made(id) => {
                return Ok(pb::CreateAccountResponse { account_id: id, revision: id, repeated: true });
            }
            Prospect::Refused(rejection) => return Err(refused(rejection)),
            Prospect::Welcome => {}
        }
        let key = AttemptKey { account: None, device: None, address: call.peer, registration: true };
        let counted = self.inner.node.begin_attempt(key, call.deadline).await;
        counted.map_err(|error| status::read(&error))?.map_err(status::registration_throttled)?;
        let hash = self.inner.passwords.hash_for_registration(password, call.deadline).await;
        let password_hash = match hash {
            Ok(hash) => hash,
            Err(error) => {
                self.inner.node.refund_attempt(key, call.deadline).await;
                return Err(status::password(&error));
            }
        };
        let command = Command::CreateAccount { username: username.clone(), password_hash, request_id, invitation };
        match self.propose(call, command).await? {
            Ok(Outcome::AccountCreated { account, revision, repeated }) => {
                Ok(pb::CreateAccountResponse { account_id: account.0, revision: revision.0, repeated })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(refused(rejection)),
        }
    }

    /// Checks the rules of `storage::apply` on the current state. Apply makes the final decision.
    async fn prospect(
        &self,
        call: &Call,
        username: &str,
        request_id: Option<ClientId>,
        invitation: Option<TokenHash>,
    ) -> Result<Prospect, Status> {
        self.barrier(call.deadline).await?;
        let name = username.to_owned();
        let read = move |query: &Query<'_>| {
            if let Some(request) = request_id
                && let Some((account, made)) = query.account_of_request(request)?
            {
                let same = made == name;
                return Ok(if same { Prospect::Made(account.0) } else { Prospect::Refused(Rejection::ClientIdReused) });
            }
            let refused = match (query.registration()?, invitation) {
                (Registration::Open, _) => None,
                (Registration::Closed, _) => Some(Rejection::RegistrationClosed),
                (Registration::Invitation, None) => Some(Rejection::InvitationNeeded),
                (Registration::Invitation, Some(hash)) if query.is_invited(&hash)? => None,
                (Registration::Invitation, Some(_)) => Some(Rejection::InvitationInvalid),
            };
            if let Some(rejection) = refused {
                return Ok(Prospect::Refused(rejection));
            }
            let taken = query.account_by_name(&name)?.is_some();
            Ok(if taken { Prospect::Refused(Rejection::UsernameTaken) } else { Prospect::Welcome })
        };
        self.inner.database.read(call.deadline, read).await
    }

    pub(super) async fn get_registration(&self, call: &Call) -> Result<pb::GetRegistrationResponse, Status> {
        let registration = self.inner.database.read(call.deadline, |query| query.registration()).await?;
        Ok(pb::GetRegistrationResponse {
            open: registration != Registration::Closed,
            invitation_needed: registration == Registration::Invitation,
        })
    }

    pub(super) async fn change_password(
        &self,
        call: &Call,
        caller: Caller,
        session: TokenHash,
        request: pb::ChangePasswordRequest,
    ) -> Result<pb::ChangePasswordResponse, Status> {
        let pb::ChangePasswordRequest { password, new_password } = request;
        check_tried("password", &password)?;
        limits::check_password("new_password", &new_password).map_err(status::invalid)?;
        let familiar = Familiar { device: None, session: Some(session) };
        let verified = self.verified(call, &caller.username, password, familiar).await?;
        let hash = self.inner.passwords.hash(new_password, call.deadline).await;
        let command = Command::Account(AccountCommand::ChangePassword {
            session: caller.session,
            password_revision: verified.account.password_revision,
            password_hash: hash.map_err(|error| status::password(&error))?,
        });
        match self.propose_as(call, caller.account, command).await? {
            Ok(Outcome::Changed { count, revision }) => {
                Ok(pb::ChangePasswordResponse { closed_sessions: count, revision: revision.0 })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &caller.username, "")),
        }
    }

    pub(super) async fn delete_account(
        &self,
        call: &Call,
        caller: Caller,
        session: TokenHash,
        request: pb::DeleteAccountRequest,
    ) -> Result<pb::DeleteAccountResponse, Status> {
        check_tried("password", &request.password)?;
        // A concurrent change of the password ends this session, unless this session made the change.
        let familiar = Familiar { device: None, session: Some(session) };
        self.verified(call, &caller.username, request.password, familiar).await?;
        let command = Command::BeginAccountDeletion { session: caller.session };
        match self.propose_as(call, caller.account, command).await? {
            Ok(Outcome::AccountDeleted { revision, deleted_messages }) => {
                Ok(pb::DeleteAccountResponse { revision: revision.0, deleted_messages })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &caller.username, "")),
        }
    }
}

/// The stored hash of an invitation code.
pub(super) fn invitation_hash(code: &str) -> TokenHash {
    use sha2::{Digest as _, Sha256};
    TokenHash(Sha256::digest(code.as_bytes()).into())
}
