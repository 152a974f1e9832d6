//! What is done to a data directory while no node uses it: a backup is restored, a survivor becomes a new cluster.
//!
//! Both give the node of the configuration a new cluster, of which it is the only member; the other nodes of
//! `CHAT_INITIAL_NODES` join it by themselves when they are started with empty data directories. What happens on disk is in
//! [`crate::storage::new_cluster`]. Invariant: the directory is locked meanwhile, so that no node starts.
//!
//! Left out: asking the operator, and printing.

use std::{collections::BTreeSet, fs::File, path::Path};

use super::{ServerError, files, protection};
use crate::{
    chat::TimeMs,
    config::Config,
    net::Dialer,
    proto::log::v1::{LogId, VoterSet},
    raft::{
        bootstrap::members_alive,
        peers::{Credentials, Peers},
    },
    storage::{
        self, BackupMeta, StorageError,
        new_cluster::{self, Beginning, Founder, KeptSessions, Survey},
    },
};

/// What the operator is told of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    /// The cluster it is of.
    pub cluster_id: String,
    /// The node that made it.
    pub node: String,
    /// When, in milliseconds since the epoch.
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

/// What the operator is told of a new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Its id.
    pub cluster_id: String,
    /// This node's id in it.
    pub node_id: u64,
    /// The revision of what it was made of.
    pub copied: u64,
    /// The revision that it begins with.
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

/// Checks a backup, wherever it is. Blocks for as long as it takes to read the file twice.
///
/// # Errors
/// [`ServerError::Backup`].
pub fn verify_backup(file: &Path) -> Result<BackupFacts, ServerError> {
    let unusable = |source| ServerError::Backup { path: file.to_owned(), source };
    Ok(storage::verify_backup(file).map_err(unusable)?.into())
}

/// Makes a backup the start of a new cluster, in the data directory of the configuration, with or without its sessions.
/// Blocks.
///
/// # Errors
/// The file is no backup, or the directory is not empty, or in use; or a file operation failed.
pub fn restore(config: &Config, file: &Path, end_sessions: bool) -> Result<(BackupFacts, ClusterFacts), ServerError> {
    // A mistake is told before anything is made.
    verify_backup(file)?;
    let dir = &config.data_dir;
    let _lock = files::lock(dir)?;
    let founder = founder(config);
    let sessions = if end_sessions { KeptSessions::None } else { KeptSessions::All };
    let restored = new_cluster::restore(dir, file, &founder, sessions);
    let (meta, beginning) = restored.map_err(|error| ServerError::from(error).or_full(dir))?;
    Ok((meta.into(), ClusterFacts::new(founder, beginning)))
}

/// The stopped node that may become a new cluster. Nobody else uses its directory while this exists.
pub struct Survivor<'a> {
    config: &'a Config,
    survey: Survey,
    _lock: File,
}

/// A position of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The index of an entry; 0: none.
    pub index: u64,
    /// The term it was made in.
    pub term: u64,
}

/// What the operator is told of a survivor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurvivorFacts {
    /// Its cluster.
    pub cluster_id: String,
    /// Its id there.
    pub node_id: u64,
    /// The names of the nodes that had a vote.
    pub voters: Vec<String>,
    /// The last entry of its log.
    pub last: Position,
    /// The last entry that it knows to be committed.
    pub committed: Position,
    /// Entries after that one.
    pub uncertain: u64,
    /// The last entry in its state.
    pub applied: Position,
    /// The revision of its state.
    pub revision: u64,
    /// The time of the last change in its state, in milliseconds since the epoch.
    pub time_ms: u64,
}

impl<'a> Survivor<'a> {
    /// Looks at the data directory of the configuration. Changes nothing that matters. Blocks.
    ///
    /// # Errors
    /// No node could go on from it, or it is in use, or of another name.
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

    /// Asks the members of its cluster, and the nodes of the configuration, who is there. Needs a tokio runtime.
    ///
    /// # Errors
    /// The peer secret or the certificates are of no use; or those that answer are, with this node, a majority of the voters: then it has to be
    /// started, and nothing is lost.
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

    /// What it has.
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

    /// Makes it the start of a new cluster, with the entries of `skip` left out of its log. Blocks.
    ///
    /// # Errors
    /// A file operation failed: the directory then holds the old node or the new one, as the next start will say.
    pub fn found_anew(self, skip: &[u64]) -> Result<ClusterFacts, ServerError> {
        let dir = &self.config.data_dir;
        let founder = founder(self.config);
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
