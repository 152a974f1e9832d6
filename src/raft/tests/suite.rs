//! openraft's conformance suite for storage.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tokio::sync::watch;

use super::cluster::Silent;
use crate::{
    raft::{
        auditor::Auditor,
        log_store::LogStore,
        snapshots::SnapshotStore,
        state_machine::{Durability, StateMachineAdapter},
        traced::Traced,
        types::TypeConfig,
    },
    storage::{FirstFailure, LogDb, Readers, SharedState, StateMachine},
    trace::Tracer,
};

struct Stores;

struct AllDurable;

impl Durability for AllDurable {
    fn is_durable(&self, _index: u64) -> Result<bool, crate::storage::StorageError> {
        Ok(true)
    }

    fn when_durable(&self, _index: u64, done: crate::storage::Done) {
        done(Ok(()));
    }
}

impl StoreBuilder<TypeConfig, LogStore, StateMachineAdapter, tempfile::TempDir> for Stores {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachineAdapter), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = LogDb::open(dir.path(), Box::new(|_| {})).expect("opens");
        let state = StateMachine::open(dir.path()).expect("opens");
        let state = SharedState::new(state, Box::new(())).expect("starts");
        let readers = Arc::new(Readers::of(state.clone(), 1).expect("opens"));
        let snapshots = Arc::new(SnapshotStore::open(dir.path()).expect("opens"));
        // The suite applies entries that it never appended.
        let auditor = Arc::new(Auditor::new(1, &state.applied().expect("open"), Arc::new(Silent)));
        let adapter = StateMachineAdapter::new(
            state,
            Arc::new(AllDurable),
            readers,
            snapshots,
            Arc::new(Silent),
            auditor,
            watch::Sender::new(None),
            FirstFailure::default(),
            Traced::new(Tracer::off()),
        );
        Ok((dir, LogStore::new(log, FirstFailure::default(), Traced::new(Tracer::off())), adapter))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_stores_pass_the_conformance_suite() {
    Suite::test_all(Stores).await.expect("conformance");
}
