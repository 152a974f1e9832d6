//! openraft's conformance suite for storage.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tokio::sync::watch;

use super::cluster::Silent;
use crate::{
    raft::{log_store::LogStore, snapshots::SnapshotStore, state_machine::StateMachineAdapter, types::TypeConfig},
    storage::{LogDb, Readers, StateMachine},
};

struct Stores;

impl StoreBuilder<TypeConfig, LogStore, StateMachineAdapter, tempfile::TempDir> for Stores {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachineAdapter), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = LogDb::open(dir.path(), Box::new(|_| {})).expect("opens");
        let state = StateMachine::open(dir.path()).expect("opens");
        let readers = Arc::new(Readers::open(dir.path(), 1).expect("opens"));
        let snapshots = Arc::new(SnapshotStore::open(dir.path()).expect("opens"));
        // The suite applies entries that it never appended.
        let adapter = StateMachineAdapter::new(
            state,
            Arc::new(|_| Ok(())),
            readers,
            snapshots,
            Arc::new(Silent),
            watch::Sender::new(None),
        );
        Ok((dir, LogStore::new(log), adapter))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_stores_pass_the_conformance_suite() {
    Suite::test_all(Stores).await.expect("conformance");
}
