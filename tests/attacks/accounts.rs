//! C13, C14, C16: floods of registrations, password guessing, sessions that outlive their reason.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use client::{Client, ClientError};
use futures_util::future::join_all;
use tonic::Code;

use support::{Cluster, PASSWORD, eventually, impatient};

fn reason(error: &ClientError) -> &str {
    error.reason.as_deref().unwrap_or_default()
}

/// A client that has never logged in.
async fn stranger(cluster: &Cluster) -> Client {
    cluster.client_with(impatient()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_counted_in_the_cluster_and_lock_out_no_known_device() {
    let cluster = Cluster::five().await;
    let (alice, _) = cluster.register("alice").await;
    let (bob, _) = cluster.register("bob").await;
    let nodes = cluster.directs("");
    // A hundred guesses at once, spread over all nodes.
    let guesses = join_all((0..100).map(|guess| nodes[guess % nodes.len()].login("alice", "wrong horse"))).await;
    let (mut looked_at, mut held_up) = (0, 0);
    for error in guesses.into_iter().map(|answer| answer.expect_err("a wrong password")) {
        match reason(&error) {
            "PASSWORD_WRONG" => looked_at += 1,
            "LOGIN_THROTTLED" => held_up += 1,
            other => panic!("{other}: {error}"),
        }
    }
    assert_eq!((looked_at, held_up), (10, 90));
    // A stranger with the right password is throttled on every node.
    for node in &nodes {
        let error = node.login("alice", PASSWORD).await.expect_err("a stranger has to wait");
        assert_eq!(reason(&error), "LOGIN_THROTTLED");
        assert!(error.retry_after.is_some(), "{error:?}");
    }
    // Alice has logged in from this client before.
    alice.login("alice", PASSWORD).await.expect("a known device");
    // The address uses up the attempts that all strangers behind it share.
    let mut nobody = 0;
    while let Err(error) = nodes[nobody % nodes.len()].login("nobody", "wrong horse").await {
        if reason(&error) == "LOGIN_THROTTLED" {
            break;
        }
        nobody += 1;
        assert!(nobody <= 200, "the address is not held up");
    }
    let error = stranger(&cluster).await.login("bob", PASSWORD).await.expect_err("a stranger");
    assert_eq!(reason(&error), "LOGIN_THROTTLED");
    bob.login("bob", PASSWORD).await.expect("a known device behind the same address");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_registrations_is_held_up_and_delays_no_login() {
    let mut cluster = Cluster::prepared(5);
    cluster.set_all("CHAT_REGISTRATIONS_PER_ADDRESS", "20");
    cluster.start_all().await;
    let (alice, _) = cluster.register("alice").await;
    let end = Arc::new(AtomicBool::new(false));
    // With the usual deadline, because a registration waits in the queue for hashing.
    let strangers = join_all((0..3).map(|_| cluster.client())).await;
    let floods = strangers.into_iter().enumerate().map(|(number, client)| {
        let end = Arc::clone(&end);
        tokio::spawn(async move {
            let (mut made, mut held_up) = (0, 0);
            while !end.load(Ordering::Relaxed) {
                match client.create_account(&format!("flood-{number}-{made}"), PASSWORD).await {
                    Ok(_) => made += 1,
                    Err(error) => {
                        assert_eq!(reason(&error), "REGISTRATION_THROTTLED", "{error:?}");
                        assert!(error.retry_after.is_some());
                        held_up += 1;
                    }
                }
            }
            (made, held_up)
        })
    });
    let floods: Vec<_> = floods.collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        alice.login("alice", PASSWORD).await.expect("the login of a known account");
        slowest = slowest.max(began.elapsed());
    }
    end.store(true, Ordering::Relaxed);
    let counts: Vec<(i32, i32)> = join_all(floods).await.into_iter().map(|flood| flood.expect("no panic")).collect();
    let made: i32 = counts.iter().map(|(made, _)| made).sum();
    let held_up: i32 = counts.iter().map(|(_, held_up)| held_up).sum();
    assert!(made <= 20 && held_up > 0, "{counts:?}");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_decides_who_may_register_and_log_in() {
    let mut cluster = Cluster::prepared(1);
    cluster.start_all().await;
    let (alice, _) = cluster.register("alice").await;
    let operator = &cluster[0];
    operator.chatctl(&["settings", "set", "registration", "closed"]).await.unwrap();
    assert!(!alice.registration().await.unwrap().open);
    let error = alice.create_account("bob", PASSWORD).await.expect_err("closed");
    assert_eq!((error.code, reason(&error)), (Code::PermissionDenied, "REGISTRATION_CLOSED"));
    operator.chatctl(&["settings", "set", "registration", "invitation"]).await.unwrap();
    let error = alice.create_account("bob", PASSWORD).await.expect_err("by invitation");
    assert_eq!(reason(&error), "INVITATION_NEEDED");
    let made = operator.chatctl(&["invites", "create", "--uses", "1", "--hours", "1"]).await.unwrap();
    let code = made.split_whitespace().next().unwrap();
    let error = alice.create_account_with_invitation("bob", PASSWORD, "0123").await.expect_err("made up");
    assert_eq!(reason(&error), "INVITATION_INVALID");
    alice.create_account_with_invitation("bob", PASSWORD, code).await.expect("invited");
    let error = alice.create_account_with_invitation("carol", PASSWORD, code).await.expect_err("used up");
    assert_eq!(reason(&error), "INVITATION_INVALID");
    assert!(operator.chatctl(&["invites", "list"]).await.unwrap().contains("1 of 1 used"));
    // A disabled account loses its sessions. Only its owner learns the reason.
    operator.chatctl(&["accounts", "disable", "alice"]).await.unwrap();
    assert_eq!(alice.sessions().await.expect_err("ended").code, Code::Unauthenticated);
    assert_eq!(reason(&alice.login("alice", PASSWORD).await.expect_err("disabled")), "ACCOUNT_DISABLED");
    assert_eq!(reason(&alice.login("alice", "wrong horse").await.expect_err("wrong")), "PASSWORD_WRONG");
    operator.chatctl(&["accounts", "enable", "alice"]).await.unwrap();
    alice.login("alice", PASSWORD).await.expect("enabled");
    operator.chatctl(&["accounts", "logout", "alice"]).await.unwrap();
    assert_eq!(alice.sessions().await.expect_err("ended").code, Code::Unauthenticated);
    operator.chatctl(&["accounts", "delete", "alice", "--yes"]).await.unwrap();
    assert_eq!(reason(&alice.login("alice", PASSWORD).await.expect_err("deleted")), "USER_UNKNOWN");
    assert!(operator.chatctl(&["accounts", "list"]).await.unwrap().contains("deleted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_of_an_operator_has_a_token_and_no_password() {
    let mut cluster = Cluster::prepared(1);
    cluster.start_all().await;
    let (alice, _) = cluster.register("alice").await;
    let operator = &cluster[0];
    let token = operator.chatctl(&["accounts", "add", "bot"]).await.unwrap();
    let bot = alice.with_token(token.trim()).unwrap();
    bot.send_message("alice", "hello").await.expect("a session");
    assert_eq!(reason(&alice.login("bot", PASSWORD).await.expect_err("no password")), "PASSWORD_WRONG");
    assert_eq!(reason(&bot.delete_account(PASSWORD).await.expect_err("no password")), "PASSWORD_WRONG");
    let error = operator.chatctl(&["accounts", "add", "bot"]).await.expect_err("taken");
    assert!(error.contains("is taken"), "{error}");
    let error = operator.chatctl(&["accounts", "add", "Bot"]).await.expect_err("not a name");
    assert!(error.contains("username"), "{error}");
    // The policy of registration holds for operators, too.
    operator.chatctl(&["settings", "set", "registration", "invitation"]).await.unwrap();
    let error = operator.chatctl(&["accounts", "add", "other"]).await.expect_err("not invited");
    assert!(error.contains("invitation"), "{error}");
    let made = operator.chatctl(&["invites", "create"]).await.unwrap();
    let code = made.split_whitespace().next().unwrap();
    operator.chatctl(&["accounts", "add", "other", "--invitation", code]).await.expect("invited");
    operator.chatctl(&["accounts", "logout", "bot"]).await.unwrap();
    assert_eq!(bot.sessions().await.expect_err("ended").code, Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_the_other_sessions() {
    const NEW: &str = "another battery";
    let cluster = Cluster::five().await;
    let (alice, _) = cluster.register("alice").await;
    let thief = stranger(&cluster).await;
    let stolen = thief.login("alice", PASSWORD).await.unwrap().token;
    assert_eq!(reason(&thief.delete_account("wrong horse").await.expect_err("wrong")), "PASSWORD_WRONG");
    assert_eq!(alice.sessions().await.unwrap().len(), 2);
    assert_eq!(reason(&alice.change_password("wrong horse", NEW).await.expect_err("wrong")), "PASSWORD_WRONG");
    assert_eq!(alice.change_password(PASSWORD, NEW).await.unwrap().closed_sessions, 1);
    for node in cluster.directs(&stolen) {
        eventually("the stolen session has ended", async || match node.local().await {
            Err(error) if error.code == Code::Unauthenticated => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    assert_eq!(reason(&thief.login("alice", PASSWORD).await.expect_err("replaced")), "PASSWORD_WRONG");
    // The own session continues, and an unknown session can be closed.
    alice.send_message("alice", "still here").await.unwrap();
    thief.login("alice", NEW).await.unwrap();
    let sessions = alice.sessions().await.unwrap();
    let other = sessions.iter().find(|session| !session.current).unwrap().session_id;
    alice.revoke_session(other).await.unwrap();
    assert_eq!(reason(&alice.revoke_session(other).await.expect_err("ended")), "SESSION_UNKNOWN");
    assert_eq!(thief.sessions().await.expect_err("revoked").code, Code::Unauthenticated);
    alice.delete_account(NEW).await.unwrap();
}
