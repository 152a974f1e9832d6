//! The rules again, as simple as possible: everything in memory, no caches, no SQL. The results of `storage` are
//! compared with it.

mod accounts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chat::limits::JOIN_TOKENS_MAX;
use chat::*;

pub struct Account {
    pub id: AccountId,
    pub name: String,
    pub request: Option<ClientId>,
    pub deleted: bool,
    pub hash: String,
    pub password_revision: Revision,
    pub disabled: bool,
    /// Devices, in order of their last login.
    pub devices: Vec<TokenHash>,
    pub privacy: Privacy,
}

#[derive(Clone, Copy)]
pub struct Session {
    pub account: AccountId,
    pub token: TokenHash,
    pub expires: TimeMs,
    pub idle_ms: u64,
    pub opened: TimeMs,
    pub used: TimeMs,
    pub ends: TimeMs,
    pub device: Option<TokenHash>,
}

pub struct Invitation {
    pub id: Revision,
    pub code: TokenHash,
    pub left: u32,
    pub expires: TimeMs,
}

pub struct Message {
    pub revision: Revision,
    pub sender: AccountId,
    pub client_id: ClientId,
    pub time: TimeMs,
    pub body: String,
    pub deleted: bool,
}

pub struct Conversation {
    pub members: Vec<AccountId>,
    /// The message with seq n is at index n - 1.
    pub messages: Vec<Message>,
    /// Delivered and read watermarks.
    pub marks: BTreeMap<AccountId, (Seq, Seq)>,
    /// Read watermarks as the other members see them. Absent: nothing is read.
    pub shown: BTreeMap<AccountId, Seq>,
}

impl Conversation {
    /// The read watermark of `member` that `me` may see.
    pub fn read_as_seen_by(&self, me: AccountId, member: AccountId) -> Seq {
        if member == me { self.marks[&me].1 } else { self.shown.get(&member).copied().unwrap_or_default() }
    }
}

#[derive(Default)]
pub struct Model {
    pub revision: Revision,
    pub clock: TimeMs,
    pub accounts: Vec<Account>,
    pub sessions: BTreeMap<SessionId, Session>,
    pub registration: Registration,
    pub invitations: Vec<Invitation>,
    pub conversations: BTreeMap<ConversationId, Conversation>,
    pub hidden: BTreeSet<(AccountId, ConversationId, Seq)>,
    pub rejected: BTreeMap<(ClientId, AccountId), Rejection>,
    /// Pending erasures of deleted accounts: conversations to notify, messages to process.
    pub erasures: BTreeMap<AccountId, (Vec<ConversationId>, usize)>,
    /// The expiry of each token, and the admission number that has used it; 0: none.
    pub join_tokens: BTreeMap<TokenHash, (TimeMs, u64)>,
    /// Maximum messages and bytes that an account may store; 0: unlimited.
    pub quota: (u64, u64),
    pub events: Vec<Event>,
    pub closed: Vec<SessionId>,
}

impl Model {
    pub fn apply(&mut self, time: TimeMs, command: &Command) -> Outcome {
        self.clock = self.clock.max(time);
        let result = match command {
            Command::CreateAccount { username, password_hash, request_id, invitation } => {
                self.create(username, password_hash, *request_id, *invitation)
            }
            Command::OpenSession { account, token_hash, lifetime_ms, login } => {
                self.open(*account, *token_hash, *lifetime_ms, login)
            }
            Command::Account(command) => self.account_command(command),
            Command::CloseSession { session, all } => self.close(*session, *all),
            Command::DeleteAccount { session } => self.delete_account(*session),
            Command::BeginAccountDeletion { session } => self.begin_account_deletion(*session),
            Command::EraseAccount { account, limit } => Ok(self.erase_account(*account, *limit)),
            Command::SendMessage { session, to, client_id, body } => self.send(*session, to, *client_id, body),
            Command::Receipts(items) => {
                Ok(Outcome::ReceiptsApplied(items.iter().map(|item| self.receipt(item)).collect()))
            }
            Command::DeleteMessages { session, messages, for_everyone } => {
                self.delete_messages(*session, messages, *for_everyone)
            }
            Command::NoteDigest | Command::ReportDigest(_) => Ok(Outcome::DigestNoted),
            Command::IssueJoinToken { token_hash, lifetime_ms } => self.issue_join_token(*token_hash, *lifetime_ms),
            Command::RedeemJoinToken { token_hash, admission } => self.redeem_join_token(*token_hash, *admission),
        };
        result.unwrap_or_else(Outcome::Rejected)
    }

