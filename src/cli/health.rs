//! `chatd health`: queries the health of the node on this machine or container, for images without a shell and `curl`.
//!
//! Implements as much HTTP/1.1 as the probes need, with one time limit for the whole exchange. Reads only one key of
//! the configuration, so that a mistake in another key, or a missing secret file, does not make a running node look
//! dead.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use clap::Args;

use super::say::{show, tell};
use crate::config::Config;

/// Time limit for connection and answer together. Shorter than the timeout of any probe, so that the line is printed.
const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum size of an answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;
/// Maximum length of a printed reason.
const REASON_CHARS_MAX: usize = 500;

const WELL: u8 = 0;
const NOT_WELL: u8 = 1;

/// Arguments of `chatd health`.
#[derive(Debug, Args)]
pub struct HealthArguments {
    /// Check whether it is ready for requests (/readyz), and not only alive (/livez).
    #[arg(long)]
    ready: bool,
}

/// Queries the node, and prints one line. Returns the exit code.
pub(super) fn run(arguments: &HealthArguments, environment: Vec<(String, String)>) -> u8 {
    let address = match Config::metrics_listen(environment) {
        Ok(address) => reachable(address),
        Err(mistake) => {
            tell!("chatd health: {mistake}");
            return NOT_WELL;
        }
    };
    let (path, well) = if arguments.ready { ("/readyz", "ready") } else { ("/livez", "alive") };
    match ask(address, path, PATIENCE) {
        Ok(answer) if answer.status == 200 => {
            // The exit code is the answer, even if the line cannot be printed.
            let _ = show!("{well}");
            WELL
        }
        Ok(Answer { status, body }) => {
            tell!("not {well}: {}", if body.is_empty() { format!("status {status}") } else { body });
            NOT_WELL
        }
        Err(error) => {
            tell!("not {well}: CHAT_METRICS_LISTEN {address}: {error}");
            NOT_WELL
        }
    }
}

/// Returns the address under which this machine reaches a listener on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        // `[::]` listens on both protocols, and most containers lack the loopback address of IPv6.
        ip if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

struct Answer {
    status: u16,
    /// The body, in one line.
    body: String,
}

fn ask(address: SocketAddr, path: &str, patience: Duration) -> io::Result<Answer> {
    let deadline = Instant::now() + patience;
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", patience.as_millis()));
    let left = || Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero());
    let mut stream = match TcpStream::connect_timeout(&address, patience) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(late()),
        connected => connected?,
    };
    stream.set_write_timeout(Some(left().ok_or_else(late)?))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    // Read in parts: each read may take at most the time that is left.
    while (answer.len() as u64) < ANSWER_BYTES_MAX {
        stream.set_read_timeout(Some(left().ok_or_else(late)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(late());
            }
            Err(error) => return Err(error),
        }
    }
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> io::Result<Answer> {
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "what answers there is no node");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(strange)?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|status| status.parse().ok());
    let body = body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_CHARS_MAX).collect();
    Ok(Answer { status: status.ok_or_else(strange)?, body })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::sync::watch;

    use super::*;
    use crate::{
        net::gate::Gate,
        web::{self, Readiness},
    };

    fn key(address: SocketAddr) -> Vec<(String, String)> {
        vec![("CHAT_METRICS_LISTEN".to_owned(), address.to_string())]
    }

    fn asked(ready: bool, address: SocketAddr) -> u8 {
        run(&HealthArguments { ready }, key(address))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_is_not_ready_is_alive() {
        let (set, readiness) = watch::channel(Readiness::NotReady("no leader\nfor 3 s".into()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = web::metrics_router("text/plain", String::new, readiness);
        tokio::spawn(web::serve(listener, Gate::uncounted(8), router, Default::default(), std::future::pending()));
        let both = || tokio::task::block_in_place(|| (asked(false, address), asked(true, address)));
        assert_eq!(both(), (WELL, NOT_WELL));
        let answer = tokio::task::block_in_place(|| ask(address, "/readyz", PATIENCE)).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "no leader for 3 s"), "in one line");
        set.send_replace(Readiness::Ready);
        assert_eq!(both(), (WELL, WELL));
    }

    #[test]
    fn nobody_there_and_somebody_who_does_not_answer_are_not_well() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let began = Instant::now();
        let error = ask(address, "/livez", Duration::from_millis(200)).err().expect("nobody answers");
        assert!(error.to_string().contains("no answer within 200 ms"), "{error}");
        assert!(began.elapsed() >= Duration::from_millis(200));
        drop(listener);
        assert_eq!(asked(false, address), NOT_WELL);
    }

    #[test]
    fn an_answer_that_comes_in_drops_does_not_prolong_the_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let dripping = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let error = ask(address, "/livez", Duration::from_millis(200)).err().expect("it never ends");
        assert!(error.to_string().contains("no answer within 200 ms"), "{error}");
        dripping.join().unwrap();
    }

    #[test]
    fn what_is_no_answer_of_a_node_is_told_from_one() {
        assert_eq!(parse("HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\nstopping").unwrap().status, 503);
        for other in ["", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 2\r\n\r\n", "HTTP/1.1 \u{e9}\u{e9}\r\n\r\n"] {
            assert!(parse(other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn an_address_for_everybody_is_asked_at_home() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(reached("[::]:9464"), "127.0.0.1:9464");
        assert_eq!(reached("10.1.2.3:1"), "10.1.2.3:1");
        // The other keys are not read; this one has to be valid.
        let environment = |listen: &str| vec![("CHAT_METRICS_LISTEN".to_owned(), listen.to_owned())];
        assert_eq!(Config::metrics_listen(vec![("CHAT_NAME".to_owned(), "!".to_owned())]).unwrap().port(), 9464);
        for wrong in ["9464", "127.0.0.1:0"] {
            assert_eq!(run(&HealthArguments { ready: false }, environment(wrong)), NOT_WELL);
        }
    }
}
