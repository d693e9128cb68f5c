//! A small cache that forgets what was used longest ago once its weight exceeds a budget.

use std::collections::HashMap;
use std::hash::Hash;

pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    budget: usize,
    weight: usize,
    tick: u64,
}

struct Entry<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> Lru<K, V> {
    pub fn new(budget: usize) -> Self {
        Self { entries: HashMap::new(), budget, weight: 0, tick: 0 }
    }

    pub fn get(&mut self, key: &K) -> Option<V> {
        self.tick += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.tick;
        Some(entry.value.clone())
    }

    /// Keeps `value`, even if it alone is over the budget: whoever made it is about to use it.
    pub fn put(&mut self, key: K, value: V, weight: usize) {
        self.tick += 1;
        self.weight += weight;
        if let Some(old) = self.entries.insert(key.clone(), Entry { value, weight, used: self.tick }) {
            self.weight -= old.weight;
        }
        while self.weight > self.budget && self.entries.len() > 1 {
            let Some(oldest) = self.entries.iter().min_by_key(|(_, e)| e.used).map(|(k, _)| k.clone()) else { break };
            self.remove(&oldest);
        }
    }

    pub fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.weight -= entry.weight;
        }
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let weight = &mut self.weight;
        self.entries.retain(|key, entry| {
            let kept = keep(key, &entry.value);
            if !kept {
                *weight -= entry.weight;
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_by_weight_and_use() {
        let mut lru = Lru::new(10);
        lru.put("a", 1, 4);
        lru.put("b", 2, 4);
        assert_eq!(lru.get(&"a"), Some(1));
        lru.put("c", 3, 4);
        assert_eq!((lru.get(&"a"), lru.get(&"b"), lru.get(&"c")), (Some(1), None, Some(3)));
        lru.put("big", 9, 99);
        assert_eq!((lru.get(&"big"), lru.get(&"a")), (Some(9), None));
        lru.put("big", 8, 1);
        lru.retain(|_, v| *v != 8);
        assert_eq!((lru.weight, lru.entries.len()), (0, 0));
    }
}
