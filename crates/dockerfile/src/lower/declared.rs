//! The arguments that a stage has declared.

use std::collections::HashMap;

use kiln_llb::builder::EnvList;

/// Declared arguments in the order of their first declaration, each with its last value.
#[derive(Debug, Clone, Default)]
pub(crate) struct Declared {
    list: Vec<(String, Option<String>)>,
    places: HashMap<String, usize>,
    /// Bytes of all names and values.
    bytes: usize,
}

impl Declared {
    /// Declares an argument, again or for the first time; a declaration without a value keeps the value.
    pub fn add(&mut self, name: &str, value: Option<String>) {
        self.bytes += name.len() + value.as_ref().map_or(0, String::len);
        match self.places.get(name).and_then(|&at| self.list.get_mut(at)) {
            Some((_, slot)) => *slot = value.or_else(|| slot.take()),
            None => {
                self.places.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.list.get(*self.places.get(name)?)?.1.as_deref()
    }

    /// Returns at least the bytes that [`Declared::words`] will have.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns `|2 a=1 b=2`, as the history has it: what the environment says wins.
    pub fn words(&self, env: &EnvList) -> Vec<String> {
        if self.list.is_empty() {
            return Vec::new();
        }
        let value = |name: &str, value: &Option<String>| {
            let value = env.get(name).or(value.as_deref()).unwrap_or_default();
            format!("{name}={value}")
        };
        let count = format!("|{}", self.list.len());
        std::iter::once(count).chain(self.list.iter().map(|(k, v)| value(k, v))).collect()
    }
}
