//! The loop of `chatctl bench`, against other systems: for a comparison in one run on one machine.
//!
//! Each client is a connection of its own to the leader with one write in flight: a put to a key of its own (etcd), or
//! a message that a stream stores and acknowledges (NATS JetStream). Prints one line of JSON. See
//! `docs/performance.md`.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use clap::{Parser, ValueEnum};
use net::Dialer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
};
use verify::connection::Connection;

/// Time for a connection to come about.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures acknowledged writes per second of another system.
#[derive(Parser)]
struct Arguments {
    /// The system.
    #[arg(value_enum)]
    system: System,
    /// The leader's client address, host:port.
    #[arg(long)]
    endpoint: String,
    /// Connections, each with one write in flight.
    #[arg(long, default_value_t = 256)]
    clients: usize,
    /// Seconds that are measured, after one second of warm-up.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Bytes of each value.
    #[arg(long, default_value_t = 128)]
    body_bytes: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum System {
    Etcd,
    /// The subjects `bench.*` have to belong to a stream.
    Nats,
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

/// One client's connection.
enum Client {
    Etcd(Connection),
    Nats(Nats),
}

impl Client {
    async fn connect(arguments: &Arguments, number: usize) -> Self {
        match arguments.system {
            System::Etcd => {
                let connection = Connection::connect(&arguments.endpoint, &Dialer::default(), PATIENCE).await;
                Self::Etcd(connection.expect("etcd answers"))
            }
            System::Nats => Self::Nats(Nats::connect(&arguments.endpoint, number).await),
        }
    }

    /// Writes a value, and waits for the acknowledgement.
    async fn write(&mut self, number: usize, count: u64, value: &[u8]) -> Result<(), String> {
        match self {
            Self::Etcd(connection) => {
                let request =
                    PutRequest { key: format!("bench/{number}/{count}").into_bytes(), value: value.to_owned() };
                let answer = connection.call("/etcdserverpb.KV/Put", None, &request).await;
                answer.map(|PutResponse {}| ()).map_err(|status| status.to_string())
            }
            Self::Nats(nats) => nats.publish(value).await,
        }
    }
}

/// A connection that speaks the protocol of NATS clients: lines, and messages with their length.
struct Nats {
    stream: TcpStream,
    /// What was received and not yet looked at.
    received: BytesMut,
    /// The line that begins each message.
    head: String,
    request: Vec<u8>,
}

impl Nats {
    async fn connect(endpoint: &str, number: usize) -> Self {
        let stream = TcpStream::connect(endpoint).await.expect("NATS answers");
        stream.set_nodelay(true).expect("an open socket");
        let inbox = format!("_INBOX.bench.{}.{number}", std::process::id());
        let head = format!("PUB bench.{number} {inbox}");
        let mut nats = Self { stream, received: BytesMut::new(), head, request: Vec::new() };
        assert!(nats.line().await.starts_with("INFO "), "NATS greets");
        let options = r#"{"verbose":false,"pedantic":false,"headers":false,"name":"bench"}"#;
        let hello = format!("CONNECT {options}\r\nSUB {inbox} 1\r\n");
        nats.stream.write_all(hello.as_bytes()).await.expect("NATS reads");
        nats
    }

    async fn publish(&mut self, value: &[u8]) -> Result<(), String> {
        self.request.clear();
        self.request.extend_from_slice(format!("{} {}\r\n", self.head, value.len()).as_bytes());
        self.request.extend_from_slice(value);
        self.request.extend_from_slice(b"\r\n");
        self.stream.write_all(&self.request).await.map_err(|error| error.to_string())?;
        loop {
            let line = self.line().await;
            if line == "PING" {
                self.stream.write_all(b"PONG\r\n").await.map_err(|error| error.to_string())?;
            } else if line.starts_with("MSG ") {
                // MSG subject subscription length
                let length = line.rsplit(' ').next().and_then(|word| word.parse().ok());
                let answer = self.take(length.ok_or("a message has a length")?).await;
                let stored = answer.contains("\"stream\"") && !answer.contains("\"error\"");
                return if stored { Ok(()) } else { Err(answer) };
            } else if line.starts_with("-ERR") {
                return Err(line);
            }
        }
    }

    /// The next line, without its end.
    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.received.split_to(end)).into_owned();
                self.received.advance(2);
                return line;
            }
            self.receive().await;
        }
    }

    /// The next `length` bytes, without the end of line behind them.
    async fn take(&mut self, length: usize) -> String {
        while self.received.len() < length + 2 {
            self.receive().await;
        }
        let text = String::from_utf8_lossy(&self.received.split_to(length)).into_owned();
        self.received.advance(2);
        text
    }

    async fn receive(&mut self) {
        let count = self.stream.read_buf(&mut self.received).await.expect("NATS is there");
        assert!(count > 0, "NATS closed the connection");
    }
}

#[derive(Default)]
struct Results {
    micros: Vec<u64>,
    errors: u64,
    last_error: String,
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
            let mut client = Client::connect(&arguments, number).await;
            let value = vec![b'x'; arguments.body_bytes];
            let mut count = 0_u64;
            while Instant::now() < until {
                let began = Instant::now();
                count += 1;
                let result = client.write(number, count, &value).await;
                let ended = Instant::now();
                if ended >= counting_from && ended < until {
                    let mut results = results.borrow_mut();
                    match result {
                        Ok(()) => results.micros.push(ended.duration_since(began).as_micros() as u64),
                        Err(error) => {
                            results.errors += 1;
                            results.last_error = error;
                        }
                    }
                }
            }
        });
    }
    clients.await;
    let mut results = results.borrow_mut();
    results.micros.sort_unstable();
    if results.errors > 0 {
        eprintln!("{} errors, the last one: {}", results.errors, results.last_error);
    }
    let percentile = |part: usize| {
        let last = results.micros.len().saturating_sub(1);
        results.micros.get(last * part / 1000).copied().unwrap_or(0)
    };
    let rate = results.micros.len() as f64 / arguments.seconds as f64;
    println!(
        "{}",
        serde_json::json!({ "writes_per_second": rate, "p50_us": percentile(500), "p99_us": percentile(990),
            "max_us": percentile(1000), "errors": results.errors, "clients": arguments.clients,
            "body_bytes": arguments.body_bytes })
    );
}
