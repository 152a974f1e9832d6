//! The bytes of commands about accounts, sessions, invitations and settings in the chain. Fields that earlier versions
//! did not have are folded in only if they are set, so that the bytes of earlier commands do not change.

use sha2::Digest as _;

use super::{COMMAND, Fold};
use crate::codec;
use chat::{AccountCommand, Login, TokenHash};

/// Kind of the part with the details of a login.
const LOGIN: u8 = 36;
/// Kind of the part with the invitation used to create an account.
const INVITATION: u8 = 37;

impl Fold {
    pub(super) fn invitation(&mut self, invitation: Option<&TokenHash>) {
        if let Some(hash) = invitation {
            self.tag(COMMAND, INVITATION);
            self.0.update(hash.0);
        }
    }

    pub(super) fn login(&mut self, login: &Login) {
        if *login == Login::default() {
            return;
        }
        self.tag(COMMAND, LOGIN);
        self.number(login.idle_ms);
        self.number(login.password_revision.map_or(u64::MAX, |revision| revision.0));
        self.bytes(login.device.as_ref().map_or(&[], |hash| &hash.0));
        self.bytes(login.rehash.as_deref().unwrap_or_default().as_bytes());
    }

    pub(super) fn account_command(&mut self, command: &AccountCommand) {
        match command {
            AccountCommand::ChangePassword { session, password_revision, password_hash } => {
                self.tag(COMMAND, 25);
                self.number(session.0);
                self.number(password_revision.0);
                self.bytes(password_hash.as_bytes());
            }
            AccountCommand::ResetPassword { username, password_hash } => {
                self.tag(COMMAND, 26);
                self.bytes(username.as_bytes());
                self.bytes(password_hash.as_bytes());
            }
            AccountCommand::SetDisabled { username, disabled } => {
                self.tag(COMMAND, 27);
                self.bytes(username.as_bytes());
                self.number(u64::from(*disabled));
            }
            AccountCommand::EndSessions { username } => {
                self.tag(COMMAND, 28);
                self.bytes(username.as_bytes());
            }
            AccountCommand::Purge { username } => {
                self.tag(COMMAND, 29);
                self.bytes(username.as_bytes());
            }
            AccountCommand::RevokeSession { session, target } => {
                self.tag(COMMAND, 30);
                self.number(session.0);
                self.number(target.0);
            }
            AccountCommand::TouchSessions(sessions) => {
                self.tag(COMMAND, 31);
                self.number(sessions.len() as u64);
                sessions.iter().for_each(|session| self.number(session.0));
            }
            AccountCommand::SetRegistration(registration) => {
                self.tag(COMMAND, 32);
                let number = i32::from(codec::encode_registration(*registration));
                self.number(u64::from(number.unsigned_abs()));
            }
            AccountCommand::CreateInvitation { code_hash, uses, lifetime_ms } => {
                self.tag(COMMAND, 33);
                self.0.update(code_hash.0);
                self.number(u64::from(*uses));
                self.number(*lifetime_ms);
            }
            AccountCommand::RevokeInvitation { invitation } => {
                self.tag(COMMAND, 34);
                self.number(invitation.0);
            }
            AccountCommand::RemoveExpired { before, limit } => {
                self.tag(COMMAND, 35);
                self.number(before.0);
                self.number(u64::from(*limit));
            }
            AccountCommand::SetPrivacy { session, change } => {
                self.tag(COMMAND, 40);
                self.number(session.0);
                for setting in [change.read_receipts, change.session_activity] {
                    self.number(setting.map_or(2, u64::from));
                }
            }
        }
    }
}
