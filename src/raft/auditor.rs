//! Compares this node's digest of the state with those of the other nodes, through the log.
//!
//! Now and then the leader puts a *mark* into the log. Every node that applies it notes the digest it has there, and
//! reports it through the log, so that every node gets the same reports in the same order and judges by itself: when a
//! majority of the voters at the mark has reported one digest and this node noted another one, this node's state is
//! wrong, and it stops before anything that it applied with the last report is told to anybody.
//!
//! Invariants:
//! - Only a majority convicts, so a single wrong node, be it the leader, stops nobody but itself. When no digest can get
//!   a majority any more, every node says so, and goes on: nobody knows who is right.
//! - A node judges only marks that it has applied itself, on the state that it has now: after a restart, and after a
//!   snapshot was installed, older marks mean nothing to it.
//! - Bounded: the newest [`MARKS_MAX`] marks, and one report for each member.
//!
//! Left out: how a digest is made (`storage::digest`), and what becomes of a node that differs (`storage::divergence`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    node::{Inner, Node},
    state_machine::Observer,
};
use crate::{
    chat::{Command, DigestReport, Revision, StateDigest, TimeMs},
    proto::log::v1 as pb,
    storage::{Applied, AppliedState, Divergence, NotedDigest},
};

/// Marks whose reports are counted. A report that comes later than that many marks is of no use.
const MARKS_MAX: usize = 16;
/// A mark or a report that cannot be put into the log by then is given up: the next mark is as good.
const PROPOSE_MAX: Duration = Duration::from_secs(5);

/// The newest comparison that a node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Log index of the mark.
    pub mark: u64,
    /// This node's revision there.
    pub revision: Revision,
    /// What each node has reported, by node id. Those that are missing have not reported (yet).
    pub reports: BTreeMap<u64, StateDigest>,
}

/// What a node knows about digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestStatus {
    /// The revision of this node's state.
    pub revision: Revision,
    /// Its digest.
    pub digest: StateDigest,
    /// The newest mark at which a majority agreed, or else the newest one; `None`: none since this node started.
    pub comparison: Option<Comparison>,
}

/// What a report has brought to light.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// A majority has what this node has.
    Agreed,
    /// Another node differs from the majority and this node.
    Stray { node_id: u64, digest: StateDigest },
    /// The reports differ, and none of them can get a majority.
    Undecided,
    /// A majority has this digest, and this node another one.
    Diverged(StateDigest),
}

/// A mark that this node has applied.
struct Mark {
    noted: NotedDigest,
    reports: BTreeMap<u64, StateDigest>,
    agreed: bool,
    undecided: bool,
    /// Nodes of which it was said that they differ.
    strays: BTreeSet<u64>,
}

impl Mark {
    fn new(noted: NotedDigest) -> Self {
        Self { noted, reports: BTreeMap::new(), agreed: false, undecided: false, strays: BTreeSet::new() }
    }

    /// Counts a report, and judges anew.
    fn report(&mut self, node_id: u64, digest: StateDigest) -> Vec<Finding> {
        // Without voters, which a cluster that is founded has, everybody would be a majority.
        if self.noted.membership.voters.is_empty() {
            return Vec::new();
        }
        if !self.noted.membership.nodes.iter().any(|node| node.node_id == node_id) {
            return Vec::new();
        }
        self.reports.insert(node_id, digest);
        let Some(majority) = self.digest_with(|votes, _, voters| votes > voters / 2) else {
            let open = self.digest_with(|votes, missing, voters| votes + missing > voters / 2).is_some();
            let news = !open && !std::mem::replace(&mut self.undecided, true);
            return if news { vec![Finding::Undecided] } else { Vec::new() };
        };
        if majority != self.noted.digest {
            return vec![Finding::Diverged(majority)];
        }
        let mut findings = Vec::new();
        if !std::mem::replace(&mut self.agreed, true) {
            findings.push(Finding::Agreed);
        }
        for (node_id, digest) in self.reports.iter().filter(|(_, digest)| **digest != majority) {
            if self.strays.insert(*node_id) {
                findings.push(Finding::Stray { node_id: *node_id, digest: *digest });
            }
        }
        findings
    }

    /// A reported digest for which `accept` says yes in each set of voters, given its votes, the voters that have not
    /// reported, and all voters. There are two sets while the membership changes.
    fn digest_with(&self, accept: impl Fn(usize, usize, usize) -> bool) -> Option<StateDigest> {
        let sets: &[pb::VoterSet] = &self.noted.membership.voters;
        let candidates: BTreeSet<StateDigest> = self.reports.values().copied().collect();
        candidates.into_iter().find(|candidate| {
            let accepted = |set: &pb::VoterSet| {
                let reports = || set.node_ids.iter().filter_map(|id| self.reports.get(id));
                let votes = reports().filter(|digest| *digest == candidate).count();
                accept(votes, set.node_ids.len() - reports().count(), set.node_ids.len())
            };
            sets.iter().all(accepted)
        })
    }
}

/// The marks of this node and what was reported about them.
#[derive(Default)]
struct Tally {
    /// In the order of the log.
    marks: VecDeque<Mark>,
    /// The last one at which this node agreed with a majority.
    agreed: Option<u64>,
}

