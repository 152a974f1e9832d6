//! A bounded map that evicts the entries that were not touched for the longest time.
//!
//! The map has two generations. Touched entries are in the young one. When that is full, it becomes the old one, and
//! the entries of the previous old one are dropped. So at most `capacity` entries are kept, which include at least the
//! `capacity / 2` that were touched last. Every operation takes constant time.

use std::{collections::HashMap, hash::Hash};

#[derive(Debug)]
pub(super) struct AgingMap<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Eq + Hash + Clone, V> AgingMap<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (capacity / 2).max(1) }
    }

    /// The value of `key`, which counts as a touch.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if let Some(value) = self.old.remove(key) {
            self.insert(key.clone(), value);
        }
        self.young.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.old.remove(key);
        self.young.remove(key).or(old)
    }

    pub(super) fn clear(&mut self) {
        self.young = HashMap::new();
        self.old = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_touched() {
        let mut map = AgingMap::new(8);
        map.insert(0, "kept");
        for key in 1..100 {
            map.insert(key, "other");
            assert_eq!(map.get_mut(&0), Some(&mut "kept"));
            assert!(map.young.len() + map.old.len() <= 8);
        }
        assert_eq!(map.get_mut(&1), None);
        assert_eq!(map.get_mut(&99), Some(&mut "other"));
        assert_eq!(map.remove(&0), Some("kept"));
        assert_eq!(map.get_mut(&0), None);
    }
}
