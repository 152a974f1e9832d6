//! Connects to the address of a name that answers first, as in RFC 8305 ("Happy Eyeballs").
//!
//! The addresses are tried in the order of the resolver (RFC 6724), alternating between the two families. An attempt
//! begins when the previous one has failed or is [`DELAY`] old. Attempts run concurrently, so a silent or distant
//! address does not delay the others. After the last address, the name is resolved and tried again, so that a host that
//! restarts or moves to another address is found while older attempts are still pending. The caller bounds the time,
//! and [`ATTEMPTS_MAX`] the number of attempts.
//!
//! Does not cover: the health of the host. Calls detect a host that accepts connections and does not answer.

use std::{collections::VecDeque, future::pending, io, net::SocketAddr, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::network::{ByteStream, Network};

/// Delay between the starts of two attempts, as RFC 8305 recommends (section 5).
const DELAY: Duration = Duration::from_millis(250);
/// Delay after the last address until the name is resolved again.
const AGAIN: Duration = Duration::from_millis(500);
/// Most attempts that are pending at one time.
const ATTEMPTS_MAX: usize = 8;

/// The first connection that was established.
pub(super) struct Won {
    pub(super) stream: ByteStream,
    /// Duration of its own attempt, which is one round trip unless a packet was lost.
    pub(super) took: Duration,
}

/// Connects to `address` (`host:port`) until `deadline`.
///
/// # Errors
/// The error of the last address if all refused, or that of the resolver if the name has no address. `TimedOut` if some
/// addresses were silent until the deadline.
pub(super) async fn connect(network: &dyn Network, address: &str, deadline: Instant) -> io::Result<Won> {
    let mut lookup: Option<BoxFuture<'_, _>> = Some(network.resolve(address));
    let mut waiting: VecDeque<SocketAddr> = VecDeque::new();
    let mut attempts = FuturesUnordered::new();
    let mut next = Instant::now();
    let mut refusal = None;
    loop {
        if attempts.is_empty() || (Instant::now() >= next && attempts.len() < ATTEMPTS_MAX) {
            if let Some(to) = waiting.pop_front() {
                let began = Instant::now();
                attempts.push(network.connect(to).map(move |result| (result, began)));
                next = began + if waiting.is_empty() { AGAIN } else { DELAY };
            } else if lookup.is_none() {
                if attempts.is_empty() {
                    return Err(
                        refusal.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
                    );
                }
                lookup = Some(network.resolve(address));
            }
        }
        tokio::select! {
            biased;
            Some((result, began)) = attempts.next() => match result {
                Ok(stream) => return Ok(Won { stream, took: began.elapsed() }),
                Err(error) => {
                    refusal = Some(error);
                    next = next.min(if waiting.is_empty() { next } else { Instant::now() });
                }
            },
            found = async { match &mut lookup { Some(lookup) => lookup.await, None => pending().await } } => {
                lookup = None;
                next = Instant::now();
                match found {
                    Ok(found) => waiting = in_turn(found),
                    Err(error) => refusal = Some(error),
                }
                if waiting.is_empty() {
                    next += AGAIN;
                }
            }
            () = sleep_until(next), if lookup.is_none() && attempts.len() < ATTEMPTS_MAX => {}
            () = sleep_until(deadline) => return Err(refusal.unwrap_or_else(|| silence(address))),
        }
    }
}

fn silence(address: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{address} did not take the connection in time"))
}

/// The same addresses, alternating between the two families, beginning with that of the first address (RFC 8305,
/// section 4).
fn in_turn(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let preferred = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == preferred);
    let mut second = second.into_iter();
    let mut all = VecDeque::new();
    for address in first {
        all.push_back(address);
        all.extend(second.next());
    }
    all.extend(second);
    all
}
