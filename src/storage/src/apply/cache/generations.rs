//! A map whose entries are forgotten when they have not been used for a while, bounded in bytes.

use std::{
    borrow::Borrow,
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    iter::Sum,
    mem,
    sync::Arc,
};

use chat::{AccountId, ConversationId, Privacy, SessionId};

/// The memory that a value holds outside of itself, in bytes.
pub(super) trait Heap {
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl Heap for AccountId {}
impl Heap for (AccountId, AccountId) {}
impl Heap for ConversationId {}
impl Heap for Privacy {}
impl Heap for SessionId {}

impl Heap for Arc<str> {
    fn heap_bytes(&self) -> usize {
        // The two counts are before the text.
        2 * size_of::<usize>() + self.len()
    }
}

/// The map has two generations. A use moves an entry to the younger one, and the older one is dropped as a whole. (This
/// approximates the order of the last use without a list of it.)
pub(super) struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    bytes: GenerationBytes,
}

/// Bytes of the entries of both generations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct GenerationBytes {
    pub young: usize,
    pub old: usize,
}

impl GenerationBytes {
    /// Whether the older generation has to be dropped, so that both take at most `max`. Entries that are all in use are
    /// kept up to two thirds of that: they move to the younger generation, which makes the older one smaller. Without a
    /// least size of the younger generation, a single new entry could make the map forget nearly everything.
    pub fn are_too_many(self, max: usize) -> bool {
        self.young >= max / 3 && self.young + self.old >= max / 3 * 2
    }
}

impl Sum for GenerationBytes {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self { young: sum.young + part.young, old: sum.old + part.old })
    }
}

impl<K, V> Default for Generations<K, V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), bytes: GenerationBytes::default() }
    }
}

impl<K: Hash + Eq + Heap, V: Heap> Generations<K, V> {
    pub fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        if !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.bytes.old -= Self::entry_bytes(&key) + value.heap_bytes();
            // What is not counted any more must not be held by the table.
            if self.old.len() < self.old.capacity() / 4 {
                self.old.shrink_to_fit();
            }
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    /// Inserts a key, or replaces its value.
    pub fn insert(&mut self, key: K, value: V) -> &mut V {
        self.bytes.young += value.heap_bytes();
        match self.young.entry(key) {
            Entry::Occupied(entry) => {
                let there = entry.into_mut();
                self.bytes.young -= mem::replace(there, value).heap_bytes();
                there
            }
            Entry::Vacant(entry) => {
                self.bytes.young += Self::entry_bytes(entry.key());
                entry.insert(value)
            }
        }
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        if let Some((key, value)) = self.young.remove_entry(key) {
            self.bytes.young -= Self::entry_bytes(&key) + value.heap_bytes();
        }
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.bytes.old -= Self::entry_bytes(&key) + value.heap_bytes();
        }
    }

    pub fn bytes(&self) -> GenerationBytes {
        self.bytes
    }

    /// Drops what was not used since the last call.
    pub fn age(&mut self) {
        self.old = mem::take(&mut self.young);
        self.bytes = GenerationBytes { young: 0, old: self.bytes.young };
    }

    fn entry_bytes(key: &K) -> usize {
        // The table doubles when 7/8 of its slots are in use, so there are at most 16/7 slots for each entry. Each has
        // a byte of its own.
        ((size_of::<(K, V)>() + 1) * 16).div_ceil(7) + key.heap_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_survives_what_is_not() {
        let mut map = Generations::default();
        map.insert(AccountId(0), ConversationId(10));
        map.insert(AccountId(1), ConversationId(11));
        for round in 1..=3 {
            map.age();
            map.insert(AccountId(100 + round), ConversationId(round));
            assert_eq!(map.get(&AccountId(0)), Some(&mut ConversationId(10)));
            assert_eq!(map.young.len() + map.old.len(), if round == 1 { 3 } else { 3.min(1 + round as usize) });
        }
        assert_eq!(map.get(&AccountId(1)), None);
    }

    #[test]
    fn all_bytes_are_counted_and_only_once() {
        let mut map: Generations<Arc<str>, Arc<str>> = Generations::default();
        let one = |key: &str, value: &str| ((32 + 1_usize) * 16).div_ceil(7) + 16 + key.len() + 16 + value.len();
        map.insert("key".into(), "value".into());
        map.insert("other".into(), "v".into());
        assert_eq!(map.bytes(), GenerationBytes { young: one("key", "value") + one("other", "v"), old: 0 });
        map.insert("key".into(), "longer value".into());
        assert_eq!(map.bytes().young, one("key", "longer value") + one("other", "v"));
        map.age();
        assert_eq!(map.bytes(), GenerationBytes { young: 0, old: one("key", "longer value") + one("other", "v") });
        assert!(map.get("key").is_some() && map.get("key").is_some());
        assert_eq!(map.bytes(), GenerationBytes { young: one("key", "longer value"), old: one("other", "v") });
        map.remove("key");
        map.remove("other");
        assert_eq!(map.bytes(), GenerationBytes::default());
        assert!(map.get("key").is_none() && map.get("other").is_none());
    }

    #[test]
    fn a_table_has_no_more_slots_than_are_counted() {
        let mut map: Generations<ConversationId, ConversationId> = Generations::default();
        for id in 1..=10_000 {
            map.insert(ConversationId(id), ConversationId(id));
            let slots = map.young.capacity() * 8 / 7;
            // The smallest tables have spare slots.
            assert!(id < 8 || slots * 17 <= map.bytes().young, "{id}: {slots} slots, {:?}", map.bytes());
        }
    }

    /// The number of misses if entries are used in the order of `used`. Fails if they take too many bytes.
    fn misses(entries: u64, used: impl Fn(u64) -> u64) -> u64 {
        const MAX: usize = 30_000;
        let mut map: Generations<ConversationId, ConversationId> = Generations::default();
        let mut misses = 0;
        for step in 0..entries * 20 {
            let id = ConversationId(used(step) % entries);
            if map.get(&id).is_none() {
                map.insert(id, id);
                misses += 1;
            }
            if map.bytes().are_too_many(MAX) {
                map.age();
            }
            let bytes = map.bytes().young + map.bytes().old;
            assert!(bytes <= MAX, "{entries} entries: {bytes} bytes");
        }
        misses
    }

    #[test]
    fn what_is_in_use_is_kept_up_to_two_thirds_and_everything_is_bounded() {
        let mixed = |step: u64| step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        for entries in [10, 100, 500] {
            assert_eq!(misses(entries, |step| step), entries, "each is read once");
            assert!(misses(entries, mixed) <= entries);
        }
        misses(1000, mixed);
        misses(100_000, mixed);
        misses(100_000, |step| step);
    }
}
