//! Deletions: flags that are set once, at a revision that is known either exactly or as a range.
//!
//! A message is deleted for everyone, or hidden by one account. The evidence comes from answers (deleted by then), from
//! events (deleted exactly then), from reads (deleted, or not yet, at their revision), and from real time (not yet
//! deleted at a revision that was known before the first request). A contradiction is an error of the operation that
//! showed "not yet" at a later revision than another operation showed "deleted".

use std::collections::HashMap;

use super::{Findings, Kind, ledger::Ledger, order::Floor, pair_key, words};
use crate::history::{Action, Event, History, Outcome};

/// The key of a flag: a message, and the account that it is hidden from. `None`: deleted for everyone.
type Name = (u64, Option<u16>);

/// Seqs and ids, in order.
type Places = Vec<(u64, u64)>;

#[derive(Debug, Clone, Copy)]
struct Evidence {
    revision: u64,
    at: usize,
}

#[derive(Debug, Default)]
struct Flag {
    /// Time of the first request, in microseconds.
    asked: Option<u64>,
    /// The latest revision at which the flag was not set.
    not_yet: Option<Evidence>,
    /// The earliest revision at which the flag was set.
    deleted: Option<Evidence>,
}

/// The deletion flags of a history. See the [module](self).
#[derive(Default)]
pub(super) struct Flags {
    flags: HashMap<Name, Flag>,
    /// The flags that may be set in a conversation, for everyone or for an account.
    listed: HashMap<(super::Pair, Option<u16>), Places>,
}

impl Flags {
    /// Collects the requested deletions and their answers.
    pub(super) fn asked(history: &History, ledger: &Ledger, floor: &Floor) -> Self {
        let mut flags = Self::default();
        for (at, record) in history.records.iter().enumerate() {
            let Action::Delete { messages, for_everyone, outcome } = &record.action else { continue };
            if matches!(outcome, Outcome::Refused) {
                continue;
            }
            for id in messages {
                let Some(message) = ledger.messages.get(id) else { continue };
                let may = if *for_everyone {
                    message.sender == record.account
                } else {
                    [message.pair.0, message.pair.1].contains(&record.account)
                };
                if !may {
                    continue;
                }
                let name = (*id, (!for_everyone).then_some(record.account));
                let flag = flags.flags.entry(name).or_default();
                if flag.asked.is_none_or(|asked| record.began_us < asked) {
                    flag.asked = Some(record.began_us);
                }
                if let Outcome::Ok(answer) = outcome {
                    flag.is_deleted(answer.revision, at);
                }
            }
        }
        for (name, flag) in &mut flags.flags {
            let known = flag.asked.map_or(0, |asked| floor.before(asked));
            if known > 0 {
                // No deletion was requested before. If another observation contradicts that, no operation is at fault.
                flag.not_yet = Some(Evidence { revision: known, at: usize::MAX });
            }
            if let Some(message) = ledger.messages.get(&name.0) {
                flags.listed.entry((message.pair, name.1)).or_default().push((message.seq, name.0));
            }
        }
        flags.listed.values_mut().for_each(|list| list.sort_unstable());
        flags
    }

    /// Whether a deletion had been requested before an operation ended.
    pub(super) fn was_asked(&self, name: Name, ended_us: u64) -> bool {
        self.flags.get(&name).and_then(|flag| flag.asked).is_some_and(|asked| asked <= ended_us)
    }

    /// Records that an operation showed the flag as set at a revision.
    pub(super) fn deleted_at(&mut self, name: Name, revision: u64, at: usize) {
        if let Some(flag) = self.flags.get_mut(&name) {
            flag.is_deleted(revision, at);
        }
    }

    /// Records that an operation showed the flag as not set at a revision.
    pub(super) fn not_yet_at(&mut self, name: Name, revision: u64, at: usize) {
        if let Some(flag) = self.flags.get_mut(&name)
            && flag.not_yet.is_none_or(|known| known.revision < revision)
        {
            flag.not_yet = Some(Evidence { revision, at });
        }
    }

