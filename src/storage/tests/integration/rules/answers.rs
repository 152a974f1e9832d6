//! The answers of all queries about a state, compared with those of the model.

use std::path::Path;

use chat::*;
use storage::{MessageProgress, Query, Readers, StorageError};

use super::model::{self, Model};

/// Runs all queries, and compares the answers with the model's.
pub fn compare_answers(dir: &Path, model: &Model) {
    let readers = Readers::open(dir, 1).expect("readers");
    for account in &model.accounts {
        let me = account.id;
        readers
            .read(|query| {
                compare_account(query, model, account)?;
                for after in (0..=model.revision.0).step_by(3).map(Revision) {
                    let expected = model.events_for(me, after, model.revision);
                    // In pages, like subscriptions.
                    let (mut events, mut cursor) = (Vec::new(), after);
                    loop {
                        let page = query.events_after(me, cursor, model.revision, 3)?;
                        let done = page.len() < 3;
                        events.extend(page);
                        if done {
                            break;
                        }
                        cursor = events.last().expect("a full page").revision;
                    }
                    assert_eq!(events, expected, "after {after}");
                }
                assert_eq!(query.undelivered(me, Revision(0), model.revision, 1000)?, model.undelivered(me));
                let mine = model.conversations.iter().filter(|(_, c)| c.members.contains(&me));
                let mut unread = 0;
                for (id, conversation) in mine {
                    compare_pages(query, model, me, *id, conversation)?;
                    unread += model.unread(me, *id);
                }
                assert_eq!(query.unread_total(me)?, unread);
                let (list, total) = query.conversations(me, None, 200)?;
                assert_eq!(list.len() as u64, total);
                assert!(list.is_sorted_by(|a, b| a.last_revision > b.last_revision));
                for summary in list {
                    let visible = model.visible(me, summary.conversation);
                    assert_eq!(summary.last_message.map(|m| m.seq), visible.last().map(|(seq, _)| *seq));
                    assert_eq!(summary.unread, model.unread(me, summary.conversation));
                }
                Ok(())
            })
            .expect("read");
    }
}

fn compare_account(query: &Query<'_>, model: &Model, account: &model::Account) -> Result<(), StorageError> {
    for device in (0..40_u8).map(|device| TokenHash([device; 32])) {
        assert_eq!(query.is_known_device(account.id, &device)?, account.devices.contains(&device));
    }
    let row = query.account_by_name(&account.name)?.expect("accounts stay");
    assert_eq!((row.deleted, row.disabled), (account.deleted, account.disabled));
    assert_eq!(row.password_revision, account.password_revision);
    if !row.deleted {
        assert_eq!(row.password_hash, account.hash);
    }
    let mut open: Vec<_> =
        model.sessions.iter().filter(|(_, s)| s.account == account.id && s.ends > model.clock).collect();
    open.sort_by_key(|(id, session)| (session.used, **id));
    let rows = query.sessions_of(account.id)?;
    let rows: Vec<_> = rows.iter().rev().map(|row| (row.id, row.used_at, row.ends_at)).collect();
    let used = |s: &model::Session| account.privacy.session_activity.then_some(s.used);
    assert_eq!(rows, open.into_iter().map(|(id, s)| (*id, used(s), s.ends)).collect::<Vec<_>>());
    assert_eq!(query.privacy(account.id)?, account.privacy);
    assert_eq!(query.registration()?, model.registration);
    assert_eq!(query.invitations()?.len(), model.invitations.len());
    Ok(())
}

fn compare_pages(
    query: &Query<'_>,
    model: &Model,
    me: AccountId,
    id: ConversationId,
    conversation: &model::Conversation,
) -> Result<(), StorageError> {
    let mut visible = model.visible(me, id);
    visible.reverse();
    let (mut before, mut at) = (None, 0);
    loop {
        let page = query.conversation_page(me, id, before, 2)?;
        assert_eq!((page.total, page.unread), (visible.len() as u64, model.unread(me, id)));
        assert_eq!(page.last_seq.0, conversation.messages.len() as u64);
        for row in &page.members {
            let seen = (conversation.marks[&row.account].0, conversation.read_as_seen_by(me, row.account));
            assert_eq!((row.delivered, row.read), seen);
        }
        for row in &page.messages {
            let (seq, message) = &visible[at];
            assert_eq!((row.seq, row.id, row.sender), (*seq, message.revision, message.sender));
            assert_eq!((row.body.as_str(), row.deleted), (message.body.as_str(), message.deleted));
            assert_eq!(row.sender_name, model.name(message.sender));
            let others = || conversation.marks.iter().filter(|(member, _)| **member != message.sender);
            let expected = if others().all(|(member, _)| conversation.read_as_seen_by(me, *member) >= *seq) {
                MessageProgress::Read
            } else if others().all(|(_, mark)| mark.0 >= *seq) {
                MessageProgress::Delivered
            } else {
                MessageProgress::Sent
            };
            assert_eq!(row.status, expected);
            at += 1;
        }
        assert_eq!(page.has_more, at < visible.len());
        if !page.has_more {
            return Ok(());
        }
        before = page.messages.last().map(|row| row.seq);
    }
}
