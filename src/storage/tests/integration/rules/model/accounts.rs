//! The rules of accounts, sessions, invitations and settings.

use chat::limits::{DEVICES_PER_ACCOUNT_MAX, SESSIONS_PER_ACCOUNT_MAX};
use chat::*;

use super::{Account, Invitation, Model, Session};

impl Model {
    pub(super) fn account(&mut self, id: AccountId) -> &mut Account {
        self.accounts.iter_mut().find(|account| account.id == id).expect("accounts stay")
    }

    pub(super) fn create(
        &mut self,
        name: &str,
        hash: &str,
        request: Option<ClientId>,
        invitation: Option<TokenHash>,
    ) -> Result<Outcome, Rejection> {
        if let Some(earlier) = self.accounts.iter().find(|account| request.is_some() && account.request == request) {
            if earlier.name != name {
                return Err(Rejection::ClientIdReused);
            }
            let revision = Revision(earlier.id.0);
            return Ok(Outcome::AccountCreated { account: earlier.id, revision, repeated: true });
        }
        let clock = self.clock;
        let usable = |i: &&mut Invitation| Some(i.code) == invitation && i.left > 0 && i.expires > clock;
        match self.registration {
            Registration::Closed => return Err(Rejection::RegistrationClosed),
            Registration::Invitation if invitation.is_none() => return Err(Rejection::InvitationNeeded),
            Registration::Invitation if self.invitations.iter_mut().find(usable).is_none() => {
                return Err(Rejection::InvitationInvalid);
            }
            _ => {}
        }
        if self.named(name).is_some() {
            return Err(Rejection::UsernameTaken);
        }
        if self.registration == Registration::Invitation {
            self.invitations.iter_mut().find(usable).expect("found above").left -= 1;
        }
        let id = AccountId(self.bump().0);
        self.accounts.push(Account {
            id,
            name: name.into(),
            request,
            deleted: false,
            hash: hash.into(),
            password_revision: Revision(0),
            disabled: false,
            devices: Vec::new(),
            privacy: Privacy::default(),
        });
        Ok(Outcome::AccountCreated { account: id, revision: self.revision, repeated: false })
    }

    fn may_log_in(&self, id: AccountId, verified: Option<Revision>) -> Result<(), Rejection> {
        let account = self.accounts.iter().find(|account| account.id == id && !account.deleted);
        let account = account.ok_or(Rejection::AccountUnknown)?;
        if verified.is_some_and(|verified| verified != account.password_revision) {
            return Err(Rejection::PasswordOutdated);
        }
        if account.disabled { Err(Rejection::AccountDisabled) } else { Ok(()) }
    }

    pub(super) fn open(
        &mut self,
        account: AccountId,
        token: TokenHash,
        lifetime: u64,
        login: &Login,
    ) -> Result<Outcome, Rejection> {
        let known = self.sessions.iter().find(|(_, session)| session.token == token);
        let known = known.map(|(id, session)| (*id, *session));
        match self.may_log_in(account, login.password_revision) {
            Err(Rejection::AccountUnknown) => return Err(Rejection::AccountUnknown),
            Err(reason) if known.is_none() => return Err(reason),
            _ => {}
        }
        if let Some((session, Session { account: owner, expires, .. })) = known {
            return match owner == account {
                true => {
                    Ok(Outcome::SessionOpened { session, account, expires_at: expires, revision: Revision(session.0) })
                }
                false => Err(Rejection::ClientIdReused),
            };
        }
        let revision = self.bump();
        let session = SessionId(revision.0);
        let expires = TimeMs(self.clock.0 + lifetime);
        let ends = if login.idle_ms == 0 { expires } else { expires.min(TimeMs(self.clock.0 + login.idle_ms)) };
        let (opened, used, idle_ms, device) = (self.clock, self.clock, login.idle_ms, login.device);
        self.sessions.insert(session, Session { account, token, expires, idle_ms, opened, used, ends, device });
        let row = self.account(account);
        if let Some(device) = device {
            row.devices.retain(|known| *known != device);
            row.devices.push(device);
            let surplus = row.devices.len().saturating_sub(DEVICES_PER_ACCOUNT_MAX);
            row.devices.drain(..surplus);
        }
        if let Some(hash) = &login.rehash {
            row.hash.clone_from(hash);
        }
        let own = self.own_sessions(account);
        let surplus = own.len().saturating_sub(SESSIONS_PER_ACCOUNT_MAX);
        self.end(own[..surplus].to_vec());
        Ok(Outcome::SessionOpened { session, account, expires_at: expires, revision })
    }

    /// Sessions of an account, in order of their last use.
    pub(super) fn own_sessions(&self, account: AccountId) -> Vec<SessionId> {
        let mine = self.sessions.iter().filter(|(_, session)| session.account == account);
        let mut mine: Vec<_> = mine.map(|(id, session)| (session.used, *id)).collect();
        mine.sort();
        mine.into_iter().map(|(_, id)| id).collect()
    }

    fn existing(&self, name: &str) -> Result<AccountId, Rejection> {
        let found = self.named(name).filter(|account| !account.deleted);
        found.map(|account| account.id).ok_or(Rejection::AccountUnknown)
    }

    fn set_password(&mut self, id: AccountId, hash: &str, keep: Option<SessionId>) -> Outcome {
        let revision = self.bump();
        let device = keep.and_then(|keep| self.sessions[&keep].device);
        let account = self.account(id);
        (account.hash, account.password_revision) = (hash.into(), revision);
        account.devices.retain(|known| Some(*known) == device);
        let mut ended = self.own_sessions(id);
        ended.retain(|session| Some(*session) != keep);
        let count = ended.len() as u64;
        self.end(ended);
        Outcome::Changed { count, revision }
    }

