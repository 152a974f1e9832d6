//! Readers of the output that stall or go away: no node and no program depends on them.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, PipeReader, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process::{Command, Stdio},
};

use client::{Client, Options};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Pid, Signal, kill_process},
};

use support::{Cluster, Node, PASSWORD, eventually};

/// A full pipe whose reader does not read.
fn full_pipe() -> (PipeReader, OwnedFd) {
    let (reader, mut writer) = io::pipe().unwrap();
    let flags = fcntl_getfl(writer.as_fd()).unwrap();
    fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 512]).is_ok() {}
    fcntl_setfl(writer.as_fd(), flags).unwrap();
    (reader, writer.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_log_nobody_reads_serve_elect_and_stop() {
    let mut cluster = Cluster::prepared(3);
    cluster.set_all("CHAT_LOG_LEVEL", "debug");
    let mut readers = Vec::new();
    for node in 0..cluster.len() {
        let (reader, output) = full_pipe();
        cluster[node].start_into(output);
        readers.push(reader);
    }
    for node in 0..cluster.len() {
        cluster[node].ready().await;
    }
    let (client, _) = cluster.register("ann").await;
    let leader = cluster.leader().await;
    cluster[leader].kill();
    client.send_message("ann", "is anybody there").await.unwrap();
    let others: Vec<usize> = (0..cluster.len()).filter(|node| *node != leader).collect();
    for node in &others {
        cluster[*node].ready().await;
    }
    // The last node to stop has no leader any more.
    for node in others {
        cluster[node].terminate();
        assert_eq!(cluster[node].exit_code().await, 0);
    }
    drop(readers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_cluster_outlives_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let mut local = Command::new(support::chatd())
        .args(["local", "--nodes", "3", "--base-port", "0", "--data"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Like a `tee` that ends: once the nodes are running, the output has no reader.
    let mut lines = BufReader::new(local.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("chatctl")), "it says what to do next");
    drop((lines, local.stderr.take()));

    let described: serde_json::Value =
        serde_json::from_reader(File::open(dir.path().join("cluster.json")).unwrap()).unwrap();
    let nodes = described["nodes"].as_array().unwrap();
    let pid = |node: &serde_json::Value| Pid::from_raw(node["pid"].as_i64().unwrap() as i32).unwrap();
    kill_process(pid(&nodes[0]), Signal::KILL).unwrap();
    let others = nodes[1..].iter().map(|node| node["grpc"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let client = Client::connect(others, Options::default()).await.unwrap();
    client.create_account("ann", PASSWORD).await.unwrap();
    assert!(local.try_wait().unwrap().is_none(), "it minds the others");
    kill_process(Pid::from_child(&local), Signal::TERM).unwrap();
    eventually("the end", async || local.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned())).await;
    assert!(local.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_found_does_not_depend_on_who_reads_it() {
    let mut cluster = Cluster::prepared(1);
    cluster.start_all().await;
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let gone = || io::pipe().unwrap().1;
    let code = |node: &Node, words: &[&str], output: OwnedFd| {
        node.command(words).stdout(output).stderr(full()).status().unwrap().code()
    };
    assert_eq!(code(&cluster[0], &["health"], full().into()), Some(0));
    assert_eq!(code(&cluster[0], &["health", "--ready"], gone().into()), Some(0));
    // A reader that closes the pipe has read enough. A full disk loses output, which is an error.
    assert_eq!(code(&cluster[0], &["config"], gone().into()), Some(0));
    assert_eq!(code(&cluster[0], &["config"], full().into()), Some(74));
    cluster[0].kill();
    assert_eq!(code(&cluster[0], &["health"], full().into()), Some(1));
}
