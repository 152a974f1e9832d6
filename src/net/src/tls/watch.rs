//! Takes new certificates into use when the files have changed.
//!
//! The files are read again every few seconds. That works on every file system, and for files that are replaced,
//! written in place, or swapped through a symbolic link as Kubernetes does. Certificate and key are two files, so they
//! may not match for a moment. So an error is logged only if the next check finds it again.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::Tls;
use trace::blocking;

/// Interval between two checks.
const LOOK: Duration = Duration::from_secs(2);

/// Reloads `tls` whenever its files change, for as long as the future is polled. `what` names it in the log.
pub async fn follow(tls: Arc<Tls>, what: &'static str) {
    // The error of the last check, and whether it was logged.
    let mut wrong: Option<(String, bool)> = None;
    loop {
        sleep(LOOK).await;
        let looked = Arc::clone(&tls);
        // Fails only when the process is stopping.
        let Ok(outcome) = blocking::run(move || looked.reload()).await else { return };
        wrong = match (outcome, wrong) {
            (Ok(true), _) => {
                tracing::info!("Reloaded the certificate of {what}");
                None
            }
            (Ok(false), _) => None,
            (Err(error), Some((before, logged))) if before == error.to_string() => {
                if !logged {
                    tracing::error!(
                        %error,
                        "The certificate of {what} could not be reloaded; the previous one stays in use"
                    );
                }
                Some((before, true))
            }
            (Err(error), _) => Some((error.to_string(), false)),
        };
    }
}
