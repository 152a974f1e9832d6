//! Foreign pages in the browsers of people who use the cluster: they reach a node under their own host name, call it
//! from another origin, or plant a cookie.

use std::{fs, net::SocketAddr, path::Path, process::Command, sync::Arc};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use support::{Cluster, PASSWORD, PATIENCE};

/// An answer of the web port.
pub(super) struct Answer {
    pub(super) status: u16,
    /// In lower case.
    pub(super) head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}\n{}", self.head, self.body))
    }

    pub(super) fn reason(&self) -> String {
        self.json()["details"][0]["debug"]["reason"].as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn cookies(&self) -> Vec<&str> {
        self.head.lines().filter_map(|line| line.strip_prefix("set-cookie: ")).collect()
    }
}

/// Sends a request unchanged. `headers` contains one line for each.
async fn send(web: SocketAddr, request: &str, headers: &[&str], body: &str) -> Answer {
    exchange(TcpStream::connect(web).await.unwrap(), request, headers, body).await
}

pub(super) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
    headers: &[&str],
    body: &str,
) -> Answer {
    let mut lines = vec![format!("{request} HTTP/1.1"), "Connection: close".into()];
    lines.extend(headers.iter().map(|line| (*line).to_owned()));
    lines.push(format!("Content-Length: {}", body.len()));
    let text = format!("{}\r\n\r\n{body}", lines.join("\r\n"));
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

pub(super) async fn call(web: SocketAddr, method: &str, headers: &[&str], message: Value) -> Answer {
    let request = format!("POST /chat.v1.{method}");
    let headers = [&["Content-Type: application/json"], headers].concat();
    send(web, &request, &headers, &message.to_string()).await
}

/// A cluster of one node with the additional name `chat.example.org`.
async fn one_node() -> Cluster {
    let mut cluster = Cluster::prepared(1);
    cluster.set_all("CHAT_WEB_HOSTS", "chat.example.org,*.lan.example");
    cluster.start_all().await;
    cluster
}

/// 19. A page whose DNS name points at a node (DNS rebinding) is same-origin with it for the browser.
#[tokio::test]
async fn a_rebound_name_reaches_neither_page_nor_calls() {
    let cluster = one_node().await;
    let web = cluster[0].web;
    for evil in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "192.0.2.1", "lan.example", ""] {
        let host = format!("Host: {evil}");
        for path in ["/", "/status", "/assets/0123456789abcdef/boot.js"] {
            let answer = send(web, &format!("GET {path}"), &[&host], "").await;
            assert_eq!(answer.status, 421, "{evil} {path}: {}", answer.body);
            assert!(answer.body.contains("CHAT_WEB_HOSTS") && answer.body.contains(evil), "{}", answer.body);
        }
        let origin = format!("Origin: http://{evil}");
        let account = json!({ "username": "mallory", "password": PASSWORD });
        for headers in [&[host.as_str(), &origin][..], &[&host]] {
            let answer = call(web, "ChatService/CreateAccount", headers, account.clone()).await;
            assert_eq!((answer.status, answer.reason().as_str()), (421, "HOST_NOT_ALLOWED"), "{evil}");
        }
    }
    // A name in the request's address, which proxies and HTTP/2 send, cannot hide behind a valid one.
    let answer = send(web, "GET http://evil.example/", &[&format!("Host: {web}")], "").await;
    assert_eq!(answer.status, 421);
    // The cluster's own names still work: its address, a forwarded port, the names of the list.
    let hosts =
        [web.to_string(), "localhost:9999".into(), "[::1]:1".into(), "chat.example.org".into(), "a.lan.example".into()];
    for host in hosts {
        assert_eq!(send(web, "GET /", &[&format!("Host: {host}")], "").await.status, 200, "{host}");
        // The rejected calls above had no effect: there is no such account.
        let login = json!({ "username": "mallory", "password": PASSWORD });
        let answer = call(web, "ChatService/Login", &[&format!("Host: {host}")], login).await;
        assert_eq!(answer.status, 404, "{}", answer.body);
    }
    // A probe by address, from a load balancer without a name.
    assert_eq!(send(web, "GET /livez", &["Host: 192.0.2.1"], "").await.status, 200);
}

