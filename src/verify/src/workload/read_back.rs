//! The final phase: reads every conversation of every account from one node, from its newest message to its first.

use tokio::time::{Instant, sleep};

use super::{Shared, calls::Route};
use crate::history::{Action, Freshness, Outcome};

/// Maximum size of a page.
const PAGE: u32 = 200;
/// Pause before a page is requested again.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Reads everything back from a node with linearizable reads. Gives up when the node does not answer for the time limit
/// of the final phase.
pub(super) async fn read_back(shared: &Shared, client: u32, node: u16) {
    let people = shared.people.len() as u16;
    for account in 0..people {
        for with in 0..people {
            if !conversation(shared, client, node, account, with).await {
                return;
            }
        }
    }
}

async fn conversation(shared: &Shared, client: u32, node: u16, account: u16, with: u16) -> bool {
    let me = &shared.people[usize::from(account)];
    let name = &shared.people[usize::from(with)].name;
    let freshness = Freshness::Linearizable;
    let mut before = 0;
    loop {
        let give_up = Instant::now() + shared.read_timeout;
        let (began, outcome) = loop {
            let began = shared.now_us();
            let outcome = shared.read(Route::Node(node), me, name, (before, PAGE), freshness).await;
            if matches!(outcome, Outcome::Ok(_)) || Instant::now() >= give_up {
                break (began, outcome);
            }
            sleep(PAUSE).await;
        };
        let next = outcome.ok().map(|page| (page.has_more, page.messages.last().map_or(0, |oldest| oldest.seq)));
        let action = Action::Read { with, before, limit: PAGE, freshness, last: true, outcome };
        shared.record(client, account, Some(node), began, action);
        match next {
            None => return false,
            Some((false, _)) => return true,
            // Otherwise a page that has more and shows nothing older would be requested forever.
            Some((true, oldest)) if oldest == 0 || (before > 0 && oldest >= before) => return false,
            Some((true, oldest)) => before = oldest,
        }
    }
}
