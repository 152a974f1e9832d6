//! Protobuf encoding of the commands about accounts, sessions, invitations and settings.

use super::{DecodeError, array};
use chat::{
    AccountCommand, AccountId, Command, Login, PrivacyChange, Registration, Revision, SessionId, TimeMs, TokenHash,
};
use proto::log::{v1 as pb, v1::command::Kind};

pub(super) fn encode_open_session(
    account: AccountId,
    token_hash: &TokenHash,
    lifetime_ms: u64,
    login: &Login,
) -> pb::OpenSession {
    pb::OpenSession {
        account_id: account.0,
        token_hash: token_hash.0.to_vec(),
        lifetime_ms,
        idle_ms: login.idle_ms,
        password_revision: login.password_revision.map(|revision| revision.0),
        device: login.device.map(|hash| hash.0.to_vec()).unwrap_or_default(),
        rehash: login.rehash.clone().unwrap_or_default(),
    }
}

pub(super) fn decode_open_session(command: pb::OpenSession) -> Result<Command, DecodeError> {
    Ok(Command::OpenSession {
        account: AccountId(command.account_id),
        token_hash: TokenHash(array("token_hash", &command.token_hash)?),
        lifetime_ms: command.lifetime_ms,
        login: Login {
            idle_ms: command.idle_ms,
            password_revision: command.password_revision.map(Revision),
            device: optional_hash("device", &command.device)?,
            rehash: Some(command.rehash).filter(|hash| !hash.is_empty()),
        },
    })
}

pub(super) fn optional_hash(field: &'static str, bytes: &[u8]) -> Result<Option<TokenHash>, DecodeError> {
    match bytes {
        [] => Ok(None),
        bytes => Ok(Some(TokenHash(array(field, bytes)?))),
    }
}

pub(super) fn encode(command: &AccountCommand) -> Kind {
    match command {
        AccountCommand::ChangePassword { session, password_revision, password_hash } => {
            Kind::ChangePassword(pb::ChangePassword {
                session_id: session.0,
                password_revision: password_revision.0,
                password_hash: password_hash.clone(),
            })
        }
        AccountCommand::ResetPassword { username, password_hash } => {
            Kind::ResetPassword(pb::ResetPassword { username: username.clone(), password_hash: password_hash.clone() })
        }
        AccountCommand::SetDisabled { username, disabled } => {
            Kind::SetDisabled(pb::SetDisabled { username: username.clone(), disabled: *disabled })
        }
        AccountCommand::EndSessions { username } => Kind::EndSessions(pb::EndSessions { username: username.clone() }),
        AccountCommand::Purge { username } => Kind::PurgeAccount(pb::PurgeAccount { username: username.clone() }),
        AccountCommand::RevokeSession { session, target } => {
            Kind::RevokeSession(pb::RevokeSession { session_id: session.0, target_id: target.0 })
        }
        AccountCommand::TouchSessions(sessions) => {
            Kind::TouchSessions(pb::TouchSessions { session_ids: sessions.iter().map(|session| session.0).collect() })
        }
        AccountCommand::SetRegistration(registration) => {
            Kind::SetRegistration(pb::SetRegistration { registration: encode_registration(*registration).into() })
        }
        AccountCommand::CreateInvitation { code_hash, uses, lifetime_ms } => {
            Kind::CreateInvitation(pb::CreateInvitation {
                code_hash: code_hash.0.to_vec(),
                uses: *uses,
                lifetime_ms: *lifetime_ms,
            })
        }
        AccountCommand::RevokeInvitation { invitation } => {
            Kind::RevokeInvitation(pb::RevokeInvitation { invitation_id: invitation.0 })
        }
        AccountCommand::RemoveExpired { before, limit } => {
            Kind::RemoveExpired(pb::RemoveExpired { before_ms: before.0, limit: *limit })
        }
        AccountCommand::SetPrivacy { session, change } => Kind::SetPrivacy(pb::SetPrivacy {
            session_id: session.0,
            read_receipts: change.read_receipts,
            session_activity: change.session_activity,
        }),
    }
}

/// The number is also the value of the setting.
pub(crate) fn encode_registration(registration: Registration) -> pb::Registration {
    match registration {
        Registration::Open => pb::Registration::Open,
        Registration::Invitation => pb::Registration::Invitation,
        Registration::Closed => pb::Registration::Closed,
    }
}

