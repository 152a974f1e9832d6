//! Subscriptions.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::{CALL_SECONDS, DISK_SECONDS, made::MetricBuilder};

/// Subscriptions.
#[derive(Debug, Clone)]
pub struct DeliveryMetrics {
    /// Open subscriptions.
    pub subscriptions: IntGauge,
    /// Subscriptions whose queue was full.
    pub slow_subscriber_cuts: IntCounter,
    /// Cursors that could not be resumed.
    pub resume_gaps: IntCounter,
    /// Seconds from the commit of an event to its push.
    pub push_delay_seconds: Histogram,
    /// Seconds from the push of a message to its acknowledgement.
    pub acknowledgement_seconds: Histogram,
}

impl DeliveryMetrics {
    pub(super) fn new(new: &MetricBuilder<'_>) -> Self {
        Self {
            subscriptions: new.gauge("subscriptions", "Open subscriptions on this node."),
            slow_subscriber_cuts: new.counter(
                "slow_subscriber_cuts_total",
                "Subscriptions whose queue was full. Those that had caught up end with SLOW_SUBSCRIBER; the others go \
                 on from the database.",
            ),
            resume_gaps: new.counter(
                "resume_gaps_total",
                "Subscriptions that asked to resume after a revision that this cluster does not have.",
            ),
            push_delay_seconds: new.histogram(
                "push_delay_seconds",
                "Time from the application of an event on this node to its push into a subscriber's stream.",
                &DISK_SECONDS,
            ),
            acknowledgement_seconds: new.histogram(
                "acknowledgement_seconds",
                "Time from the push of a message to the commit of its acknowledgement; sampled, one message per \
                 subscription at a time.",
                &CALL_SECONDS,
            ),
        }
    }
}
