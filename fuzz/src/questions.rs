//! Questions to a state, as the API asks them, and what has to hold of the answers, whatever the file holds.
//!
//! Of a state that only commands have made more has to hold: [`Trust::Whole`].

use std::collections::BTreeMap;

use chat::{AccountId, ConversationId, Event, EventKind, Revision, Seq, limits::PAGE_SIZE_MAX};
use storage::{AccountRow, ConversationPage, MemberRow, MessageRow, Query, StorageError};

/// What is known of the file that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Only commands have changed it: it agrees with itself.
    Whole,
    /// It may hold anything: answers are bounded and in order, or an error.
    Damaged,
}

/// Accounts and conversations that are asked for.
const ASKED_MAX: usize = 8;
const EVENTS: usize = 16;
/// What a page may hold beyond its last message, in bytes.
const PAGE_BYTES_MAX: usize = 256 * 1024;

/// All that the state says of itself.
#[derive(Debug, Default, PartialEq)]
pub struct Answers {
    accounts: Vec<AccountRow>,
    pages: BTreeMap<(AccountId, ConversationId), ConversationPage>,
    events: BTreeMap<AccountId, Vec<Event>>,
}

/// Asks everything.
///
/// # Errors
/// The file is found to be damaged.
pub fn ask(query: &Query<'_>, trust: Trust) -> Result<Answers, StorageError> {
    let mut answers = Answers::default();
    let revision = query.revision()?;
    query.clock()?;
    let (accounts, total) = query.accounts("", None, PAGE_SIZE_MAX)?;
    assert!(accounts.len() as u64 <= total);
    assert!(accounts.is_sorted_by(|a, b| a.username < b.username), "accounts are in the order of their names");
    for account in accounts.iter().take(ASKED_MAX) {
        let me = account.id;
        let found = query.account_by_name(&account.username)?;
        assert!(trust == Trust::Damaged || found.as_ref() == Some(account));
        query.unread_total(me)?;
        query.session(chat::SessionId(me.0))?;
        let (conversations, total) = query.conversations(me, None, PAGE_SIZE_MAX)?;
        assert!(conversations.len() as u64 <= total);
        assert!(conversations.is_sorted_by(|a, b| a.last_revision >= b.last_revision));
        for summary in conversations.iter().take(ASKED_MAX) {
            let page = pages(query, me, summary.conversation, trust)?;
            if trust == Trust::Whole {
                assert_eq!((summary.unread, summary.last_seq), (page.unread, page.last_seq));
                assert_eq!(summary.last_message.as_ref(), page.messages.first());
            }
            answers.pages.insert((me, summary.conversation), page);
        }
        let all = events(query, me, revision, |after, limit| query.events_after(me, after, revision, limit))?;
        let undelivered = events(query, me, revision, |after, limit| query.undelivered(me, after, revision, limit))?;
        if trust == Trust::Whole {
            check_events(&all, &answers.pages, me);
            assert!(undelivered.iter().all(|event| all.contains(event)), "what is undelivered happened");
        }
        answers.events.insert(me, all);
    }
    answers.accounts = accounts;
    Ok(answers)
}

/// All pages of a conversation, as one.
fn pages(query: &Query<'_>, me: AccountId, id: ConversationId, trust: Trust) -> Result<ConversationPage, StorageError> {
    const LIMIT: u32 = 7;
    let mut whole = query.conversation_page(me, id, None, LIMIT)?;
    check_page(&whole.messages, None, LIMIT);
    let mut has_more = whole.has_more;
    while has_more {
        let before = whole.messages.last().map(|message| message.seq);
        assert!(before.is_some(), "a page with nothing on it has no page after it");
        let next = query.conversation_page(me, id, before, LIMIT)?;
        check_page(&next.messages, before, LIMIT);
        assert!(!next.messages.is_empty() || trust == Trust::Damaged, "there was said to be more");
        has_more = next.has_more && !next.messages.is_empty();
        whole.messages.extend(next.messages);
    }
    if trust == Trust::Whole {
        assert_eq!(whole.total, whole.messages.len() as u64);
        assert_eq!(whole.unread, unread(&whole.messages, me, &whole.members), "unread of {me} in {id}");
        assert!(whole.members.iter().all(|m| m.read <= m.delivered && m.delivered <= whole.last_seq));
    }
    Ok(whole)
}

fn unread(messages: &[MessageRow], me: AccountId, members: &[MemberRow]) -> u64 {
    let read = members.iter().find(|member| member.account == me).map_or(Seq(u64::MAX), |member| member.read);
    messages.iter().filter(|m| m.sender != me && !m.deleted && m.seq > read).count() as u64
}

fn check_page(messages: &[MessageRow], before: Option<Seq>, limit: u32) {
    assert!(messages.len() <= limit as usize);
    assert!(messages.is_sorted_by(|a, b| a.seq > b.seq && a.id > b.id), "a page is in order");
    assert!(messages.iter().all(|m| before.is_none_or(|before| m.seq < before)), "a page is before the last one");
    let bytes: usize = messages.iter().skip(1).map(|m| m.body.len()).sum();
    assert!(bytes <= PAGE_BYTES_MAX, "a page is bounded");
}

/// All events, as a subscriber pages through them.
fn events(
    _query: &Query<'_>,
    me: AccountId,
    up_to: Revision,
    page: impl Fn(Revision, usize) -> Result<Vec<Event>, StorageError>,
) -> Result<Vec<Event>, StorageError> {
    let mut all: Vec<Event> = Vec::new();
    let mut after = Revision(0);
    loop {
        let next = page(after, EVENTS)?;
        assert!(next.len() <= EVENTS);
        assert!(next.is_sorted_by(|a, b| a.revision <= b.revision), "events are in order");
        assert!(next.iter().all(|e| e.revision > after && e.revision <= up_to && e.concerns(me) || next.is_empty()));
        let Some(last) = next.last().filter(|_| next.len() == EVENTS) else {
            all.extend(next);
            return Ok(all);
        };
        after = last.revision;
        all.extend(next);
    }
}

/// Of a state that agrees with itself: each revision once, and the messages of the pages, in order.
fn check_events(events: &[Event], pages: &BTreeMap<(AccountId, ConversationId), ConversationPage>, me: AccountId) {
    assert!(events.is_sorted_by(|a, b| a.revision < b.revision), "no event comes twice");
    let mut seqs: BTreeMap<ConversationId, Seq> = BTreeMap::new();
    for event in events {
        let EventKind::Message { seq, body, deleted, .. } = &event.kind else { continue };
        let last = seqs.entry(event.conversation).or_default();
        assert_eq!(*seq, Seq(last.0 + 1), "no message is left out");
        *last = *seq;
        let shown = pages.get(&(me, event.conversation)).and_then(|p| p.messages.iter().find(|m| m.seq == *seq));
        assert!(shown.is_none_or(|m| m.body == **body && m.deleted == *deleted && m.id == event.revision));
    }
    for ((account, id), page) in pages.iter().filter(|((account, _), _)| *account == me) {
        assert_eq!(seqs.get(id).copied().unwrap_or_default(), page.last_seq, "{account} is told all of {id}");
    }
}
