//! `chatctl drill` on a real cluster: its actions are executed on the processes, and its report is correct.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use support::{Cluster, PATIENCE};

/// A program that records its actions, and waits until they are executed.
fn program(dir: &Path) -> PathBuf {
    let path = dir.join("program");
    let text = format!(
        "#!/bin/sh\nrequest={}/$$\necho \"$@\" > $request.new && mv $request.new $request.asked\n\
         until [ -e $request.done ]; do sleep 0.02; done\n",
        dir.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path
}

fn drill(cluster: &Cluster, dir: &Path, hold: &str) -> Child {
    let nodes: Vec<String> = (0..cluster.len()).map(|node| cluster[node].grpc.to_string()).collect();
    Command::new(support::chatctl())
        .args(["--nodes", &nodes.join(","), "--output", "json", "drill", "--yes", "--hold", hold, "program"])
        .arg(program(dir))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Executes the program's actions until the drill is over. Returns them in order.
async fn serve(
    cluster: &mut Cluster,
    dir: &Path,
    child: &mut Child,
    mut seen: impl FnMut(&str, &Child),
) -> (ExitStatus, Vec<String>) {
    let mut asked = Vec::new();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status, asked);
        }
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "asked") {
                continue;
            }
            let request = fs::read_to_string(&path).unwrap().trim().to_owned();
            fs::remove_file(&path).unwrap();
            let (act, name) = request.split_once(' ').unwrap();
            let node = (0..cluster.len()).find(|node| cluster[*node].name == name).unwrap();
            match act {
                "kill" => cluster[node].kill(),
                "start" => cluster[node].start(),
                "pause" => cluster[node].stop(),
                "resume" => cluster[node].go_on(),
                "restart" => {
                    cluster[node].terminate();
                    assert_eq!(cluster[node].exit_code().await, 0);
                    cluster[node].start();
                }
                other => panic!("{other}"),
            }
            seen(act, child);
            asked.push(request);
            fs::write(path.with_extension("done"), "").unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(15)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_breaks_what_the_cluster_can_bear_and_finds_nothing() {
    // In every step, a send has to be acknowledged within its 1.5 s.
    let (mut cluster, dir) = (Cluster::five_alone().await, TempDir::new().unwrap());
    let mut child = drill(&cluster, dir.path(), "1.5");
    let (status, asked) = serve(&mut cluster, dir.path(), &mut child, |_, _| {}).await;
    let output = child.wait_with_output().await.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status.code(), Some(0), "{log}\n{}", String::from_utf8_lossy(&output.stdout));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    for count in ["lost", "duplicated", "reordered", "phantom", "stale_reads", "resume_gaps"] {
        assert_eq!(result["verdict"][count], 0, "{result}");
    }

    let acts: Vec<&str> = asked.iter().map(|request| request.split(' ').next().unwrap()).collect();
    let expected =
        [&["kill", "start", "kill", "start", "kill", "kill", "start", "start", "pause", "resume"][..], &["restart"; 5]];
    assert_eq!(acts, expected.concat(), "{asked:?}");
    assert_ne!(asked[4], asked[5], "two different ones");
    let restarted: std::collections::HashSet<&String> = asked[10..].iter().collect();
    assert_eq!(restarted.len(), 5, "each once: {asked:?}");
    let steps = result["timeline"]["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 6, "{steps:?}");
    for step in steps {
        assert!(step["acknowledged"].as_u64().unwrap() > 0, "{step}");
        assert!(step["longest_wait_ms"].as_u64().unwrap() < PATIENCE.as_millis() as u64, "{step}");
        assert!(step["began_ms"].as_u64().unwrap() < step["ended_ms"].as_u64().unwrap(), "{step}");
    }
    let seconds = result["timeline"]["acknowledged_per_second"].as_array().unwrap();
    let total: u64 = seconds.iter().map(|count| count.as_u64().unwrap()).sum();
    assert!(total > 0 && result["verdict"]["acknowledged"].as_u64().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_is_interrupted_mends_what_is_broken() {
    let (mut cluster, dir) = (Cluster::five().await, TempDir::new().unwrap());
    let mut child = drill(&cluster, dir.path(), "1");
    let (status, asked) = serve(&mut cluster, dir.path(), &mut child, |act, child| {
        if act == "kill" {
            let pid = i32::try_from(child.id().unwrap()).ok().and_then(Pid::from_raw).unwrap();
            kill_process(pid, Signal::INT).unwrap();
        }
    })
    .await;
    assert_eq!(status.code(), Some(6), "{asked:?}");
    let acts: Vec<&str> = asked.iter().map(|request| request.split(' ').next().unwrap()).collect();
    assert_eq!(acts, ["kill", "start"], "{asked:?}");
    for node in 0..5 {
        cluster[node].ready().await;
    }
}
