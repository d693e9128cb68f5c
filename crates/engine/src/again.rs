//! How often a build is done again after damage: as long as each time something else turns out to be damaged.
//!
//! What came to light has been repaired or dropped by then, so the next attempt does not meet it. A disk that spoils all
//! that is written would go on for ever that way, so no build is done again more often than it has results.

use std::collections::BTreeSet;

/// The damage that a build has met.
#[derive(Debug, Default)]
pub struct Attempts {
    met: BTreeSet<String>,
    /// How often the store had repaired or dropped something when the last one failed.
    repairs: u64,
    failed: usize,
}

impl Attempts {
    /// Tells whether to try again where an attempt failed with `damage`: it is another one than before, or the store has
    /// repaired or dropped something since then. `repairs` is how often it ever did, `results` how many results the build
    /// has.
    pub fn goes_on(&mut self, damage: &str, repairs: u64, results: usize) -> bool {
        let is_new = self.met.insert(damage.to_owned());
        let before = std::mem::replace(&mut self.repairs, repairs);
        self.failed += 1;
        (is_new || repairs > before) && self.failed <= results
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_has_to_get_further() {
        let mut attempts = Attempts::default();
        assert!(attempts.goes_on("a", 5, 9), "the first one");
        assert!(attempts.goes_on("b", 5, 9), "something else");
        assert!(attempts.goes_on("a", 6, 9), "told alike, but something was dropped");
        assert!(!attempts.goes_on("b", 6, 9), "nothing new");
    }

    #[test]
    fn a_disk_that_spoils_everything_ends_it() {
        let mut attempts = Attempts::default();
        let often = (0..100).filter(|n| attempts.goes_on(&n.to_string(), *n, 3)).count();
        assert_eq!(often, 3);
    }
}
