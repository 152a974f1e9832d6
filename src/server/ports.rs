//! Listening on a port, and what holds one that is taken.
//!
//! An outgoing connection may have the port, for as long as it lasts: the default ports are among those that Linux gives to
//! them. The process before may not be quite gone. So a start waits a little for its ports. Does not cover: what is done on
//! them.

use std::{io, net::SocketAddr, time::Duration};

use procfs::{
    net::TcpNetEntry,
    process::{FDTarget, all_processes},
};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};

use crate::blocking;

/// How long a start waits for a port that is taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens on `address`, and waits up to five seconds for one that is in use.
///
/// # Errors
/// What the system says; of an address in use, also who has it.
pub(super) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let deadline = Instant::now() + PATIENCE;
    let mut has_waited = false;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let is_over = Instant::now() >= deadline;
                // All processes are looked through for it.
                if is_over || !has_waited {
                    let holder = blocking::io(move || Ok(holder(address))).await?;
                    let holder = holder.unwrap_or_else(|| "a process that this one may not see".to_owned());
                    if is_over {
                        return Err(io::Error::new(error.kind(), format!("{error}: {holder} has it")));
                    }
                    tracing::warn!(%address, "The address is in use: {holder} has it; trying again for some seconds");
                    has_waited = true;
                }
                sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

/// Who has the port of `address`, as far as this process may know.
fn holder(address: SocketAddr) -> Option<String> {
    let entries = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let holding = entries.filter(|entry| entry.inode != 0 && overlaps(entry.local_address, address));
    // Most often there is one; a listener forbids another one even where its connections would not.
    let entry = holding.min_by_key(|entry| entry.state != procfs::net::TcpState::Listen)?;
    let process = owner(&entry)?;
    Some(match entry.state {
        procfs::net::TcpState::Listen => process,
        _ => format!("a connection of {process} to {}", entry.remote_address),
    })
}

fn overlaps(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// The process that has a socket open.
fn owner(entry: &TcpNetEntry) -> Option<String> {
    // Processes of others cannot be looked into, and some end meanwhile.
    all_processes().ok()?.flatten().find_map(|process| {
        let mut open = process.fd().ok()?.flatten();
        open.any(|file| matches!(file.target, FDTarget::Socket(inode) if inode == entry.inode)).then_some(())?;
        let name = process.stat().map_or_else(|_| "a process".to_owned(), |stat| stat.comm);
        Some(format!("{name} (pid {})", process.pid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn taken() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_stays_taken_is_told_with_its_holder() {
        let (_held, address) = taken().await;
        let began = Instant::now();
        let error = listen(address).await.unwrap_err();
        assert!(began.elapsed() >= PATIENCE);
        let text = error.to_string();
        assert!(text.contains(&format!("(pid {}) has it", std::process::id())), "{text}");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let everywhere = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert!(holder(everywhere).is_some() && holder(SocketAddr::from(([127, 0, 0, 2], address.port()))).is_none());
    }

    #[tokio::test]
    async fn a_connection_that_has_the_port_is_waited_for_and_named() {
        let (server, address) = taken().await;
        let outgoing = std::net::TcpStream::connect(address).unwrap();
        let port = outgoing.local_addr().unwrap();
        assert!(holder(port).unwrap().starts_with("a connection of "), "{:?}", holder(port));
        let listening = tokio::spawn(listen(port));
        let (accepted, _) = server.accept().await.unwrap();
        // Closed by the other side first, so that nothing lingers on this port.
        drop(accepted);
        drop(outgoing);
        listening.await.unwrap().unwrap();
    }
}