    /// Collects the deletions from streams. Deletions that no client requested are errors.
    pub(super) fn hear(&mut self, history: &History, ledger: &Ledger, found: &mut Findings) {
        for (at, record) in history.records.iter().enumerate() {
            let Action::Subscribe { events, .. } = &record.action else { continue };
            for happening in events {
                let conversation = ledger.pairs.get(&happening.conversation);
                let Some(conversation) = conversation.and_then(|pair| ledger.conversations.get(pair)) else { continue };
                match &happening.event {
                    Event::Deletion { seqs, for_everyone } => {
                        let account = (!for_everyone).then_some(record.account);
                        for seq in seqs {
                            let id = conversation.between(*seq, *seq).first().map_or(0, |(_, id)| *id);
                            if !self.was_asked((id, account), record.ended_us) {
                                unrequested_effect(history, at, id, found);
                            }
                            self.deleted_at((id, account), happening.revision, at);
                            self.not_yet_at((id, account), happening.revision.saturating_sub(1), at);
                        }
                    }
                    Event::Message(seen) if seen.body.is_none() => {
                        if !self.was_asked((seen.message, None), record.ended_us) {
                            unrequested_effect(history, at, seen.message, found);
                        }
                    }
                    Event::Message(_) | Event::Receipt { .. } => {}
                }
            }
        }
    }

    /// Reports contradictions.
    pub(super) fn check(&self, history: &History, found: &mut Findings) {
        for ((id, account), flag) in &self.flags {
            let (Some(not_yet), Some(deleted)) = (flag.not_yet, flag.deleted) else { continue };
            if not_yet.revision < deleted.revision {
                continue;
            }
            let kind = match history.records.get(not_yet.at).map(|record| &record.action) {
                Some(Action::Read { last: true, .. }) => Kind::Undone,
                Some(Action::Read { .. }) => Kind::Incomplete,
                Some(_) => Kind::ImpossibleState,
                None => Kind::PrematureVisibility,
            };
            let key = account.map_or(0, |account| u64::from(account) + 1);
            found.add(kind, (*id, key), || {
                format!(
                    "message {id} is deleted at revision {} ({}), and not yet at {} ({})",
                    deleted.revision,
                    words(history, deleted.at),
                    not_yet.revision,
                    if not_yet.at == usize::MAX {
                        "nobody had asked for it".to_owned()
                    } else {
                        words(history, not_yet.at)
                    }
                )
            });
        }
    }

    /// Returns whether the flag is set at a revision: certainly, and possibly.
    pub(super) fn at(&self, name: Name, revision: u64) -> (bool, bool) {
        let Some(flag) = self.flags.get(&name) else { return (false, false) };
        let certainly = flag.deleted.is_some_and(|deleted| deleted.revision <= revision);
        let certainly_not = flag.not_yet.is_some_and(|not_yet| revision <= not_yet.revision);
        (certainly, certainly || !certainly_not)
    }

    /// Returns the seqs and ids of messages that may be deleted for everyone, or hidden by an account, in a
    /// conversation, ordered by seq.
    pub(super) fn list(&self, pair: super::Pair, account: Option<u16>) -> &[(u64, u64)] {
        self.listed.get(&(pair, account)).map_or(&[], Vec::as_slice)
    }
}

impl Flag {
    fn is_deleted(&mut self, revision: u64, at: usize) {
        if self.deleted.is_none_or(|known| revision < known.revision) {
            self.deleted = Some(Evidence { revision, at });
        }
    }
}

/// Reports a deletion that no client requested.
pub(super) fn unrequested_effect(history: &History, at: usize, id: u64, found: &mut Findings) {
    found.add(Kind::UnrequestedEffect, (id, 0), || {
        format!("{} shows message {id} as deleted, which nobody had asked for", words(history, at))
    });
}

/// Returns a key for a conversation and an account.
pub(super) fn member_key(pair: super::Pair, account: u16) -> (u64, u64) {
    (pair_key(pair), u64::from(account) + 1)
}
