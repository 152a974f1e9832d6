//! Privacy settings: what others see of an account, and which activity is stored.

use tonic::Status;

use super::{
    ChatApi,
    auth::{Caller, still_open},
    call::Call,
    status, unexpected,
};
use chat::{AccountCommand, Command, Outcome, PrivacyChange, limits::Invalid};
use proto::chat::v1 as pb;
use storage::Query;

impl ChatApi {
    pub(super) async fn get_privacy(&self, call: &Call, caller: Caller) -> Result<pb::GetPrivacyResponse, Status> {
        self.barrier(call.deadline).await?;
        let (session, account) = (caller.session, caller.account);
        let read = move |query: &Query<'_>| {
            Ok(match still_open(query, session)? {
                Ok(()) => Ok(query.privacy(account)?),
                Err(refused) => Err(refused),
            })
        };
        let privacy = self.inner.database.read(call.deadline, read).await??;
        Ok(pb::GetPrivacyResponse { read_receipts: privacy.read_receipts, session_activity: privacy.session_activity })
    }

    pub(super) async fn set_privacy(
        &self,
        call: &Call,
        caller: Caller,
        request: pb::SetPrivacyRequest,
    ) -> Result<pb::SetPrivacyResponse, Status> {
        let pb::SetPrivacyRequest { read_receipts, session_activity } = request;
        let change = PrivacyChange { read_receipts, session_activity };
        if change == PrivacyChange::default() {
            return Err(status::invalid(Invalid::new("read_receipts", "at least one setting is needed")));
        }
        let command = Command::Account(AccountCommand::SetPrivacy { session: caller.session, change });
        match self.propose_as(call, caller.account, command).await? {
            Ok(Outcome::Changed { revision, .. }) => Ok(pb::SetPrivacyResponse { revision: revision.0 }),
            Ok(other) => Err(unexpected(&other)),
            Err(rejection) => Err(status::rejection(rejection, &caller.username, "")),
        }
    }
}
