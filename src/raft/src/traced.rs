//! Records the spans of traced entries: replication to each follower, commit, apply.
//!
//! An entry holds many commands, few of which are traced, and openraft passes entries around without reading them. So
//! the traces of an entry are read once, when this node's log gets it, and are looked up by its index from then on.
//! Bounded: of at most [`CONTEXTS_MAX`] commands.
//!
//! Does not cover: the write and the fsync of the log, which `storage::log` records.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::types::{Entry, LogId};
use proto::log::v1 as pb;
use storage::codec;
use trace::{Kind, TraceContext, Tracer};

/// Most contexts that are kept, of the newest traced entries. A follower that is further behind gets no replication
/// spans.
const CONTEXTS_MAX: usize = 16_384;

/// The traced entries of a node.
pub(crate) struct Traced {
    tracer: Tracer,
    newest: Mutex<Newest>,
}

#[derive(Default)]
struct Newest {
    /// Entries by ascending index.
    entries: VecDeque<TracedEntry>,
    /// Number of contexts in all entries.
    contexts: usize,
    /// Entries before this index are known to be committed.
    committed_end: u64,
}

#[derive(Clone)]
struct TracedEntry {
    index: u64,
    traces: Arc<[TraceContext]>,
    appended: Instant,
}

impl Newest {
    /// Position of the first entry at or after an index.
    fn position(&self, index: u64) -> usize {
        self.entries.partition_point(|entry| entry.index < index)
    }

    /// The entries with indexes from `from` up to, but not including, `end`.
    fn range(&self, from: u64, end: u64) -> Vec<TracedEntry> {
        self.entries.range(self.position(from)..self.position(end).max(self.position(from))).cloned().collect()
    }

    fn push(&mut self, entry: TracedEntry) {
        self.contexts += entry.traces.len();
        self.entries.push_back(entry);
        while self.contexts > CONTEXTS_MAX
            && let Some(oldest) = self.entries.pop_front()
        {
            self.contexts -= oldest.traces.len();
        }
    }

    fn truncate_from(&mut self, index: u64) {
        while let Some(cut) = self.entries.pop_back_if(|last| last.index >= index) {
            self.contexts -= cut.traces.len();
        }
    }
}

impl Traced {
    pub(crate) fn new(tracer: Tracer) -> Arc<Self> {
        Arc::new(Self { tracer, newest: Mutex::default() })
    }

    pub(crate) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records entries that this node's log gets. Returns the traces of all of them.
    pub(crate) fn appended(&self, entries: &[pb::Entry]) -> Vec<TraceContext> {
        let mut all = Vec::new();
        if !self.tracer.is_on() {
            return all;
        }
        for entry in entries {
            let (Some(id), Some(pb::entry::Payload::Batch(batch))) = (&entry.log_id, &entry.payload) else { continue };
            let traces = codec::traces(batch);
            if !traces.is_empty() {
                all.extend(&traces);
                let entry = TracedEntry { index: id.index, traces: traces.into(), appended: Instant::now() };
                self.newest().push(entry);
            }
        }
        all
    }

    /// Removes the entries from an index on, because the log was truncated there.
    pub(crate) fn truncated_from(&self, index: u64) {
        self.newest().truncate_from(index);
    }

    /// Records that entries up to an index are committed.
    pub(crate) fn committed(&self, last: u64) {
        if !self.tracer.is_on() {
            return;
        }
        let now = Instant::now();
        let entries = {
            let mut newest = self.newest();
            let from = std::mem::replace(&mut newest.committed_end, last + 1);
            newest.range(from, last + 1)
        };
        // Recorded without the lock, because consensus and all of replication would wait for it.
        for entry in entries {
            let index = ("raft.index", entry.index.into());
            self.tracer.record("raft.commit", Kind::Internal, &entry.traces, (entry.appended, now), [index]);
        }
    }

