//! Operations on the data directory of a stopped node: restore a backup, or turn a survivor into a new cluster.
//!
//! Both give the configured node a new cluster, of which it is the only member. The other nodes of `CHAT_INITIAL_NODES`
//! join it when they are started with empty data directories. [`storage::new_cluster`] describes the changes on
//! disk. Invariant: the directory is locked during the operation, so that no node starts.
//!
//! Does not cover: asking the operator, and printing.

use std::{collections::BTreeSet, fs::File, path::Path};

use super::{ServerError, files, protection};
use crate::config::Config;
use chat::TimeMs;
use net::Dialer;
use proto::log::v1::{LogId, VoterSet};
use raft::{
    bootstrap::members_alive,
    peers::{Credentials, Peers},
};
use storage::{
    BackupMeta, StorageError,
    new_cluster::{self, Beginning, Founder, KeptSessions, Survey},
};

/// Facts about a backup, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    /// The id of its cluster.
    pub cluster_id: String,
    /// The node that made it.
    pub node: String,
    /// The time of its creation, in milliseconds since the epoch.
    pub made_ms: u64,
    /// Its revision.
    pub revision: u64,
    /// The digest of its state.
    pub digest: [u8; 32],
}

impl From<BackupMeta> for BackupFacts {
    fn from(meta: BackupMeta) -> Self {
        let TimeMs(made_ms) = meta.made;
        Self { cluster_id: meta.cluster_id, node: meta.node, made_ms, revision: meta.revision.0, digest: meta.digest.0 }
    }
}

/// Facts about a new cluster, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Its id.
    pub cluster_id: String,
    /// This node's id in it.
    pub node_id: u64,
    /// The revision of the data that it was made from.
    pub copied: u64,
    /// The first revision of the new cluster.
    pub revision: u64,
}

impl ClusterFacts {
    fn new(founder: Founder, beginning: Beginning) -> Self {
        Self {
            cluster_id: founder.cluster_id,
            node_id: beginning.node_id,
            copied: beginning.copied.0,
            revision: beginning.revision.0,
        }
    }
}

/// Checks a backup, in any location. Blocks while the file is read twice.
///
/// # Errors
/// [`ServerError::Backup`].
pub fn verify_backup(file: &Path) -> Result<BackupFacts, ServerError> {
    let unusable = |source| ServerError::Backup { path: file.to_owned(), source };
    Ok(storage::verify_backup(file).map_err(unusable)?.into())
}

/// Creates a new cluster from a backup in the configured data directory, with or without its sessions. Blocks.
///
/// # Errors
/// The file is not a backup, the directory is not empty or is in use, or a file operation failed.
pub fn restore(config: &Config, file: &Path, end_sessions: bool) -> Result<(BackupFacts, ClusterFacts), ServerError> {
    // Reports a bad backup before anything is created.
    verify_backup(file)?;
    let dir = &config.data_dir;
    let _lock = files::lock(dir)?;
    let founder = founder(config);
    let sessions = if end_sessions { KeptSessions::None } else { KeptSessions::All };
    let restored = new_cluster::restore(dir, file, &founder, sessions);
    let (meta, beginning) = restored.map_err(|error| ServerError::from(error).or_full(dir))?;
    Ok((meta.into(), ClusterFacts::new(founder, beginning)))
}

/// A stopped node that may become a new cluster. Its directory stays locked while this exists.
pub struct Survivor<'a> {
    config: &'a Config,
    survey: Survey,
    _lock: File,
}

/// A position of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The index of an entry; 0 for none.
    pub index: u64,
    /// The term of the entry.
    pub term: u64,
}

/// Facts about a survivor, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurvivorFacts {
    /// The id of its cluster.
    pub cluster_id: String,
    /// Its node id.
    pub node_id: u64,
    /// The names of the nodes that had a vote.
    pub voters: Vec<String>,
    /// The last entry of its log.
    pub last: Position,
    /// The last entry that is committed according to this node.
    pub committed: Position,
    /// The number of entries after the committed one.
    pub uncertain: u64,
    /// The last entry in its state.
    pub applied: Position,
    /// The revision of its state.
    pub revision: u64,
    /// The time of the last change in its state, in milliseconds since the epoch.
    pub time_ms: u64,
}

