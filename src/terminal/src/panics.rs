//! A panic ends the process.
//!
//! A panic is a bug, after which no invariant can be relied on. Tokio would contain the panic of a task, and the node
//! would continue in part: members see it alive, but a task is missing. The process ends instead, and restarts from its
//! disk.
//!
//! A reader of the report cannot keep the process alive: the report has a time limit of two seconds.
//!
//! Release builds have `panic = "abort"`, which ends the process without this hook. Tests unwind, and a different panic
//! strategy for the programs would make cargo compile everything twice.

use std::{panic, process, thread, time::Duration};

/// Time limit for the last lines of the log and the report.
const REPORT_MAX: Duration = Duration::from_secs(2);

/// Makes a panic on any thread end the process with `SIGABRT`, after `finish` has written the last lines of the log and
/// the panic has been reported.
pub fn abort_on_panic(finish: fn()) {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        // If no thread can be started, the report has no time limit.
        let _ = thread::Builder::new().spawn(|| {
            thread::sleep(REPORT_MAX);
            process::abort();
        });
        finish();
        report(panic);
        process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    const INSIDE: &str = "QUORUM_CHAT_TEST_PANICS";

    /// Runs this test alone in a process of its own.
    #[test]
    fn a_panic_that_nobody_waits_for_ends_the_process() {
        if env::var_os(INSIDE).is_some() {
            abort_on_panic(|| {});
            let _ = thread::spawn(|| panic!("as planned")).join();
            process::exit(0);
        }
        let name = concat!(module_path!(), "::a_panic_that_nobody_waits_for_ends_the_process");
        let (_, name) = name.split_once("::").unwrap();
        let mut itself = Command::new(env::current_exe().unwrap());
        let ended = itself.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").output().unwrap();
        assert_eq!(ended.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{ended:?}");
        assert!(String::from_utf8_lossy(&ended.stderr).contains("as planned"), "{ended:?}");
    }
}
