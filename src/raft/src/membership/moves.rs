//! Members whose addresses differ from their records.
//!
//! A node that starts with other addresses announces them until its record has them and is committed. It sends the
//! announcement to the leader or, without a leader, to all members and to the seed addresses of its configuration. An
//! announcement has two effects:
//!
//! - A node that receives it, and finds the member there under its id, calls the member at that address from then on
//!   ([`Peers::found`]). So nodes that have all moved find each other again and can elect a leader, because each has
//!   the others' new addresses in its configuration.
//! - The leader changes the record, like any other change of the membership.
//!
//! Neither happens while another process with the same identity answers at the old address, so that a copied volume
//! takes the place of no member. Before that, [`Credentials`] checks whether a caller may speak for a member at all.
//!
//! This module has the rules that need no running node. Does not cover: announcing a move (`tasks::moves`), and
//! handling an announcement (`node::moves`).
//!
//! [`Credentials`]: crate::transport::peers::Credentials
//! [`Peers::found`]: crate::transport::peers::Peers::found

use std::time::Duration;

use tokio::time::Instant;

use crate::view::Peer;
use proto::raft::v1 as wire;

/// How long a move may go unrecorded before an error is logged. `LINE_EVERY` is the interval between such log lines.
const QUIET_MAX: Duration = Duration::from_secs(5);
const LINE_EVERY: Duration = Duration::from_secs(60);
/// Most leaders that are asked because other members named them. The members may disagree for a moment.
pub(crate) const LEADERS_MAX: usize = 3;
/// Longest accepted address in bytes: a DNS name and a port.
pub(crate) const ADDRESS_BYTES_MAX: usize = 253 + 6;

/// A move that is not recorded yet.
#[derive(Default)]
pub(crate) struct Trouble {
    since: Option<Instant>,
    said: Option<Instant>,
}

impl Trouble {
    /// Logs at intervals that the move is not recorded, once that has taken long.
    pub(crate) fn goes_on(&mut self, record: &Peer, own: &wire::MoveRequest, reason: &str) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < QUIET_MAX || self.said.is_some_and(|said| said.elapsed() < LINE_EVERY) {
            return;
        }
        self.said = Some(Instant::now());
        tracing::error!(
            peers = own.peer_address,
            clients = own.client_address,
            browsers = own.web_address,
            recorded_peers = record.peer_address,
            recorded_clients = record.client_address,
            recorded_browsers = record.web_address,
            reason,
            "This node's addresses differ from those that the cluster has recorded, and the record could not be changed"
        );
    }

    /// Records that there is no move, or no longer.
    pub(crate) fn is_over(&mut self, own: &wire::MoveRequest) {
        if self.since.take().is_some() {
            let (peers, clients, browsers) = (&own.peer_address, &own.client_address, &own.web_address);
            tracing::info!(peers, clients, browsers, "The cluster has recorded this node's new addresses");
        }
        self.said = None;
    }
}

/// Whether a member's record has the addresses of its announcement.
pub(crate) fn is_at(record: &Peer, at: &wire::MoveRequest) -> bool {
    let recorded = [&record.peer_address, &record.client_address, &record.web_address];
    recorded == [&at.peer_address, &at.client_address, &at.web_address]
}