impl<'a> Survivor<'a> {
    /// Examines the configured data directory, without changes that matter. Blocks.
    ///
    /// # Errors
    /// The files cannot be used by a node, are in use, or belong to a node of another name.
    pub fn examine(config: &'a Config) -> Result<Self, ServerError> {
        let dir = &config.data_dir;
        let lock = files::lock(dir)?;
        let survey = new_cluster::survey(dir).map_err(|error| ServerError::from(error).or_full(dir))?;
        if survey.identity.name != config.name {
            let (configured, stored) = (config.name.clone(), survey.identity.name);
            return Err(ServerError::WrongName { configured, stored });
        }
        Ok(Self { config, survey, _lock: lock })
    }

    /// The names of the reachable members, among its cluster and the configured nodes. Needs a tokio runtime.
    ///
    /// # Errors
    /// The peer secret or the certificates cannot be used. Or the reachable nodes are, with this node, a majority of
    /// the voters: then this node has to be started, and nothing is lost.
    pub async fn others_alive(&self) -> Result<Vec<String>, ServerError> {
        let (name, address) = (&self.config.name, &self.config.peer_advertise);
        let credentials = Credentials::new("", 0, name, address).map_err(|_| ServerError::Credentials)?;
        let tls = protection::peer_tls(self.config).await?;
        let peers = Peers::new(protection::dialer(tls.as_ref(), Dialer::default)?);
        let Survey { identity, membership, .. } = &self.survey;
        let known = membership.nodes.iter().map(|node| node.peer_address.clone());
        let configured = self.config.initial_nodes.iter().map(|node| node.peer_address.clone());
        let addresses: BTreeSet<String> = known.chain(configured).collect();
        let addresses: Vec<String> = addresses.into_iter().collect();
        let alive = members_alive(&peers, &credentials, &self.config.name, &identity.cluster_id, &addresses).await;
        let counts = |id: &u64| alive.contains_key(id) || *id == identity.node_id;
        let has_majority =
            |set: &VoterSet| set.node_ids.iter().filter(|id| counts(id)).count() > set.node_ids.len() / 2;
        if !alive.is_empty() && membership.voters.iter().all(has_majority) {
            let names: Vec<&str> = alive.values().map(String::as_str).collect();
            let problem = format!("{} answer, and are a majority with this node: start it instead", names.join(", "));
            return Err(StorageError::NotRecoverable { path: self.config.data_dir.clone(), problem }.into());
        }
        Ok(alive.into_values().collect())
    }

    /// The facts for the operator.
    pub fn facts(&self) -> SurvivorFacts {
        let survey = &self.survey;
        let position =
            |id: Option<LogId>| id.map_or(Position::default(), |id| Position { index: id.index, term: id.term });
        let voters: Vec<u64> = survey.membership.voters.iter().flat_map(|set| set.node_ids.clone()).collect();
        let nodes = survey.membership.nodes.iter().filter(|node| voters.contains(&node.node_id));
        SurvivorFacts {
            cluster_id: survey.identity.cluster_id.clone(),
            node_id: survey.identity.node_id,
            voters: nodes.map(|node| node.name.clone()).collect(),
            last: position(survey.last),
            committed: position(survey.committed()),
            uncertain: survey.uncertain(),
            applied: position(survey.applied),
            revision: survey.revision.0,
            time_ms: survey.clock.0,
        }
    }

    /// Turns the survivor into a new cluster, without the entries `skip` of its log. It keeps the addresses that its
    /// old cluster had recorded, regardless of this process's configuration. If the node starts with other addresses,
    /// it has them recorded. Blocks.
    ///
    /// # Errors
    /// A file operation failed. The directory then holds the old or the new node; the next start reports which.
    pub fn found_anew(self, skip: &[u64]) -> Result<ClusterFacts, ServerError> {
        let dir = &self.config.data_dir;
        let Survey { identity, membership, .. } = &self.survey;
        let founder = match membership.nodes.iter().find(|node| node.node_id == identity.node_id) {
            None => founder(self.config),
            Some(recorded) => Founder {
                peer_address: recorded.peer_address.clone(),
                client_address: recorded.client_address.clone(),
                web_address: recorded.web_address.clone(),
                ..founder(self.config)
            },
        };
        let recovered = new_cluster::recover(dir, &self.survey, &founder, skip);
        let beginning = recovered.map_err(|error| ServerError::from(error).or_full(dir))?;
        Ok(ClusterFacts::new(founder, beginning))
    }
}

fn founder(config: &Config) -> Founder {
    Founder {
        cluster_id: uuid::Uuid::new_v4().to_string(),
        name: config.name.clone(),
        peer_address: config.peer_advertise.clone(),
        client_address: config.advertise.clone(),
        web_address: config.web_advertise.clone(),
    }
}
