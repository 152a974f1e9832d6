//! Volumes that are damaged, truncated, or restored to an earlier moment: the node returns under a new id, with all
//! data.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use client::{Client, Consistency};
use storage::{LogDb, open_file};

use super::members::{copy, five_and, voters};
use support::{Cluster, eventually, rot, wal};

const NAMES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
/// The exit code of a node that quarantines its files.
const STORAGE: i32 = 74;

/// Damages a file.
type Damage = fn(&Path);

fn removed(path: &Path) {
    fs::remove_file(path).unwrap();
}

/// Truncates the file to the first page and a bit of the second.
fn cut_off(path: &Path) {
    File::options().write(true).open(path).unwrap().set_len(5000).unwrap();
}

/// Overwrites everything after the first half.
fn overwritten(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let from = length / 2 / 4096 * 4096;
    file.write_all_at(&vec![0xa5; (length - from) as usize], from).unwrap();
}

/// Changes a letter of a message, which SQLite does not detect.
fn letter_changed(path: &Path) {
    assert!(rot::change_a_letter(path, 3));
}

/// Stores a value that is never written, in a page with a valid checksum.
fn impossible(path: &Path) {
    let conn = open_file(path).unwrap();
    assert_eq!(conn.execute("UPDATE state SET revision = -revision", []).unwrap(), 1);
}

/// Does the same in a row that a start does not read.
fn impossible_where_readers_look(path: &Path) {
    let conn = open_file(path).unwrap();
    let sql = "UPDATE message SET seq = -seq WHERE revision = (SELECT max(revision) FROM message)";
    assert_eq!(conn.execute(sql, []).unwrap(), 1);
}

/// Stops a node in order, so that the database files contain everything, and starts it again.
async fn checkpoint_files(cluster: &mut Cluster, node: usize) {
    cluster[node].terminate();
    assert_eq!(cluster[node].exit_code().await, 0);
    cluster.restart(node).await;
}

/// Starts a node whose files are damaged, until a start has moved them aside. That is the first start, if it reads what
/// is damaged. Otherwise the background check finds the damage while the node runs, and ends it.
async fn moved_aside(cluster: &mut Cluster, hurt: usize) {
    let before = cluster[hurt].errors().len();
    let is_aside = |cluster: &Cluster| {
        cluster[hurt].errors().iter().skip(before).any(|line| line.contains("failed their integrity checks"))
    };
    cluster[hurt].start();
    eventually("the damage is found", async || {
        (is_aside(cluster) || cluster[hurt].has_ended()).then_some(()).ok_or_else(|| "it runs".to_owned())
    })
    .await;
    if !is_aside(cluster) {
        assert_eq!(cluster[hurt].exit_code().await, STORAGE, "{}", cluster[hurt].log());
        cluster[hurt].start();
    }
    cluster[hurt].ready().await;
    assert!(is_aside(cluster), "{:?}", cluster[hurt].errors());
}

