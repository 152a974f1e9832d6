//! Each invariant on states made by hand: what it accepts, and what it rejects.

use chat::{Revision, StateDigest, TimeMs};
use raft::Role;
use storage::Chain;

use super::*;

/// A log that holds these entries, after others that were purged.
#[derive(Default)]
struct FakeLog {
    purged: Option<pb::LogId>,
    entries: Vec<pb::Entry>,
}

impl Log for FakeLog {
    fn purged(&self) -> Option<pb::LogId> {
        self.purged
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<pb::Entry>, String> {
        Ok(self.entries.iter().filter(|entry| range.contains(&id_of(entry).index)).cloned().collect())
    }
}

fn id(term: u64, index: u64) -> pb::LogId {
    pb::LogId { term, node_id: 1, index }
}

fn entry(term: u64, index: u64) -> pb::Entry {
    pb::Entry { log_id: Some(id(term, index)), ..Default::default() }
}

/// A follower that has applied nothing.
fn node(slot: usize) -> NodeSnapshot {
    let status = NodeStatus {
        node_id: slot as u64 + 1,
        name: format!("n{}", slot + 1),
        cluster_id: "cluster".to_owned(),
        term: 1,
        role: Role::Follower,
        leader: None,
        members: Vec::new(),
        last_log_index: 0,
        committed_index: 0,
        applied_index: 0,
    };
    let applied = AppliedState {
        log_id: None,
        membership: pb::StoredMembership::default(),
        revision: Revision(0),
        clock: TimeMs(0),
        chain: Chain::default(),
    };
    NodeSnapshot { slot, start: 0, status, applied, committed: Vec::new(), log: Box::new(FakeLog::default()) }
}

fn leader(slot: usize, term: u64) -> NodeSnapshot {
    let mut node = node(slot);
    (node.status.term, node.status.role) = (term, Role::Leader);
    node
}

fn applied(slot: usize, index: u64, revision: u64, digest: u8) -> NodeSnapshot {
    let mut node = node(slot);
    node.applied.log_id = Some(id(1, index));
    node.applied.revision = Revision(revision);
    node.applied.chain.digest = StateDigest([digest; 32]);
    node
}

fn committed(slot: usize, entries: Vec<pb::Entry>) -> NodeSnapshot {
    NodeSnapshot { committed: entries, ..node(slot) }
}

fn restarted(node: NodeSnapshot) -> NodeSnapshot {
    NodeSnapshot { start: node.start + 1, ..node }
}

/// Shows the observations to the invariant, one after the other. Returns the first violation.
fn observe(mut invariant: impl Invariant, moments: Vec<Vec<NodeSnapshot>>) -> Option<String> {
    let observation = |nodes| Observation { nodes, moved_aside: Vec::new() };
    moments.into_iter().find_map(|nodes| invariant.observe(&observation(nodes)).err())
}

#[track_caller]
fn accepts(invariant: impl Invariant, moments: Vec<Vec<NodeSnapshot>>) {
    assert_eq!(observe(invariant, moments), None);
}

#[track_caller]
fn rejects(invariant: impl Invariant, moments: Vec<Vec<NodeSnapshot>>, words: &str) {
    let violation = observe(invariant, moments).expect("a violation");
    assert!(violation.contains(words), "{violation}");
}

#[test]
fn election_safety() {
    use super::election_safety::ElectionSafety;
    let other_id = |node: NodeSnapshot| {
        let mut node = node;
        node.status.node_id = 9;
        node
    };
    // Another term, and another node in the same term: terms and ids identify a leadership together.
    let moments = vec![vec![leader(0, 1)], vec![leader(1, 2), leader(0, 1)], vec![other_id(leader(2, 2))]];
    accepts(ElectionSafety::default(), moments);
    accepts(ElectionSafety::default(), vec![vec![leader(0, 1)], vec![restarted(leader(0, 2))]]);
    let resumed = vec![vec![leader(0, 1)], vec![restarted(leader(0, 1))]];
    rejects(ElectionSafety::default(), resumed, "led by life 0 of n1, and is led again by life 1 of n1");
    let mut copy = leader(1, 1);
    copy.status.node_id = 1;
    rejects(ElectionSafety::default(), vec![vec![leader(0, 1), copy]], "is led again by life 0 of n2");
}

#[test]
fn log_matching() {
    use super::log_matching::LogMatching;
    let same = vec![vec![committed(0, vec![entry(1, 1), entry(1, 2)])], vec![committed(1, vec![entry(1, 2)])]];
    accepts(LogMatching::default(), same);
    let other_term = vec![vec![committed(0, vec![entry(1, 2)])], vec![committed(1, vec![entry(2, 2)])]];
    rejects(LogMatching::default(), other_term, "entry 2");
    let mut changed = entry(1, 2);
    changed.payload = Some(pb::entry::Payload::Batch(vec![1].into()));
    let content = vec![vec![committed(0, vec![entry(1, 2)]), committed(1, vec![changed])]];
    rejects(LogMatching::default(), content, "with another content");
}

#[test]
fn the_log_joins_the_state() {
    use super::log_joins_state::LogJoinsState;
    let with_purged = |applied_to: u64, purged_to: u64| {
        let log = FakeLog { purged: Some(id(1, purged_to)), ..Default::default() };
        NodeSnapshot { log: Box::new(log), ..applied(0, applied_to, 1, 0) }
    };
    accepts(LogJoinsState, vec![vec![node(0)], vec![with_purged(7, 5)], vec![with_purged(7, 7)]]);
    rejects(LogJoinsState, vec![vec![with_purged(7, 8)]], "thrown away entries up to 8, and applied 7");
}

#[test]
fn committed_entries_are_never_lost() {
    use super::committed_never_lost::CommittedNeverLost;
    let leads_with = |term: u64, log: FakeLog| NodeSnapshot { log: Box::new(log), ..leader(1, term) };
    let before = || vec![committed(0, vec![entry(1, 1), entry(1, 2), entry(1, 3)])];
    let has = |entries: Vec<pb::Entry>| FakeLog { entries, ..Default::default() };
    let whole = has(vec![entry(1, 1), entry(1, 2), entry(1, 3)]);
    accepts(CommittedNeverLost::default(), vec![before(), vec![leads_with(2, whole)]]);
    // What was purged is in the state.
    let purged = FakeLog { purged: Some(id(1, 2)), entries: vec![entry(1, 3)] };
    accepts(CommittedNeverLost::default(), vec![before(), vec![leads_with(2, purged)]]);
    // A leader of the same term may still be on its way to them.
    accepts(CommittedNeverLost::default(), vec![before(), vec![leads_with(1, has(vec![]))]]);
    let short = has(vec![entry(1, 1), entry(1, 2)]);
    rejects(CommittedNeverLost::default(), vec![before(), vec![leads_with(2, short)]], "n2 leads in term 2");
    let other = has(vec![entry(1, 1), entry(2, 2), entry(1, 3)]);
    rejects(CommittedNeverLost::default(), vec![before(), vec![leads_with(3, other)]], "was committed");
}

#[test]
fn entries_are_applied_in_order_and_once() {
    use super::applied_in_order::AppliedInOrder;
    let moments = vec![vec![applied(0, 3, 2, 7)], vec![applied(0, 5, 4, 9), applied(1, 3, 2, 7)]];
    accepts(AppliedInOrder::default(), moments);
    // A power failure takes back what was not flushed.
    accepts(AppliedInOrder::default(), vec![vec![applied(0, 5, 4, 9)], vec![restarted(applied(0, 3, 2, 7))]]);
    rejects(AppliedInOrder::default(), vec![vec![applied(0, 5, 4, 9)], vec![applied(0, 3, 2, 7)]], "went back");
    let twice = vec![vec![applied(0, 3, 2, 7), applied(1, 3, 3, 7)]];
    rejects(AppliedInOrder::default(), twice, "n1 is at revision 2 and n2 at 3");
    let skipped = vec![vec![applied(0, 3, 2, 7), applied(1, 3, 2, 8)]];
    rejects(AppliedInOrder::default(), skipped, "with another digest");
}

#[test]
fn digests_are_equal_at_equal_revisions() {
    use super::digests_equal::DigestsEqual;
    // The entries differ, as one of them changed nothing.
    accepts(DigestsEqual::default(), vec![vec![applied(0, 3, 2, 7)], vec![applied(1, 4, 2, 7), applied(0, 6, 3, 8)]]);
    let differ = vec![vec![applied(0, 3, 2, 7)], vec![applied(1, 4, 2, 8)]];
    rejects(DigestsEqual::default(), differ, "at revision 2");
}

#[test]
fn files_are_not_quarantined_without_damage() {
    let mut invariant = super::no_quarantine_without_damage::NoQuarantineWithoutDamage;
    let observation = |moved_aside| Observation { nodes: vec![node(0)], moved_aside };
    assert_eq!(invariant.observe(&observation(vec![])), Ok(()));
    assert_eq!(invariant.observe(&observation(vec![2])), Err("n3 has moved its files aside".to_owned()));
}

#[test]
fn each_count_of_the_report_belongs_to_an_invariant() {
    let judged = |change: fn(&mut Report)| {
        let mut report = Report::default();
        change(&mut report);
        let failed = all().into_iter().filter_map(|mut invariant| {
            let judgement = invariant.check_history(&report);
            judgement.is_err().then(|| invariant.name())
        });
        failed.collect::<Vec<_>>()
    };
    assert_eq!(judged(|_| {}), [] as [&str; 0]);
    assert_eq!(judged(|report| report.lost = 1), ["committed entries are never lost"]);
    assert_eq!(judged(|report| report.duplicated = 1), ["exactly once per client message id"]);
    assert_eq!(judged(|report| report.stale_reads = 1), ["linearizable reads"]);
    assert_eq!(judged(|report| report.reordered = 1), ["linearizable reads"]);
    assert_eq!(judged(|report| report.phantom = 1), ["linearizable reads"]);
    assert_eq!(judged(|report| report.resume_gaps = 1), ["resumed streams have no gap"]);
}
