//! Variables of a process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Variables in the order in which they were set last.
///
/// Copies are cheap and share what they have in common until one of them is changed: each step of a file has the
/// variables of the one above it.
#[derive(Debug, Clone, Default)]
pub struct EnvList(Arc<Inner>);

#[derive(Debug, Clone, Default)]
struct Inner {
    /// By the number of the change that set it.
    entries: BTreeMap<u64, (String, String)>,
    places: HashMap<String, u64>,
    next: u64,
    bytes: usize,
    /// Entries that hold a NUL byte, by number.
    unpassable: BTreeSet<u64>,
}

impl Inner {
    fn remove(&mut self, key: &str) {
        let Some(place) = self.places.remove(key) else { return };
        self.unpassable.remove(&place);
        if let Some((key, value)) = self.entries.remove(&place) {
            self.bytes -= key.len() + value.len();
        }
    }
}

impl EnvList {
    /// Sets a variable; one that was set before moves to the end.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let (key, value) = (key.into(), value.into());
        let inner = Arc::make_mut(&mut self.0);
        inner.remove(&key);
        inner.bytes += key.len() + value.len();
        if key.contains('\0') || value.contains('\0') {
            inner.unpassable.insert(inner.next);
        }
        inner.places.insert(key.clone(), inner.next);
        inner.entries.insert(inner.next, (key, value));
        inner.next += 1;
    }

    /// Removes a variable.
    pub fn remove(&mut self, key: &str) {
        if self.0.places.contains_key(key) {
            Arc::make_mut(&mut self.0).remove(key);
        }
    }

    /// Returns the value of a variable.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.0.places.get(key)?;
        self.0.entries.get(place).map(|(_, value)| value.as_str())
    }

    /// Returns the variables in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        self.0.entries.values().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Returns `KEY=value` texts in order.
    pub fn to_vec(&self) -> Vec<String> {
        self.iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    /// Returns how many bytes names and values have together.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Returns a name or value with a NUL byte, which no process can have, if there is one.
    pub fn unpassable(&self) -> Option<&str> {
        let (key, value) = self.0.entries.get(self.0.unpassable.first()?)?;
        Some(if key.contains('\0') { key } else { value })
    }

    /// Returns how many variables there are.
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.entries.is_empty()
    }
}

impl PartialEq for EnvList {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for EnvList {}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for EnvList {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut list = Self::default();
        for (key, value) in pairs {
            list.set(key, value);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::EnvList;

    #[test]
    fn the_last_value_is_at_the_end() {
        let mut list: EnvList = [("a", "1"), ("b", "22"), ("a", "3")].into_iter().collect();
        assert_eq!(list.to_vec(), ["b=22", "a=3"]);
        let before = list.clone();
        list.remove("b");
        list.remove("missing");
        assert_eq!((list.to_vec(), list.bytes(), list.get("b")), (vec!["a=3".to_owned()], 2, None));
        assert_eq!((before.bytes(), before.get("b")), (5, Some("22")));
        assert_ne!(before, list);
    }

    #[test]
    fn what_no_process_can_have_is_known() {
        let mut list: EnvList = [("a", "1"), ("b", "x\0y"), ("c\0", "")].into_iter().collect();
        assert_eq!(list.unpassable(), Some("x\0y"));
        list.set("b", "z");
        assert_eq!(list.unpassable(), Some("c\0"));
        list.remove("c\0");
        assert_eq!(list.unpassable(), None);
    }
}
