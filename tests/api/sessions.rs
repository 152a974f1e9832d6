//! Tokens: missing, garbage, forged, expired, of closed sessions and of deleted accounts.

use std::time::Duration;

use chat::{AccountId, Command, TokenHash};
use net::tls::{Secrets, Tls};
use proto::{
    chat::{
        v1 as pb,
        v1::{ListNodesRequest, cluster_service_client::ClusterServiceClient},
    },
    raft::v1::{ForwardedCommand, ProposeRequest},
};
use raft::peers::{Credentials, Lane, Peers};
use sha2::{Digest as _, Sha256};
use storage::codec;
use tonic::{Code, Request, Status, transport::Endpoint};

use super::{
    node::{Node, PEER_SECRET},
    person::{Answer, Chat, Person, end, next, refusal, refused, up_to_heartbeat, with_token},
};

/// Makes every call that needs a session, with metadata set by `dress`. Returns the errors.
async fn all_calls(chat: &Chat, dress: impl Fn(&mut tonic::metadata::MetadataMap)) -> Vec<(&'static str, Status)> {
    macro_rules! calls {
        ($($method:ident($request:expr)),* $(,)?) => {
            vec![$({
                let mut request = Request::new($request);
                dress(request.metadata_mut());
                let answer = chat.clone().$method(request).await;
                (stringify!($method), answer.map(drop).expect_err(stringify!($method)))
            }),*]
        };
    }
    // The requests are empty, because the caller is authenticated before anything else is checked.
    calls![
        logout(pb::LogoutRequest::default()),
        delete_account(pb::DeleteAccountRequest::default()),
        change_password(pb::ChangePasswordRequest::default()),
        list_sessions(pb::ListSessionsRequest::default()),
        revoke_session(pb::RevokeSessionRequest::default()),
        get_privacy(pb::GetPrivacyRequest::default()),
        set_privacy(pb::SetPrivacyRequest::default()),
        list_accounts(pb::ListAccountsRequest::default()),
        send_message(pb::SendMessageRequest::default()),
        subscribe(pb::SubscribeRequest::default()),
        read_conversation(pb::ReadConversationRequest::default()),
        delete_messages(pb::DeleteMessagesRequest::default()),
        list_chat_partners(pb::ListChatPartnersRequest::default()),
        mark_read(pb::MarkReadRequest::default()),
        acknowledge_delivery(pb::AcknowledgeDeliveryRequest::default()),
    ]
}

async fn all_refused(chat: &Chat, authorization: Option<&[u8]>, reason: &str) {
    let dress = |metadata: &mut tonic::metadata::MetadataMap| {
        if let Some(bytes) = authorization {
            metadata.insert("authorization", bytes.try_into().expect("can be sent"));
        }
    };
    for (method, status) in all_calls(chat, dress).await {
        let expected = (Code::Unauthenticated, reason.to_owned(), String::new());
        assert_eq!(refusal(&status), expected, "{method} with {authorization:?}");
    }
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_answered() {
    let node = Node::start().await;
    let alice = Person::join(&node, "alice").await;
    let missing: [Option<&[u8]>; 5] =
        [None, Some(b""), Some(b"Bearer"), Some(b"Basic YTpi"), Some(alice.token.as_bytes())];
    for authorization in missing {
        all_refused(&alice.chat, authorization, "TOKEN_MISSING").await;
    }
    let forged = "0".repeat(64);
    let cut_off = &alice.token[..63];
    let longer = format!("{}0", alice.token);
    let mut changed = alice.token.clone().into_bytes();
    changed[63] = if changed[63] == b'0' { b'1' } else { b'0' };
    let changed = String::from_utf8(changed).unwrap();
    let twice = format!("{} {}", alice.token, alice.token);
    for token in ["x", "é", forged.as_str(), cut_off, &longer, &changed, &twice, &"0".repeat(8000)] {
        all_refused(&alice.chat, Some(bearer(token).as_bytes()), "TOKEN_INVALID").await;
    }
    all_refused(&alice.chat, Some(b"Bearer \xff\xfe"), "TOKEN_INVALID").await;
    // The real token is accepted, and the case of scheme and token does not matter.
    for text in [bearer(&alice.token), format!("bearer  {}", alice.token), bearer(&alice.token.to_uppercase())] {
        let mut request = Request::new(pb::ListAccountsRequest::default());
        request.metadata_mut().insert("authorization", text.parse().unwrap());
        alice.chat.clone().list_accounts(request).await.expect("valid");
    }
}

#[tokio::test]
async fn a_closed_session_is_over_at_once_and_others_go_on() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut phone = Person::log_in(alice.chat.clone(), "alice").await;
    let mut laptop = Person::log_in(alice.chat.clone(), "alice").await;
    let mut open = alice.subscribe(Some(0)).await;
    up_to_heartbeat(&mut open).await;
    let request = alice.ask(pb::LogoutRequest { all_sessions: false });
    assert_eq!(alice.chat.logout(request).await.unwrap().into_inner().closed_sessions, 1);
    assert_eq!(refusal(&end(&mut open).await).1, "TOKEN_INVALID");
    all_refused(&alice.chat, Some(bearer(&alice.token).as_bytes()), "TOKEN_INVALID").await;
    let mut open = phone.subscribe(Some(0)).await;
    up_to_heartbeat(&mut open).await;
    let request = laptop.ask(pb::LogoutRequest { all_sessions: true });
    assert_eq!(laptop.chat.logout(request).await.unwrap().into_inner().closed_sessions, 2);
    assert_eq!(refusal(&end(&mut open).await).1, "TOKEN_INVALID");
    for token in [&phone.token, &laptop.token] {
        all_refused(&alice.chat, Some(bearer(token).as_bytes()), "TOKEN_INVALID").await;
    }
    Person::log_in(alice.chat.clone(), "alice").await.send("alice", "back again").await;
}