/// 19. A page of another origin calls a node: the call does not run, whether or not the page could read the answer.
#[tokio::test]
async fn foreign_origins_run_nothing() {
    let cluster = one_node().await;
    let web = cluster[0].web;
    let host = format!("Host: {web}");
    let account = json!({ "username": "mallory", "password": PASSWORD });
    let foreign = ["http://evil.example", "http://localhost:3000", "https://chat.example.org:3000", "null"];
    for origin in foreign.map(|origin| format!("Origin: {origin}")) {
        let answer = call(web, "ChatService/CreateAccount", &[&host, &origin], account.clone()).await;
        assert_eq!((answer.status, answer.reason().as_str()), (403, "ORIGIN_NOT_ALLOWED"), "{origin}");
        let preflight = [host.as_str(), &origin, "Access-Control-Request-Method: POST"];
        let answer = send(web, "OPTIONS /chat.v1.ChatService/CreateAccount", &preflight, "").await;
        assert_eq!(answer.status, 403, "{origin}");
        assert!(!answer.head.contains("access-control-allow-origin"), "{}", answer.head);
        let answer = send(web, "DELETE /session", &[&host, &origin, "Chat-Session: alice"], "").await;
        assert_eq!((answer.status, answer.cookies().len()), (403, 0), "{origin}");
    }
    let answer = call(web, "ChatService/CreateAccount", &[&host, "Sec-Fetch-Site: cross-site"], account.clone()).await;
    assert_eq!((answer.status, answer.reason().as_str()), (403, "ORIGIN_NOT_ALLOWED"));
    // None of the calls ran, so the name is free. The cluster's own pages, and programs other than browsers, still
    // work.
    let origins = [format!("Origin: http://{web}"), "Origin: https://chat.example.org".into(), "X-None: 1".into()];
    for (number, origin) in origins.iter().enumerate() {
        let account = json!({ "username": format!("mallory{number}"), "password": PASSWORD });
        let answer = call(web, "ChatService/CreateAccount", &[&host, origin], account).await;
        assert_eq!(answer.status, 200, "{origin}: {}", answer.body);
    }
    let login = call(web, "ChatService/Login", &[&host], account).await;
    assert_eq!(login.status, 404, "{}", login.body);
}

/// 20. A sibling domain plants a cookie with the attacker's session under the victim's name (session fixation).
#[tokio::test]
async fn a_planted_cookie_acts_for_nobody() {
    let cluster = one_node().await;
    let web = cluster[0].web;
    let host = format!("Host: {web}");
    let mut tokens = Vec::new();
    for name in ["alice", "mallory"] {
        let who = json!({ "username": name, "password": PASSWORD });
        assert_eq!(call(web, "ChatService/CreateAccount", &[&host], who.clone()).await.status, 200);
        let login = call(web, "ChatService/Login", &[&host], who).await.json();
        tokens.push(login["token"].as_str().unwrap().to_owned());
    }
    let [alices, mallorys] = &tokens[..] else { panic!() };
    let message = |number: u8| {
        let id = format!("0190163d-8694-739b-aea5-0000000000{number:02}");
        json!({ "recipient": "mallory", "body": "secret", "clientMessageId": id })
    };
    let planted = format!("Cookie: chat_session.alice={mallorys}");
    let bearer = format!("Authorization: Bearer {mallorys}");
    for (with, what) in [(&planted, "a cookie"), (&bearer, "a token")] {
        for (method, message) in
            [("SendMessage", message(1)), ("ListChatPartners", json!({})), ("Subscribe", json!({}))]
        {
            let method = format!("ChatService/{method}");
            let answer = call(web, &method, &[&host, with, "Chat-Session: alice"], message).await;
            assert_eq!((answer.status, answer.reason().as_str()), (401, "SESSION_MISMATCH"), "{what}: {method}");
            let removed = answer.cookies();
            assert!(removed.len() == 1 && removed[0].starts_with("chat_session.alice=;"), "{removed:?}");
        }
    }
    // It does not lock Alice out: her own cookie is sent too.
    let both = format!("{planted}; chat_session.alice={alices}");
    let sent = call(web, "ChatService/SendMessage", &[&host, &both, "Chat-Session: alice"], message(2)).await;
    assert_eq!((sent.status, sent.cookies().len()), (200, 0), "{}", sent.body);
    let partner = json!({ "partner": "alice" });
    let page = call(web, "ChatService/ReadConversation", &[&host, &bearer], partner).await.json();
    let senders: Vec<_> = page["messages"].as_array().unwrap().iter().map(|message| &message["sender"]).collect();
    assert_eq!(senders, ["alice"], "one message, and hers");
    // A login to another account does not replace the cookie of this one.
    let login = json!({ "username": "mallory", "password": PASSWORD });
    let answer = call(web, "ChatService/Login", &[&host, "Chat-Session: alice"], login).await;
    assert_eq!((answer.status, answer.cookies().len()), (400, 0), "{}", answer.body);
}

