//! Admission of connections to a port: pools, owners, and the choice of the connection that makes room for another.
//!
//! A connection is *unproven* until its caller has done something that a stranger cannot do. Then it moves to the pool
//! of proven connections, under the owner that the caller has proven to be. When a pool is full, the owner with the
//! most connections loses its oldest one. So a flood displaces its own connections, an owner with few connections keeps
//! them, and a new stranger is always admitted. In a full pool of proven connections, owners with equally many
//! connections displace each other only where [`Pools::equals_displace`] is set; elsewhere the newest connection ends.
//! The connections of one owner are unlimited while there is room.
//!
//! Invariants: a pool never exceeds its bound. Proven connections are never displaced by unproven ones. Accepting never
//! waits for a connection to end. A connection also ends when one of its answers is not taken ([`ANSWER_STALL_MAX`]).
//!
//! Does not cover: how a caller proves its identity (the layers above), bytes ([`super::shares`]), and time limits of
//! the socket ([`super::bounded`]).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Waker,
    time::Duration,
};

use axum::http::Extensions;
use futures_util::task::AtomicWaker;
use tokio::{sync::Semaphore, time::Instant};
use tonic::transport::server::TcpConnectInfo;

/// Time limit for a part of an answer to be taken by its receiver. No other time limit detects a peer that answers
/// keepalive pings but leaves its flow-control window closed.
pub const ANSWER_STALL_MAX: Duration = Duration::from_secs(30);
/// Unread answers of reads on one connection before its further reads wait: 8 pages of 256 KiB.
pub const UNREAD_PAGES_MAX: usize = 8;
/// The same on a connection of a trusted proxy.
const FORWARDED_PAGES_MAX: usize = 256;

/// The party that a connection or a share is counted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// An IPv4 address, or the /64 of an IPv6 address: a host can choose any address of its /64.
    Address(u128),
    /// An authenticated account, by its id.
    Account(u64),
}

impl Owner {
    /// The owner of connections from `ip`.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::Address(ip.to_ipv6_mapped().to_bits()),
            IpAddr::V6(ip) => Self::Address(ip.to_bits() >> 64 << 64),
        }
    }
}

/// Bounds of a port.
#[derive(Debug, Clone, Copy)]
pub struct Pools {
    /// Connections whose callers have proven an identity.
    pub proven: usize,
    /// All others.
    pub unproven: usize,
    /// Whether a new proven connection displaces one of an owner with equally many. Useful where all owners are equal,
    /// as with probes: there, the newest connection is the one in use. Elsewhere, owners would only displace each other
    /// in turn.
    pub equals_displace: bool,
}

/// Why the gate ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// Its pool was full, and its owner had the most connections.
    Displaced,
    /// A part of an answer was not taken in time.
    Unread,
}

impl Drop {
    /// The label of the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Displaced => "displaced",
            Self::Unread => "answer_unread",
        }
    }
}

/// Observes dropped connections. Must not block.
pub type DropObserver = Arc<dyn Fn(Drop) + Send + Sync>;

/// The connections of a port. Clones share them.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    pools: Pools,
    connections: Mutex<Connections>,
    observer: DropObserver,
}

#[derive(Default)]
struct Connections {
    next_id: u64,
    unproven: Pool,
    proven: Pool,
}

#[derive(Default)]
struct Pool {
    owners: BTreeMap<Owner, BTreeMap<u64, Arc<Ticket>>>,
    count: usize,
}

impl Pool {
    fn insert(&mut self, owner: Owner, ticket: &Arc<Ticket>) {
        self.owners.entry(owner).or_default().insert(ticket.id, Arc::clone(ticket));
        self.count += 1;
    }

    fn remove(&mut self, owner: Owner, id: u64) {
        let Some(tickets) = self.owners.get_mut(&owner) else { return };
        self.count -= usize::from(tickets.remove(&id).is_some());
        if tickets.is_empty() {
            self.owners.remove(&owner);
        }
    }

    fn held_by(&self, owner: Owner) -> usize {
        self.owners.get(&owner).map_or(0, BTreeMap::len)
    }

    /// The oldest connection of the owner with the most connections, with one more counted for `newcomer`. Among owners
    /// with equally many, the oldest connection of all.
    fn next_to_go(&self, newcomer: Owner) -> Option<(Owner, Arc<Ticket>)> {
        let oldest = |tickets: &BTreeMap<u64, Arc<Ticket>>| tickets.keys().next().copied().unwrap_or(u64::MAX);
        let most = self.owners.iter().max_by_key(|(owner, tickets)| {
            (tickets.len() + usize::from(**owner == newcomer), u64::MAX - oldest(tickets))
        });
        most.and_then(|(owner, tickets)| tickets.values().next().map(|ticket| (*owner, Arc::clone(ticket))))
    }
}

impl Gate {
    /// A gate without connections.
    pub fn new(pools: Pools, observer: DropObserver) -> Self {
        Self { inner: Arc::new(Inner { pools, connections: Mutex::default(), observer }) }
    }

