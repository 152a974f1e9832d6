//! Binds ports, and identifies the process that holds an occupied port.
//!
//! An outgoing connection may occupy the port while it lasts, because the default ports are in Linux's ephemeral range.
//! The previous process may still be ending. So a start waits briefly for its ports. `[::]` stands for every address of
//! the machine, IPv4 and IPv6.
//!
//! Does not cover: the protocols on the ports.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use procfs::{
    net::TcpNetEntry,
    process::{FDTarget, all_processes},
};
use rustix::{io::Errno, net::sockopt::set_ipv6_v6only};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::{Instant, sleep},
};

use trace::blocking;

/// Longest wait of a start for an occupied port.
pub const WAIT_MAX: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that the operating system completes before they are accepted.
const BACKLOG: u32 = 1024;

/// Listens on `address`, and waits up to five seconds for one that is in use.
///
/// # Errors
/// The error of the operating system. For an occupied address, it names the holder.
pub(super) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let deadline = Instant::now() + WAIT_MAX;
    let mut has_waited = false;
    loop {
        match open(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let is_over = Instant::now() >= deadline;
                // This searches all processes.
                if is_over || !has_waited {
                    let holder = blocking::io(move || Ok(holder_or_another(address))).await?;
                    if is_over {
                        return Err(held(&error, &holder));
                    }
                    tracing::warn!(%address, "The address is in use by {holder}; retrying for some seconds");
                    has_waited = true;
                }
                sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

/// Waits until `address` is free, at most until `until`. Blocks the thread.
///
/// # Errors
/// The error of the operating system. For an occupied address, it names the process that holds it.
pub fn wait_until_free(address: SocketAddr, until: std::time::Instant) -> io::Result<()> {
    loop {
        match std::net::TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if std::time::Instant::now() >= until {
                    return Err(held(&error, &holder_or_another(address)));
                }
                std::thread::sleep(PAUSE);
            }
            other => return other.map(drop),
        }
    }
}

fn held(error: &io::Error, holder: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{error}: {holder} has it"))
}

fn holder_or_another(address: SocketAddr) -> String {
    holder(address).unwrap_or_else(|| "a process that this one may not see".to_owned())
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    match open_exactly(address) {
        Err(error) => match instead(address, &error) {
            Some(instead) => open_exactly(instead),
            None => Err(error),
        },
        listener => listener,
    }
}

fn open_exactly(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if address.is_ipv6() {
        // Overrides net.ipv6.bindv6only.
        set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The wildcard IPv4 address, if the wildcard address was requested and the system has no IPv6.
fn instead(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let has_none = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(Errno::raw_os_error);
    let is_for_want_of_it = error.raw_os_error().is_some_and(|code| has_none.contains(&code));
    let is_any = address.is_ipv6() && address.ip().is_unspecified();
    (is_any && is_for_want_of_it).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

/// The holder of the port of `address`, if this process may see it.
fn holder(address: SocketAddr) -> Option<String> {
    let entries = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let holding = entries.filter(|entry| entry.inode != 0 && overlaps(entry.local_address, address));
    // Usually there is only one. A listener takes precedence, as it prevents another one even where its connections
    // would not.
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
    // Processes of other users are not readable, and some end during the search.
    all_processes().ok()?.flatten().find_map(|process| {
        let mut open = process.fd().ok()?.flatten();
        open.any(|file| matches!(file.target, FDTarget::Socket(inode) if inode == entry.inode)).then_some(())?;
        let name = process.stat().map_or_else(|_| "a process".to_owned(), |stat| stat.comm);
        Some(format!("{name} (pid {})", process.pid))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::net::TcpStream;

    use super::*;

    async fn taken() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_protocols() {
        let mut listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let _connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let (_, from) = net::Listener::accept(&mut listener).await.unwrap();
        assert_eq!(from.ip(), Ipv4Addr::LOCALHOST, "as it calls itself");
        // Some machines have no IPv6.
        if let Ok(connection) = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await {
            let (_, from) = net::Listener::accept(&mut listener).await.unwrap();
            assert_eq!(from, connection.local_addr().unwrap());
        }
    }

    #[test]
    fn without_ipv6_all_addresses_are_those_of_ipv4() {
        let (any, none) = ("[::]:7".parse().unwrap(), io::Error::from(Errno::AFNOSUPPORT));
        assert_eq!(instead(any, &none), Some("0.0.0.0:7".parse().unwrap()));
        assert_eq!(instead(any, &io::Error::from(Errno::ADDRINUSE)), None);
        assert_eq!(instead("[::1]:7".parse().unwrap(), &none), None, "one address is that one or none");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_stays_taken_is_told_with_its_holder() {
        let (_held, address) = taken().await;
        let began = Instant::now();
        let error = listen(address).await.unwrap_err();
        assert!(began.elapsed() >= WAIT_MAX);
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
        // The other side closes first, so that no connection stays in TIME_WAIT on this port.
        drop(accepted);
        drop(outgoing);
        listening.await.unwrap().unwrap();
    }
}
