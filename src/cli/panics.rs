//! What a panic does: it ends the process.
//!
//! A panic is a bug, and after it nobody knows what still holds. Tokio would keep a task's panic to itself, and the node would
//! go on as a half of one: members that see it alive, and no task that answers. Ended, it is started again from its disk.
//!
//! Nor may whoever reads the report keep it alive: it is given two seconds.
//!
//! A release has `panic = "abort"` and needs no hook for that. Tests unwind: with another kind of panic for the programs than
//! for the tests, cargo compiles everything twice.

use std::{panic, process, thread, time::Duration};

use crate::telemetry::logs;

/// For the last lines of the log and the report.
const REPORT_MAX: Duration = Duration::from_secs(2);

/// Makes a panic on whatever thread end the process with `SIGABRT`, once it has been reported.
pub fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        // Without threads, the report has to be enough.
        let _ = thread::Builder::new().spawn(|| {
            thread::sleep(REPORT_MAX);
            process::abort();
        });
        logs::finish();
        report(panic);
        process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    const INSIDE: &str = "QUORUM_CHAT_TEST_PANICS";

    /// In a process of its own: this test's program again, with this test only.
    #[test]
    fn a_panic_that_nobody_waits_for_ends_the_process() {
        if env::var_os(INSIDE).is_some() {
            abort_on_panic();
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
