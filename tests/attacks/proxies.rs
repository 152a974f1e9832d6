//! C14: behind a proxy each caller is counted separately, and callers cannot forge their address.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::web::{Answer, call, exchange};
use support::{Cluster, PASSWORD, PATIENCE};

/// Number of attempts that one address has on an account.
const ATTEMPTS: usize = 10;
/// The address of the TCP proxy.
const PROXY: &str = "127.0.0.3";

async fn behind(settings: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::prepared(1);
    for (key, value) in settings {
        cluster.set_all(key, value);
    }
    cluster.start_all().await;
    cluster.register("alice").await;
    cluster
}

fn login(password: &str) -> Value {
    json!({ "username": "alice", "password": password })
}

async fn guess(web: SocketAddr, forwarded: &str) -> String {
    let header = format!("X-Forwarded-For: {forwarded}");
    let host = format!("Host: {web}");
    call(web, "ChatService/Login", &[&host, &header], login("wrong horse")).await.reason()
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_caller_has_its_own_allowance() {
    let cluster = behind(&[("CHAT_TRUSTED_PROXIES", "127.0.0.1,10.0.0.0/8")]).await;
    let web = cluster[0].web;
    for _ in 0..ATTEMPTS {
        // The part that the caller wrote comes first, and is ignored.
        assert_eq!(guess(web, "203.0.113.5, 192.0.2.7, 10.1.2.3").await, "PASSWORD_WRONG");
    }
    assert_eq!(guess(web, "192.0.2.7").await, "LOGIN_THROTTLED");
    assert_eq!(guess(web, "192.0.2.8").await, "PASSWORD_WRONG");
    // The proxy terminates TLS: cookies are set only for TLS.
    let host = format!("Host: {web}");
    let headers = [host.as_str(), "X-Forwarded-For: 192.0.2.9", "X-Forwarded-Proto: https", "Chat-Session: alice"];
    let answer = call(web, "ChatService/Login", &headers, login(PASSWORD)).await;
    assert!(answer.cookies().iter().any(|cookie| cookie.starts_with("__host-")), "{}", answer.head);
}

#[tokio::test]
async fn nobody_but_a_trusted_proxy_names_the_caller() {
    for settings in [&[][..], &[("CHAT_TRUSTED_PROXIES", "10.0.0.0/8")]] {
        let cluster = behind(settings).await;
        let web = cluster[0].web;
        for number in 0..ATTEMPTS {
            assert_eq!(guess(web, &format!("192.0.2.{number}")).await, "PASSWORD_WRONG");
        }
        assert_eq!(guess(web, "192.0.2.77").await, "LOGIN_THROTTLED");
    }
}

async fn from_the_proxy(web: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{PROXY}:0").parse().unwrap()).unwrap();
    socket.connect(web).await.unwrap()
}

/// Guesses a password through a TCP proxy, for the caller at `from`.
async fn guess_over_tcp(web: SocketAddr, from: &str) -> Answer {
    let mut stream = from_the_proxy(web).await;
    stream.write_all(format!("PROXY TCP4 {from} {PROXY} 4711 {}\r\n", web.port()).as_bytes()).await.unwrap();
    let host = format!("Host: {web}");
    let headers = [host.as_str(), "Content-Type: application/json", "X-Forwarded-For: 203.0.113.5"];
    exchange(stream, "POST /chat.v1.ChatService/Login", &headers, &login("wrong horse").to_string()).await
}

#[tokio::test]
async fn a_proxy_of_tcp_names_the_caller_before_its_first_byte() {
    let cluster = behind(&[("CHAT_TRUSTED_PROXIES", PROXY), ("CHAT_PROXY_PROTOCOL", "1")]).await;
    let web = cluster[0].web;
    for _ in 0..ATTEMPTS {
        assert_eq!(guess_over_tcp(web, "192.0.2.7").await.reason(), "PASSWORD_WRONG");
    }
    assert_eq!(guess_over_tcp(web, "192.0.2.7").await.reason(), "LOGIN_THROTTLED");
    assert_eq!(guess_over_tcp(web, "192.0.2.8").await.reason(), "PASSWORD_WRONG");
    // From the proxy's address, a connection without the header is rejected.
    let mut stream = from_the_proxy(web).await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The connection is closed or reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends");
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    // From other addresses the header is invalid HTTP.
    let mut stream = TcpStream::connect(web).await.unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.9 127.0.0.1 1 2\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends");
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}
