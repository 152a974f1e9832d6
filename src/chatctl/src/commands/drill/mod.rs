//! `chatctl drill`: injects faults into the user's own cluster, and reports how clients were affected.
//!
//! The workload of `verify` runs while one fault follows another: a node is killed, the leader is killed, two are
//! killed at once, the leader is suspended, all are restarted one by one. `backend` injects the faults, or instructs
//! the user to. `steps` defines the order, and waits for the cluster to recover after each fault. `timeline` reports
//! the effects.
//!
//! Invariants: no fault exceeds what the cluster tolerates (the cluster reports how many nodes may fail). Every fault
//! is repaired before the end, also after an error and after an interrupt by the user.

mod backend;
mod steps;
mod timeline;

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    args::{random_seed, seconds},
    commands::verdict::{report_json, report_text, verdict},
    context::{Context, connect_to},
    failure::Failure,
    prompt::ask,
};
use ::verify::{
    checker,
    workload::{self, Plan},
};
use backend::{Backend, Control};
use client::Options;
use steps::Drill;
use timeline::Timeline;

/// Time limit for the load, which normally ends when the last fault is repaired.
const LOAD_MAX: Duration = Duration::from_secs(1800);
/// Minimum timeout of status calls, which may take longer during a fault than a user would wait.
const STATUS_TIMEOUT_MIN: Duration = Duration::from_secs(10);

/// Inject faults, one after the other and never more than the cluster tolerates, while the workload of `verify`
/// runs; then print the verdict and what clients experienced. Takes some minutes; Ctrl-C repairs the current fault
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    control: Control,
    /// Clients, each with one call in flight
    #[arg(long, global = true, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    clients: u32,
    /// Duration of each fault
    #[arg(long, global = true, value_name = "S", default_value = "5", value_parser = seconds)]
    hold: Duration,
    /// Seed of the random choices [default: a random one, which is printed]
    #[arg(long, global = true, value_name = "X")]
    seed: Option<u64>,
    /// Skip the confirmation
    #[arg(long, global = true)]
    yes: bool,
}

pub(super) async fn run(context: &mut Context, arguments: Arguments) -> Result<(), Failure> {
    let (nodes, options) = context.cluster()?;
    let status_options = Options { deadline: options.deadline.max(STATUS_TIMEOUT_MIN), ..options.clone() };
    let cluster = connect_to(nodes.clone(), status_options).await?;
    let names: Vec<String> = cluster.nodes().await?.nodes.into_iter().map(|node| node.name).collect();
    let backend = Backend::open(&arguments.control, &names).await?;
    if !arguments.yes && backend.is_automatic() {
        confirm(&backend, &names)?;
    }
    let seed = arguments.seed.unwrap_or_else(random_seed);
    let plan = Plan { clients: arguments.clients, duration: LOAD_MAX, seed };
    let (finish, finished) = oneshot::channel::<()>();
    let mut drill = Drill::new(cluster, backend, arguments.hold, seed);
    let faults = async {
        let result = drill.run().await;
        let ended = Instant::now();
        drop(finish);
        (result, ended)
    };
    let load = workload::run_until(nodes, options, plan, async {
        // The faults are also over when the sender was dropped.
        let _ = finished.await;
    });
    let (history, (result, ended)) = tokio::join!(load, faults);
    let history = history?;
    let report = checker::check(&history);
    let load_began = ended.checked_sub(Duration::from_micros(history.header.load_ended_us)).unwrap_or(ended);
    let timeline = Timeline::new(&history, drill.steps(), load_began);
    context.output.print(
        || json!({ "verdict": report_json(&history, &report), "timeline": timeline.json() }),
        || format!("\n{}\n\n{}", timeline.text(), report_text(&history, &report)),
    )?;
    result?;
    verdict(&report)
}

fn confirm(backend: &Backend, names: &[String]) -> Result<(), Failure> {
    let question = format!(
        "This kills and restarts {} {}, as long as the cluster can bear it, for some minutes. Go on? (yes/no) ",
        names.join(", "),
        backend.description()
    );
    if ask(&question)?.trim() != "yes" {
        return Err(Failure::Usage("nothing was done".to_owned()));
    }
    Ok(())
}