    /// Records that the entries of an index range were applied between two moments.
    pub(crate) fn applied(&self, indexes: (u64, u64), applied: (Instant, Instant)) {
        if !self.tracer.is_on() {
            return;
        }
        let (first, last) = indexes;
        let entries = self.newest().range(first, last + 1);
        for entry in entries {
            let index = ("raft.index", entry.index.into());
            self.tracer.record("state.apply", Kind::Internal, &entry.traces, applied, [index]);
        }
    }

    fn of(&self, entries: &[Entry]) -> Vec<TraceContext> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Vec::new() };
        let known = self.newest().range(first.log_id.index, last.log_id.index + 1);
        known.iter().flat_map(|entry| entry.traces.iter().copied()).collect()
    }
}

/// Messages that were sent to a follower on one stream and are not acknowledged yet.
pub(crate) struct Replication {
    traced: Arc<Traced>,
    peer: String,
    waiting: Mutex<VecDeque<Sent>>,
}

struct Sent {
    /// Index of the last entry in the message.
    last: u64,
    at: Instant,
    traces: Vec<TraceContext>,
    entries: usize,
}

impl Replication {
    pub(crate) fn to(peer: &str, traced: &Arc<Traced>) -> Arc<Self> {
        Arc::new(Self { traced: Arc::clone(traced), peer: peer.to_owned(), waiting: Mutex::default() })
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Sent>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that entries are being sent.
    pub(crate) fn sent(&self, entries: &[Entry]) {
        if !self.traced.tracer.is_on() {
            return;
        }
        let traces = self.traced.of(entries);
        if let (Some(last), false) = (entries.last(), traces.is_empty()) {
            let sent = Sent { last: last.log_id.index, at: Instant::now(), traces, entries: entries.len() };
            self.waiting().push_back(sent);
        }
    }

    /// Records that the follower has everything up to an entry on disk.
    pub(crate) fn acknowledged(&self, upto: Option<LogId>) {
        let Some(upto) = upto.filter(|_| self.traced.tracer.is_on()) else { return };
        let now = Instant::now();
        let mut waiting = self.waiting();
        while let Some(sent) = waiting.pop_front_if(|sent| sent.last <= upto.index) {
            let attributes = [("chat.peer", self.peer.clone().into()), ("raft.entries", sent.entries.into())];
            self.traced.tracer.record("raft.replicate", Kind::Client, &sent.traces, (sent.at, now), attributes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;

    use openraft::EntryPayload;
    use prost::Message as _;
    use tracing::Span;

    use super::*;
    use crate::{transport::convert, types::Payload};
    use trace::{Attribute, Recorder, Recording};

    /// Names of spans with the id of their trace, in the order in which they ended.
    #[derive(Clone, Default)]
    struct Names(Arc<Lock<Vec<(&'static str, u128)>>>);

    impl Recorder for Names {
        fn call(&self, _: &str, _: Option<TraceContext>) -> (Span, Option<TraceContext>) {
            panic!("nobody calls");
        }
        fn begin(&self, name: &'static str, _: Kind, parent: TraceContext, _: Instant) -> Box<dyn Recording> {
            Box::new(One(self.clone(), name, parent))
        }
    }

    struct One(Names, &'static str, TraceContext);

    impl Recording for One {
        fn context(&self) -> TraceContext {
            self.2
        }
        fn set(&mut self, _: Attribute) {}
        fn fail(&mut self, _: String) {}
        fn end(self: Box<Self>, _: Instant) {
            self.0.0.lock().unwrap().push((self.1, self.2.trace_id()));
        }
    }

    fn context(trace_id: u128) -> TraceContext {
        TraceContext::new(trace_id, 1, true).unwrap()
    }

    /// An entry whose commands have these traces; 0: none.
    fn entry(index: u64, traces: &[u128]) -> pb::Entry {
        let proposal = |id: &u128| pb::Proposal {
            traceparent: codec::traceparent(TraceContext::new(*id, 1, true)),
            ..pb::Proposal::default()
        };
        let batch = pb::Batch { proposals: traces.iter().map(proposal).collect(), ..Default::default() };
        let payload = pb::entry::Payload::Batch(batch.encode_to_vec().into());
        pb::Entry { log_id: Some(pb::LogId { term: 1, node_id: 1, index }), payload: Some(payload) }
    }

    fn raft(entry: &pb::Entry) -> Entry {
        convert::entry(entry.clone()).unwrap()
    }

    #[test]
    fn each_step_is_recorded_once_for_each_trace() {
        let names = Names::default();
        let taken = || std::mem::take(&mut *names.0.lock().unwrap());
        let traced = Traced::new(Tracer::new(Arc::new(names.clone())));
        let entries = [entry(1, &[0]), entry(2, &[7, 0, 8]), entry(3, &[9])];
        assert_eq!(traced.appended(&entries), [context(7), context(8), context(9)]);
        let replication = Replication::to("n2", &traced);
        replication.sent(&[raft(&entries[0])]);
        replication.sent(&[raft(&entries[1])]);
        replication.sent(&[raft(&entries[2])]);
        replication.acknowledged(Some(raft(&entries[1]).log_id));
        assert_eq!(taken(), [("raft.replicate", 7), ("raft.replicate", 8)]);
        let now = Instant::now();
        traced.committed(2);
        assert_eq!(taken(), [("raft.commit", 7), ("raft.commit", 8)]);
        traced.applied((1, 2), (now, now));
        assert_eq!(taken(), [("state.apply", 7), ("state.apply", 8)]);
        replication.acknowledged(Some(raft(&entries[2]).log_id));
        assert_eq!(taken(), [("raft.replicate", 9)]);
    }

    #[test]
    fn what_is_cut_off_is_neither_committed_nor_applied_nor_replicated() {
        let names = Names::default();
        let taken = || std::mem::take(&mut *names.0.lock().unwrap());
        let traced = Traced::new(Tracer::new(Arc::new(names.clone())));
        traced.appended(&[entry(1, &[7]), entry(2, &[8]), entry(3, &[9])]);
        // A new leader has other entries from the second place on, and the first of them is a blank.
        traced.truncated_from(2);
        traced.appended(&[entry(3, &[0, 5])]);
        assert_eq!(traced.newest().contexts, 2);
        traced.committed(3);
        let now = Instant::now();
        traced.applied((1, 3), (now, now));
        let expected = [("raft.commit", 7), ("raft.commit", 5), ("state.apply", 7), ("state.apply", 5)];
        assert_eq!(taken(), expected);
        let replication = Replication::to("n2", &traced);
        replication.sent(&[raft(&entry(2, &[])), raft(&entry(3, &[]))]);
        replication.acknowledged(Some(raft(&entry(3, &[])).log_id));
        assert_eq!(taken(), [("raft.replicate", 5)]);
        // Entries that came with a snapshot were never applied one by one.
        traced.applied((4, 9), (now, now));
        assert_eq!(taken(), []);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_is_when_off() {
        let traced = Traced::new(Tracer::new(Arc::new(Names::default())));
        for index in 0..CONTEXTS_MAX as u64 / 2 + 10 {
            traced.appended(&[entry(index, &[3, 4])]);
        }
        {
            let newest = traced.newest();
            assert_eq!((newest.contexts, newest.entries.len()), (CONTEXTS_MAX, CONTEXTS_MAX / 2));
            assert_eq!(newest.entries[0].index, 10);
        }
        let off = Traced::new(Tracer::off());
        assert!(off.appended(&[entry(1, &[3])]).is_empty());
        assert!(off.newest().entries.is_empty());
        let blank: Entry =
            Entry { log_id: raft(&entry(1, &[])).log_id, payload: EntryPayload::Normal(Payload::default()) };
        assert!(traced.of(&[blank]).is_empty());
    }
}
