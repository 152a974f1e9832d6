//! `chatd health`: queries the health of the node on this machine or container, for images without a shell and `curl`.
//!
//! Reads only one key of the configuration, so that a mistake in another key, or a missing secret file, does not make a
//! running node look dead.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use tokio::runtime::Builder;

use super::http;
use server::config::Config;
use terminal::{show, tell};

/// Time limit for connection and answer together. Shorter than the timeout of any probe, so that the line is printed.
const TIMEOUT: Duration = Duration::from_secs(3);

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
    let runtime = Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(http::get(address, path, TIMEOUT))) {
        Ok(answer) if answer.status.is_success() => {
            // The exit code is the answer, even if the line cannot be printed.
            let _ = show!("{well}");
            WELL
        }
        Ok(answer) => {
            tell!("not {well}: {}", answer.reason());
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::sync::watch;

    use super::*;
    use net::gate::Gate;
    use server::web::{self, Readiness};

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
        let answer = http::get(address, "/readyz", TIMEOUT).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (503, "no leader for 3 s"), "in one line");
        set.send_replace(Readiness::Ready);
        assert_eq!(both(), (WELL, WELL));
    }

    #[test]
    fn nobody_there_is_not_well() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(asked(false, address), NOT_WELL);
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
