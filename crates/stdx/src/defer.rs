//! A guard that runs a closure when it goes out of scope, unless it was disarmed.

/// Runs its closure on drop.
#[must_use = "a guard that is not kept runs at once"]
pub struct Defer<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Defer<F> {
    /// Returns a guard that will run `action`.
    pub fn new(action: F) -> Self {
        Self(Some(action))
    }

    /// Drops the closure without running it.
    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for Defer<F> {
    fn drop(&mut self) {
        if let Some(action) = self.0.take() {
            action();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_unless_disarmed() {
        let ran = std::cell::Cell::new(0);
        drop(Defer::new(|| ran.set(ran.get() + 1)));
        Defer::new(|| ran.set(ran.get() + 10)).disarm();
        assert_eq!(ran.get(), 1);
    }
}
