//! Simulated time, in place of the machine's.
//!
//! Every clock that the process reads, including Rust's `Instant` and `SystemTime`, goes through `clock_gettime`. The
//! function here returns the simulated time of the calling host, and for the wall clock adds that host's error. tokio's
//! paused clocks start from it and turmoil advances them, so that both always agree.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use tokio::runtime::{Handle, Id};

/// Wall clock at the start of a run: arbitrary, but always the same.
const EPOCH_S: i64 = 1_800_000_000;
/// Monotonic clock at the start of a run.
const BASE_S: i64 = 1_000_000;

thread_local! {
    /// Set while a simulation runs on this thread.
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    /// Time outside of hosts: how far the simulation has been driven.
    static DRIVER: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static ASKING: Cell<bool> = const { Cell::new(false) };
    /// The host of each runtime, and the error of each host's wall clock.
    static HOSTS: RefCell<Vec<(Id, usize)>> = const { RefCell::new(Vec::new()) };
    static ERRORS_MS: RefCell<Vec<i64>> = const { RefCell::new(Vec::new()) };
}

/// Starts simulated time on this thread, with this number of hosts.
pub fn start(hosts: usize) {
    ERRORS_MS.with_borrow_mut(|errors| errors.resize(hosts, 0));
    ASKING.set(true);
    // `simulated` below answers with the base. All other times are relative to it.
    START.set(Some(Instant::now()));
    // Again: the answer is simulated only now that the start is set.
    START.set(Some(Instant::now()));
    ASKING.set(false);
}

/// Sets the time that the simulation has reached.
pub fn advance(to: Duration) {
    DRIVER.set(to);
}

/// Assigns the calling runtime to this host.
pub fn enter(host: usize) {
    let id = Handle::current().id();
    HOSTS.with_borrow_mut(|hosts| {
        hosts.retain(|(_, of)| *of != host);
        hosts.push((id, host));
    });
}

/// Sets the error of a host's wall clock.
pub fn set_error(host: usize, ms: i64) {
    ERRORS_MS.with_borrow_mut(|errors| errors[host] = ms);
}

fn now() -> Duration {
    if ASKING.replace(true) {
        return DRIVER.get();
    }
    let now = match (START.get(), Handle::try_current()) {
        (Some(start), Ok(_)) => tokio::time::Instant::now().into_std().saturating_duration_since(start),
        _ => DRIVER.get(),
    };
    ASKING.set(false);
    now
}

fn error_ms() -> i64 {
    let Ok(handle) = Handle::try_current() else { return 0 };
    let id = handle.id();
    let host = HOSTS.with_borrow(|hosts| hosts.iter().find(|(of, _)| *of == id).map(|(_, host)| *host));
    host.map_or(0, |host| ERRORS_MS.with_borrow(|errors| errors[host]))
}

/// Reads a clock.
///
/// # Safety
/// As for the function of the C library: `out` must be writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, out: *mut libc::timespec) -> libc::c_int {
    let simulated = START.try_with(Cell::get).ok().flatten().is_some();
    let (base_s, error_ms) = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE if simulated => (EPOCH_S, error_ms()),
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_BOOTTIME if simulated => (BASE_S, 0),
        // SAFETY: the arguments are passed on unchanged.
        _ => return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, out) as libc::c_int },
    };
    let ns = now().as_nanos() as i64 + error_ms * 1_000_000;
    // SAFETY: the caller guarantees that `out` is writable.
    unsafe {
        *out = libc::timespec { tv_sec: base_s + ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) };
    }
    0
}