#[tokio::test]
async fn a_deleted_account_has_no_sessions() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let mut phone = Person::log_in(alice.chat.clone(), "alice").await;
    let mut open = phone.subscribe(None).await;
    up_to_heartbeat(&mut open).await;
    alice.delete_account().await;
    assert_eq!(refusal(&end(&mut open).await).1, "TOKEN_INVALID");
    for token in [&alice.token, &phone.token] {
        all_refused(&alice.chat, Some(bearer(token).as_bytes()), "TOKEN_INVALID").await;
    }
}

/// Opens a session with a lifetime other than the node's, as a follower would, through the peer port.
async fn open_session(node: &Node, account: u64, lifetime: Duration) -> String {
    let operator = Endpoint::from_shared(node.admin()).unwrap().connect().await.unwrap();
    let nodes = ClusterServiceClient::new(operator).list_nodes(ListNodesRequest {}).await.unwrap();
    let nodes = nodes.into_inner();
    let token = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
    let command = Command::OpenSession {
        account: AccountId(account),
        token_hash: TokenHash(Sha256::digest(&token).into()),
        lifetime_ms: lifetime.as_millis().try_into().unwrap(),
        login: chat::Login::default(),
    };
    let command = Some(codec::encode_command(&command));
    let proposal = ForwardedCommand { command, ..Default::default() };
    let id = nodes.nodes[0].node_id;
    let shared = Tls::shared(Secrets::parse(PEER_SECRET).unwrap(), None).unwrap();
    let peers = Peers::new(shared.connector().unwrap().into());
    let ours = Credentials::new(&nodes.cluster_id, id, &node.name, &node.peer.to_string()).unwrap();
    let request = ours.sign(id, ProposeRequest { commands: vec![proposal] });
    let mut member = peers.client(&node.peer.to_string(), Lane::Forward).unwrap();
    let outcomes = member.propose(request).await.expect("proposed").into_inner().outcomes;
    assert_eq!(outcomes.len(), 1);
    hex::encode(token)
}

#[tokio::test]
async fn an_expired_session_is_told_from_a_forged_one() {
    let node = Node::start().await;
    let mut alice = Person::join(&node, "alice").await;
    let account = {
        let request = alice.ask(pb::ListAccountsRequest::default());
        alice.chat.list_accounts(request).await.unwrap().into_inner().accounts[0].account_id
    };
    let token = open_session(&node, account, Duration::from_millis(1)).await;
    // Less than a millisecond may have passed.
    let deadline = tokio::time::Instant::now() + super::node::PATIENCE;
    while alice.chat.list_accounts(with_token(&token, pb::ListAccountsRequest::default())).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the session does not expire");
    }
    all_refused(&alice.chat, Some(bearer(&token).as_bytes()), "TOKEN_EXPIRED").await;
    // An open stream ends when its session expires.
    let token = open_session(&node, account, Duration::from_secs(2)).await;
    let request = with_token(&token, pb::SubscribeRequest::default());
    let mut open = alice.chat.subscribe(request).await.expect("still good").into_inner();
    up_to_heartbeat(&mut open).await;
    let sent = alice.send("alice", "to all my devices").await;
    assert_eq!(next(&mut open).await.revision, sent.revision);
    let status = end(&mut open).await;
    refused(Answer::<()>::Err(status), Code::Unauthenticated, "TOKEN_EXPIRED", "");
    alice.send("alice", "this session goes on").await;
}
