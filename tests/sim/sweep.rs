//! Many seeds, each in its own process, a few at a time; and the check that they find seeded bugs.

use std::{
    process::{Command, ExitCode, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use super::run;

/// Number of seeds of a plain `cargo test`.
const SEEDS: u64 = 6;
/// Maximum number of concurrent runs. The default is the number of cores.
const JOBS_MAX: usize = 64;
/// Real time after which a run counts as hung, because no simulated time passes any more.
const RUN_SECONDS_MAX: u64 = 300;

/// Seeds that found a bug last, of those that take more than a few. They are tried first, which saves minutes. A change
/// of the code changes all runs, and then the bug is searched for again from the first seed on.
const FOUND_BY: [(&str, u64); 5] = [
    (failpoints::MOVES_NOT_HEARD, 6),
    (failpoints::PAGES_NOT_VERIFIED, 7),
    (failpoints::STATE_NOT_SCRUBBED, 7),
    (failpoints::MALFORMED_NOT_IN_DIGEST, 51),
    (failpoints::END_NOT_NOTED, 154),
];

/// The environment variable with the directory for a run's disks.
pub const DISKS: &str = "SIM_DISKS";

/// The task that the arguments request.
pub enum Task {
    /// Nothing, because another test was requested.
    Nothing,
    /// One seed, in this process.
    One(u64),
    Sweep(Plan),
    /// Check that each seeded bug is found.
    Mutants(Plan),
}

pub struct Plan {
    first: u64,
    seeds: u64,
    jobs: usize,
    /// Check only this seeded bug.
    bug: Option<String>,
}

impl Plan {
    fn seeds(&self) -> std::ops::Range<u64> {
        self.first..self.first.saturating_add(self.seeds)
    }
}

impl Task {
    pub fn of(arguments: &[String]) -> Result<Self, String> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut plan = Plan { first: 1, seeds: SEEDS, jobs: cores.min(JOBS_MAX), bug: None };
        let (mut one, mut mutants, mut other) = (None, false, false);
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut number = || {
                let value = rest.next().ok_or(format!("{argument} needs a number"))?;
                value.parse::<u64>().map_err(|error| format!("{argument} {value}: {error}"))
            };
            match argument.as_str() {
                "--seed" => one = Some(number()?),
                "--first" => plan.first = number()?,
                "--seeds" => plan.seeds = number()?,
                "--random" => plan.first = random(),
                "--jobs" => plan.jobs = usize::try_from(number()?).unwrap_or(JOBS_MAX).clamp(1, JOBS_MAX),
                "--mutants" => mutants = true,
                "--bug" => plan.bug = Some(rest.next().ok_or("--bug needs a name")?.clone()),
                // Arguments that `cargo test` passes to all tests: a test's name, or options of the usual harness.
                name if !name.starts_with('-') => other = !"sim".contains(name),
                _ => {}
            }
        }
        Ok(match one {
            _ if other => Self::Nothing,
            Some(seed) => Self::One(seed),
            None if mutants => Self::Mutants(plan),
            None => Self::Sweep(plan),
        })
    }
}

/// A random first seed, short enough to type.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0) % 1_000_000
}

/// Runs the seeds; all of them have to pass.
pub fn sweep(plan: &Plan) -> ExitCode {
    println!("simulating {} seeds from {} on, {} at a time", plan.seeds, plan.first, plan.jobs);
    let started = Instant::now();
    let failed = AtomicU64::new(0);
    each_seed(plan.seeds(), plan.jobs, None, |seed, output| {
        let text = String::from_utf8_lossy(&output.stdout);
        println!("seed {seed}: {}", text.lines().next().unwrap_or("no verdict"));
        if !output.status.success() {
            failed.fetch_add(1, Ordering::Relaxed);
            report(seed, output);
        }
        true
    });
    let failed = failed.into_inner();
    println!("simulated for {} s", started.elapsed().as_secs());
    println!("{} passed, {failed} failed", plan.seeds - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the seeds with each seeded bug until one of them finds it.
pub fn mutants(plan: &Plan) -> ExitCode {
    let bugs = failpoints::NAMES;
    if bugs.is_empty() {
        eprintln!("this build has no failpoints: use `cargo sim`");
        return ExitCode::from(2);
    }
    let (mut found, mut missed) = (0, 0);
    for bug in bugs.iter().filter(|bug| plan.bug.as_deref().is_none_or(|only| only == **bug)) {
        let (started, tried, first) = (Instant::now(), AtomicU64::new(0), Mutex::new(None));
        let known = FOUND_BY.iter().filter(|(name, _)| name == bug).map(|(_, seed)| *seed);
        each_seed(known.chain(plan.seeds()), plan.jobs, Some(bug), |seed, output| {
            tried.fetch_add(1, Ordering::Relaxed);
            // A seed that fails without the bug proves nothing.
            if output.status.success() || !start(seed, None).status.success() {
                return true;
            }
            let mut first = first.lock().expect("not poisoned");
            first.get_or_insert_with(|| (seed, cause(output)));
            false
        });
        let seconds = started.elapsed().as_secs();
        match first.into_inner().expect("not poisoned") {
            Some((seed, cause)) => {
                found += 1;
                println!("{bug}: found by seed {seed}, {} runs, {seconds} s: {cause}", tried.into_inner());
            }
            None => {
                missed += 1;
                println!("{bug}: NOT FOUND by {} seeds from {} on, {seconds} s", plan.seeds, plan.first);
            }
        }
    }
    println!("{found} passed, {missed} failed");
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs each seed, some at a time, until `goes_on` returns false.
fn each_seed(
    seeds: impl Iterator<Item = u64> + Send,
    jobs: usize,
    bug: Option<&str>,
    goes_on: impl Fn(u64, &Output) -> bool + Sync,
) {
    let (seeds, enough) = (Mutex::new(seeds), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let next = seeds.lock().expect("not poisoned").next();
                    let Some(seed) = next else { return };
                    if !goes_on(seed, &start(seed, bug)) {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn start(seed: u64, bug: Option<&str>) -> Output {
    let program = std::env::current_exe().expect("this program has a path");
    // `timeout`, which every Linux has, ends a hung run and makes it fail.
    let mut command = Command::new("timeout");
    command.arg(RUN_SECONDS_MAX.to_string()).arg(program).args(["--seed", &seed.to_string()]);
    let disks = run::disks();
    command.stdin(Stdio::null()).env(DISKS, disks.path());
    if let Some(bug) = bug {
        command.env(failpoints::VARIABLE, bug);
    }
    command.output().expect("a process can be started")
}

/// Summarizes the cause of a failure in one line.
fn cause(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(violation) = text.lines().find_map(|line| line.strip_prefix("VIOLATION ")) {
        return violation.chars().take(160).collect();
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let panic = errors.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    panic.map_or_else(
        || output.status.to_string(),
        |line| format!("panic: {}", line.chars().take(150).collect::<String>()),
    )
}

fn report(seed: u64, output: &Output) {
    const LINES: usize = 40;
    println!("seed {seed} FAILED ({}):", output.status);
    for stream in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(stream);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].iter().for_each(|line| println!("  {line}"));
    }
    println!("  again: SIM_LOG=warn cargo sim -- --seed {seed}");
}