/// Asserts that a node has replaced its old self and has all data. Only its id differs from those in `known`, which is
/// updated.
async fn replaced(cluster: &Cluster, hurt: usize, known: &mut Vec<u64>, alice: &Client, token: &str) {
    let asked = (hurt + 1) % 5;
    eventually("another id", async || {
        let now = voters(cluster, asked, &NAMES).await;
        (now[hurt] != known[hurt]).then_some(()).ok_or_else(|| format!("{now:?}"))
    })
    .await;
    let now = voters(cluster, asked, &NAMES).await;
    assert!((0..5).all(|at| (now[at] == known[at]) == (at != hurt)), "{known:?}, then {now:?}");
    *known = now;
    let sent = alice.send_message("alice", "and on").await.unwrap();
    cluster.level(token, sent.revision).await;
    let page = cluster.direct(hurt, token).read("alice", Consistency::Linearizable).await.unwrap();
    assert_eq!(page.last_seq, sent.seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_moved_aside_and_the_node_takes_the_place_of_its_old_self() {
    let mut cluster = five_and(0).await;
    let (alice, token) = cluster.register("alice").await;
    for number in 0..40 {
        alice.send_message("alice", &format!("message {number}").repeat(50)).await.unwrap();
    }
    let mut known = voters(&cluster, 0, &NAMES).await;
    let damages: [(&str, Damage); 8] = [
        ("log.db-wal", removed),
        ("chat.db-wal", removed),
        ("log.db", cut_off),
        ("chat.db", cut_off),
        ("log.db", overwritten),
        ("chat.db", overwritten),
        ("chat.db", letter_changed),
        ("chat.db", impossible),
    ];
    for (number, (file, damage)) in damages.into_iter().enumerate() {
        // One of them is the founder.
        let hurt = number % 5;
        checkpoint_files(&mut cluster, hurt).await;
        cluster[hurt].kill();
        damage(&cluster[hurt].data_dir().join(file));
        moved_aside(&mut cluster, hurt).await;
        assert_eq!(fs::read_dir(cluster[hurt].data_dir().join("aside")).unwrap().count(), 1 + number / 5);
        replaced(&cluster, hurt, &mut known, &alice, &token).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_met_while_the_node_runs_stops_it_and_it_comes_back_whole() {
    let mut cluster = five_and(0).await;
    let (alice, token) = cluster.register("alice").await;
    let body = "x".repeat(8 << 10);
    for _ in 0..100 {
        alice.send_message("alice", &body).await.unwrap();
    }
    // The last page, which is the one that readers read.
    for number in 0..12 {
        alice.send_message("alice", &format!("{number} EUR")).await.unwrap();
    }
    let mut known = voters(&cluster, 0, &NAMES).await;

    // A reader meets the damage in chat.db.
    let damages: [Damage; 3] = [overwritten, letter_changed, impossible_where_readers_look];
    for damage in damages {
        let hurt = cluster.follower().await;
        checkpoint_files(&mut cluster, hurt).await;
        damage(&cluster[hurt].data_dir().join("chat.db"));
        eventually("the damage is met", async || {
            // The call may be answered from the undamaged half, or fail.
            if let Ok(page) = cluster.direct(hurt, &token).read("alice", Consistency::Local).await {
                let known = |body: &str| body == "and on" || body.starts_with("xx") || body.ends_with(" EUR");
                assert!(page.messages.iter().all(|message| known(&message.body)), "{page:?}");
            }
            cluster[hurt].has_ended().then_some(()).ok_or_else(|| "it runs".to_owned())
        })
        .await;
        assert_eq!(cluster[hurt].exit_code().await, STORAGE, "{}", cluster[hurt].log());
        cluster.restart(hurt).await;
        replaced(&cluster, hurt, &mut known, &alice, &token).await;
    }

    // A leader meets the damage in log.db, when it has to send old entries to a follower that was down.
    let behind = cluster.follower().await;
    cluster[behind].kill();
    for _ in 0..100 {
        alice.send_message("alice", &body).await.unwrap();
    }
    let hurt = cluster.follower().await;
    checkpoint_files(&mut cluster, hurt).await;
    overwritten(&cluster[hurt].data_dir().join("log.db"));
    // It may exit before it leads, because its next write may also meet the damage.
    let _ = cluster[hurt].transfer_to_itself().await;
    cluster[behind].start();
    assert_eq!(cluster[hurt].exit_code().await, STORAGE, "{}", cluster[hurt].log());
    cluster[behind].ready().await;
    cluster.restart(hurt).await;
    replaced(&cluster, hurt, &mut known, &alice, &token).await;
}

/// Resets a volume to the moment after the node got its identity: nothing else is left.
fn back_to_the_beginning(data: &Path) {
    let open = || LogDb::open(data, Box::new(|_| {})).unwrap();
    let log = open();
    let identity = log.identity().unwrap();
    log.close();
    drop(log);
    fs::remove_dir_all(data).unwrap();
    fs::create_dir(data).unwrap();
    let log = open();
    log.save_identity(identity).unwrap();
    log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_a_nodes_own_volume_is_found_out_and_never_used() {
    let mut cluster = five_and(0).await;
    let (alice, token) = cluster.register("alice").await;
    let mut known = voters(&cluster, 0, &NAMES).await;
    for (leads, from_the_beginning) in [(false, false), (true, false), (false, true)] {
        let hurt = if leads { cluster.leader().await } else { cluster.follower().await };
        let data = cluster[hurt].data_dir();
        let old = data.with_extension("old");
        // Simulates a snapshot of the volume: all files at one moment, while the node runs.
        cluster[hurt].stop();
        fs::remove_dir_all(&old).ok();
        copy(&data, &old);
        cluster[hurt].go_on();
        for number in 0..20 {
            alice.send_message("alice", &format!("message {number}")).await.unwrap();
        }
        cluster.level(&token, 0).await;
        cluster[hurt].kill();
        fs::remove_dir_all(&data).unwrap();
        copy(&old, &data);
        if from_the_beginning {
            back_to_the_beginning(&data);
        }
        cluster[hurt].start();
        assert_eq!(cluster[hurt].exit_code().await, STORAGE, "{}", cluster[hurt].log());
        let errors = cluster[hurt].errors();
        assert!(errors.last().unwrap().contains("the files are an older copy of this node's"), "{errors:?}");
        // The next start moves the files aside.
        cluster.restart(hurt).await;
        assert_eq!(fs::read_dir(data.join("aside")).unwrap().count(), 1);
        replaced(&cluster, hurt, &mut known, &alice, &token).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_loses_nothing_that_was_acknowledged() {
    let mut cluster = five_and(0).await;
    let (alice, token) = cluster.register("alice").await;
    let before = alice.send_message("alice", "before").await.unwrap();
    cluster.level(&token, before.revision).await;
    let mut known = voters(&cluster, 0, &NAMES).await;
    let leader = cluster.leader().await;
    let followers: Vec<usize> = (0..5).filter(|node| *node != leader).collect();
    let [hurt, other, late, later] = followers[..] else { panic!("{followers:?}") };
    cluster[late].stop();
    cluster[later].stop();
    // The leader and these two are the majority.
    let sent = alice.send_message("alice", "acknowledged").await.unwrap();
    for node in 0..5 {
        cluster[node].kill();
    }
    assert!(wal::flip_a_bit(&cluster[hurt].data_dir().join("log.db-wal"), 0));
    // Without the data that one of them has lost, these three could elect a leader that never had the message.
    for node in [hurt, late, later] {
        cluster[node].start();
    }
    cluster[hurt].logged("failed their integrity checks (the database is damaged: log.db has lost its end").await;
    for node in [leader, other] {
        cluster[node].start();
    }
    for node in 0..5 {
        cluster[node].ready().await;
    }
    replaced(&cluster, hurt, &mut known, &alice, &token).await;
    let page = cluster.direct(late, &token).read("alice", Consistency::Linearizable).await.unwrap();
    let found = page.messages.iter().find(|message| message.seq == sent.seq).map(|message| message.body.as_str());
    assert_eq!(found, Some("acknowledged"));
}
