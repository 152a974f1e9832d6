//! `chatd local`: a cluster of several node processes on this machine.
//!
//! Owns the addresses of the nodes (`plan`), their record in `<data>/cluster.json` (`file`), the secret that they share
//! (`<data>/peer-secret`) and the processes (`supervise`). Invariants: a cluster keeps its addresses across restarts,
//! because its members know each other by them. No node outlives the process that started it. Nothing is started when a
//! port is in use or the configuration is invalid.
//!
//! A node that dies is not restarted, because users kill nodes here to see that the others continue.

mod file;
mod plan;
mod supervise;
mod text;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;

use super::secret;
use file::NodeRecord;
use server::{
    PORT_WAIT_MAX,
    config::{Config, ConfigErrors},
};

pub use supervise::run;

/// Maximum number of nodes of a local cluster.
const NODES_MAX: u16 = 9;

/// Arguments of `chatd local`.
#[derive(Debug, Args)]
pub struct LocalArguments {
    /// Number of nodes, 1-9 [default: 5, or as many as the data directory has].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    pub nodes: Option<u16>,
    /// Directory of the nodes' data and of cluster.json.
    #[arg(long, value_name = "DIR", default_value = "local-data")]
    pub data: PathBuf,
    /// First gRPC port; 0 picks free ports [default: 50051, or the ports in the data directory].
    ///
    /// With 50051 the web ports start at 8081 and the metrics ports at 9464. With any other port, the peer, web and
    /// metrics ports are 100, 200 and 300 above the gRPC ports.
    #[arg(long, value_name = "PORT")]
    pub base_port: Option<u16>,
    /// Run only this node of an existing cluster, in the foreground, for instance one that was killed.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["nodes", "base_port"])]
    pub start: Option<String>,
}

/// Why a local cluster cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A port is in use or must not be used.
    #[error("port {port} ({what} of {node}, {address}) cannot be used: {source}")]
    Port {
        /// The node.
        node: String,
        /// The purpose of the port.
        what: &'static str,
        /// The complete address.
        address: std::net::SocketAddr,
        /// The port of the address, which users look for.
        port: u16,
        /// The reason.
        source: io::Error,
    },
    /// The arguments cannot be satisfied.
    #[error("{0}")]
    Arguments(String),
    /// The configuration for the nodes is invalid.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// An operation on a file or a process failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: String,
        /// The reason.
        source: io::Error,
    },
}

impl LocalError {
    /// Returns the exit code: 64 for arguments and configuration, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Arguments(_) | Self::Config(_) => ConfigErrors::EXIT_CODE,
            Self::Port { .. } | Self::Io { .. } => 1,
        }
    }

    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Prepares this process to run the node that `--start` names: records its process id in `cluster.json` and returns the
/// node's configuration.
pub fn prepare_start(arguments: &LocalArguments, environment: Vec<(String, String)>) -> Result<Config, LocalError> {
    let data = &arguments.data;
    let name = arguments.start.as_deref().unwrap_or_default();
    let recorded = file::read(data)?.ok_or_else(|| {
        LocalError::Arguments(format!("{} has no cluster.json: start the cluster first", data.display()))
    })?;
    let node = recorded.nodes.iter().find(|node| node.name == name).ok_or_else(|| {
        let names: Vec<&str> = recorded.nodes.iter().map(|node| node.name.as_str()).collect();
        LocalError::Arguments(format!("there is no node {name:?} in {}: it has {}", data.display(), names.join(", ")))
    })?;
    ensure_secret(data, &environment)?;
    let config = config_of(node, &recorded.nodes, arguments, &environment)?;
    plan::check_free(std::slice::from_ref(node), PORT_WAIT_MAX)?;
    file::update_pid(data, name, std::process::id())?;
    Ok(config)
}

/// Reads `cluster.json` and writes it again, for the fuzz targets in `fuzz/`. Returns whether the result is the same,
/// if there is a file.
#[cfg(any(fuzzing, test))]
pub fn rewrite(data: &Path) -> Result<Option<bool>, LocalError> {
    let Some(found) = file::read(data)? else { return Ok(None) };
    file::write(data, &found)?;
    Ok(Some(file::read(data)?.as_ref() == Some(&found)))
}

/// Creates the data directory and the secret that the nodes share, unless the environment provides other protection.
fn ensure_secret(data: &Path, environment: &[(String, String)]) -> Result<(), LocalError> {
    let Some(path) = plan::own_secret(data, environment) else { return Ok(()) };
    fs::create_dir_all(data).map_err(LocalError::io(format!("{} cannot be made", data.display())))?;
    secret::ensure(&path).map(drop).map_err(|error| LocalError::Arguments(error.to_string()))
}

/// Returns the configuration of `node`: values passed on from `environment`, and the node's own.
fn config_of(
    node: &NodeRecord,
    all: &[NodeRecord],
    arguments: &LocalArguments,
    environment: &[(String, String)],
) -> Result<Config, LocalError> {
    let mut merged: std::collections::BTreeMap<String, String> = environment.iter().cloned().collect();
    merged.extend(plan::environment(node, all, &arguments.data, environment));
    Ok(Config::load(merged)?)
}