    /// A gate for `connections` of each kind, without metrics.
    pub fn uncounted(connections: usize) -> Self {
        Self::new(Pools { proven: connections, unproven: connections, equals_displace: false }, Arc::new(|_| {}))
    }

    /// Admits a connection, and ends another one if the pool of unproven connections is full.
    pub fn admit(&self, from: SocketAddr) -> Arc<Ticket> {
        let owner = Owner::of(from.ip());
        let mut connections = self.inner.lock();
        if connections.unproven.count >= self.inner.pools.unproven
            && let Some((owner, ticket)) = connections.unproven.next_to_go(owner)
        {
            connections.unproven.remove(owner, ticket.id);
            self.inner.cut(&ticket, Drop::Displaced);
        }
        let id = connections.next_id;
        connections.next_id += 1;
        let ticket = Arc::new(Ticket {
            gate: Arc::clone(&self.inner),
            id,
            from,
            behind: OnceLock::new(),
            owner: Mutex::new(owner),
            is_proven: AtomicBool::new(false),
            forwards: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            answers: Mutex::default(),
            pages: Arc::new(Semaphore::new(UNREAD_PAGES_MAX)),
            receiving: AtomicUsize::new(0),
            calls: Default::default(),
            is_unflushed: AtomicBool::new(false),
        });
        connections.unproven.insert(owner, &ticket);
        ticket
    }

    /// The unproven connection of `owner` that holds the most bytes of requests, with these bytes.
    pub(super) fn receives_most(&self, owner: Owner) -> Option<(usize, Arc<Ticket>)> {
        let connections = self.inner.lock();
        let of_owner = connections.unproven.owners.get(&owner).into_iter().flat_map(BTreeMap::values);
        let held = of_owner.map(|ticket| (ticket.receiving.load(Ordering::Relaxed), ticket));
        let most = held.max_by_key(|(bytes, ticket)| (*bytes, u64::MAX - ticket.id))?;
        Some((most.0, Arc::clone(most.1)))
    }

    /// Ends an unproven connection to make room for another request.
    pub(super) fn displace(&self, ticket: &Ticket) {
        let mut connections = self.inner.lock();
        connections.unproven.remove(ticket.owner(), ticket.id);
        self.inner.cut(ticket, Drop::Displaced);
    }

    /// Ends the connections that leave an answer unread. Call it about once a second.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut connections = self.inner.lock();
        let Connections { unproven, proven, .. } = &mut *connections;
        for pool in [unproven, proven] {
            let tickets = pool.owners.values().flat_map(BTreeMap::values);
            let stalled: Vec<_> = tickets.filter(|ticket| ticket.is_stalled(now)).cloned().collect();
            for ticket in stalled {
                pool.remove(ticket.owner(), ticket.id);
                self.inner.cut(&ticket, Drop::Unread);
            }
        }
    }

    /// The numbers of unproven and of proven connections.
    pub fn counts(&self) -> (usize, usize) {
        let connections = self.inner.lock();
        (connections.unproven.count, connections.proven.count)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("pools", &self.inner.pools).field("counts", &self.counts()).finish()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, ticket: &Ticket, reason: Drop) {
        tracing::debug!(from = %ticket.from(), reason = reason.name(), "Connection dropped");
        ticket.is_cut.store(true, Ordering::Release);
        ticket.waker.wake();
        (self.observer)(reason);
    }
}

/// The place of a connection. Travels with its requests, as an extension of type `Arc<Ticket>`.
pub struct Ticket {
    gate: Arc<Inner>,
    id: u64,
    from: SocketAddr,
    /// The caller that a trusted proxy has named.
    behind: OnceLock<SocketAddr>,
    /// Written only while the gate's connections are locked.
    owner: Mutex<Owner>,
    is_proven: AtomicBool,
    /// Whether the connection is of a proxy that forwards the requests of many callers.
    forwards: AtomicBool,
    is_cut: AtomicBool,
    waker: AtomicWaker,
    answers: Mutex<Answers>,
    pages: Arc<Semaphore>,
    receiving: AtomicUsize,
    /// The numbers of running calls, and of answers that are being written.
    calls: (AtomicUsize, AtomicUsize),
    /// Whether written bytes may still wait in a buffer of TLS.
    is_unflushed: AtomicBool,
}

/// The times at which the unwritten parts of answers were handed out.
#[derive(Default)]
struct Answers {
    since: Vec<Option<Instant>>,
    free: Vec<usize>,
}

impl Ticket {
    /// The address that connected.
    pub fn peer(&self) -> SocketAddr {
        self.from
    }

    /// The caller's address: the peer's, or the one that a trusted proxy has named.
    pub fn from(&self) -> SocketAddr {
        self.behind.get().copied().unwrap_or(self.from)
    }

