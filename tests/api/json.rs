//! The calls as JSON over HTTP, compared with the same calls over gRPC.

use std::net::SocketAddr;

use proto::chat::{v1 as pb, v1::chat_service_client::ChatServiceClient};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::node::{Node, soon};

/// An answer: status, headers (lower case) and body.
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    body: BufReader<TcpStream>,
}

impl Answer {
    fn is_chunked(&self) -> bool {
        self.head.contains("transfer-encoding: chunked")
    }

    /// The next chunk of a chunked body; `None` at its end.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        self.body.read_line(&mut size).await.unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.body.read_exact(&mut chunk).await.unwrap();
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    /// The next line of a stream.
    async fn line(&mut self) -> Option<Value> {
        assert!(self.is_chunked(), "{}", self.head);
        let chunk = soon("a line of the stream", self.chunk()).await?;
        let text = String::from_utf8(chunk).unwrap();
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
        Some(serde_json::from_str(&text).unwrap())
    }

    pub async fn json(mut self) -> (u16, Value) {
        assert!(!self.is_chunked());
        let mut text = String::new();
        self.body.read_to_string(&mut text).await.unwrap();
        assert!(self.head.contains("content-type: application/json\r\n"), "{}", self.head);
        assert!(self.head.contains("cache-control: no-store\r\n"), "{}", self.head);
        (self.status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}")))
    }
}

/// A caller with a browser, or with curl.
pub struct Caller {
    web: SocketAddr,
    token: String,
    /// Additional headers, each with its line end.
    pub headers: String,
}

impl Caller {
    pub fn new(node: &Node) -> Self {
        Self { web: node.web, token: String::new(), headers: String::new() }
    }

    async fn post(&self, path: &str, kind: &str, body: &[u8]) -> Answer {
        self.request("POST", path, &format!("Content-Type: {kind}\r\n"), body).await
    }

    pub async fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.web).await.unwrap();
        let token =
            if self.token.is_empty() { String::new() } else { format!("Authorization: Bearer {}\r\n", self.token) };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}{}{token}Content-Length: {}\r\n\r\n",
            self.web,
            self.headers,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The node may reject a request before it has read it to its end.
        let _ = stream.write_all(body).await;
        let mut body = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(soon("the head of an answer", body.read_line(&mut head)).await.unwrap() > 0, "{head}");
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body }
    }

    pub async fn open(&self, method: &str, message: Value) -> Answer {
        self.post(&format!("/chat.v1.{method}"), "application/json", message.to_string().as_bytes()).await
    }

    pub async fn call(&self, method: &str, message: Value) -> (u16, Value) {
        self.open(method, message).await.json().await
    }

    pub async fn good(&self, method: &str, message: Value) -> Value {
        let (status, answer) = self.call(&format!("ChatService/{method}"), message).await;
        assert_eq!(status, 200, "{method}: {answer}");
        answer
    }

    async fn join(node: &Node, name: &str) -> Self {
        let mut caller = Self::new(node);
        let who = json!({ "username": name, "password": "correct horse" });
        caller.good("CreateAccount", who.clone()).await;
        caller.token = caller.good("Login", who).await["token"].as_str().unwrap().to_owned();
        caller
    }
}