    fn set_privacy(&mut self, session: SessionId, change: PrivacyChange) -> Result<Outcome, Rejection> {
        let me = self.caller(session)?;
        let (before, after) = (self.account(me).privacy, change.applied_to(self.account(me).privacy));
        self.account(me).privacy = after;
        if before.session_activity && !after.session_activity {
            self.forget_activity(me);
        }
        Ok(self.changed(usize::from(before != after)))
    }

    fn forget_activity(&mut self, me: AccountId) {
        let clock = self.clock;
        let ended = self.sessions.iter().filter(|(_, session)| session.account == me && session.ends <= clock);
        self.end(ended.map(|(id, _)| *id).collect());
        for session in self.sessions.values_mut().filter(|session| session.account == me) {
            session.used = session.opened;
            if session.idle_ms > 0 {
                session.ends = session.expires.min(TimeMs(clock.0 + session.idle_ms));
            }
        }
    }

    fn changed(&mut self, count: usize) -> Outcome {
        if count > 0 {
            self.bump();
        }
        Outcome::Changed { count: count as u64, revision: self.revision }
    }

    fn touch(&mut self, sessions: &[SessionId]) -> Outcome {
        let mut count = 0;
        for id in sessions {
            let Some(session) = self.sessions.get_mut(id) else { continue };
            let noted = self.accounts.iter().any(|a| a.id == session.account && a.privacy.session_activity);
            if noted && session.used < self.clock && session.ends > self.clock {
                session.used = self.clock;
                if session.idle_ms > 0 {
                    session.ends = session.expires.min(TimeMs(self.clock.0 + session.idle_ms));
                }
                count += 1;
            }
        }
        Outcome::Changed { count, revision: self.revision }
    }

    fn remove_expired(&mut self, before: TimeMs, limit: u32) -> Outcome {
        let mut ended: Vec<_> = self.sessions.iter().map(|(id, session)| (session.ends, *id)).collect();
        ended.retain(|(ends, _)| *ends <= before);
        ended.sort();
        ended.truncate(limit as usize);
        let mut gone: Vec<_> = self.invitations.iter().map(|known| (known.expires, known.id)).collect();
        gone.retain(|(expires, _)| *expires <= before);
        gone.sort();
        gone.truncate(limit as usize);
        self.invitations.retain(|known| !gone.contains(&(known.expires, known.id)));
        let count = (ended.len() + gone.len()) as u64;
        self.end(ended.into_iter().map(|(_, id)| id).collect());
        Outcome::Changed { count, revision: self.revision }
    }

    pub(super) fn account_command(&mut self, command: &AccountCommand) -> Result<Outcome, Rejection> {
        Ok(match command {
            AccountCommand::ChangePassword { session, password_revision, password_hash } => {
                let me = self.caller(*session)?;
                if self.account(me).hash == *password_hash {
                    return Ok(self.changed(0));
                }
                self.may_log_in(me, Some(*password_revision))?;
                self.set_password(me, password_hash, Some(*session))
            }
            AccountCommand::ResetPassword { username, password_hash } => {
                let id = self.existing(username)?;
                if self.account(id).hash == *password_hash {
                    return Ok(self.changed(0));
                }
                self.set_password(id, password_hash, None)
            }
            AccountCommand::SetDisabled { username, disabled } => {
                let id = self.existing(username)?;
                let account = self.account(id);
                if account.disabled == *disabled {
                    return Ok(self.changed(0));
                }
                account.disabled = *disabled;
                let revision = self.bump();
                let ended = if *disabled { self.own_sessions(id) } else { Vec::new() };
                let count = ended.len() as u64;
                self.end(ended);
                Outcome::Changed { count, revision }
            }
            AccountCommand::EndSessions { username } => {
                let ended = self.own_sessions(self.existing(username)?);
                self.end(ended.clone());
                self.changed(ended.len())
            }
            AccountCommand::Purge { username } => self.begin_erasure(self.existing(username)?)?,
            AccountCommand::RevokeSession { session, target } => {
                let me = self.caller(*session)?;
                let ended = self.sessions.get(target).filter(|target| target.account == me).copied();
                let ended = ended.ok_or(Rejection::TargetUnknown)?;
                self.account(me).devices.retain(|known| Some(*known) != ended.device);
                self.end(vec![*target]);
                Outcome::SessionsClosed { count: 1, revision: self.bump() }
            }
            AccountCommand::TouchSessions(sessions) => self.touch(sessions),
            AccountCommand::SetRegistration(registration) => {
                let changed = self.registration != *registration;
                self.registration = *registration;
                self.changed(usize::from(changed))
            }
            AccountCommand::CreateInvitation { code_hash, uses, lifetime_ms } => {
                if let Some(made) = self.invitations.iter().find(|invitation| invitation.code == *code_hash) {
                    return Ok(Outcome::InvitationCreated { expires_at: made.expires, revision: made.id });
                }
                let (id, expires) = (self.bump(), TimeMs(self.clock.0 + lifetime_ms));
                self.invitations.push(Invitation { id, code: *code_hash, left: *uses, expires });
                Outcome::InvitationCreated { expires_at: expires, revision: id }
            }
            AccountCommand::RevokeInvitation { invitation } => {
                let before = self.invitations.len();
                self.invitations.retain(|known| known.id != *invitation);
                self.changed(before - self.invitations.len())
            }
            AccountCommand::RemoveExpired { before, limit } => self.remove_expired((*before).min(self.clock), *limit),
            AccountCommand::SetPrivacy { session, change } => self.set_privacy(*session, *change)?,
        })
    }
}
