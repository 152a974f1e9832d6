//! The rules again, as plain as can be: everything in memory, nothing cached, no SQL. What `storage` does is compared
//! with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorum_chat::chat::limits::SESSIONS_PER_ACCOUNT_MAX;
use quorum_chat::chat::*;

pub struct Account {
    pub id: AccountId,
    pub name: String,
    pub request: Option<ClientId>,
    pub deleted: bool,
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
    /// The message of seq n is at n - 1.
    pub messages: Vec<Message>,
    /// Delivered and read.
    pub marks: BTreeMap<AccountId, (Seq, Seq)>,
}

#[derive(Default)]
pub struct Model {
    pub revision: Revision,
    pub clock: TimeMs,
    pub accounts: Vec<Account>,
    pub sessions: BTreeMap<SessionId, (AccountId, TokenHash, TimeMs)>,
    pub conversations: BTreeMap<ConversationId, Conversation>,
    pub hidden: BTreeSet<(AccountId, ConversationId, Seq)>,
    pub rejected: BTreeMap<(ClientId, AccountId), Rejection>,
    pub events: Vec<Event>,
    pub closed: Vec<SessionId>,
}

impl Model {
    pub fn apply(&mut self, time: TimeMs, command: &Command) -> Outcome {
        self.clock = self.clock.max(time);
        let result = match command {
            Command::CreateAccount { username, request_id, .. } => self.create(username, *request_id),
            Command::OpenSession { account, token_hash, lifetime_ms } => self.open(*account, *token_hash, *lifetime_ms),
            Command::CloseSession { session, all } => self.close(*session, *all),
            Command::DeleteAccount { session } => self.delete_account(*session),
            Command::SendMessage { session, to, client_id, body } => self.send(*session, to, *client_id, body),
            Command::Receipts(items) => {
                Ok(Outcome::ReceiptsApplied(items.iter().map(|item| self.receipt(item)).collect()))
            }
            Command::DeleteMessages { session, messages, for_everyone } => {
                self.delete_messages(*session, messages, *for_everyone)
            }
            Command::NoteDigest | Command::ReportDigest(_) => Ok(Outcome::DigestNoted),
        };
        result.unwrap_or_else(Outcome::Rejected)
    }

