//! What each account has stored, and how much it may store.
//!
//! The counters are part of the state. The quota is a setting of the leader, so it travels in the batch, as the time
//! does: what a send comes to depends on nothing but the state and the entry. What stays of a deleted message counts as
//! bytes, so that nobody fills volumes by sending and deleting.

use super::Applier;
use crate::chat::AccountId;
use crate::storage::error::StorageError;
use crate::storage::intake::RawBatch;

/// What stays of a message whose body is gone: its row, and its id in indexes. The update of the schema counted alike.
const TOMBSTONE_BYTES: u64 = 64;

/// How much an account may store; 0: any amount.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quota {
    messages: u64,
    bytes: u64,
}

impl Quota {
    pub(super) fn of(batch: &RawBatch) -> Self {
        Self { messages: batch.quota_messages, bytes: batch.quota_bytes }
    }
}

impl Applier<'_> {
    /// Whether a message of so many bytes fits into the quota of its sender.
    pub(super) fn fits_quota(&mut self, account: AccountId, bytes: u64) -> Result<bool, StorageError> {
        let Quota { messages: messages_max, bytes: bytes_max } = self.quota;
        if messages_max == 0 && bytes_max == 0 {
            return Ok(true);
        }
        let usage = self.caches.usage(self.conn, account)?;
        let within = |used: u64, max: u64| max == 0 || used <= max;
        Ok(within(usage.messages + 1, messages_max) && within(usage.bytes.saturating_add(bytes), bytes_max))
    }

    /// An account has stored a message of so many bytes.
    pub(super) fn use_more(&mut self, account: AccountId, bytes: u64) -> Result<(), StorageError> {
        self.change_usage(account, |messages, used| (messages + 1, used.saturating_add(bytes)))
    }

    /// A message of an account lost its body of so many bytes.
    pub(super) fn use_less(&mut self, account: AccountId, bytes: u64) -> Result<(), StorageError> {
        self.change_usage(account, |messages, used| {
            (messages.saturating_sub(1), used.saturating_sub(bytes).saturating_add(TOMBSTONE_BYTES))
        })
    }

    /// Everything of an account is given back. Returns how many messages that were.
    pub(super) fn use_nothing(&mut self, account: AccountId) -> Result<u64, StorageError> {
        let messages = self.caches.usage(self.conn, account)?.messages;
        self.change_usage(account, |_, _| (0, 0))?;
        Ok(messages)
    }

    fn change_usage(
        &mut self,
        account: AccountId,
        change: impl FnOnce(u64, u64) -> (u64, u64),
    ) -> Result<(), StorageError> {
        let usage = self.caches.usage(self.conn, account)?;
        (usage.messages, usage.bytes) = change(usage.messages, usage.bytes);
        if !usage.dirty {
            usage.dirty = true;
            self.dirty_usage.push(account);
        }
        Ok(())
    }
}
