//! Files and their volume.

use prometheus::{Gauge, Histogram, IntCounter, IntGauge, IntGaugeVec};

use super::{DISK_SECONDS, Metrics, made::MetricBuilder, signed, unix_seconds};

/// Sizes of a group commit.
const GROUP_ENTRIES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Files and their volume.
#[derive(Debug, Clone)]
pub struct StorageMetrics {
    /// Seconds for one commit of `log.db`, including fsync.
    pub log_fsync_seconds: Histogram,
    /// Entries in one such commit.
    pub log_group_entries: Histogram,
    /// Seconds to apply committed entries to the state.
    pub apply_seconds: Histogram,
    /// Seconds for one commit of `chat.db`.
    pub state_commit_seconds: Histogram,
    /// Seconds since the start of the disk write in progress.
    pub disk_stalled_seconds: Gauge,
    /// Pages of `chat.db` that were verified in the background.
    pub scrubbed_pages: IntCounter,
    /// Share of the current pass over `chat.db` that is done.
    pub scrub_progress_ratio: Gauge,
    scrub_completed_seconds: Gauge,
    /// Transfers of leadership because this node's disk was slow.
    pub slow_disk_transfers: IntCounter,
    file_bytes: IntGaugeVec,
    /// Free bytes of the data directory's volume.
    pub volume_free_bytes: IntGauge,
    /// 1 while less than the reserve is free.
    pub volume_low: IntGauge,
    /// Size of that volume in bytes.
    pub volume_size_bytes: IntGauge,
}

impl StorageMetrics {
    pub(super) fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            log_fsync_seconds: new.histogram(
                "log_fsync_seconds",
                "Duration of a group commit to the log, including fsync.",
                &DISK_SECONDS,
            ),
            log_group_entries: new.histogram("log_group_entries", "Entries in one group commit.", &GROUP_ENTRIES),
            apply_seconds: new.histogram(
                "apply_seconds",
                "Duration of applying a batch of committed entries to the state.",
                &DISK_SECONDS,
            ),
            state_commit_seconds: new.histogram(
                "state_commit_seconds",
                "Duration of a commit of the state, including the checkpoint.",
                &DISK_SECONDS,
            ),
            disk_stalled_seconds: new.info(
                "disk_stalled_seconds",
                "Time that the current write to log.db or chat.db has taken so far; 0 when there is none.",
                &[],
            ),
            scrubbed_pages: new
                .counter("scrubbed_pages_total", "Pages of chat.db whose checksums were verified in the background."),
            scrub_progress_ratio: new.info(
                "scrub_progress_ratio",
                "Share of chat.db that the current pass has verified, 0 to 1.",
                &[],
            ),
            scrub_completed_seconds: new.info(
                "scrub_completed_timestamp_seconds",
                "End of the last pass over chat.db and log.db, in seconds since the Unix epoch; 0 before the first.",
                &[],
            ),
            slow_disk_transfers: new.counter(
                "slow_disk_transfers_total",
                "Leadership transfers away from this node because its disk was slow and a majority's was not.",
            ),
            file_bytes: new.gauges("file_bytes", "Size of a file in the data directory.", &["file"]),
            volume_free_bytes: new.gauge("volume_free_bytes", "Free bytes of the volume of the data directory."),
            volume_low: new.gauge("volume_low", "Whether the volume has less free space than its reserve."),
            volume_size_bytes: new.gauge("volume_size_bytes", "Size of the volume of the data directory."),
        }
    }
}

impl Metrics {
    /// Records that all files were verified just now.
    pub fn scrub_completed(&self) {
        self.storage.scrub_completed_seconds.set(unix_seconds());
    }

    /// Sets the size of a file.
    pub fn set_file_bytes(&self, file: &'static str, bytes: u64) {
        self.storage.file_bytes.with_label_values(&[file]).set(signed(bytes));
    }
}