    fn issue_join_token(&mut self, token: TokenHash, lifetime: u64) -> Result<Outcome, Rejection> {
        self.join_tokens.retain(|_, (expires, _)| *expires > self.clock);
        if !self.join_tokens.contains_key(&token) && self.join_tokens.len() >= JOIN_TOKENS_MAX {
            return Err(Rejection::JoinTokensFull);
        }
        let (expires_at, _) = *self.join_tokens.entry(token).or_insert((TimeMs(self.clock.0 + lifetime), 0));
        Ok(Outcome::JoinTokenIssued { expires_at })
    }

    fn redeem_join_token(&mut self, token: TokenHash, admission: u64) -> Result<Outcome, Rejection> {
        self.join_tokens.retain(|_, (expires, _)| *expires > self.clock);
        let (_, owner) = self.join_tokens.get_mut(&token).ok_or(Rejection::JoinTokenInvalid)?;
        if admission == 0 || (*owner != 0 && *owner != admission) {
            return Err(Rejection::JoinTokenInvalid);
        }
        *owner = admission;
        Ok(Outcome::JoinTokenRedeemed)
    }

    fn bump(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn caller(&self, session: SessionId) -> Result<AccountId, Rejection> {
        let session = self.sessions.get(&session).ok_or(Rejection::SessionUnknown)?;
        if session.ends <= self.clock { Err(Rejection::SessionExpired) } else { Ok(session.account) }
    }

    fn named(&self, name: &str) -> Option<&Account> {
        self.accounts.iter().find(|account| account.name == name)
    }

    pub fn name(&self, id: AccountId) -> &str {
        &self.accounts.iter().find(|account| account.id == id).expect("accounts stay").name
    }

    fn deleted(&self, id: AccountId) -> bool {
        self.accounts.iter().any(|account| account.id == id && account.deleted)
    }

    fn direct(&self, one: AccountId, other: AccountId) -> Option<ConversationId> {
        let members = BTreeSet::from([one, other]);
        let found =
            self.conversations.iter().find(|(_, c)| c.members.iter().copied().collect::<BTreeSet<_>>() == members);
        found.map(|(id, _)| *id)
    }

    fn notify(&mut self, conversation: ConversationId, kind: EventKind) {
        let member = |id: &AccountId| Member { account: *id, username: self.name(*id).into() };
        let members = self.conversations[&conversation].members.iter().map(member).collect();
        self.events.push(Event { revision: self.revision, time: self.clock, conversation, members, kind, trace: None });
    }

    fn end(&mut self, sessions: Vec<SessionId>) {
        for session in sessions {
            self.sessions.remove(&session);
            self.closed.push(session);
        }
    }

    fn close(&mut self, session: SessionId, all: bool) -> Result<Outcome, Rejection> {
        let account = self.caller(session)?;
        let sessions = if all { self.own_sessions(account) } else { vec![session] };
        let count = sessions.len() as u32;
        self.end(sessions);
        Ok(Outcome::SessionsClosed { count, revision: self.bump() })
    }

    fn delete_account(&mut self, session: SessionId) -> Result<Outcome, Rejection> {
        let me = self.caller(session)?;
        let mine: Vec<ConversationId> =
            self.conversations.iter().filter(|(_, c)| c.members.contains(&me)).map(|(id, _)| *id).collect();
        let mut deleted_messages = 0;
        for id in mine {
            let conversation = self.conversations.get_mut(&id).expect("listed");
            for message in conversation.messages.iter_mut().filter(|m| m.sender == me && !m.deleted) {
                (message.deleted, message.body) = (true, String::new());
                deleted_messages += 1;
            }
            self.bump();
            let member_name = self.name(me).into();
            self.notify(id, EventKind::AccountDeleted { member: me, member_name });
        }
        self.end(self.own_sessions(me));
        let account = self.account(me);
        (account.deleted, account.devices, account.privacy) = (true, Vec::new(), Privacy::default());
        Ok(Outcome::AccountDeleted { revision: self.bump(), deleted_messages })
    }

    fn begin_account_deletion(&mut self, session: SessionId) -> Result<Outcome, Rejection> {
        let me = self.caller(session)?;
        self.begin_erasure(me)
    }

    fn begin_erasure(&mut self, me: AccountId) -> Result<Outcome, Rejection> {
        let (mut deleted_messages, mut mine, mut messages) = (0, Vec::new(), 0);
        for (id, conversation) in self.conversations.iter_mut().filter(|(_, c)| c.members.contains(&me)) {
            mine.push(*id);
            messages += conversation.messages.len();
            for message in conversation.messages.iter_mut().filter(|m| m.sender == me && !m.deleted) {
                (message.deleted, message.body) = (true, String::new());
                deleted_messages += 1;
            }
        }
        self.erasures.insert(me, (mine, messages));
        self.end(self.own_sessions(me));
        let account = self.account(me);
        (account.deleted, account.devices, account.privacy) = (true, Vec::new(), Privacy::default());
        Ok(Outcome::AccountDeleted { revision: self.bump(), deleted_messages })
    }

    fn erase_account(&mut self, account: AccountId, limit: u32) -> Outcome {
        let Some((mut conversations, mut messages)) = self.erasures.remove(&account) else {
            return Outcome::AccountErased { revision: self.revision, done: true };
        };
        let mut left = limit.max(1) as usize;
        let notified = conversations.len().min(left);
        for id in conversations.drain(..notified) {
            self.bump();
            let member_name = self.name(account).into();
            self.notify(id, EventKind::AccountDeleted { member: account, member_name });
        }
        left -= notified;
        let seen = messages.min(left);
        (messages, left) = (messages - seen, left - seen);
        if left == 0 {
            self.erasures.insert(account, (conversations, messages));
        }
        Outcome::AccountErased { revision: self.revision, done: left > 0 }
    }

    fn fits_quota(&self, me: AccountId, body: &str) -> bool {
        let mine = self.conversations.values().flat_map(|c| &c.messages).filter(|m| m.sender == me);
        let (messages, bytes) = mine.fold((1, body.len()), |(n, bytes), message| match message.deleted {
            true => (n, bytes + 64),
            false => (n + 1, bytes + message.body.len()),
        });
        (self.quota.0 == 0 || messages <= self.quota.0) && (self.quota.1 == 0 || bytes as u64 <= self.quota.1)
    }

    fn send(
        &mut self,
        session: SessionId,
        to: &Destination,
        client_id: ClientId,
        body: &str,
    ) -> Result<Outcome, Rejection> {
        let me = self.caller(session)?;
        // The destination, even if an account is deleted.
        let place = match to {
            Destination::Conversation(id) => Some(*id),
            Destination::Person(name) => self.named(name).and_then(|other| self.direct(me, other.id)),
        };
        for (id, conversation) in &self.conversations {
            for (at, message) in conversation.messages.iter().enumerate() {
                if (message.client_id, message.sender) == (client_id, me) {
                    if place != Some(*id) || !(message.deleted || message.body == body) {
                        return Err(Rejection::ClientIdReused);
                    }
                    return Ok(Outcome::MessageSent(MessageSent {
                        conversation: *id,
                        seq: Seq(at as u64 + 1),
                        revision: message.revision,
                        time: message.time,
                        repeated: true,
                    }));
                }
            }
        }
        if let Some(reason) = self.rejected.get(&(client_id, me)) {
            return Err(*reason);
        }
        let fits = self.fits_quota(me, body);
        let place = self.place(me, to).and_then(|id| if fits { Ok(id) } else { Err(Rejection::QuotaExceeded) });
        let id = place.inspect_err(|reason| {
            self.rejected.insert((client_id, me), *reason);
        })?;
        let (revision, time) = (self.bump(), self.clock);
        let id = match id {
            Ok(id) => id,
            Err(partner) => {
                let members: Vec<_> = BTreeSet::from([me, partner]).into_iter().collect();
                let marks = members.iter().map(|member| (*member, (Seq(0), Seq(0)))).collect();
                let id = ConversationId(revision.0);
                let conversation = Conversation { members, messages: Vec::new(), marks, shown: BTreeMap::new() };
                self.conversations.insert(id, conversation);
                id
            }
        };
        let messages = &mut self.conversations.get_mut(&id).expect("found or made").messages;
        messages.push(Message { revision, sender: me, client_id, time, body: body.into(), deleted: false });
        let seq = Seq(messages.len() as u64);
        let sender_name = self.name(me).into();
        let body = body.into();
        self.notify(id, EventKind::Message { seq, sender: me, sender_name, client_id, body, deleted: false });
        Ok(Outcome::MessageSent(MessageSent { conversation: id, seq, revision, time, repeated: false }))
    }

    /// An existing conversation, or the partner of one to create.
    fn place(&mut self, me: AccountId, to: &Destination) -> Result<Result<ConversationId, AccountId>, Rejection> {
        match to {
            Destination::Person(name) => {
                let other = self.named(name).ok_or(Rejection::RecipientUnknown)?;
                if other.deleted {
                    return Err(Rejection::RecipientDeleted);
                }
                Ok(self.direct(me, other.id).ok_or(other.id))
            }
            Destination::Conversation(id) => {
                let members = self.conversations.get(id).map(|conversation| conversation.members.clone());
                let members = members.filter(|m| m.contains(&me)).ok_or(Rejection::ConversationUnknown)?;
                if members.iter().any(|member| self.deleted(*member)) {
                    return Err(Rejection::RecipientDeleted);
                }
                Ok(Ok(*id))
            }
        }
    }

    fn receipt(&mut self, item: &ReceiptItem) -> ReceiptResult {
        let me = self.caller(item.session)?;
        let private: Vec<_> = self.accounts.iter().filter(|a| !a.privacy.read_receipts).map(|a| a.id).collect();
        let conversation = self.conversations.get_mut(&item.conversation).ok_or(Rejection::ConversationUnknown)?;
        let end = Seq(conversation.messages.len() as u64);
        let mark = conversation.marks.get_mut(&me).ok_or(Rejection::ConversationUnknown)?;
        let before = *mark;
        mark.0 = mark.0.max(item.up_to.min(end));
        if item.read {
            mark.1 = mark.1.max(item.up_to.min(end));
        }
        let (delivered, read) = *mark;
        let shared = !conversation.members.iter().any(|member| private.contains(member));
        let shown = conversation.shown.entry(me).or_default();
        let shown_before = *shown;
        if read != before.1 && shared {
            *shown = read;
        }
        let is_seen = (delivered, *shown) != (before.0, shown_before);
        let shown = is_seen.then_some(*shown);
        if before != (delivered, read) {
            self.bump();
            let member_name = self.name(me).into();
            self.notify(item.conversation, EventKind::Receipt { member: me, member_name, delivered, read, shown });
        }
        Ok((if item.read { read } else { delivered }, self.revision))
    }

    fn delete_messages(&mut self, session: SessionId, ids: &[u64], everyone: bool) -> Result<Outcome, Rejection> {
        let me = self.caller(session)?;
        let mut changed: BTreeMap<ConversationId, BTreeSet<Seq>> = BTreeMap::new();
        let mut deleted = 0;
        for id in ids {
            for (conversation, c) in &mut self.conversations {
                for (at, message) in c.messages.iter_mut().enumerate() {
                    let seq = Seq(at as u64 + 1);
                    let concerned = message.revision.0 == *id && c.members.contains(&me);
                    let change = match everyone {
                        _ if !concerned => false,
                        true if message.sender != me || message.deleted => false,
                        true => {
                            (message.deleted, message.body) = (true, String::new());
                            true
                        }
                        false => self.hidden.insert((me, *conversation, seq)),
                    };
                    if change {
                        changed.entry(*conversation).or_default().insert(seq);
                        deleted += 1;
                    }
                }
            }
        }
        for (conversation, seqs) in changed {
            self.bump();
            let seqs = seqs.into_iter().collect();
            self.notify(
                conversation,
                match everyone {
                    true => EventKind::DeletedForEveryone { seqs },
                    false => EventKind::DeletedForMember { member: me, seqs },
                },
            );
        }
        Ok(Outcome::MessagesDeleted { deleted, ignored: ids.len() as u32 - deleted, revision: self.revision })
    }

    /// The events of a resumed subscription: past events as they look now.
    pub fn events_for(&self, me: AccountId, after: Revision, up_to: Revision) -> Vec<Event> {
        let concerning = self.events.iter().filter(|event| event.concerns(me));
        concerning
            .filter(|event| event.revision > after && event.revision <= up_to)
            .filter_map(|e| self.now(me, e))
            .collect()
    }

    /// An event as `me` sees it later. `None`: a newer event replaces it.
    fn now(&self, me: AccountId, event: &Event) -> Option<Event> {
        let mut event = event.clone();
        let conversation = &self.conversations[&event.conversation];
        match &mut event.kind {
            EventKind::Message { seq, body, deleted, .. } => {
                let message = &conversation.messages[seq.0 as usize - 1];
                (*body, *deleted) = (Arc::from(message.body.as_str()), message.deleted);
            }
            EventKind::Receipt { member, delivered, read, shown, .. } => {
                if *member != me {
                    *read = shown.expect("it concerns others");
                }
                // A newer receipt of the member replaces it.
                if (conversation.marks[member].0, conversation.read_as_seen_by(me, *member)) != (*delivered, *read) {
                    return None;
                }
            }
            _ => {}
        }
        Some(event)
    }

    pub fn undelivered(&self, me: AccountId) -> Vec<Event> {
        let concerning = self.events.iter().filter(|event| event.concerns(me));
        let unseen = concerning.filter(|event| match &event.kind {
            EventKind::Message { seq, sender, .. } => {
                let delivered = self.conversations[&event.conversation].marks[&me].0;
                *sender != me && *seq > delivered && !self.hidden.contains(&(me, event.conversation, *seq))
            }
            _ => false,
        });
        unseen.filter_map(|event| self.now(me, event)).collect()
    }

    /// Visible messages of a conversation with their seqs, oldest first.
    pub fn visible(&self, me: AccountId, id: ConversationId) -> Vec<(Seq, &Message)> {
        let messages = self.conversations[&id].messages.iter().enumerate().map(|(at, m)| (Seq(at as u64 + 1), m));
        messages.filter(|(seq, _)| !self.hidden.contains(&(me, id, *seq))).collect()
    }

    pub fn unread(&self, me: AccountId, id: ConversationId) -> u64 {
        let read = self.conversations[&id].marks[&me].1;
        let unread = |(seq, m): &(Seq, &Message)| m.sender != me && !m.deleted && *seq > read;
        self.visible(me, id).into_iter().filter(unread).count() as u64
    }
}
