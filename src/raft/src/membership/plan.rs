//! Decides which membership changes the leader may make. No I/O, no waiting.
//!
//! Does not cover: making a change, and the precondition that Raft checks then (`node::membership`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::ChangeMembers;

use crate::{
    error::MemberError,
    status::{ClusterHealth, PeerHealth},
    types::{Membership, NodeRecord},
};

pub(crate) type Change = ChangeMembers<u64, NodeRecord>;

/// Largest lag in entries at which a learner gets its vote.
const PROMOTION_LAG_MAX: u64 = 200;

/// The membership with its health, as seen by the leader.
pub(crate) struct MembershipView<'a> {
    pub membership: &'a Membership,
    pub cluster_health: &'a ClusterHealth,
    /// Longest silence of a node that still counts as healthy.
    pub silence_max: Duration,
}

impl MembershipView<'_> {
    /// The next change to make: the completion of an interrupted change, or the promotion of a learner that has caught
    /// up. `None`: nothing to do.
    pub(crate) fn next_step(&self) -> Option<Change> {
        if let [_, .., last] = self.membership.get_joint_config().as_slice() {
            return Some(ChangeMembers::ReplaceAllVoters(last.clone()));
        }
        let voters: BTreeSet<u64> = self.membership.voter_ids().collect();
        let learner = self.membership.learner_ids().find(|id| self.has_caught_up(*id))?;
        let name = self.name(learner)?;
        let replaced: BTreeSet<u64> = self.ids_of(name).into_iter().filter(|id| voters.contains(id)).collect();
        let add = ChangeMembers::AddVoterIds(BTreeSet::from([learner]));
        Some(match replaced.is_empty() {
            true => add,
            false => ChangeMembers::Batch(vec![add, ChangeMembers::RemoveVoters(replaced)]),
        })
    }

    /// Adds a learner, and removes learners of the same name that never got a vote, since their disks are gone. A voter
    /// of that name stays until the new node has caught up.
    pub(crate) fn admission(&self, id: u64, record: NodeRecord) -> Result<Change, MemberError> {
        if self.is_joint() {
            return Err(in_flight());
        }
        let voters: BTreeSet<u64> = self.membership.voter_ids().collect();
        let stale: BTreeSet<u64> = self.ids_of(&record.name).into_iter().filter(|id| !voters.contains(id)).collect();
        let add = ChangeMembers::AddNodes(BTreeMap::from([(id, record)]));
        Ok(match stale.is_empty() {
            true => add,
            false => ChangeMembers::Batch(vec![ChangeMembers::RemoveNodes(stale), add]),
        })
    }

    /// Changes the addresses of a member.
    pub(crate) fn move_to(&self, id: u64, addresses: NodeRecord) -> Result<Change, MemberError> {
        if self.is_joint() {
            return Err(in_flight());
        }
        let known = self.membership.get_node(&id).filter(|known| known.name == addresses.name);
        let record = NodeRecord { admission: known.ok_or(MemberError::NodeUnknown)?.admission, ..addresses };
        Ok(ChangeMembers::SetNodes(BTreeMap::from([(id, record)])))
    }

    /// Removes all nodes of a name. Also returns their ids.
    pub(crate) fn removal(&self, name: &str) -> Result<(BTreeSet<u64>, Change), MemberError> {
        let ids = self.ids_of(name);
        if ids.is_empty() {
            return Err(MemberError::NodeUnknown);
        }
        if self.is_joint() {
            return Err(in_flight());
        }
        let (gone, left): (BTreeSet<u64>, BTreeSet<u64>) = self.membership.voter_ids().partition(|id| ids.contains(id));
        let healthy = left.iter().filter(|id| self.is_healthy(**id)).count();
        if !gone.is_empty() && healthy < left.len() / 2 + 1 {
            return Err(MemberError::Conflict(format!(
                "of the {} voters that would be left only {healthy} are healthy: that is no majority",
                left.len()
            )));
        }
        let learners: BTreeSet<u64> = ids.difference(&gone).copied().collect();
        let mut changes = Vec::new();
        if !gone.is_empty() {
            changes.push(ChangeMembers::RemoveVoters(gone));
        }
        if !learners.is_empty() {
            changes.push(ChangeMembers::RemoveNodes(learners));
        }
        Ok((ids, ChangeMembers::Batch(changes)))
    }

    /// Ids of the members of a name. There is more than one while a node takes the place of another.
    pub(crate) fn ids_of(&self, name: &str) -> BTreeSet<u64> {
        self.membership.nodes().filter(|(_, node)| node.name == name).map(|(id, _)| *id).collect()
    }

    /// Whether a member has recently answered the leader.
    pub(crate) fn is_healthy(&self, id: u64) -> bool {
        self.health(id).and_then(|health| health.silent).is_some_and(|silent| silent <= self.silence_max)
    }

    fn is_joint(&self) -> bool {
        self.membership.get_joint_config().len() > 1
    }

    fn name(&self, id: u64) -> Option<&str> {
        self.membership.get_node(&id).map(|node| node.name.as_str())
    }

    fn health(&self, id: u64) -> Option<&PeerHealth> {
        self.cluster_health.peers.iter().find(|health| health.node_id == id)
    }

    fn has_caught_up(&self, id: u64) -> bool {
        let lag = self.health(id).and_then(|health| health.lag_entries);
        self.is_healthy(id) && lag.is_some_and(|lag| lag <= PROMOTION_LAG_MAX)
    }
}