impl Tally {
    fn note(&mut self, noted: NotedDigest) {
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark::new(noted));
    }

    /// What a report has brought to light, and this node's own note at its mark.
    fn report(&mut self, report: &DigestReport) -> Option<(&NotedDigest, Vec<Finding>)> {
        let mark = self.marks.iter_mut().find(|mark| mark.noted.mark == report.mark)?;
        let findings = mark.report(report.node_id, report.digest);
        if findings.contains(&Finding::Agreed) {
            self.agreed = self.agreed.max(Some(report.mark));
        }
        Some((&mark.noted, findings))
    }

    fn comparison(&self) -> Option<Comparison> {
        let mark = self.marks.iter().rev().find(|mark| mark.agreed).or(self.marks.back())?;
        Some(Comparison { mark: mark.noted.mark, revision: mark.noted.revision, reports: mark.reports.clone() })
    }
}

/// What is known, at the place in the log that was applied last.
struct Known {
    revision: Revision,
    digest: StateDigest,
    tally: Tally,
}

/// Follows what this node applies.
pub(super) struct Auditor {
    node_id: u64,
    known: Mutex<Known>,
    /// What this node has to report next.
    newest: watch::Sender<Option<DigestReport>>,
    sink: Arc<dyn Observer>,
}

impl Auditor {
    /// An auditor of the node `node_id`, whose state is `state`. What is compared is counted by `sink`.
    pub(super) fn new(node_id: u64, state: &AppliedState, sink: Arc<dyn Observer>) -> Self {
        let known = Known { revision: state.revision, digest: state.chain.digest, tally: Tally::default() };
        Self { node_id, known: Mutex::new(known), newest: watch::Sender::new(None), sink }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries were applied. When this node's state turns out to be wrong by them, says how: then nobody may be told
    /// what they came to.
    pub(super) fn applied(&self, applied: &Applied) -> Option<Divergence> {
        let mut known = self.known();
        (known.revision, known.digest) = (applied.revision, applied.digest);
        for noted in &applied.noted {
            let report = DigestReport { node_id: self.node_id, mark: noted.mark, digest: noted.digest };
            known.tally.note(noted.clone());
            self.newest.send_replace(Some(report));
        }
        applied.reported.iter().find_map(|report| self.judge(&mut known.tally, report, applied.clock))
    }

    fn judge(&self, tally: &mut Tally, report: &DigestReport, time: TimeMs) -> Option<Divergence> {
        let agreed = tally.agreed;
        let (noted, findings) = tally.report(report)?;
        let (mark, revision, own) = (noted.mark, noted.revision, noted.digest);
        for finding in findings {
            self.sink.compared(finding == Finding::Agreed);
            match finding {
                Finding::Agreed => {
                    tracing::debug!(mark, %revision, digest = %own, "A majority has the same state as this node");
                }
                Finding::Stray { node_id, digest } => {
                    let nodes = &noted.membership.nodes;
                    let name = nodes.iter().find(|node| node.node_id == node_id).map_or("", |node| &node.name);
                    tracing::error!(
                        mark, %revision, node_id, name, %digest, majority = %own,
                        "The state of a node differs from that of a majority"
                    );
                }
                Finding::Undecided => tracing::error!(
                    mark, %revision, digest = %own,
                    "The nodes have different states, and no majority has the same: who is right is not known"
                ),
                Finding::Diverged(theirs) => return Some(Divergence { mark, revision, own, theirs, agreed, time }),
            }
        }
        None
    }

    /// The state was replaced: what was noted before was about another one.
    pub(super) fn replaced(&self, state: &AppliedState) {
        let mut known = self.known();
        *known = Known { revision: state.revision, digest: state.chain.digest, tally: Tally::default() };
        self.newest.send_replace(None);
    }

    /// What this node knows.
    pub(super) fn status(&self) -> DigestStatus {
        let known = self.known();
        DigestStatus { revision: known.revision, digest: known.digest, comparison: known.tally.comparison() }
    }

    /// Whether a mark is due. The leader makes one when something changed since the last; and each node wants to be
    /// compared once after its start, and after its state was replaced.
    fn is_due(&self, leads: bool) -> bool {
        let known = self.known();
        match known.tally.marks.back() {
            None => true,
            Some(mark) => leads && mark.noted.digest != known.digest,
        }
    }
}

/// Proposes marks and reports until the node is gone.
pub(super) async fn run(node: Weak<Inner>, auditor: Arc<Auditor>, interval: Duration) {
    let mut newest = auditor.newest.subscribe();
    let mut tick = interval_at(Instant::now() + interval, interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let command = tokio::select! {
            _ = tick.tick() => None,
            // The sender is the auditor's: it stays.
            _ = newest.changed() => newest.borrow_and_update().map(Command::ReportDigest),
        };
        let Some(node) = node.upgrade().map(|inner| Node { inner }) else { return };
        let (leads, members) = {
            let view = node.inner.view.borrow();
            (view.is_leader(), view.members.len())
        };
        let mark = || (members > 1 && auditor.is_due(leads)).then_some(Command::NoteDigest);
        let Some(command) = command.or_else(mark) else { continue };
        if let Err(error) = node.propose(command, None, Instant::now() + PROPOSE_MAX).await {
            tracing::debug!(%error, "A comparison of the states was left out");
        }
    }
}

impl Node {
    /// The digest of this node's state, and the newest comparison with the others.
    pub fn digests(&self) -> DigestStatus {
        self.inner.auditor.status()
    }
}

#[cfg(test)]
#[path = "auditor_tests.rs"]
mod tests;
