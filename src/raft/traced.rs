//! Traced entries on their way: to each follower, committed, applied.
//!
//! An entry holds many commands, of which few are traced, and openraft hands entries around without looking into them. So
//! the traces of an entry are read once, when this node's log gets it, and looked up by its index from then on. Bounded: of
//! the newest [`ENTRIES_MAX`] traced entries.
//!
//! Left out: the write and the fsync of the log (`storage::log` tells of those).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::types::{Entry, LogId};
use crate::{
    proto::log::v1 as pb,
    storage::codec,
    trace::{Kind, TraceContext, Tracer},
};

/// Traced entries that are remembered. A follower that is further behind has no replication spans.
const ENTRIES_MAX: usize = 4096;

/// The traced entries of a node.
pub(super) struct Traced {
    tracer: Tracer,
    newest: Mutex<Newest>,
}

#[derive(Default)]
struct Newest {
    /// By ascending index.
    entries: VecDeque<TracedEntry>,
    /// Those before this index were told of as committed.
    committed_end: u64,
}

struct TracedEntry {
    index: u64,
    traces: Vec<TraceContext>,
    appended: Instant,
}

impl Traced {
    pub(super) fn new(tracer: Tracer) -> Arc<Self> {
        Arc::new(Self { tracer, newest: Mutex::default() })
    }

    pub(super) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node's log gets entries. Returns the traces of all of them.
    pub(super) fn appended(&self, entries: &[pb::Entry]) -> Vec<TraceContext> {
        let mut all = Vec::new();
        if !self.tracer.is_on() {
            return all;
        }
        for entry in entries {
            let (Some(id), Some(pb::entry::Payload::Batch(batch))) = (&entry.log_id, &entry.payload) else { continue };
            let traces = codec::traces(batch);
            if traces.is_empty() {
                continue;
            }
            all.extend(&traces);
            let mut newest = self.newest();
            // What another leader had put there was cut off.
            while newest.entries.back().is_some_and(|last| last.index >= id.index) {
                newest.entries.pop_back();
            }
            if newest.entries.len() >= ENTRIES_MAX {
                newest.entries.pop_front();
            }
            newest.entries.push_back(TracedEntry { index: id.index, traces, appended: Instant::now() });
        }
        all
    }

    /// Entries up to an index are committed, as this node learned at `learned`, and were applied between two moments.
    pub(super) fn applied(&self, last: u64, learned: Instant, applied: (Instant, Instant)) {
        if !self.tracer.is_on() {
            return;
        }
        let mut newest = self.newest();
        let from = newest.position(newest.committed_end);
        for entry in newest.entries.range(from..).take_while(|entry| entry.index <= last) {
            let index = || ("raft.index", entry.index.into());
            self.tracer.record("raft.commit", Kind::Internal, &entry.traces, (entry.appended, learned), [index()]);
            self.tracer.record("state.apply", Kind::Internal, &entry.traces, applied, [index()]);
        }
        newest.committed_end = last + 1;
    }

    fn of(&self, entries: &[Entry]) -> Vec<TraceContext> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Vec::new() };
        let newest = self.newest();
        let from = newest.position(first.log_id.index);
        let known = newest.entries.range(from..).take_while(|entry| entry.index <= last.log_id.index);
        known.flat_map(|entry| entry.traces.iter().copied()).collect()
    }
}

impl Newest {
    /// Where the first entry at or after an index is.
    fn position(&self, index: u64) -> usize {
        self.entries.partition_point(|entry| entry.index < index)
    }
}

/// What was sent to a follower on one stream, and not acknowledged yet.
pub(super) struct Replication {
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
    pub(super) fn to(peer: &str, traced: &Arc<Traced>) -> Arc<Self> {
        Arc::new(Self { traced: Arc::clone(traced), peer: peer.to_owned(), waiting: Mutex::default() })
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Sent>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries are being sent.
    pub(super) fn sent(&self, entries: &[Entry]) {
        if !self.traced.tracer.is_on() {
            return;
        }
        let traces = self.traced.of(entries);
        if let (Some(last), false) = (entries.last(), traces.is_empty()) {
            let sent = Sent { last: last.log_id.index, at: Instant::now(), traces, entries: entries.len() };
            self.waiting().push_back(sent);
        }
    }

    /// The follower has everything up to an entry on disk.
    pub(super) fn acknowledged(&self, upto: Option<LogId>) {
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
    use crate::{
        raft::{convert, types::Payload},
        trace::{Attribute, Recorder, Recording},
    };

    /// Names of steps with the id of their trace, in the order in which they ended.
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
        let batch = pb::Batch { proposals: traces.iter().map(proposal).collect() };
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
        traced.applied(2, now, (now, now));
        assert_eq!(taken(), [("raft.commit", 7), ("raft.commit", 8), ("state.apply", 7), ("state.apply", 8)]);
        // A new leader has something else at the third place.
        assert_eq!(traced.appended(&[entry(3, &[0, 5])]), [context(5)]);
        traced.applied(3, now, (now, now));
        assert_eq!(taken(), [("raft.commit", 5), ("state.apply", 5)]);
        replication.acknowledged(Some(raft(&entries[2]).log_id));
        assert_eq!(taken(), [("raft.replicate", 9)]);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_nothing_is_when_off() {
        let traced = Traced::new(Tracer::new(Arc::new(Names::default())));
        for index in 0..ENTRIES_MAX as u64 + 10 {
            traced.appended(&[entry(index, &[3])]);
        }
        assert_eq!(traced.newest().entries.len(), ENTRIES_MAX);
        assert_eq!(traced.newest().entries[0].index, 10);
        let off = Traced::new(Tracer::off());
        assert!(off.appended(&[entry(1, &[3])]).is_empty());
        assert!(off.newest().entries.is_empty());
        let blank: Entry =
            Entry { log_id: raft(&entry(1, &[])).log_id, payload: EntryPayload::Normal(Payload::default()) };
        assert!(traced.of(&[blank]).is_empty());
    }
}