/// Certificates for a node at `localhost`, created by `chatctl`, and a connection that trusts them.
async fn over_tls(web: SocketAddr, certificates: &Path) -> impl AsyncRead + AsyncWrite + Unpin {
    use tokio_rustls::{TlsConnector, rustls};
    let mut roots = rustls::RootCertStore::empty();
    let pem = fs::read(certificates.join("ca.pem")).unwrap();
    for certificate in rustls::pki_types::pem::PemObject::pem_slice_iter(&pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let stream = TcpStream::connect(web).await.unwrap();
    TlsConnector::from(config).connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

/// 20. Over TLS, no sibling domain and no page without TLS can set the cookie, and browsers stay with TLS.
#[tokio::test]
async fn over_tls_cookies_are_of_this_host_alone() {
    let dir = TempDir::new().unwrap();
    let made = Command::new(support::chatctl()).arg("certs").arg(dir.path()).arg("n1").output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut cluster = Cluster::prepared(1);
    cluster.set_all("CHAT_WEB_HOSTS", "chat.example.org");
    cluster.set_all("CHAT_TLS_CERT", dir.path().join("n1.pem").to_str().unwrap());
    cluster.set_all("CHAT_TLS_KEY", dir.path().join("n1.key").to_str().unwrap());
    cluster.start_all().await;
    let web = cluster[0].web;
    let post = async |method: &str, headers: &[&str], message: Value| {
        let headers = [&["Host: chat.example.org", "Content-Type: application/json"], headers].concat();
        let request = format!("POST /chat.v1.ChatService/{method}");
        exchange(over_tls(web, dir.path()).await, &request, &headers, &message.to_string()).await
    };
    let who = json!({ "username": "alice", "password": PASSWORD });
    assert_eq!(post("CreateAccount", &[], who.clone()).await.status, 200);
    let login = post("Login", &["Chat-Session: alice"], who).await;
    let cookies = login.cookies();
    assert!(cookies[0].starts_with("__host-chat_session.alice="), "{cookies:?}");
    for part in ["; path=/;", "; secure", "; httponly", "; samesite=strict"] {
        assert!(cookies[0].contains(part) && !cookies[0].contains("domain"), "{part} in {}", cookies[0]);
    }
    assert!(cookies[1].starts_with("chat_session.alice=; path=/chat.v1.chatservice/; max-age=0"), "{cookies:?}");
    assert!(login.head.contains("strict-transport-security: max-age=2592000\r\n"), "{}", login.head);
    let token = cookies[0].split(['=', ';']).nth(1).unwrap().to_owned();
    // The earlier cookie counts until it ends. A cookie planted under its name comes second, and has no effect.
    for cookie in [
        format!("Cookie: __Host-chat_session.alice={token}"),
        format!("Cookie: chat_session.alice={token}"),
        format!("Cookie: chat_session.alice=planted; __Host-chat_session.alice={token}"),
    ] {
        let answer = post("ListChatPartners", &["Chat-Session: alice", &cookie], json!({})).await;
        assert_eq!(answer.status, 200, "{cookie}: {}", answer.body);
    }
    let near = exchange(over_tls(web, dir.path()).await, "GET /", &["Host: localhost"], "").await;
    assert!(near.status == 200 && !near.head.contains("strict-transport-security"), "{}", near.head);
}

/// F. A stranger learns how to follow the leader, and nothing that helps to attack the nodes behind it.
#[tokio::test]
async fn strangers_learn_how_to_follow_the_leader_and_no_more() {
    let cluster = one_node().await;
    let (web, peer) = (cluster[0].web, cluster[0].peer.to_string());
    let (_, token) = cluster.register("alice").await;
    let host = format!("Host: {web}");
    let bearer = format!("Authorization: Bearer {token}");
    for method in ["ListNodes", "GetLeader"] {
        let method = format!("ClusterService/{method}");
        for with in ["X-None: 1", "Authorization: Bearer 00", &format!("Authorization: Bearer {}", "0".repeat(64))] {
            let answer = call(web, &method, &[&host, with], json!({})).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            for private in [peer.as_str(), "clusterId", "digest", "compared"] {
                assert!(!answer.body.contains(private), "{private} in {}", answer.body);
            }
            for needed in ["\"n1\"", &cluster[0].grpc.to_string(), &web.to_string(), "LEADER"] {
                assert!(answer.body.contains(needed), "{needed} in {}", answer.body);
            }
        }
        let answer = call(web, &method, &[&host, &bearer], json!({})).await;
        assert!(answer.body.contains(&peer), "{}", answer.body);
    }
    let listed = call(web, "ClusterService/ListNodes", &[&host, &bearer], json!({})).await.json();
    assert!(
        listed["clusterId"].is_string() && listed["digest"].is_string() && listed["restricted"].is_null(),
        "{listed}"
    );
    let listed = call(web, "ClusterService/ListNodes", &[&host], json!({})).await.json();
    assert_eq!(
        (&listed["restricted"], listed["nodes"][0]["healthy"].as_bool()),
        (&json!(true), Some(true)),
        "{listed}"
    );
    // The status page is public: it contains none of this either.
    let page = send(web, "GET /status", &[&host], "").await;
    assert!(page.status == 200 && !page.body.contains(&peer), "{}", page.body);
    // The operator needs no session.
    let socket = cluster[0].data_dir().join("admin.sock");
    let mut status = Command::new(support::chatctl());
    let status = status.args(["status", "--output", "json", "--socket"]).arg(socket).output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["restricted"], &status["nodes"][0]["peer_address"]), (&json!(false), &json!(peer)), "{status}");
}

