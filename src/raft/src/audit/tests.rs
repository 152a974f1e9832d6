//! Which reports convict which node.

use crate::audit::*;
use crate::tests::cluster::Silent;

const RIGHT: StateDigest = StateDigest([1; 32]);
const WRONG: StateDigest = StateDigest([2; 32]);
const OTHER: StateDigest = StateDigest([3; 32]);

fn noted(mark: u64, digest: StateDigest, sets: &[&[u64]], members: u64) -> NotedDigest {
    let voters = sets.iter().map(|ids| pb::VoterSet { node_ids: ids.to_vec() }).collect();
    let nodes = (1..=members).map(|node_id| pb::Node { node_id, ..pb::Node::default() }).collect();
    NotedDigest { mark, revision: Revision(9), digest, membership: pb::Membership { voters, nodes } }
}

/// The findings of a node that noted `own`, report by report.
fn findings(own: StateDigest, sets: &[&[u64]], reports: &[(u64, StateDigest)]) -> Vec<Vec<Finding>> {
    let mut tally = Tally::default();
    tally.note(noted(7, own, sets, 6));
    let report = |(node_id, digest): &(u64, StateDigest)| {
        let report = DigestReport { node_id: *node_id, mark: 7, digest: *digest };
        tally.report(&report).expect("the mark is known").1
    };
    reports.iter().map(report).collect()
}

const THREE: &[&[u64]] = &[&[1, 2, 3]];
const FIVE: &[&[u64]] = &[&[1, 2, 3, 4, 5]];

fn stray(node_id: u64, digest: StateDigest) -> Finding {
    Finding::Stray { node_id, digest }
}

#[test]
fn a_majority_that_agrees_is_told_once() {
    let all = |ids: std::ops::RangeInclusive<u64>| ids.map(|id| (id, RIGHT)).collect::<Vec<_>>();
    let found = findings(RIGHT, THREE, &all(1..=3));
    assert_eq!(found, [vec![], vec![Finding::Agreed], vec![]]);
    let found = findings(RIGHT, FIVE, &all(1..=5));
    assert_eq!(found, [vec![], vec![], vec![Finding::Agreed], vec![], vec![]]);
    // The same report again, as after a retry.
    assert_eq!(findings(RIGHT, THREE, &[(1, RIGHT), (1, RIGHT), (1, RIGHT)]), [vec![], vec![], vec![]]);
}

#[test]
fn a_wrong_node_convicts_itself_and_nobody_else() {
    // This holds for every node, the leader or not, and whenever its report arrives.
    for wrong in 1..=5_u64 {
        for first in [true, false] {
            let mut reports: Vec<_> = (1..=5).filter(|id| *id != wrong).map(|id| (id, RIGHT)).collect();
            reports.insert(if first { 0 } else { 4 }, (wrong, WRONG));
            let at_right = findings(RIGHT, FIVE, &reports).concat();
            assert_eq!(at_right, [Finding::Agreed, stray(wrong, WRONG)]);
            let at_wrong = findings(WRONG, FIVE, &reports).concat();
            assert_eq!(at_wrong[0], Finding::Diverged(RIGHT));
        }
    }
    // Its own report is not needed, and the reports of a minority are not enough.
    assert_eq!(findings(WRONG, THREE, &[(2, RIGHT), (3, RIGHT)]), [vec![], vec![Finding::Diverged(RIGHT)]]);
    assert_eq!(findings(WRONG, FIVE, &[(2, RIGHT), (3, RIGHT)]).concat(), []);
}

#[test]
fn two_wrong_nodes_of_five_are_two_minorities_or_one() {
    let reports = [(1, WRONG), (2, WRONG), (3, RIGHT), (4, RIGHT), (5, RIGHT)];
    let expected = [Finding::Agreed, stray(1, WRONG), stray(2, WRONG)];
    assert_eq!(findings(RIGHT, FIVE, &reports).concat(), expected);
    let reports = [(1, WRONG), (2, OTHER), (3, RIGHT), (4, RIGHT), (5, RIGHT)];
    assert_eq!(findings(OTHER, FIVE, &reports).concat(), [Finding::Diverged(RIGHT)]);
}

#[test]
fn without_a_majority_nobody_is_convicted() {
    let reports = [(1, WRONG), (2, WRONG), (3, RIGHT), (4, RIGHT), (5, OTHER)];
    for own in [RIGHT, WRONG, OTHER] {
        assert_eq!(findings(own, FIVE, &reports).concat(), [Finding::Undecided]);
    }
    // As long as a majority is possible, there is no finding.
    assert_eq!(findings(RIGHT, FIVE, &reports[..4]).concat(), []);
    // Two voters differ: there is no majority without both.
    assert_eq!(findings(RIGHT, &[&[1, 2]], &[(1, RIGHT), (2, WRONG)]).concat(), [Finding::Undecided]);
    assert_eq!(findings(RIGHT, &[], &[(1, RIGHT)]).concat(), []);
}