/// Whether a name matches a pattern. A `*` at the end of the pattern stands for any rest.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

fn in_flight() -> MemberError {
    MemberError::Conflict("another change of the membership is under way".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> NodeRecord {
        NodeRecord { name: name.into(), ..NodeRecord::default() }
    }

    /// A membership with its health. `case` takes the voter sets, the names by id, and the lag of each healthy member.
    struct Case {
        membership: Membership,
        cluster_health: ClusterHealth,
    }

    fn case(voters: &[&[u64]], nodes: &[(u64, &str)], heard: &[(u64, u64)]) -> Case {
        let configs: Vec<BTreeSet<u64>> = voters.iter().map(|ids| ids.iter().copied().collect()).collect();
        let nodes: BTreeMap<u64, NodeRecord> = nodes.iter().map(|(id, name)| (*id, record(name))).collect();
        let peers = nodes.keys().map(|id| {
            let lag = heard.iter().find(|(heard, _)| heard == id).map(|(_, lag)| *lag);
            PeerHealth { node_id: *id, silent: lag.map(|_| Duration::ZERO), lag_entries: lag }
        });
        let cluster_health = ClusterHealth { term: 1, peers: peers.collect() };
        Case { membership: Membership::new(configs, nodes).expect("well formed"), cluster_health }
    }

    impl Case {
        fn membership_view(&self) -> MembershipView<'_> {
            MembershipView {
                membership: &self.membership,
                cluster_health: &self.cluster_health,
                silence_max: Duration::from_millis(600),
            }
        }
    }

    const FIVE: [(u64, &str); 5] = [(1, "n1"), (2, "n2"), (3, "n3"), (4, "n4"), (5, "n5")];
    const ALL_HEARD: [(u64, u64); 5] = [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)];

    fn with(more: &[(u64, &'static str)]) -> Vec<(u64, &'static str)> {
        FIVE.iter().chain(more).copied().collect()
    }

    fn heard(more: &[(u64, u64)]) -> Vec<(u64, u64)> {
        ALL_HEARD.iter().chain(more).copied().collect()
    }

    fn ids(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn a_learner_gets_its_vote_when_it_has_caught_up_and_is_heard() {
        let step = |lag: &[(u64, u64)]| {
            case(&[&[1, 2, 3, 4, 5]], &with(&[(16, "n6")]), &heard(lag)).membership_view().next_step()
        };
        assert_eq!(step(&[]), None);
        assert_eq!(step(&[(16, 5000)]), None);
        assert_eq!(step(&[(16, 3)]), Some(ChangeMembers::AddVoterIds(ids(&[16]))));
    }

    #[test]
    fn a_node_that_lost_its_disk_replaces_its_old_self_in_one_change() {
        let case = case(&[&[1, 2, 3, 4, 5]], &with(&[(16, "n3")]), &heard(&[(16, 0)]));
        let expected =
            ChangeMembers::Batch(vec![ChangeMembers::AddVoterIds(ids(&[16])), ChangeMembers::RemoveVoters(ids(&[3]))]);
        assert_eq!(case.membership_view().next_step(), Some(expected));
    }

    #[test]
    fn an_interrupted_change_is_finished_first() {
        let case = case(&[&[1, 2, 3, 4, 5], &[1, 2, 4, 5, 16]], &with(&[(16, "n3"), (17, "n7")]), &heard(&[(17, 0)]));
        let expected = ChangeMembers::ReplaceAllVoters(ids(&[1, 2, 4, 5, 16]));
        assert_eq!(case.membership_view().next_step(), Some(expected));
        let refused = case.membership_view().admission(30, record("n8"));
        assert!(matches!(refused, Err(MemberError::Conflict(_))), "{refused:?}");
        let refused = case.membership_view().removal("n1");
        assert!(matches!(refused, Err(MemberError::Conflict(_))), "{refused:?}");
    }

    #[test]
    fn an_earlier_attempt_to_join_makes_room() {
        let case = case(&[&[1, 2, 3, 4, 5]], &with(&[(16, "n3")]), &ALL_HEARD);
        let expected = ChangeMembers::Batch(vec![
            ChangeMembers::RemoveNodes(ids(&[16])),
            ChangeMembers::AddNodes(BTreeMap::from([(17, record("n3"))])),
        ]);
        assert_eq!(case.membership_view().admission(17, record("n3")), Ok(expected));
        let plain = ChangeMembers::AddNodes(BTreeMap::from([(17, record("n6"))]));
        assert_eq!(case.membership_view().admission(17, record("n6")), Ok(plain));
    }

    #[test]
    fn nobody_is_removed_whom_the_majority_needs() {
        let removal =
            |heard: &[(u64, u64)], name| case(&[&[1, 2, 3, 4, 5]], &FIVE, heard).membership_view().removal(name);
        let (gone, change) = removal(&ALL_HEARD, "n3").expect("allowed");
        assert_eq!((gone, change), (ids(&[3]), ChangeMembers::Batch(vec![ChangeMembers::RemoveVoters(ids(&[3]))])));
        // Two voters are down already. They may be removed, a third may not.
        let three = [(1, 0), (2, 0), (3, 0)];
        removal(&three, "n5").expect("allowed");
        assert!(matches!(removal(&three, "n3"), Err(MemberError::Conflict(_))));
        assert!(matches!(removal(&ALL_HEARD, "n9"), Err(MemberError::NodeUnknown)));
        let alone = case(&[&[1]], &[(1, "n1")], &[(1, 0)]);
        assert!(matches!(alone.membership_view().removal("n1"), Err(MemberError::Conflict(_))));
    }

    #[test]
    fn a_name_matches_itself_or_its_beginning() {
        assert!(matches("n6", "n6") && !matches("n6", "n66") && !matches("n6", "n"));
        assert!(matches("chat-*", "chat-7") && matches("*", "x") && !matches("chat-*", "cha"));
    }

    #[test]
    fn a_learner_may_always_go() {
        let case = case(&[&[1, 2, 3, 4, 5]], &with(&[(16, "n6")]), &[(1, 0)]);
        let expected = ChangeMembers::Batch(vec![ChangeMembers::RemoveNodes(ids(&[16]))]);
        assert_eq!(case.membership_view().removal("n6"), Ok((ids(&[16]), expected)));
    }
}
