//! The simulation: five nodes and their clients in one process, on simulated network, disks and time, with faults from a seed.
//!
//! The nodes are the server's own code ([`quorum_chat::server::run_on`]), down to SQLite; only what is below is replaced: the
//! network by turmoil's (`host`), clocks (`clock`) and randomness (`entropy`) by what the seed says, flushes of files by ones
//! that take time and may never come (`worker`, `disk`). `faults` breaks things, `invariants` says what has to hold all the
//! same, `run` puts it together. Everything of a run happens on one thread, so a seed always gives the same run.
//!
//! Each seed runs in a process of its own: libraries count and seed things once for the life of a process, and an assertion of
//! theirs ends it. `docs/simulation.md` tells how to use it, and what it does not reach.
//!
//! ```sh
//! cargo test --profile sim --test sim -- --random --seeds 1000   # from a random one on
//! cargo test --profile sim --test sim -- --seed 17               # one; SIM_LOG=warn tells what is done
//! ```

mod sim {
    pub mod clock;
    pub mod dice;
    pub mod disk;
    pub mod entropy;
    pub mod faults;
    pub mod host;
    pub mod invariants;
    pub mod member;
    pub mod people;
    pub mod run;
    pub mod sweep;
    #[path = "../support/wal.rs"]
    pub mod wal;
    pub mod worker;
    pub mod world;
}

use std::{path::Path, process::ExitCode};

use quorum_chat::cli::panics;
use sim::{run, sweep};

fn main() -> ExitCode {
    panics::abort_on_panic();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match sweep::Task::of(&arguments) {
        Ok(sweep::Task::Nothing) => ExitCode::SUCCESS,
        Ok(sweep::Task::One(seed)) => one(seed),
        Ok(sweep::Task::Sweep(plan)) => sweep::sweep(&plan),
        Ok(sweep::Task::Teeth(plan)) => sweep::teeth(&plan),
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64) -> ExitCode {
    if let Ok(filter) = std::env::var("SIM_LOG") {
        // On another thread: the hash maps in it would draw this thread's keys, which the simulation is to draw from the seed.
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