#[test]
fn only_voters_count_and_strangers_are_not_even_kept() {
    // 6 is a learner, 7 is not a member.
    let reports = [(6, WRONG), (7, WRONG), (1, WRONG), (2, RIGHT), (3, RIGHT)];
    let found = findings(RIGHT, THREE, &reports).concat();
    assert_eq!(found, [Finding::Agreed, stray(1, WRONG), stray(6, WRONG)]);
    // A learner that differs detects that as well.
    assert_eq!(findings(WRONG, THREE, &reports).concat(), [Finding::Diverged(RIGHT)]);
}

#[test]
fn while_the_membership_changes_both_majorities_are_needed() {
    let joint: &[&[u64]] = &[&[1, 2, 3], &[3, 4, 5]];
    let found = findings(RIGHT, joint, &[(1, RIGHT), (2, RIGHT), (4, RIGHT), (3, RIGHT)]);
    assert_eq!(found, [vec![], vec![], vec![], vec![Finding::Agreed]]);
    let reports = [(1, RIGHT), (2, RIGHT), (4, WRONG), (5, WRONG)];
    assert_eq!(findings(WRONG, joint, &reports).concat(), [Finding::Undecided]);
}

fn applied(noted: Vec<NotedDigest>, reported: Vec<DigestReport>) -> Applied {
    Applied {
        outcomes: Vec::new(),
        events: Vec::new(),
        closed_sessions: Vec::new(),
        revision: Revision(9),
        clock: TimeMs(1),
        digest: WRONG,
        noted,
        reported,
        malformed: 0,
        malformed_shown: Vec::new(),
    }
}

fn state() -> AppliedState {
    AppliedState {
        log_id: None,
        membership: pb::StoredMembership::default(),
        revision: Revision(1),
        clock: TimeMs(1),
        chain: storage::Chain::default(),
    }
}

fn reports(mark: u64, digest: StateDigest) -> Vec<DigestReport> {
    (2..=3).map(|node_id| DigestReport { node_id, mark, digest }).collect()
}

#[test]
fn what_was_noted_on_another_state_convicts_nobody() {
    let auditor = Auditor::new(1, &state(), Arc::new(Silent));
    let newest = || auditor.newest.borrow().map(|report| report.mark);
    // After a restart: the mark was applied by the process before.
    assert_eq!(auditor.applied(&applied(vec![], reports(7, RIGHT))), None);
    assert_eq!((newest(), auditor.status().comparison), (None, None));

    // A snapshot was installed between mark and reports.
    assert_eq!(auditor.applied(&applied(vec![noted(8, WRONG, THREE, 3)], vec![])), None);
    assert_eq!(newest(), Some(8));
    auditor.replaced(&state());
    assert_eq!(newest(), None);
    assert_eq!(auditor.status().revision, Revision(1));
    assert_eq!(auditor.applied(&applied(vec![], reports(8, RIGHT))), None);

    // On its current state, it judges the mark.
    let agreement = vec![noted(9, RIGHT, THREE, 3)];
    assert_eq!(auditor.applied(&applied(agreement, reports(9, RIGHT))), None);
    let found = auditor.applied(&applied(vec![noted(10, WRONG, THREE, 3)], reports(10, RIGHT)));
    let (mark, revision, time) = (10, Revision(9), TimeMs(1));
    let expected = Divergence { mark, revision, own: WRONG, theirs: RIGHT, agreed: Some(9), time };
    assert_eq!(found, Some(expected));
}

#[test]
fn late_reports_are_forgotten_and_shown_are_those_of_a_majority() {
    let auditor = Auditor::new(1, &state(), Arc::new(Silent));
    let shown = || auditor.status().comparison.map(|comparison| (comparison.mark, comparison.reports.len()));
    auditor.applied(&applied(vec![noted(100, WRONG, THREE, 3)], vec![]));
    assert_eq!(shown(), Some((100, 0)));
    let marks = MARKS_MAX as u64;
    for mark in 101..=100 + marks {
        auditor.applied(&applied(vec![noted(mark, WRONG, THREE, 3)], vec![]));
    }
    assert_eq!(auditor.known().tally.marks.len(), MARKS_MAX);
    assert_eq!(auditor.applied(&applied(vec![], reports(100, RIGHT))), None, "it is forgotten");
    assert_eq!(shown(), Some((100 + marks, 0)));
    assert_eq!(auditor.applied(&applied(vec![], reports(101, WRONG))), None);
    assert_eq!(shown(), Some((101, 2)), "a majority agreed there");
    assert!(auditor.applied(&applied(vec![], reports(102, RIGHT))).is_some(), "late is not too late");
}

#[test]
fn a_mark_is_due_after_a_start_and_after_a_change() {
    let auditor = Auditor::new(1, &state(), Arc::new(Silent));
    assert!(auditor.is_due(true) && auditor.is_due(false));
    auditor.applied(&applied(vec![noted(8, WRONG, THREE, 3)], vec![]));
    assert!(!auditor.is_due(true) && !auditor.is_due(false), "nothing has changed");
    auditor.applied(&Applied { digest: RIGHT, ..applied(vec![], vec![]) });
    assert!(auditor.is_due(true) && !auditor.is_due(false), "the leader does it");
    auditor.replaced(&state());
    assert!(auditor.is_due(false));
}