/// F. With `CHAT_REFLECTION=0` the protocol is not disclosed.
#[tokio::test]
async fn reflection_can_be_switched_off() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    let mut cluster = Cluster::prepared(1);
    for (setting, shown) in [("0", false), ("1", true)] {
        cluster.set_all("CHAT_REFLECTION", setting);
        cluster.start_all().await;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", cluster[0].grpc)).unwrap();
        let mut client = ServerReflectionClient::new(endpoint.connect().await.unwrap());
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answer = client.server_reflection_info(futures_util::stream::iter([ask])).await;
        let code = answer.map(|_| ()).map_err(|status| status.code());
        assert_eq!(code, if shown { Ok(()) } else { Err(tonic::Code::Unimplemented) });
        cluster[0].kill();
    }
}

/// 19. The gRPC port serves no pages: no HTTP/1.1, no gRPC-Web, and cookies are ignored.
#[tokio::test]
async fn the_grpc_port_serves_no_page() {
    let cluster = one_node().await;
    let grpc = cluster[0].grpc;
    let (_, token) = cluster.register("alice").await;
    for kind in ["application/grpc-web+proto", "application/grpc", "application/json"] {
        let mut stream = TcpStream::connect(grpc).await.unwrap();
        let request = format!(
            "POST /chat.v1.ChatService/ListChatPartners HTTP/1.1\r\nHost: {grpc}\r\nContent-Type: {kind}\r\n\
             Cookie: chat_session.alice={token}\r\nChat-Session: alice\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The connection is closed or reset.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{kind}: {answer:?}");
    }
    // The same over HTTP/2: a cookie is not accepted as a token.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{grpc}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut request = tonic::Request::new(proto::chat::v1::ListChatPartnersRequest::default());
    request.metadata_mut().insert("cookie", format!("chat_session.alice={token}").parse().unwrap());
    request.metadata_mut().insert("chat-session", "alice".parse().unwrap());
    let mut client = proto::chat::v1::chat_service_client::ChatServiceClient::new(channel);
    let status = client.list_chat_partners(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
}
