//! `chatctl drill`: breaks the user's own cluster on purpose, and tells whether anybody would have noticed.
//!
//! The workload of `verify` runs while one fault follows the other: a node is killed, the leader is killed, two at once, the leader
//! stands still, all are restarted one after the other. `backend` does it, or tells the user what to do; `steps` is the order, and
//! waits until the cluster is whole again before it goes on; `timeline` tells what came of it.
//!
//! Invariants: nothing is broken that the cluster cannot bear (it says itself how many nodes may fail); what was broken is mended
//! before the end, also after an error and when the user interrupts.

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

/// The load ends when the last fault is mended, and never after this.
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
        // Dropped, it is over as well.
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

/// The drill asks how the cluster is while it is broken: that may take longer than a call that somebody waits for.
fn patient(options: &Options) -> Options {
    Options { deadline: options.deadline.max(Duration::from_secs(10)), ..options.clone() }
}

/// Completes when the user wants it to end.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        future::pending().await
    }
}
