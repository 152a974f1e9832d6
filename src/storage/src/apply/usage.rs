//! The storage used by each account, and the check of its quota.
//!
//! The counters are part of the state. The quota is a setting of the leader, and the batch carries it, as it carries
//! the time. The outcome of a send therefore depends only on the state and the entry. The remains of a deleted message
//! count as bytes, so that sending and deleting cannot fill a volume.

use super::applier::{Applier, Quota};
use crate::error::StorageError;
use chat::AccountId;

/// Remains of a message without its body: its row, and its id in indexes. The schema upgrade uses the same value.
const TOMBSTONE_BYTES: u64 = 64;

impl Applier<'_> {
    /// Whether a message of this size fits into the quota of its sender.
    pub(super) fn fits_quota(&mut self, account: AccountId, bytes: u64) -> Result<bool, StorageError> {
        let Quota { messages: messages_max, bytes: bytes_max } = self.quota;
        if messages_max == 0 && bytes_max == 0 {
            return Ok(true);
        }
        let usage = self.caches.usage(self.conn, account)?;
        let within = |used: u64, max: u64| max == 0 || used <= max;
        Ok(within(usage.messages + 1, messages_max) && within(usage.bytes.saturating_add(bytes), bytes_max))
    }

    /// Counts a message of this size for its sender.
    pub(super) fn use_more(&mut self, account: AccountId, bytes: u64) -> Result<(), StorageError> {
        self.change_usage(account, |messages, used| (messages + 1, used.saturating_add(bytes)))
    }

    /// Counts that a message of this size became a tombstone.
    pub(super) fn use_less(&mut self, account: AccountId, bytes: u64) -> Result<(), StorageError> {
        self.change_usage(account, |messages, used| {
            (messages.saturating_sub(1), used.saturating_sub(bytes).saturating_add(TOMBSTONE_BYTES))
        })
    }

    /// Resets the usage of an account. Returns the number of messages that it had.
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
