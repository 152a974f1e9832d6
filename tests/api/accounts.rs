//! Accounts: names, passwords, repeated requests, logins and their throttling, lists.

use proto::chat::v1 as pb;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{
    node::Node,
    person::{self, Answer, Chat, PASSWORD, Person, invalid, new_id, refused, sign_up},
};

async fn create(chat: &mut Chat, name: &str, password: &str, id: &str) -> Answer<pb::CreateAccountResponse> {
    let (username, password, request_id) = (name.into(), password.into(), id.into());
    chat.create_account(pb::CreateAccountRequest { username, password, request_id, ..Default::default() }).await
}

async fn log_in(chat: &mut Chat, name: &str, password: &str) -> Answer<pb::LoginResponse> {
    chat.login(pb::LoginRequest { username: name.into(), password: password.into(), ..Default::default() }).await
}

#[tokio::test]
async fn names_and_passwords_are_checked_and_named() {
    let node = Node::start().await;
    let mut chat = Chat::new(node.channel().await);
    let long = "x".repeat(33);
    for bad in ["", "Bob", "a b", "a\0b", "a\nb", "\u{7f}", "\u{202e}bob", "é", "../x", "a/b", "%", &long] {
        invalid(create(&mut chat, bad, PASSWORD, "").await, "username");
        invalid(log_in(&mut chat, bad, PASSWORD).await, "username");
    }
    for bad in ["", "seven77", &"p".repeat(257)] {
        invalid(create(&mut chat, "bob", bad, "").await, "password");
    }
    for bad in ["1", "not-a-uuid", "0190163d-8694-739b-aea5-966c26f8ad9", "0190163d-8694-739b-aea5-966c26f8ad9g"] {
        invalid(create(&mut chat, "bob", PASSWORD, bad).await, "request_id");
    }
    // The limits themselves are allowed. The rejected requests created nothing.
    for (name, password) in [("x".repeat(32), "p".repeat(8)), ("a.b-c_9".into(), "é".repeat(128))] {
        create(&mut chat, &name, &password, "").await.expect("allowed");
        log_in(&mut chat, &name, &password).await.expect("allowed");
    }
    let mut alice = Person::join(&node, "alice").await;
    let request = alice.ask(pb::ListAccountsRequest::default());
    let accounts = alice.chat.list_accounts(request).await.unwrap().into_inner();
    assert_eq!(accounts.total_count, 3);
}

#[tokio::test]
async fn a_name_is_given_once_and_a_repeat_is_recognized() {
    let node = Node::start().await;
    let mut chat = Chat::new(node.channel().await);
    let (id, other) = (new_id(), new_id());
    let first = create(&mut chat, "bob", PASSWORD, &id).await.unwrap().into_inner();
    assert!(!first.repeated);
    let again = create(&mut chat, "bob", PASSWORD, &id).await.unwrap().into_inner();
    assert_eq!((again.account_id, again.revision, again.repeated), (first.account_id, first.revision, true));
    for id in ["", &other] {
        refused(create(&mut chat, "bob", PASSWORD, id).await, Code::AlreadyExists, "USERNAME_TAKEN", "");
    }
    let reused = create(&mut chat, "carol", PASSWORD, &id).await;
    refused(reused, Code::InvalidArgument, "CLIENT_MESSAGE_ID_REUSED", "request_id");
    // The name of a deleted account stays taken.
    let mut bob = Person::log_in(chat.clone(), "bob").await;
    bob.delete_account().await;
    refused(create(&mut chat, "bob", PASSWORD, "").await, Code::AlreadyExists, "USERNAME_TAKEN", "");
}

#[tokio::test]
async fn logins_tell_an_unknown_user_from_a_wrong_password() {
    let node = Node::start().await;
    let mut chat = Chat::new(node.channel().await);
    sign_up(&mut chat, "bob").await;
    refused(log_in(&mut chat, "nobody", PASSWORD).await, Code::NotFound, "USER_UNKNOWN", "");
    for wrong in ["x", "correct hors", "correct horse\0", &"x".repeat(256)] {
        refused(log_in(&mut chat, "bob", wrong).await, Code::Unauthenticated, "PASSWORD_WRONG", "");
    }
    for invalid_password in ["", &"x".repeat(257)] {
        invalid(log_in(&mut chat, "bob", invalid_password).await, "password");
    }
    log_in(&mut chat, "bob", PASSWORD).await.expect("right");
}

#[tokio::test]
async fn guesses_are_slowed_down_for_the_account_only() {
    let node = Node::start().await;
    let mut chat = Chat::new(node.channel().await);
    sign_up(&mut chat, "bob").await;
    sign_up(&mut chat, "alice").await;
    let known = person::log_in(&mut chat, "bob").await;
    let mut failures = 0;
    let throttled = loop {
        let status = log_in(&mut chat, "bob", "guess").await.expect_err("wrong");
        if status.code() != Code::Unauthenticated {
            break status;
        }
        failures += 1;
        assert!(failures <= 10, "nobody slows it down");
    };
    assert_eq!(failures, 10, "ten failures of strangers behind one address are free");
    let wait = throttled.get_error_details().retry_info().and_then(|retry| retry.retry_delay).expect("RetryInfo");
    assert!((1..=120_000).contains(&wait.as_millis()), "{wait:?}");
    refused::<()>(Err(throttled), Code::ResourceExhausted, "LOGIN_THROTTLED", "");
    // The right password is throttled as well, otherwise the throttle would confirm a guess. Other accounts are not
    // throttled.
    refused(log_in(&mut chat, "bob", PASSWORD).await, Code::ResourceExhausted, "LOGIN_THROTTLED", "");
    log_in(&mut chat, "alice", PASSWORD).await.expect("alice is not slowed down");
    // Bob is not throttled either on a device from which he has logged in, or in a browser where he is logged in.
    let request = |device_token: &str| pb::LoginRequest {
        username: "bob".into(),
        password: PASSWORD.into(),
        device_token: device_token.into(),
    };
    let again = chat.login(request(&known.device_token)).await.expect("known").into_inner();
    assert_eq!(again.device_token, known.device_token);
    let in_session = chat.login(person::with_token(&known.token, request(""))).await.expect("known").into_inner();
    assert_ne!(in_session.device_token, known.device_token);
    // An invented token, or one of another account, has no effect.
    let foreign = person::log_in(&mut chat, "alice").await.device_token;
    for token in [foreign.as_str(), &"0".repeat(64), "x"] {
        refused(chat.login(request(token)).await, Code::ResourceExhausted, "LOGIN_THROTTLED", "");
    }
}

