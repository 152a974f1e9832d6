//! The simulation: five nodes and their clients in one process, on simulated network, disks and time, with faults from
//! a seed.
//!
//! The nodes run the server's own code ([`server::run_on`]), down to SQLite. Only the lower layers are
//! replaced: the network by turmoil's (`host`), clocks (`clock`) and randomness (`entropy`) by values from the seed,
//! and flushes of files by ones that take time and may never complete (`worker`, `disk`). `faults` injects faults,
//! `invariants` contains the checks, and `run` combines them. A run uses one thread, so a seed always gives the same
//! run.
//!
//! Each seed runs in its own process, because libraries count and seed things once per process, and a failed assertion
//! of theirs ends it. `docs/simulation.md` describes the usage and the limits.
//!
//! ```sh
//! cargo sim -- --random --seeds 1000   # from a random one on
//! cargo sim -- --seed 17               # one; SIM_LOG=warn shows what is done
//! ```

// The calls of the C library for time, disks and randomness are replaced, which no safe code can do.
#![allow(unsafe_code)]

mod clock;
mod disk;
mod entropy;
mod faults;
mod host;
mod member;
mod people;
mod resets;
mod rng;
mod run;
mod sweep;
mod worker;
mod world;

use std::{path::Path, process::ExitCode};

use terminal::panics;

fn main() -> ExitCode {
    panics::abort_on_panic(|| {});
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match sweep::Task::of(&arguments) {
        Ok(sweep::Task::Nothing) => ExitCode::SUCCESS,
        Ok(sweep::Task::One(seed)) => one(seed),
        Ok(sweep::Task::Sweep(plan)) => sweep::sweep(&plan),
        Ok(sweep::Task::Mutants(plan)) => sweep::mutants(&plan),
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64) -> ExitCode {
    if let Ok(filter) = std::env::var("SIM_LOG") {
        // On another thread, because its hash maps would draw this thread's keys, which the simulation has to draw from
        // the seed.
        let set_up = std::thread::spawn(|| {
            let filter = tracing_subscriber::EnvFilter::new(filter);
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
        });
        set_up.join().expect("logs are set up");
    }
    let verdict = match std::env::var_os(sweep::DISKS) {
        Some(disks) => run::run(seed, Path::new(&disks)),
        None => run::run(seed, run::disks().path()),
    };
    println!("{}", verdict.line());
    for violation in &verdict.violations {
        println!("VIOLATION {violation}");
    }
    if verdict.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
