//! Failpoints: seeded bugs, which show that the simulation finds such bugs.
//!
//! Each is a plausible mistake in a replicated store. They are compiled only with the feature `enabled`, which no
//! release can have. A process activates one only if [`VARIABLE`] names it. Without the feature, [`is_active`] is a
//! constant and the compiler removes them.

#[cfg(all(feature = "enabled", not(debug_assertions)))]
compile_error!("failpoints are for tests and never part of a release");

/// The environment variable that names the active bug.
pub const VARIABLE: &str = "CHAT_FAILPOINT";

/// The bugs that are compiled in.
#[cfg(feature = "enabled")]
pub const NAMES: &[&str] = &[
    ACKNOWLEDGED_BEFORE_FSYNC,
    LEADER_RESTORED,
    VOTE_NOT_PERSISTED,
    NO_DEDUP_IN_SNAPSHOTS,
    APPLIED_TWICE_AFTER_A_CRASH,
    NO_READ_INDEX,
    REVISION_SKIPPED_ON_RESUME,
    PURGED_TOO_FAR,
    MALFORMED_NOT_IN_DIGEST,
    MALFORMED_WITHOUT_OUTCOME,
    UNFIT_FORWARDED,
    ERASURE_NOT_RESUMED,
    DELETED_ACCOUNT_SHOWN,
    ENDED_SESSION_REMEMBERED,
    USAGE_NOT_STORED,
    MOVES_NOT_HEARD,
    END_NOT_NOTED,
    PAGES_NOT_VERIFIED,
    STATE_NOT_FLUSHED,
    STATE_NOT_SCRUBBED,
    RECENT_FORGOTTEN,
    LEADER_NOT_PROBED,
    DEAD_LEADER_NOT_NOTICED,
];
/// The bugs that are compiled in.
#[cfg(not(feature = "enabled"))]
pub const NAMES: &[&str] = &[];

/// An append to the log is reported as durable when it is queued.
pub const ACKNOWLEDGED_BEFORE_FSYNC: &str = "acknowledged-before-fsync";
/// A leader resumes its term after a restart, which is openraft's default.
pub const LEADER_RESTORED: &str = "leader-restored";
/// A vote is granted before it is on disk, and is never written.
pub const VOTE_NOT_PERSISTED: &str = "vote-not-persisted";
/// A snapshot lacks the idempotency ids that clients gave to their messages.
pub const NO_DEDUP_IN_SNAPSHOTS: &str = "no-dedup-in-snapshots";
/// The id of the last applied entry is not stored together with its result.
pub const APPLIED_TWICE_AFTER_A_CRASH: &str = "applied-twice-after-a-crash";
/// A linearizable read does not wait for the leader's read index.
pub const NO_READ_INDEX: &str = "no-read-index";
/// A subscription resumes one revision too late.
pub const REVISION_SKIPPED_ON_RESUME: &str = "revision-skipped-on-resume";
/// The log is purged up to its end instead of the end of the snapshot.
pub const PURGED_TOO_FAR: &str = "purged-too-far";

/// Of several malformed commands that are applied in one call, only the first is included in the digest.
pub const MALFORMED_NOT_IN_DIGEST: &str = "malformed-not-in-digest";
/// A malformed command has no outcome, so the outcomes of the later commands in its batch shift by one.
pub const MALFORMED_WITHOUT_OUTCOME: &str = "malformed-without-outcome";
/// The leader does not check the commands that a member forwards.
pub const UNFIT_FORWARDED: &str = "unfit-forwarded";
/// A new leader does not continue the erasures that began before it led.
pub const ERASURE_NOT_RESUMED: &str = "erasure-not-resumed";
/// A page shows the messages of a deleted account until they are overwritten.
pub const DELETED_ACCOUNT_SHOWN: &str = "deleted-account-shown";
/// An ended session stays in the caches of the nodes.
pub const ENDED_SESSION_REMEMBERED: &str = "ended-session-remembered";
/// The counters of the quotas are not written to the state.
pub const USAGE_NOT_STORED: &str = "usage-not-stored";

/// The new address of a member that announces a move is not used until its record contains it.
pub const MOVES_NOT_HEARD: &str = "moves-not-heard";
/// The durable end of the log is not recorded outside the log.
pub const END_NOT_NOTED: &str = "end-not-noted";
/// Pages are read without verifying their checksums.
pub const PAGES_NOT_VERIFIED: &str = "pages-not-verified";
/// The log is cut behind a state that is not flushed.
pub const STATE_NOT_FLUSHED: &str = "state-not-flushed";
/// The pages of the state are not verified in the background.
pub const STATE_NOT_SCRUBBED: &str = "state-not-scrubbed";
/// A start uses what the tables have, also where it was replaced and not yet written back.
pub const RECENT_FORGOTTEN: &str = "recent-forgotten";
/// A leader that is not watched counts as lost, without a probe.
pub const LEADER_NOT_PROBED: &str = "leader-not-probed";
/// The end of a watch of the leader starts no failover.
pub const DEAD_LEADER_NOT_NOTICED: &str = "dead-leader-not-noticed";

/// Whether this process has `bug` activated.
#[cfg(feature = "enabled")]
pub fn is_active(bug: &str) -> bool {
    static ACTIVE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ACTIVE.get_or_init(|| std::env::var(VARIABLE).ok()).as_deref() == Some(bug)
}

/// Whether this process has a bug activated: never, without the feature.
#[cfg(not(feature = "enabled"))]
#[inline(always)]
pub const fn is_active(_bug: &str) -> bool {
    false
}
