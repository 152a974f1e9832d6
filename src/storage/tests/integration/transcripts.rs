//! Scripted transcripts: commands, each followed by its results. The files in `tests/transcripts` are compared exactly;
//! `UPDATE=1 cargo test -p quorum-chat-storage --test integration transcripts` rewrites them.
//!
//! A line is a command. Indented lines are its output: the outcome after `=`, and each event after its revision, with
//! its recipients in brackets. `tick 500` advances the clock. A person's session is the last one that it opened.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use chat::*;
use prost::Message as _;
use proto::log::v1 as pb;
use storage::{Applied, AppliedEntry, AppliedPayload, Readers, StateImage, StateMachine, codec};

struct World {
    machine: StateMachine,
    readers: Readers,
    time: u64,
    index: u64,
    accounts: HashMap<String, AccountId>,
    sessions: HashMap<String, SessionId>,
}

impl World {
    fn open(dir: &Path) -> Self {
        let machine = StateMachine::open(dir).expect("open");
        let readers = Readers::open(dir, 1).expect("readers");
        Self { machine, readers, time: 1000, index: 0, accounts: HashMap::new(), sessions: HashMap::new() }
    }

    /// Runs a line and returns its output.
    fn run(&mut self, line: &str) -> String {
        // The text between the quotes is one word.
        let (line, body) = match line.split_once('"') {
            Some((before, rest)) => {
                let (body, after) = rest.rsplit_once('"').expect("a closing quote");
                (format!("{before}{after}"), body.to_owned())
            }
            None => (line.to_owned(), String::new()),
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let command = match words.as_slice() {
            ["tick", ms] => {
                self.time += number(ms);
                return String::new();
            }
            ["snapshot"] => return self.snapshot(),
            [who, "resumes", "after", revision] => return self.resume(who, number(revision)),
            [who, "opens", "stream"] => return self.undelivered(who),
            [who, "looks", "at", conversation] => return self.page(who, conversation),
            [who, "logs", "in", rest @ ..] => Command::OpenSession {
                account: self.accounts.get(*who).copied().unwrap_or(AccountId(999)),
                token_hash: TokenHash([self.index as u8 + 1; 32]),
                lifetime_ms: rest.last().map_or(1_000_000, |ms| number(ms)),
                login: chat::Login::default(),
            },
            [who, "logs", "out", rest @ ..] => {
                Command::CloseSession { session: self.session(who), all: rest == ["everywhere"] }
            }
            [who, what @ ("shows" | "hides"), setting] => {
                let set = |name| (*setting == name).then_some(*what == "shows");
                let change = PrivacyChange { read_receipts: set("reads"), session_activity: set("activity") };
                Command::Account(AccountCommand::SetPrivacy { session: self.session(who), change })
            }
            [who, "deletes", "account"] => Command::DeleteAccount { session: self.session(who) },
            [who, "begins", "deletion"] => Command::BeginAccountDeletion { session: self.session(who) },
            ["erase", who, limit] => Command::EraseAccount {
                account: self.accounts.get(*who).copied().unwrap_or(AccountId(999)),
                limit: number(limit) as u32,
            },
            [who, "deletes", messages, rest @ ..] => Command::DeleteMessages {
                session: self.session(who),
                messages: messages.split(',').map(number).collect(),
                for_everyone: rest == ["for", "everyone"],
            },
            [who, "sends", to, client_id] => Command::SendMessage {
                session: self.session(who),
                to: match to.strip_prefix('#') {
                    Some(conversation) => Destination::Conversation(ConversationId(number(conversation))),
                    None => Destination::Person((*to).into()),
                },
                client_id: id(client_id),
                body,
            },
            [who, what @ ("received" | "read"), conversation, up_to] => Command::Receipts(vec![ReceiptItem {
                session: self.session(who),
                conversation: conversation_id(conversation),
                up_to: if *up_to == "all" { Seq(u64::MAX) } else { Seq(number(up_to)) },
                read: *what == "read",
            }]),
            words => self.about_accounts(words).unwrap_or_else(|| panic!("cannot understand: {line}")),
        };
        let applied = self.apply(&command);
        self.note(words[0], &applied);
        print(&applied)
    }

    /// Parses a line about accounts, invitations and passwords.
    fn about_accounts(&self, words: &[&str]) -> Option<Command> {
        Some(match words {
            ["create", name, rest @ ..] => Command::CreateAccount {
                username: (*name).into(),
                password_hash: "hash".into(),
                request_id: rest.first().filter(|word| word.starts_with("id=")).map(|word| id(word)),
                invitation: rest.last().and_then(|word| word.strip_prefix("code=")).map(code),
            },
            ["registration", mode] => Command::Account(AccountCommand::SetRegistration(match *mode {
                "open" => Registration::Open,
                "invitation" => Registration::Invitation,
                _ => Registration::Closed,
            })),
            ["invite", word, uses, lifetime] => Command::Account(AccountCommand::CreateInvitation {
                code_hash: code(word),
                uses: uses.parse().expect("a number"),
                lifetime_ms: number(lifetime),
            }),
            [what @ ("disable" | "enable"), name] => {
                Command::Account(AccountCommand::SetDisabled { username: (*name).into(), disabled: *what == "disable" })
            }
            ["reset", name, hash] => Command::Account(AccountCommand::ResetPassword {
                username: (*name).into(),
                password_hash: (*hash).into(),
            }),
            ["purge", name] => Command::Account(AccountCommand::Purge { username: (*name).into() }),
            ["remove", "expired", before] => {
                Command::Account(AccountCommand::RemoveExpired { before: TimeMs(number(before)), limit: 100 })
            }
            [who, "changes", "password", hash, verified] => Command::Account(AccountCommand::ChangePassword {
                session: self.session(who),
                password_revision: Revision(number(verified)),
                password_hash: (*hash).into(),
            }),
            _ => return None,
        })
    }

    fn apply(&mut self, command: &Command) -> Applied {
        self.index += 1;
        let command = Some(codec::encode_command(command));
        let proposals = vec![pb::Proposal { time_ms: self.time, traceparent: String::new(), command }];
        let batch = pb::Batch { proposals, ..Default::default() };
        let log_id = pb::LogId { term: 1, node_id: 1, index: self.index };
        let payload = AppliedPayload::Batch(batch.encode_to_vec().into());
        self.machine.apply(vec![AppliedEntry { log_id, payload }]).expect("apply")
    }

    fn note(&mut self, who: &str, applied: &Applied) {
        match &applied.outcomes[0][0] {
            Outcome::AccountCreated { account, .. } => {
                let name = self.readers.read(|query| query.accounts("", None, 200)).expect("accounts").0;
                let name = name.into_iter().find(|row| row.id == *account).expect("created").username;
                self.accounts.insert(name, *account);
            }
            Outcome::SessionOpened { session, .. } => {
                self.sessions.insert(who.to_owned(), *session);
            }
            _ => {}
        }
    }

    fn session(&self, who: &str) -> SessionId {
        self.sessions.get(who).copied().unwrap_or(SessionId(999))
    }

    fn snapshot(&mut self) -> String {
        // Restored in the same place: the state has to be the same afterwards.
        let source = self.readers.read(|query| query.revision()).expect("revision");
        let received =
            StateImage::open(self.directory()).and_then(|image| image.receive(self.directory())).expect("received");
        assert_eq!(received.meta().revision, source);
        self.machine.install_snapshot(received).expect("install");
        self.readers.reopen().expect("reopen");
        format!("  = installed at revision {source}\n")
    }

    fn directory(&self) -> &Path {
        self.machine.directory()
    }

    fn resume(&self, who: &str, after: u64) -> String {
        let up_to = self.machine.applied().revision;
        let me = self.accounts[who];
        let events = self.readers.read(|query| query.events_after(me, Revision(after), up_to, 100)).expect("events");
        events.iter().map(event).collect()
    }

    fn undelivered(&self, who: &str) -> String {
        let up_to = self.machine.applied().revision;
        let me = self.accounts[who];
        let events = self.readers.read(|query| query.undelivered(me, Revision(0), up_to, 100)).expect("events");
        events.iter().map(event).collect()
    }

    fn page(&self, who: &str, conversation: &str) -> String {
        let me = self.accounts[who];
        let id = conversation_id(conversation);
        let page = self.readers.read(|query| query.conversation_page(me, id, None, 50)).expect("page");
        let mut out = format!("  = total {} unread {}\n", page.total, page.unread);
        for row in page.messages {
            let text = if row.deleted { "(deleted)".to_owned() } else { format!("\"{}\"", row.body) };
            writeln!(out, "  #{} {}: {text} {:?}", row.seq, row.sender_name, row.status).expect("a string");
        }
        out
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is not a number"))
}

fn conversation_id(word: &str) -> ConversationId {
    ConversationId(number(word.trim_start_matches('#')))
}

fn id(word: &str) -> ClientId {
    ClientId([number(word.trim_start_matches("id=")) as u8; 16])
}

fn print(applied: &Applied) -> String {
    let mut out = format!("  = {}\n", outcome(&applied.outcomes[0][0]));
    for session in &applied.closed_sessions {
        writeln!(out, "  session {session} ends").expect("a string");
    }
    out.extend(applied.events.iter().map(|e| event(e)));
    out
}

fn outcome(outcome: &Outcome) -> String {
    let again = |repeated: bool| if repeated { " again" } else { "" };
    match outcome {
        Outcome::Rejected(reason) => format!("rejected: {reason:?}"),
        Outcome::AccountCreated { account, revision, repeated } => {
            format!("account {account} at {revision}{}", again(*repeated))
        }
        Outcome::SessionOpened { session, account, expires_at, revision } => {
            format!("session {session} of account {account} at {revision} until {expires_at} ms")
        }
        Outcome::SessionsClosed { count, revision } => format!("{count} closed at {revision}"),
        Outcome::JoinTokenIssued { expires_at } => format!("join token until {expires_at} ms"),
        Outcome::JoinTokenRedeemed => "join token used".into(),
        Outcome::AccountErased { revision, done } => {
            format!("{} at {revision}", if *done { "erased" } else { "erased in part" })
        }
        Outcome::AccountDeleted { revision, deleted_messages } => {
            format!("account and {deleted_messages} messages deleted at {revision}")
        }
        Outcome::MessageSent(MessageSent { conversation, seq, revision, time, repeated }) => {
            format!("#{conversation} seq {seq} at {revision}, {time} ms{}", again(*repeated))
        }
        Outcome::ReceiptsApplied(results) => {
            let result = |r: &ReceiptResult| match r {
                Ok((seq, revision)) => format!("up to {seq} at {revision}"),
                Err(reason) => format!("rejected: {reason:?}"),
            };
            results.iter().map(result).collect::<Vec<_>>().join("; ")
        }
        Outcome::MessagesDeleted { deleted, ignored, revision } => {
            format!("{deleted} deleted, {ignored} ignored at {revision}")
        }
        Outcome::Changed { count, revision } => format!("{count} changed at {revision}"),
        Outcome::InvitationCreated { expires_at, revision } => {
            format!("invitation at {revision} until {expires_at} ms")
        }
        Outcome::DigestNoted => "noted".to_owned(),
    }
}

fn event(event: &Event) -> String {
    let what = match &event.kind {
        EventKind::Message { seq, sender_name, deleted: true, .. } => format!("seq {seq} {sender_name}: (deleted)"),
        EventKind::Message { seq, sender_name, body, .. } => format!("seq {seq} {sender_name}: \"{body}\""),
        EventKind::Receipt { member_name, delivered, read, shown: Some(shown), .. } if shown != read => {
            format!("{member_name} delivered {delivered} read {read}, shown {shown}")
        }
        EventKind::Receipt { member_name, delivered, read, .. } => {
            format!("{member_name} delivered {delivered} read {read}")
        }
        EventKind::DeletedForEveryone { seqs } => format!("deleted for everyone: {}", list(seqs)),
        EventKind::DeletedForMember { seqs, .. } => format!("hidden: {}", list(seqs)),
        EventKind::AccountDeleted { member_name, .. } => format!("{member_name} deleted the account"),
    };
    let recipients =
        event.members.iter().filter(|m| event.concerns(m.account)).map(|m| &*m.username).collect::<Vec<_>>();
    format!("  {}: #{} {what} [{}]\n", event.revision, event.conversation, recipients.join(" "))
}

fn list(seqs: &[Seq]) -> String {
    seqs.iter().map(Seq::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns the expected file: its commands and comments, with their output.
fn replay(text: &str) -> String {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut world = World::open(dir.path());
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with("  ")) {
        writeln!(out, "{line}").expect("a string");
        if !line.is_empty() && !line.starts_with("//") {
            out.push_str(&world.run(line));
        }
    }
    out
}

#[test]
fn transcripts_are_as_they_were() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let update = std::env::var_os("UPDATE").is_some();
    let mut files: Vec<_> = fs::read_dir(&dir).expect("list").map(|entry| entry.expect("entry").path()).collect();
    files.sort_unstable();
    assert!(!files.is_empty());
    for file in files {
        let text = fs::read_to_string(&file).expect("read");
        let now = replay(&text);
        if update {
            fs::write(&file, now).expect("write");
        } else {
            assert_eq!(now, text, "{} differs: UPDATE=1 writes it anew", file.display());
        }
    }
}

/// Hash of the code of an invitation.
fn code(word: &str) -> TokenHash {
    TokenHash([word.as_bytes()[0]; 32])
}