#[tokio::test]
async fn lists_take_signs_as_they_are_and_come_in_pages() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    for name in ["a_c", "abc", "a.c", "b-c"] {
        sign_up(&mut alice.chat, name).await;
    }
    let list = async |query: &str, page_size: u32, page_token: &str| {
        let request = pb::ListAccountsRequest {
            query: query.into(),
            page_size,
            page_token: page_token.into(),
            consistency: None,
        };
        let request = alice.ask(request);
        alice.chat.clone().list_accounts(request).await
    };
    for (query, expected) in [
        ("", &["a.c", "a_c", "abc", "alice", "b-c"][..]),
        ("a_c", &["a_c"]),
        ("_", &["a_c"]),
        ("%", &[]),
        ("*", &[]),
        ("?", &[]),
        ("\\", &[]),
        ("'", &[]),
        ("a.c", &["a.c"]),
        ("[ab]", &[]),
        ("c", &["a.c", "a_c", "abc", "alice", "b-c"]),
        ("A", &[]),
    ] {
        let answer = list(query, 0, "").await.unwrap().into_inner();
        let names: Vec<_> = answer.accounts.iter().map(|account| account.username.as_str()).collect();
        assert_eq!(names, expected, "{query:?}");
        assert_eq!(answer.total_count, expected.len() as u64, "{query:?}");
    }
    let mut pages = Vec::new();
    let mut token = String::new();
    loop {
        let answer = list("", 2, &token).await.unwrap().into_inner();
        assert_eq!(answer.total_count, 5);
        pages.push(answer.accounts.into_iter().map(|account| account.username).collect::<Vec<_>>().join(" "));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, ["a.c a_c", "abc alice", "b-c"]);
    invalid(list("", 201, "").await, "page_size");
    invalid(list("", u32::MAX, "").await, "page_size");
    for one in ["x", "é", "世"] {
        list(&one.repeat(32), 0, "").await.expect("allowed");
        invalid(list(&one.repeat(33), 0, "").await, "query");
    }
    list("", 200, "").await.expect("allowed");
    let of_another_call = format!("63{:016x}", 5);
    for bad in ["x", "6", "61", "zz", "é", "' OR 1=1", &of_another_call, &"61".repeat(500)] {
        invalid(list("", 0, bad).await, "page_token");
    }
}

#[tokio::test]
async fn a_deleted_account_stays_a_partner_and_says_nothing_more() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut bob = Person::join(&node, "bob").await;
    let sent = bob.send("alice", "my secret").await;
    alice.send("bob", "mine").await;
    let mut events = alice.subscribe(Some(sent.revision + 1)).await;
    super::person::up_to_heartbeat(&mut events).await;
    assert_eq!(bob.delete_account().await.deleted_messages, 1);
    let Some(pb::subscribe_response::Event::AccountDeleted(closed)) = super::person::next(&mut events).await.event
    else {
        panic!("the partner is notified");
    };
    assert_eq!((closed.conversation_id, closed.member.as_str()), (sent.conversation_id, "bob"));
    let partners = alice.partners().await;
    assert_eq!(partners.len(), 1);
    let bob_now = &partners[0];
    assert_eq!((bob_now.username.as_str(), bob_now.deleted, bob_now.unread_count), ("bob", true, 0));
    let page = alice.read("bob").await;
    let seen: Vec<_> = page.messages.iter().map(|m| (m.sender.as_str(), m.body.as_str(), m.deleted)).collect();
    assert_eq!(seen, [("alice", "mine", false), ("bob", "", true)]);
    let by_name = alice.try_send(super::person::message("bob", "hello?", &new_id())).await;
    refused(by_name, Code::FailedPrecondition, "USER_DELETED", "");
    let to = Some(pb::send_message_request::To::ConversationId(sent.conversation_id));
    let by_id = pb::SendMessageRequest { to, body: "hello?".into(), client_message_id: new_id() };
    refused(alice.try_send(by_id).await, Code::FailedPrecondition, "USER_DELETED", "");
    let mut chat = bob.chat.clone();
    refused(log_in(&mut chat, "bob", PASSWORD).await, Code::NotFound, "USER_UNKNOWN", "");
    let request = alice.ask(pb::ListAccountsRequest { query: "bob".into(), ..Default::default() });
    let listed = alice.chat.list_accounts(request).await.unwrap().into_inner();
    assert!(listed.accounts.iter().all(|account| account.deleted), "{listed:?}");
}
