//! A map that knows which of its values may have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

/// An ordered map whose every change goes through [`Tracked::get_mut`], [`Tracked::insert`] or
/// [`Tracked::remove`], so that what is derived from its values can follow by looking only at
/// the keys that [`Tracked::take_touched`] names.
#[derive(Debug)]
pub(crate) struct Tracked<K, V> {
    map: BTreeMap<K, V>,
    touched: BTreeSet<K>,
}

impl<K: Ord + Copy, V> Default for Tracked<K, V> {
    fn default() -> Tracked<K, V> {
        Tracked::new()
    }
}

impl<K: Ord + Copy, V> Tracked<K, V> {
    pub fn new() -> Tracked<K, V> {
        Tracked { map: BTreeMap::new(), touched: BTreeSet::new() }
    }

    /// The value, which counts as touched from now on.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let value = self.map.get_mut(key);
        if value.is_some() {
            self.touched.insert(*key);
        }
        value
    }

    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.touched.insert(key);
        self.map.insert(key, value)
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.map.remove(key);
        if value.is_some() {
            self.touched.insert(*key);
        }
        value
    }

    /// Counts a key as touched although its value did not change.
    pub fn touch(&mut self, key: K) {
        self.touched.insert(key);
    }

    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// The keys touched since the last call, in order; some may be gone from the map.
    pub fn take_touched(&mut self) -> BTreeSet<K> {
        std::mem::take(&mut self.touched)
    }
}

impl<K, V> Deref for Tracked<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.map
    }
}