    /// The owner that the connection is counted to.
    pub fn owner(&self) -> Owner {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account that the caller has proven to be, if the connection carries the requests of one caller only.
    pub fn proven_account(&self) -> Option<Owner> {
        Some(self.owner()).filter(|owner| self.is_proven() && matches!(owner, Owner::Account(_)))
    }

    /// The owner of a request with these `extensions` whose caller has presented no session: the address of the peer,
    /// or the one that a trusted proxy names for this request.
    pub fn stranger(&self, extensions: &Extensions) -> Owner {
        let from = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        Owner::of(from.unwrap_or_else(|| self.from()).ip())
    }

    /// Whether the caller has proven an identity.
    pub fn is_proven(&self) -> bool {
        self.is_proven.load(Ordering::Relaxed)
    }

    /// Permits for answers of reads that are not taken yet.
    pub fn pages(&self) -> &Arc<Semaphore> {
        &self.pages
    }

    /// Bytes of requests that are being received or processed.
    pub(super) fn receiving(&self) -> &AtomicUsize {
        &self.receiving
    }

    /// The numbers of running calls, and of answers that are being written.
    pub(super) fn calls(&self) -> (&AtomicUsize, &AtomicUsize) {
        (&self.calls.0, &self.calls.1)
    }

    /// Whether a call runs.
    pub(super) fn runs_calls(&self) -> bool {
        self.calls.0.load(Ordering::Relaxed) > 0
    }

    /// Whether part of an answer has not reached the socket.
    pub(super) fn has_unwritten(&self) -> bool {
        self.calls.1.load(Ordering::Relaxed) > 0
            || self.is_unflushed.load(Ordering::Relaxed)
            || self.answers().since.iter().any(Option::is_some)
    }

    /// Records whether all written bytes have reached the socket.
    pub(super) fn flushed(&self, is_flushed: bool) {
        self.is_unflushed.store(!is_flushed, Ordering::Relaxed);
    }

    /// Records the caller that a trusted proxy has named, before anything else was read.
    pub fn name_caller(self: &Arc<Self>, caller: SocketAddr) {
        let mut connections = self.gate.lock();
        if self.is_cut() || self.is_proven() || self.behind.set(caller).is_err() {
            return;
        }
        let owner = Owner::of(caller.ip());
        connections.unproven.remove(self.owner(), self.id);
        self.set_owner(owner);
        connections.unproven.insert(owner, self);
    }

    /// Marks the connection as one of a trusted proxy that forwards the requests of many callers. It counts as proven.
    /// An answer that one caller does not take neither ends it nor blocks the others.
    pub fn forward(self: &Arc<Self>) {
        if !self.forwards.swap(true, Ordering::Relaxed) {
            self.pages.add_permits(FORWARDED_PAGES_MAX - UNREAD_PAGES_MAX);
            self.prove(self.owner());
        }
    }

    /// Records that the caller has proven to be `owner`. The first proof decides the owner of the connection.
    pub fn prove(self: &Arc<Self>, owner: Owner) {
        if self.is_proven() {
            return;
        }
        let mut connections = self.gate.lock();
        if self.is_cut() || self.is_proven() {
            return;
        }
        connections.unproven.remove(self.owner(), self.id);
        self.set_owner(owner);
        self.is_proven.store(true, Ordering::Relaxed);
        let pool = &mut connections.proven;
        if pool.count >= self.gate.pools.proven
            && let Some((most, oldest)) = pool.next_to_go(owner)
        {
            let equals_displace = self.gate.pools.equals_displace;
            let (own, theirs) = (pool.held_by(owner) + 1, pool.held_by(most));
            let stays = match most == owner {
                true => equals_displace || self.forwards.load(Ordering::Relaxed),
                false => own < theirs || equals_displace && own == theirs,
            };
            if !stays {
                self.gate.cut(self, Drop::Displaced);
                return;
            }
            pool.remove(most, oldest.id);
            self.gate.cut(&oldest, Drop::Displaced);
        }
        pool.insert(owner, self);
    }

    fn set_owner(&self, owner: Owner) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = owner;
    }

    /// Removes the connection, which has ended.
    pub(super) fn leave(&self) {
        let mut connections = self.gate.lock();
        let owner = self.owner();
        let pool = if self.is_proven() { &mut connections.proven } else { &mut connections.unproven };
        pool.remove(owner, self.id);
    }

    /// Whether the connection has to end.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }

    /// Registers the task to wake when the connection has to end.
    pub(super) fn watch(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a part of an answer was handed out. Returns its slot for [`Self::written`].
    pub(super) fn handed_out(&self) -> usize {
        let now = Some(Instant::now());
        let mut answers = self.answers();
        match answers.free.pop() {
            Some(slot) => {
                answers.since[slot] = now;
                slot
            }
            None => {
                answers.since.push(now);
                answers.since.len() - 1
            }
        }
    }

    /// Records that a part was written, or dropped with its stream.
    pub(super) fn written(&self, slot: usize) {
        let mut answers = self.answers();
        answers.since[slot] = None;
        answers.free.push(slot);
    }

    fn is_stalled(&self, now: Instant) -> bool {
        if self.forwards.load(Ordering::Relaxed) {
            return false;
        }
        self.answers().since.iter().flatten().any(|since| now.duration_since(*since) > ANSWER_STALL_MAX)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).field("from", &self.from()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