    fn bump(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn caller(&self, session: SessionId) -> Result<AccountId, Rejection> {
        let (account, _, expires) = self.sessions.get(&session).ok_or(Rejection::SessionUnknown)?;
        if *expires <= self.clock { Err(Rejection::SessionExpired) } else { Ok(*account) }
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

    fn tell(&mut self, conversation: ConversationId, kind: EventKind) {
        let member = |id: &AccountId| Member { account: *id, username: self.name(*id).into() };
        let members = self.conversations[&conversation].members.iter().map(member).collect();
        self.events.push(Event { revision: self.revision, time: self.clock, conversation, members, kind, trace: None });
    }

    fn create(&mut self, name: &str, request: Option<ClientId>) -> Result<Outcome, Rejection> {
        if let Some(earlier) = self.accounts.iter().find(|account| request.is_some() && account.request == request) {
            if earlier.name != name {
                return Err(Rejection::ClientIdReused);
            }
            let revision = Revision(earlier.id.0);
            return Ok(Outcome::AccountCreated { account: earlier.id, revision, repeated: true });
        }
        if self.named(name).is_some() {
            return Err(Rejection::UsernameTaken);
        }
        let revision = self.bump();
        let id = AccountId(revision.0);
        self.accounts.push(Account { id, name: name.into(), request, deleted: false });
        Ok(Outcome::AccountCreated { account: id, revision, repeated: false })
    }

    fn open(&mut self, account: AccountId, token: TokenHash, lifetime: u64) -> Result<Outcome, Rejection> {
        if !self.accounts.iter().any(|known| known.id == account && !known.deleted) {
            return Err(Rejection::AccountUnknown);
        }
        if let Some((id, (owner, _, expires))) = self.sessions.iter().find(|(_, session)| session.1 == token) {
            let (session, expires_at, revision) = (*id, *expires, Revision(id.0));
            return match *owner == account {
                true => Ok(Outcome::SessionOpened { session, account, expires_at, revision }),
                false => Err(Rejection::ClientIdReused),
            };
        }
        let revision = self.bump();
        let session = SessionId(revision.0);
        let expires_at = TimeMs(self.clock.0 + lifetime);
        self.sessions.insert(session, (account, token, expires_at));
        let own = self.own_sessions(account);
        let surplus = own.len().saturating_sub(SESSIONS_PER_ACCOUNT_MAX);
        self.end(own[..surplus].to_vec());
        Ok(Outcome::SessionOpened { session, account, expires_at, revision })
    }

    fn own_sessions(&self, account: AccountId) -> Vec<SessionId> {
        self.sessions.iter().filter(|(_, session)| session.0 == account).map(|(id, _)| *id).collect()
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
            self.tell(id, EventKind::AccountDeleted { member: me, member_name });
        }
        self.end(self.own_sessions(me));
        self.accounts.iter_mut().find(|account| account.id == me).expect("accounts stay").deleted = true;
        Ok(Outcome::AccountDeleted { revision: self.bump(), deleted_messages })
    }

    fn send(
        &mut self,
        session: SessionId,
        to: &Destination,
        client_id: ClientId,
        body: &str,
    ) -> Result<Outcome, Rejection> {
        let me = self.caller(session)?;
        // Where it leads, whoever is deleted.
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
        let id = self.place(me, to).inspect_err(|reason| {
            self.rejected.insert((client_id, me), *reason);
        })?;
        let (revision, time) = (self.bump(), self.clock);
        let id = match id {
            Ok(id) => id,
            Err(partner) => {
                let members: Vec<_> = BTreeSet::from([me, partner]).into_iter().collect();
                let marks = members.iter().map(|member| (*member, (Seq(0), Seq(0)))).collect();
                let id = ConversationId(revision.0);
                self.conversations.insert(id, Conversation { members, messages: Vec::new(), marks });
                id
            }
        };
        let messages = &mut self.conversations.get_mut(&id).expect("found or made").messages;
        messages.push(Message { revision, sender: me, client_id, time, body: body.into(), deleted: false });
        let seq = Seq(messages.len() as u64);
        let sender_name = self.name(me).into();
        let body = body.into();
        self.tell(id, EventKind::Message { seq, sender: me, sender_name, client_id, body, deleted: false });
        Ok(Outcome::MessageSent(MessageSent { conversation: id, seq, revision, time, repeated: false }))
    }

    /// An existing conversation, or the partner of one to be made.
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
        let conversation = self.conversations.get_mut(&item.conversation).ok_or(Rejection::ConversationUnknown)?;
        let end = Seq(conversation.messages.len() as u64);
        let mark = conversation.marks.get_mut(&me).ok_or(Rejection::ConversationUnknown)?;
        let before = *mark;
        mark.0 = mark.0.max(item.up_to.min(end));
        if item.read {
            mark.1 = mark.1.max(item.up_to.min(end));
        }
        let (delivered, read) = *mark;
        if before != (delivered, read) {
            self.bump();
            let member_name = self.name(me).into();
            self.tell(item.conversation, EventKind::Receipt { member: me, member_name, delivered, read });
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
            self.tell(
                conversation,
                match everyone {
                    true => EventKind::DeletedForEveryone { seqs },
                    false => EventKind::DeletedForMember { member: me, seqs },
                },
            );
        }
        Ok(Outcome::MessagesDeleted { deleted, ignored: ids.len() as u32 - deleted, revision: self.revision })
    }

    /// What a subscriber who resumes is told: the past as it looks now.
    pub fn events_for(&self, me: AccountId, after: Revision, up_to: Revision) -> Vec<Event> {
        let concerning = self.events.iter().filter(|event| event.concerns(me));
        concerning
            .filter(|event| event.revision > after && event.revision <= up_to)
            .filter_map(|e| self.now(e))
            .collect()
    }

    /// An event as it is told later. `None`: a newer one says it all.
    fn now(&self, event: &Event) -> Option<Event> {
        let mut event = event.clone();
        let conversation = &self.conversations[&event.conversation];
        match &mut event.kind {
            EventKind::Message { seq, body, deleted, .. } => {
                let message = &conversation.messages[seq.0 as usize - 1];
                (*body, *deleted) = (Arc::from(message.body.as_str()), message.deleted);
            }
            // A newer receipt of the member says it all.
            EventKind::Receipt { member, delivered, read, .. } if conversation.marks[member] != (*delivered, *read) => {
                return None;
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
        unseen.filter_map(|event| self.now(event)).collect()
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
