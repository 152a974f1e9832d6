//! `chatd restore` and `chatd recover`: a new cluster from a backup, or from the last surviving node.
//!
//! The operations are in [`server::offline`]. This module informs the operator and asks for confirmation.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::Path,
};

use clap::Args;

use tokio::runtime::Builder;

use super::runtime::runtime;
use server::{
    ServerError,
    config::Config,
    offline::{self, ClusterFacts, Survivor, SurvivorFacts},
};
use terminal::{show, tell, time};

/// Exit code when the operator did not confirm: nothing was changed.
const DECLINED: u8 = 1;
/// Exit code when there is no terminal to ask for confirmation.
const NOBODY_TO_ASK: u8 = 64;

/// Arguments of `chatd recover`.
#[derive(Debug, Args)]
pub struct RecoverArguments {
    /// Confirm that the majority is lost permanently and that this node becomes a new cluster.
    #[arg(long, required = true)]
    force_new_cluster: bool,
    /// Skip the log entry with this index. A last resort for an entry that ends the node at each start: its content is
    /// lost. Can be given several times.
    #[arg(long, value_name = "INDEX")]
    skip_entry: Vec<u64>,
    /// Skip the confirmation.
    #[arg(long)]
    yes: bool,
}

/// Restores a backup. Returns the exit code.
pub(super) fn restore(config: &Config, file: &Path, end_sessions: bool) -> Result<u8, u8> {
    let (backup, cluster) =
        offline::restore(config, file, end_sessions).map_err(|error| report_error("restore", &error))?;
    // The restore is done, even if this cannot be printed.
    let _ = show!(
        "Restored {} into {}: the state of revision {}, made by {} on {}, of the cluster {}.",
        file.display(),
        config.data_dir.display(),
        backup.revision,
        backup.node,
        time(backup.made_ms),
        backup.cluster_id
    );
    if end_sessions {
        let _ = show!("All sessions of the backup have ended: everybody logs in anew.");
    }
    tell_next(config, &cluster);
    Ok(0)
}

/// Makes the survivor a new cluster. Returns the exit code.
pub(super) fn recover(config: &Config, arguments: &RecoverArguments) -> Result<u8, u8> {
    let failed = |error| report_error("recover", &error);
    let survivor = Survivor::examine(config).map_err(failed)?;
    let mut facts = vec![describe(config, &survivor.facts())];
    let runtime = runtime(Builder::new_current_thread())?;
    let alive = runtime.block_on(survivor.others_alive()).map_err(failed)?;
    if !alive.is_empty() {
        facts.push(format!(
            "STILL THERE, with data of the old cluster: {}. What they have and this node has not is lost.",
            alive.join(", ")
        ));
    }
    for index in &arguments.skip_entry {
        facts.push(format!("LOST will be what entry {index} holds: it is left out, as --skip-entry says."));
    }
    let shown = show!("{}", facts.join("\n"));
    // No confirmation without the information that it is based on.
    if !arguments.yes && (shown.is_err() || !confirmed(&config.name)?) {
        tell!("chatd recover: nothing was changed");
        return Err(DECLINED);
    }
    let cluster = survivor.found_anew(&arguments.skip_entry).map_err(failed)?;
    let _ = show!("Recovered. The old files are in {}.", config.data_dir.join("aside").display());
    tell_next(config, &cluster);
    Ok(0)
}

fn report_error(command: &str, error: &ServerError) -> u8 {
    tell!("chatd {command}: {error}");
    error.exit_code()
}

fn describe(config: &Config, facts: &SurvivorFacts) -> String {
    let SurvivorFacts { last, committed, applied, .. } = facts;
    let uncertain = match facts.uncertain {
        0 => "No entry after that: all of the log is known to be committed.".to_owned(),
        count => format!(
            "The {count} entries after that may have been acknowledged or not: they will be applied, so that nothing \
             that was acknowledged is lost with them. A change whose outcome was never reported may so be made after \
             all."
        ),
    };
    format!(
        "The node {name} (id {id}) of the cluster {cluster}, in {dir}\n\
         \x20 voters         {voters}\n\
         \x20 log            ends with entry {last} of term {last_term}\n\
         \x20 committed      up to entry {committed} of term {committed_term}, as far as this node knows\n\
         \x20 state          entry {applied}, revision {revision}, of {time}\n\
         {uncertain}\n\
         LOST will be whatever the other nodes have acknowledged after entry {last}: this node has not heard of it.\n\
         It becomes the only member of a new cluster. Nodes of the old one that still run, or come back, cannot join \
         it: stop\n\
         them, and start them with empty data directories.",
        name = config.name,
        id = facts.node_id,
        cluster = facts.cluster_id,
        dir = config.data_dir.display(),
        voters = facts.voters.join(", "),
        last = last.index,
        last_term = last.term,
        committed = committed.index,
        committed_term = committed.term,
        applied = applied.index,
        revision = facts.revision,
        time = time(facts.time_ms),
    )
}

/// Asks the operator to type the node's name, and returns whether it matches.
fn confirmed(name: &str) -> Result<bool, u8> {
    if !io::stdin().is_terminal() {
        tell!("chatd recover: standard input is no terminal, and there is no --yes: nothing was changed");
        return Err(NOBODY_TO_ASK);
    }
    let mut line = String::new();
    // A failure to ask or to read counts as no.
    let asked = write!(io::stderr().lock(), "Type the name of the node ({name}) to go on: ");
    let read = asked.and_then(|()| io::stdin().lock().take(1024).read_line(&mut line));
    Ok(read.is_ok() && line.trim() == name)
}

fn tell_next(config: &Config, cluster: &ClusterFacts) {
    let _ = show!(
        "{} is the only member (id {}) of the new cluster {}. Revisions go on after {}; those from {} on were skipped.",
        config.name,
        cluster.node_id,
        cluster.cluster_id,
        cluster.revision,
        cluster.copied + 1
    );
    let others: Vec<&str> =
        config.initial_nodes.iter().map(|node| node.name.as_str()).filter(|name| *name != config.name).collect();
    let _ = match others.as_slice() {
        [] => show!("Start it now."),
        others => show!(
            "Start it now, and {} with empty data directories and the same CHAT_INITIAL_NODES: they join by \
             themselves.",
            others.join(", ")
        ),
    };
}
