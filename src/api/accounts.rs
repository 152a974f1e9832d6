//! Making and deleting accounts.

use tonic::Status;

use super::{ChatApi, auth::Caller, call::Call, convert, status, unexpected};
use crate::{
    chat::{Command, Outcome, limits},
    proto::chat::v1 as pb,
};

impl ChatApi {
    pub(super) async fn create_account(
        &self,
        call: &Call,
        request: pb::CreateAccountRequest,
    ) -> Result<pb::CreateAccountResponse, Status> {
        let pb::CreateAccountRequest { username, password, request_id } = request;
        limits::check_username("username", &username).map_err(status::invalid)?;
        limits::check_password("password", &password).map_err(status::invalid)?;
        let request_id = match request_id.as_str() {
            "" => None,
            text => Some(convert::client_id("request_id", text).map_err(status::invalid)?),
        };
        let hash = self.inner.passwords.hash(password, call.deadline).await;
        let password_hash = hash.map_err(|error| status::password(&error))?;
        let command = Command::CreateAccount { username: username.clone(), password_hash, request_id };
        match self.propose(call, command).await? {
            Ok(Outcome::AccountCreated { account, revision, repeated }) => {
                Ok(pb::CreateAccountResponse { account_id: account.0, revision: revision.0, repeated })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &username, "request_id")),
        }
    }

    pub(super) async fn delete_account(
        &self,
        call: &Call,
        caller: Caller,
    ) -> Result<pb::DeleteAccountResponse, Status> {
        match self.propose(call, Command::DeleteAccount { session: caller.session }).await? {
            Ok(Outcome::AccountDeleted { revision, deleted_messages }) => {
                Ok(pb::DeleteAccountResponse { revision: revision.0, deleted_messages })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &caller.username, "")),
        }
    }
}
