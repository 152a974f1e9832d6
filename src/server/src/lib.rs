//! A node: the services for clients and operators, delivery, configuration, telemetry, and the stages of its life.
//!
//! [`run`] builds the parts of a node, starts them, and drains them in order (`life`). `files` are the node's files,
//! `serving` its ports, `incoming` and `protection` decide who may connect, and `observe` turns what the parts report
//! into metrics and readiness. A [`Host`] is the machine below, which a simulation replaces. [`offline`] is for
//! operators of a node that does not run.
//!
//! Of the parts, [`api`] answers calls, [`delivery`] hands events to subscribers, and [`web`] serves browsers and
//! probes. [`config`] and [`telemetry`] are handed in as values.

pub mod api;
pub mod config;
pub mod delivery;
mod error;
mod files;
mod host;
mod incoming;
mod life;
mod observe;
pub mod offline;
mod ports;
mod protection;
mod scrub;
mod serving;
pub mod telemetry;
pub mod web;

use std::sync::Arc;

use crate::{config::Config, telemetry::logs};
use host::{Machine, listen_for_signals};
use storage::Threads;
use trace::Tracer;

pub use error::ServerError;
pub use host::{Host, LocalPorts};
pub use ports::{WAIT_MAX as PORT_WAIT_MAX, wait_until_free};

/// Runs a node until SIGTERM, SIGINT or SIGHUP, or until it fails. `tracer` records the processing of messages.
///
/// # Errors
/// See [`ServerError`].
pub async fn run(config: Config, tracer: Tracer) -> Result<(), ServerError> {
    let stop = listen_for_signals()?;
    let mut asked = stop.clone();
    tokio::spawn(async move {
        if asked.wait_for(|asked| *asked).await.is_ok() {
            logs::stopping();
        }
    });
    run_on(Machine { stop, background: Arc::new(Threads), tracer }, config).await
}

/// Runs a node on a host until a stop is requested or the node fails.
///
/// # Errors
/// See [`ServerError`].
pub async fn run_on<H: Host>(host: H, config: Config) -> Result<(), ServerError> {
    let dir = config.data_dir.clone();
    let files_max = incoming::files()?;
    life::live(host, config, files_max).await.map_err(|error| error.or_full(&dir))
}