pub fn reason(answer: &Value) -> &str {
    answer["details"][0]["debug"]["reason"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

fn id() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[tokio::test]
async fn a_conversation_goes_over_http() {
    let node = Node::start().await;
    let (alice, bob) = (Caller::join(&node, "alice").await, Caller::join(&node, "bob").await);
    let mut events = bob.open("ChatService/Subscribe", json!({})).await;
    assert!(events.head.contains("content-type: application/x-ndjson\r\n"), "{}", events.head);
    assert!(events.head.contains("x-accel-buffering: no\r\n"), "{}", events.head);
    assert!(events.line().await.unwrap()["heartbeat"].is_object());

    let body = "grüße <b>&amp; \u{1f44b}\n";
    let message = json!({ "recipient": "bob", "body": body, "clientMessageId": id() });
    let sent = alice.good("SendMessage", message.clone()).await;
    assert_eq!(sent["seq"], "1");
    assert_eq!(alice.good("SendMessage", message).await["repeated"], true, "the same rules");
    let event = events.line().await.unwrap();
    assert_eq!(
        (&event["message"]["message"]["body"], &event["message"]["message"]["sender"]),
        (&body.into(), &"alice".into())
    );
    assert_eq!(event["revision"], sent["revision"]);

    let receipts = json!({ "receipts": [{ "conversationId": sent["conversationId"], "upToSeq": sent["seq"] }] });
    bob.good("AcknowledgeDelivery", receipts).await;
    assert_eq!(events.line().await.unwrap()["receipt"]["deliveredSeq"], "1");
    bob.good("MarkRead", json!({ "partner": "alice", "upToSeq": "1" })).await;
    assert_eq!(events.line().await.unwrap()["receipt"]["readSeq"], "1");
    let page =
        alice.good("ReadConversation", json!({ "partner": "bob", "consistency": { "linearizable": true } })).await;
    assert_eq!(page["messages"][0]["status"], "MESSAGE_STATUS_READ");
    let partners = bob.good("ListChatPartners", json!({})).await;
    assert_eq!(partners["partners"][0]["username"], "alice");
    assert_eq!(bob.good("ListAccounts", json!({ "query": "ali" })).await["accounts"][0]["username"], "alice");
    alice.good("DeleteMessages", json!({ "messageIds": [sent["messageId"]], "forEveryone": true })).await;
    assert_eq!(events.line().await.unwrap()["deletion"]["forEveryone"], true);

    let (status, leader) = alice.call("ClusterService/GetLeader", json!({})).await;
    assert_eq!((status, &leader["leader"]["name"]), (200, &node.name.clone().into()));
    assert_eq!(alice.call("ClusterService/ListNodes", json!({})).await.1["answeredBy"], node.name.clone());

    // A stream ends with its error as the last line.
    bob.good("Logout", json!({})).await;
    let end = loop {
        let line = events.line().await.expect("the reason comes before the end");
        if let Some(error) = line.get("error") {
            break error.clone();
        }
    };
    assert_eq!((&end["code"], reason(&end)), (&"unauthenticated".into(), "TOKEN_INVALID"));
    assert!(events.line().await.is_none());
    assert_eq!(bob.call("ChatService/ListChatPartners", json!({})).await.0, 401);
    alice.good("DeleteAccount", json!({ "password": super::person::PASSWORD })).await;
}

#[tokio::test]
async fn long_answers_are_compressed_unless_a_strangers_text_is_beside_a_secret() {
    let node = Node::start().await;
    let mut alice = Caller::join(&node, "alice").await;
    Caller::join(&node, "bob").await;
    let body = "long ".repeat(400);
    let message = json!({ "recipient": "bob", "body": body, "clientMessageId": id() });
    alice.good("SendMessage", message).await;
    let conversation = json!({ "partner": "bob" });
    let plain = alice.open("ChatService/ReadConversation", conversation.clone()).await;
    assert!(!plain.head.contains("content-encoding"), "{}", plain.head);
    assert!(plain.head.contains("vary: accept-encoding\r\n"), "{}", plain.head);
    let (_, plain) = plain.json().await;
    alice.headers = "Accept-Encoding: gzip, br\r\n".into();
    let mut packed = alice.open("ChatService/ReadConversation", conversation).await;
    assert!(packed.head.contains("content-encoding: gzip\r\n"), "{}", packed.head);
    let mut bytes = Vec::new();
    packed.body.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes.len() < body.len() / 4, "{} bytes", bytes.len());
    let unpacked: Value = serde_json::from_reader(flate2::read::GzDecoder::new(&*bytes)).unwrap();
    assert_eq!(unpacked["messages"], plain["messages"]);
    // The list contains the last messages of all conversations. With compression, a person who writes one of them could
    // learn about the others from its length.
    let mut list = alice.open("ChatService/ListChatPartners", json!({})).await;
    assert!(!list.head.contains("content-encoding"), "{}", list.head);
    let mut text = String::new();
    list.body.read_to_string(&mut text).await.unwrap();
    assert!(text.len() > 1024, "long enough to be compressed: {text}");
    // Short answers and streams are not compressed.
    for method in ["ClusterService/GetLeader", "ChatService/Subscribe"] {
        let answer = alice.open(method, json!({})).await;
        assert!(!answer.head.contains("content-encoding"), "{}", answer.head);
    }
}

#[tokio::test]
async fn a_refusal_is_that_of_grpc() {
    let node = Node::start().await;
    let alice = Caller::join(&node, "alice").await;
    let mut grpc = ChatServiceClient::new(node.channel().await);
    let to = |recipient: &str, body: &str| (recipient.to_owned(), body.to_owned(), id());
    for ((recipient, body, id), http) in
        [(to("nobody", "x"), 404), (to("alice", ""), 400), (to("alice", &"x".repeat(16385)), 400)]
    {
        let mut request = tonic::Request::new(pb::SendMessageRequest {
            to: Some(pb::send_message_request::To::Recipient(recipient.clone())),
            body: body.clone(),
            client_message_id: id.clone(),
        });
        request.metadata_mut().insert("authorization", format!("Bearer {}", alice.token).parse().unwrap());
        let expected = grpc.send_message(request).await.unwrap_err();
        let message = json!({ "recipient": recipient, "body": body, "clientMessageId": id });
        let (status, answer) = alice.call("ChatService/SendMessage", message).await;
        assert_eq!(status, http, "{answer}");
        assert_eq!(answer["message"], expected.message());
        let details = tonic_types::StatusExt::get_error_details(&expected);
        assert_eq!(reason(&answer), details.error_info().unwrap().reason);
        let fields = details.bad_request().map(|bad| bad.field_violations[0].field.clone());
        let violations = answer["details"]
            .as_array()
            .unwrap()
            .iter()
            .find_map(|detail| detail["debug"]["fieldViolations"][0]["field"].as_str());
        assert_eq!(violations.map(str::to_owned), fields);
    }
    let stranger = Caller::new(&node);
    let (status, answer) = stranger.call("ChatService/ListChatPartners", json!({})).await;
    assert_eq!((status, reason(&answer)), (401, "TOKEN_MISSING"));
    // Password guesses are throttled here, too.
    let guess = json!({ "username": "alice", "password": "wrong horse" });
    let held_up = async {
        loop {
            let (status, answer) = stranger.call("ChatService/Login", guess.clone()).await;
            if reason(&answer) != "PASSWORD_WRONG" {
                break (status, answer);
            }
        }
    };
    let (status, answer) = soon("the guesser is held up", held_up).await;
    assert_eq!((status, reason(&answer)), (429, "LOGIN_THROTTLED"));
}

#[tokio::test]
async fn what_is_no_call_is_refused_with_its_reason() {
    let node = Node::start().await;
    let caller = Caller::new(&node);
    let path = "/chat.v1.ChatService/Login";
    let huge = format!("{{\"username\": \"{}\"}}", "x".repeat(300 * 1024));
    for (path, kind, body, http, expected) in [
        ("/chat.v1.ChatService/Nothing", "application/json", "{}", 404, "NO_METHOD"),
        ("/chat.v1.AdminService/Snapshot", "application/json", "{}", 404, "NO_METHOD"),
        (path, "text/plain", "{}", 415, "NOT_JSON"),
        (path, "application/grpc", "{}", 415, "NOT_JSON"),
        (path, "application/json", "{", 400, "INVALID_REQUEST"),
        (path, "Application/JSON; charset=utf-8", "[]", 400, "INVALID_REQUEST"),
        (path, "application/json", "{\"username\": 7}", 400, "INVALID_REQUEST"),
        (path, "application/json", &huge, 413, "REQUEST_TOO_LARGE"),
    ] {
        let (status, answer) = caller.post(path, kind, body.as_bytes()).await.json().await;
        assert_eq!((status, reason(&answer)), (http, expected), "{path} {kind}: {answer}");
    }
    let gzip = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n";
    let answer = caller.request("POST", path, gzip, b"\x1f\x8b\x08").await;
    assert!(answer.head.contains("accept-encoding: identity\r\n"), "{}", answer.head);
    let (status, answer) = answer.json().await;
    assert_eq!((status, reason(&answer)), (415, "CONTENT_ENCODED"));
    // An empty request is an empty message.
    let (status, answer) = caller.post("/chat.v1.ClusterService/GetLeader", "application/json", b"").await.json().await;
    assert_eq!((status, &answer["leader"]["name"]), (200, &node.name.clone().into()));
}