/// Decodes a setting encoded by [`encode_registration`].
pub(crate) fn decode_registration(number: i32) -> Option<Registration> {
    Some(match pb::Registration::try_from(number).ok()? {
        pb::Registration::Open => Registration::Open,
        pb::Registration::Invitation => Registration::Invitation,
        pb::Registration::Closed => Registration::Closed,
    })
}

pub(super) fn decode(kind: Kind) -> Result<AccountCommand, DecodeError> {
    Ok(match kind {
        Kind::ChangePassword(c) => AccountCommand::ChangePassword {
            session: SessionId(c.session_id),
            password_revision: Revision(c.password_revision),
            password_hash: c.password_hash,
        },
        Kind::ResetPassword(c) => {
            AccountCommand::ResetPassword { username: c.username, password_hash: c.password_hash }
        }
        Kind::SetDisabled(c) => AccountCommand::SetDisabled { username: c.username, disabled: c.disabled },
        Kind::EndSessions(c) => AccountCommand::EndSessions { username: c.username },
        Kind::PurgeAccount(c) => AccountCommand::Purge { username: c.username },
        Kind::RevokeSession(c) => {
            AccountCommand::RevokeSession { session: SessionId(c.session_id), target: SessionId(c.target_id) }
        }
        Kind::TouchSessions(c) => AccountCommand::TouchSessions(c.session_ids.into_iter().map(SessionId).collect()),
        Kind::SetRegistration(c) => AccountCommand::SetRegistration(
            decode_registration(c.registration).ok_or(DecodeError::UnknownKind("a mode of registration"))?,
        ),
        Kind::CreateInvitation(c) => AccountCommand::CreateInvitation {
            code_hash: TokenHash(array("code_hash", &c.code_hash)?),
            uses: c.uses,
            lifetime_ms: c.lifetime_ms,
        },
        Kind::RevokeInvitation(c) => AccountCommand::RevokeInvitation { invitation: Revision(c.invitation_id) },
        Kind::RemoveExpired(c) => AccountCommand::RemoveExpired { before: TimeMs(c.before_ms), limit: c.limit },
        Kind::SetPrivacy(c) => AccountCommand::SetPrivacy {
            session: SessionId(c.session_id),
            change: PrivacyChange { read_receipts: c.read_receipts, session_activity: c.session_activity },
        },
        _ => return Err(DecodeError::UnknownKind("a command")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{decode_command, encode_command};
    use super::*;

    #[test]
    fn commands_about_accounts_survive_the_disk() {
        let name = || "alice".to_owned();
        let hash = TokenHash([7; 32]);
        let commands = [
            AccountCommand::ChangePassword {
                session: SessionId(1),
                password_revision: Revision(2),
                password_hash: "h".into(),
            },
            AccountCommand::ResetPassword { username: name(), password_hash: "h".into() },
            AccountCommand::SetDisabled { username: name(), disabled: true },
            AccountCommand::EndSessions { username: name() },
            AccountCommand::Purge { username: name() },
            AccountCommand::RevokeSession { session: SessionId(1), target: SessionId(2) },
            AccountCommand::TouchSessions(vec![SessionId(1), SessionId(2)]),
            AccountCommand::SetRegistration(Registration::Closed),
            AccountCommand::CreateInvitation { code_hash: hash, uses: 3, lifetime_ms: 4 },
            AccountCommand::RevokeInvitation { invitation: Revision(5) },
            AccountCommand::RemoveExpired { before: TimeMs(6), limit: 7 },
            AccountCommand::SetPrivacy { session: SessionId(1), change: PrivacyChange::default() },
            AccountCommand::SetPrivacy {
                session: SessionId(1),
                change: PrivacyChange { read_receipts: Some(false), session_activity: Some(true) },
            },
        ];
        let login = Login {
            idle_ms: 1,
            password_revision: Some(Revision(0)),
            device: Some(hash),
            rehash: Some("h".to_owned()),
        };
        let open = |login| Command::OpenSession { account: AccountId(1), token_hash: hash, lifetime_ms: 2, login };
        let create = Command::CreateAccount {
            username: name(),
            password_hash: "h".into(),
            request_id: None,
            invitation: Some(hash),
        };
        let others = [open(login), open(Login::default()), create];
        for command in commands.map(Command::Account).into_iter().chain(others) {
            assert_eq!(decode_command(encode_command(&command)), Ok(command));
        }
    }
}
