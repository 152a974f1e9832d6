//! Compares the digest of this node's state with those of the other nodes, through the log.
//!
//! At intervals the leader puts a *mark* into the log, and so does a node that was not compared since its start. Every
//! node that applies the mark notes the digest that it has there, and reports it through the log. So every node gets
//! the same reports in the same order and reaches its own verdict. When a majority of the voters at the mark has
//! reported one digest and this node noted another one, this node's state is wrong. It then stops before it publishes
//! anything that it applied together with the last report.
//!
//! Invariants:
//! - Only a majority decides, so a single wrong node, even the leader, stops no node but itself. When no digest can get
//!   a majority any more, every node logs that and continues, because the right state is unknown.
//! - A node judges only marks that it has applied itself, on its current state. After a restart, and after a snapshot
//!   was installed, older marks do not count for it.
//! - Bounded: the newest [`MARKS_MAX`] marks, and one report for each member.
//!
//! Does not cover: how a digest is made (`storage::digest`), proposing marks and reports (`tasks::audit`), and what
//! happens to a node that differs (`storage::divergence`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::observer::Observer;
use chat::{DigestReport, Revision, StateDigest, TimeMs};
use proto::log::v1 as pb;
use storage::{Applied, AppliedState, Divergence, NotedDigest};

/// Number of marks whose reports are counted. A report that arrives after this many newer marks is ignored.
const MARKS_MAX: usize = 16;

/// The newest comparison on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Log index of the mark.
    pub mark: u64,
    /// This node's revision at the mark.
    pub revision: Revision,
    /// Reported digests by node id. Nodes that are missing have not reported (yet).
    pub reports: BTreeMap<u64, StateDigest>,
}

/// Digest of a node's state and its newest comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestStatus {
    /// The revision of this node's state.
    pub revision: Revision,
    /// The digest of this node's state.
    pub digest: StateDigest,
    /// The comparison at the newest mark at which a majority agreed, or else at the newest mark. `None`: no mark since
    /// this node started.
    pub comparison: Option<Comparison>,
}

/// Result of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// A majority has the same digest as this node.
    Agreed,
    /// Another node differs from the majority and from this node.
    Stray { node_id: u64, digest: StateDigest },
    /// The reports differ, and none of them can get a majority.
    Undecided,
    /// A majority has this digest, and this node has another one.
    Diverged(StateDigest),
}

/// A mark that this node has applied.
struct Mark {
    noted: NotedDigest,
    reports: BTreeMap<u64, StateDigest>,
    agreed: bool,
    undecided: bool,
    /// Nodes that were already found to differ.
    strays: BTreeSet<u64>,
}

impl Mark {
    fn new(noted: NotedDigest) -> Self {
        Self { noted, reports: BTreeMap::new(), agreed: false, undecided: false, strays: BTreeSet::new() }
    }

    /// Counts a report and reaches a new verdict.
    fn report(&mut self, node_id: u64, digest: StateDigest) -> Vec<Finding> {
        // Without voters, which every bootstrapped cluster has, any report would be a majority.
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

    /// The reported digest for which `accept` returns true in each set of voters. It gets the votes for the digest, the
    /// number of voters that have not reported, and the number of all voters. There are two sets while the membership
    /// changes.
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

/// The marks of this node and the reports about them.
#[derive(Default)]
struct Tally {
    /// Marks in the order of the log.
    marks: VecDeque<Mark>,
    /// The last mark at which this node agreed with a majority.
    agreed: Option<u64>,
}

impl Tally {
    fn note(&mut self, noted: NotedDigest) {
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back(Mark::new(noted));
    }

    /// The findings of a report, and this node's own note at its mark.
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

/// State at the log position that was applied last.
struct Known {
    revision: Revision,
    digest: StateDigest,
    tally: Tally,
}

/// Follows the entries that this node applies.
pub(crate) struct Auditor {
    node_id: u64,
    known: Mutex<Known>,
    /// The next report of this node.
    newest: watch::Sender<Option<DigestReport>>,
    sink: Arc<dyn Observer>,
}

impl Auditor {
    /// An auditor of the node `node_id`, whose state is `state`. `sink` counts the comparisons.
    pub(crate) fn new(node_id: u64, state: &AppliedState, sink: Arc<dyn Observer>) -> Self {
        let known = Known { revision: state.revision, digest: state.chain.digest, tally: Tally::default() };
        Self { node_id, known: Mutex::new(known), newest: watch::Sender::new(None), sink }
    }

    /// A watch on the report that this node has to make next; `None`: none.
    pub(crate) fn reports(&self) -> watch::Receiver<Option<DigestReport>> {
        self.newest.subscribe()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that entries were applied. Returns the divergence if they show that this node's state is wrong. Their
    /// outcomes must not be published then.
    pub(crate) fn applied(&self, applied: &Applied) -> Option<Divergence> {
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
                    tracing::debug!(mark, %revision, digest = %own, "This node's state matches that of a majority");
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
                    "The nodes have different states, and no majority agrees: the correct one is unknown"
                ),
                Finding::Diverged(theirs) => return Some(Divergence { mark, revision, own, theirs, agreed, time }),
            }
        }
        None
    }

    /// Forgets earlier marks after the state was replaced, since they belong to another state.
    pub(crate) fn replaced(&self, state: &AppliedState) {
        let mut known = self.known();
        *known = Known { revision: state.revision, digest: state.chain.digest, tally: Tally::default() };
        self.newest.send_replace(None);
    }

    /// The digest status of this node.
    pub(crate) fn status(&self) -> DigestStatus {
        let known = self.known();
        DigestStatus { revision: known.revision, digest: known.digest, comparison: known.tally.comparison() }
    }

    /// Whether a mark is due. The leader makes one when something changed since the last mark. Every node makes one
    /// after its start, and after its state was replaced, so that it is compared once.
    pub(crate) fn is_due(&self, leads: bool) -> bool {
        let known = self.known();
        match known.tally.marks.back() {
            None => true,
            Some(mark) => leads && mark.noted.digest != known.digest,
        }
    }
}

#[cfg(test)]
mod tests;
