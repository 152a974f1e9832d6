//! Takes new certificates into use when the files have changed.
//!
//! The files are read again every few seconds: that works for files that are replaced, written in place, or swapped through
//! a link as Kubernetes does it, and on every file system. Certificate and key are two files, so for a moment they may not fit
//! together: what does not is only complained about when it is still so at the next look.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::Tls;
use crate::blocking;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// Reloads `tls` whenever its files change, for as long as it is polled. `what` names it in the log.
pub async fn follow(tls: Arc<Tls>, what: &'static str) {
    // What was wrong at the last look, and whether that was said.
    let mut wrong: Option<(String, bool)> = None;
    loop {
        sleep(LOOK).await;
        let looked = Arc::clone(&tls);
        // Not run: the process ends.
        let Ok(outcome) = blocking::run(move || looked.reload()).await else { return };
        wrong = match (outcome, wrong) {
            (Ok(true), _) => {
                tracing::info!("The certificate of {what} was replaced");
                None
            }
            (Ok(false), _) => None,
            (Err(error), Some((before, told))) if before == error.to_string() => {
                if !told {
                    tracing::error!(%error, "The certificate of {what} cannot be replaced: the one before stays in use");
                }
                Some((before, true))
            }
            (Err(error), _) => Some((error.to_string(), false)),
        };
    }
}
