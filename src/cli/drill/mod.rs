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

use std::{future, time::Duration};

use serde_json::json;
use tokio::{sync::oneshot, time::Instant};

use super::{
    ctl::{Context, Failure, ask},
    ctl_args::DrillArgs,
    verify,
};
use crate::client::{
    Client, Options,
    random::Random,
    verify::{
        checker,
        workload::{self, Plan},
    },
};
use backend::Backend;
use steps::{Drill, Step};

/// Time limit for the load, which normally ends when the last fault is repaired.
const LOAD_MAX: Duration = Duration::from_secs(1800);

pub(super) async fn run(context: &mut Context, args: DrillArgs) -> Result<(), Failure> {
    let (nodes, options) = context.cluster()?;
    let cluster = Client::connect(nodes.clone(), patient(&options)).await?;
    let names: Vec<String> = cluster.nodes().await?.nodes.into_iter().map(|node| node.name).collect();
    let backend = Backend::open(&args.by, &names).await?;
    if !args.yes && backend.acts_alone() {
        let question = format!(
            "This kills and restarts {} {}, as long as the cluster can bear it, for some minutes. Go on? (yes/no) ",
            names.join(", "),
            backend.how()
        );
        if ask(&question)?.trim() != "yes" {
            return Err(Failure::Usage("nothing was done".to_owned()));
        }
    }
    let seed = args.seed.unwrap_or_else(|| Random::new().next() >> 11);
    let plan = Plan { clients: args.clients, duration: LOAD_MAX, seed };
    let (finish, finished) = oneshot::channel::<()>();
    let mut drill = Drill::new(cluster, backend, args.hold, seed);
    let faults = async {
        let result = drill.play().await;
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
    let timeline = timeline::Timeline::new(&history, drill.steps(), load_began);
    context.output.print(
        || json!({ "verdict": verify::value(&history, &report), "timeline": timeline.value() }),
        || format!("\n{}\n\n{}", timeline.text(), verify::text(&history, &report)),
    )?;
    result?;
    verify::judged(&report)
}

/// Returns options with a longer deadline: status calls during a fault may take longer than a user would wait.
fn patient(options: &Options) -> Options {
    Options { deadline: options.deadline.max(Duration::from_secs(10)), ..options.clone() }
}

/// Completes when the user interrupts the drill.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        future::pending().await
    }
}
