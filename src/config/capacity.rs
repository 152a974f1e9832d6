//! Quotas of accounts, and the space that stays free.

use super::{
    KIB, MIB,
    parse::{Checker, Raw},
};

/// Smallest reserve. A node accepts no entries below the space that a start needs, which is up to half of the reserve.
const RESERVE_MB_MIN: u64 = 8;
const RESERVE_MB_MAX: u64 = 1 << 20;

/// Quotas of an account, and the reserve of the volume.
#[derive(Debug, Clone, Copy, Default)]
pub struct Capacity {
    /// Messages that an account may send per second; 0 for no limit.
    pub messages_per_s: u64,
    /// Bytes of messages that an account may send per second; 0 for no limit.
    pub bytes_per_s: u64,
    /// Changes that an account may make per second; 0 for no limit.
    pub changes_per_s: u64,
    /// Messages that an account may have stored; 0 for no limit.
    pub messages_max: u64,
    /// Bytes of bodies that an account may have stored; 0 for no limit.
    pub bytes_max: u64,
    /// Free bytes of the volume below which growth is rejected; 0 for no check.
    pub reserve_bytes: u64,
}

impl Capacity {
    /// The values by their keys.
    pub(super) fn values(&self) -> [(&'static str, String); 6] {
        [
            ("ACCOUNT_MESSAGES_PER_S", self.messages_per_s.to_string()),
            ("ACCOUNT_KIB_PER_S", (self.bytes_per_s / KIB).to_string()),
            ("ACCOUNT_CHANGES_PER_S", self.changes_per_s.to_string()),
            ("ACCOUNT_MESSAGES_MAX", self.messages_max.to_string()),
            ("ACCOUNT_MIB_MAX", (self.bytes_max / MIB).to_string()),
            ("SPACE_RESERVE_MB", (self.reserve_bytes / MIB).to_string()),
        ]
    }
}

impl Checker {
    /// Checks all six keys, in the order of the table.
    pub(super) fn capacity(&mut self, raw: &mut Raw) -> Option<Capacity> {
        let messages_per_s = self.number("ACCOUNT_MESSAGES_PER_S", raw.account_messages_per_s.take(), 0..=1_000_000);
        let kib_per_s = self.number("ACCOUNT_KIB_PER_S", raw.account_kib_per_s.take(), 0..=1 << 30);
        let changes_per_s = self.number("ACCOUNT_CHANGES_PER_S", raw.account_changes_per_s.take(), 0..=1_000_000);
        let messages_max = self.number("ACCOUNT_MESSAGES_MAX", raw.account_messages_max.take(), 0..=1 << 40);
        let mib_max = self.number("ACCOUNT_MIB_MAX", raw.account_mib_max.take(), 0..=1 << 30);
        let expected = format!("0, or a whole number from {RESERVE_MB_MIN} to {RESERVE_MB_MAX}");
        let reserve_mb = self.parsed("SPACE_RESERVE_MB", raw.space_reserve_mb.take(), &expected, |text| {
            text.parse().ok().filter(|mb| matches!(mb, 0 | RESERVE_MB_MIN..=RESERVE_MB_MAX))
        });
        Some(Capacity {
            messages_per_s: messages_per_s?,
            bytes_per_s: kib_per_s? * KIB,
            changes_per_s: changes_per_s?,
            messages_max: messages_max?,
            bytes_max: mib_max? * MIB,
            reserve_bytes: reserve_mb? * MIB,
        })
    }
}
