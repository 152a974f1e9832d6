//! openraft's conformance suite for storage.

use std::sync::Arc;

use openraft::{
    StorageError,
    storage::RaftStateMachine as _,
    testing::log::{StoreBuilder, Suite},
};
use tokio::sync::watch;

use crate::tests::cluster::Silent;
use crate::{
    audit::Auditor,
    store::{
        log::LogStore,
        state_machine::{Durability, StateMachineAdapter},
    },
    traced::Traced,
    types::TypeConfig,
};
use proto::log::v1 as pb;
use storage::{AppliedEntry, AppliedPayload, FirstFailure, LogDb, Readers, SharedState, StateImage, StateMachine};
use trace::Tracer;

struct Stores;

struct AllDurable;

impl Durability for AllDurable {
    fn is_durable(&self, _index: u64) -> Result<bool, storage::StorageError> {
        Ok(true)
    }

    fn when_durable(&self, _index: u64, done: storage::Done) {
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
        // The suite applies entries that it never appended.
        let auditor = Arc::new(Auditor::new(1, &state.applied().expect("open"), Arc::new(Silent)));
        let adapter = StateMachineAdapter {
            state,
            durability: Arc::new(AllDurable),
            readers,
            sink: Arc::new(Silent),
            auditor,
            applied: watch::Sender::new(None),
            failure: FirstFailure::default(),
            traced: Traced::new(Tracer::off()),
        };
        Ok((dir, LogStore::new(log, FirstFailure::default(), Traced::new(Tracer::off())), adapter))
    }
}

#[tokio::test]
async fn what_openraft_takes_for_a_snapshot_is_committed_first() {
    let (dir, _log, mut adapter) = Stores.build().await.expect("built");
    assert!(adapter.get_current_snapshot().await.expect("read").is_none());
    let log_id = pb::LogId { term: 1, node_id: 1, index: 1 };
    adapter.state.apply(vec![AppliedEntry { log_id, payload: AppliedPayload::Blank }]).expect("applied");
    let snapshot = adapter.get_current_snapshot().await.expect("read").expect("there");
    assert_eq!(snapshot.meta.last_log_id.map(|id| id.index), Some(1));
    let committed = StateImage::open(dir.path()).expect("opened").meta().log_id;
    assert_eq!(committed, Some(log_id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_stores_pass_the_conformance_suite() {
    Suite::test_all(Stores).await.expect("conformance");
}
