//! The loop of `chatctl bench`, against etcd: for a comparison in one run on one machine.
//!
//! Each client is a connection of its own to the leader, with one put in flight, each to a key of its own. Prints the
//! same JSON as `chatctl bench --output json`. See `docs/performance.md`.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use clap::Parser;
use net::Dialer;
use tokio::task::LocalSet;
use verify::unary::Connection;

/// Measures acknowledged puts per second of an etcd cluster.
#[derive(Parser)]
struct Arguments {
    /// The leader's client address, host:port.
    #[arg(long)]
    endpoint: String,
    /// Connections, each with one put in flight.
    #[arg(long, default_value_t = 256)]
    clients: usize,
    /// Seconds that are measured, after one second of warm-up.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 128)]
    body_bytes: usize,
}

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`; its content does not matter here.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Default)]
struct Results {
    micros: Vec<u64>,
    errors: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments = Rc::new(Arguments::parse());
    let results = Rc::new(RefCell::new(Results::default()));
    let counting_from = Instant::now() + Duration::from_secs(1);
    let until = counting_from + Duration::from_secs(arguments.seconds);
    let clients = LocalSet::new();
    for number in 0..arguments.clients {
        let (arguments, results) = (Rc::clone(&arguments), Rc::clone(&results));
        clients.spawn_local(async move {
            let mut connection = Connection::connect(&arguments.endpoint, &Dialer::default(), Duration::from_secs(10))
                .await
                .expect("etcd answers");
            let mut key = 0_u64;
            while Instant::now() < until {
                let began = Instant::now();
                key += 1;
                let request = PutRequest {
                    key: format!("bench/{number}/{key}").into_bytes(),
                    value: vec![b'x'; arguments.body_bytes],
                };
                let result = connection.call("/etcdserverpb.KV/Put", None, &request).await;
                let ended = Instant::now();
                if ended >= counting_from && ended < until {
                    let mut results = results.borrow_mut();
                    match result {
                        Ok(PutResponse {}) => results.micros.push(ended.duration_since(began).as_micros() as u64),
                        Err(_) => results.errors += 1,
                    }
                }
            }
        });
    }
    clients.await;
    let mut results = results.borrow_mut();
    results.micros.sort_unstable();
    let percentile = |part: usize| {
        let last = results.micros.len().saturating_sub(1);
        results.micros.get(last * part / 1000).copied().unwrap_or(0)
    };
    let rate = results.micros.len() as f64 / arguments.seconds as f64;
    println!(
        "{}",
        serde_json::json!({ "puts_per_second": rate, "p50_us": percentile(500), "p99_us": percentile(990),
            "max_us": percentile(1000), "errors": results.errors, "clients": arguments.clients,
            "body_bytes": arguments.body_bytes })
    );
}
