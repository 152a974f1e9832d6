//! The web API for pages: sessions in cookies, and calls from another node's address.

use serde_json::json;

use super::{
    json::{Answer, Caller, reason},
    node::Node,
};

const WHO: &str = r#"{"username": "alice", "password": "correct horse"}"#;

/// The value of a header; `head` is in lower case.
fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

/// A page with a new account, and the answer to its login.
async fn log_in(node: &Node) -> (Caller, Answer) {
    let mut page = Caller::new(node);
    page.good("CreateAccount", serde_json::from_str(WHO).unwrap()).await;
    page.headers = "Chat-Session: alice\r\n".into();
    let answer = page.open("ChatService/Login", serde_json::from_str(WHO).unwrap()).await;
    (page, answer)
}

#[tokio::test]
async fn a_page_holds_a_session_whose_token_it_never_sees() {
    let node = Node::start().await;
    let (mut page, answer) = log_in(&node).await;
    let cookie = header(&answer, "set-cookie").expect("a cookie").to_owned();
    let (status, login) = answer.json().await;
    assert_eq!((status, login.get("token")), (200, None), "{login}");
    assert!(login["expiresAtMs"].is_string());
    for part in ["chat_session.alice=", "path=/chat.v1.chatservice/", "httponly", "samesite=strict", "max-age="] {
        assert!(cookie.contains(part), "{part} in {cookie}");
    }
    let pair = cookie.split(';').next().unwrap().to_owned();

    // The cookie alone is what another site's form could send, so it is not enough.
    page.headers = format!("Cookie: {pair}\r\n");
    let (status, answer) = page.call("ChatService/ListChatPartners", json!({})).await;
    assert_eq!((status, reason(&answer)), (401, "TOKEN_MISSING"));
    // Nor is it valid for another account.
    page.headers = format!("Cookie: {pair}\r\nChat-Session: bob\r\n");
    let (status, answer) = page.call("ChatService/ListChatPartners", json!({})).await;
    assert_eq!((status, reason(&answer)), (401, "TOKEN_MISSING"));
    // An Authorization header takes precedence.
    page.headers = format!("Cookie: {pair}\r\nChat-Session: alice\r\nAuthorization: Bearer 00\r\n");
    let (status, answer) = page.call("ChatService/ListChatPartners", json!({})).await;
    assert_eq!((status, reason(&answer)), (401, "TOKEN_INVALID"));
    page.headers = "Chat-Session: Alice\r\n".into();
    let (status, answer) = page.call("ChatService/ListChatPartners", json!({})).await;
    assert_eq!((status, reason(&answer)), (400, "INVALID_REQUEST"));

    page.headers = format!("Cookie: other=1; {pair}\r\nChat-Session: alice\r\n");
    page.good("ListChatPartners", json!({})).await;
    let answer = page.open("ChatService/Logout", json!({})).await;
    let cookie = header(&answer, "set-cookie").expect("a cookie that ends").to_owned();
    assert!(cookie.starts_with("chat_session.alice=;") && cookie.contains("max-age=0"), "{cookie}");
    assert_eq!(answer.status, 200);
    assert_eq!(page.call("ChatService/ListChatPartners", json!({})).await.0, 401);
}

#[tokio::test]
async fn a_browser_can_forget_a_session_that_stays_open() {
    let node = Node::start().await;
    let (mut page, answer) = log_in(&node).await;
    let cookie = header(&answer, "set-cookie").unwrap().split(';').next().unwrap().to_owned();
    page.headers = format!("Cookie: {cookie}\r\nChat-Session: alice\r\n");
    let answer = page.request("DELETE", "/session", "", b"").await;
    assert_eq!((answer.status, header(&answer, "cache-control")), (204, Some("no-store")));
    let removal = header(&answer, "set-cookie").expect("a cookie that ends");
    for part in ["chat_session.alice=;", "path=/chat.v1.chatservice/", "max-age=0"] {
        assert!(removal.contains(part), "{part} in {removal}");
    }
    page.good("ListChatPartners", json!({})).await;
    // The account has to be named by a header, which no other site can send.
    page.headers = format!("Cookie: {cookie}\r\n");
    let answer = page.request("DELETE", "/session", "", b"").await;
    assert_eq!(header(&answer, "set-cookie"), None);
    let (status, answer) = answer.json().await;
    assert_eq!((status, reason(&answer)), (400, "INVALID_REQUEST"));
}

#[tokio::test]
async fn pages_of_the_clusters_nodes_may_call_and_no_others() {
    let node = Node::start_with(&[("CHAT_WEB_ADVERTISE", "chat.example.com:8080")]).await;
    let page = Caller::new(&node);
    let path = "/chat.v1.ChatService/SendMessage";
    let preflight = |origin: &str| {
        format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: authorization,chat-session,connect-timeout-ms,content-type\r\n"
        )
    };
    let own = "http://chat.example.com:8080";
    let answer = page.request("OPTIONS", path, &preflight(own), b"").await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert_eq!(header(&answer, "access-control-allow-origin"), Some(own));
    assert_eq!(header(&answer, "access-control-allow-credentials"), Some("true"));
    let allowed = header(&answer, "access-control-allow-headers").unwrap();
    for name in ["authorization", "chat-session", "connect-timeout-ms", "content-type", "traceparent"] {
        assert!(allowed.contains(name), "{name} in {allowed}");
    }
    assert!(header(&answer, "vary").is_some_and(|vary| vary.contains("origin")), "{}", answer.head);
    let methods = header(&answer, "access-control-allow-methods").unwrap();
    assert!(["post", "delete"].iter().all(|method| methods.contains(method)), "{methods}");
    // The page of another node has to be able to read the answer.
    let headers = format!("Origin: {own}\r\nContent-Type: application/json\r\n");
    let answer = page.request("POST", "/chat.v1.ClusterService/GetLeader", &headers, b"{}").await;
    assert_eq!((answer.status, header(&answer, "access-control-allow-origin")), (200, Some(own)));

    for other in ["http://evil.example", "http://chat.example.com", "https://chat.example.com:8081", "null"] {
        let answer = page.request("OPTIONS", path, &preflight(other), b"").await;
        assert_eq!(header(&answer, "access-control-allow-origin"), None, "{other}: {}", answer.head);
    }
}
