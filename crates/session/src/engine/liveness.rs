//! Since when something has been asked of a client without a pause: only then is its silence held against it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The calls to one client that are under way.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    patience: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    calls: usize,
    /// When the first call began that the client has not answered; calls that were given up count as well.
    since: Option<Instant>,
}

/// A call that is under way, or was given up when this is dropped.
#[derive(Debug)]
pub(super) struct Asked(Liveness);

impl Liveness {
    /// Returns the state of a client of which nothing is asked, and which may be silent for `patience` once that changes.
    pub fn new(patience: Duration) -> Self {
        Self { patience, state: Arc::default() }
    }

    /// Returns how long a call waits for an answer.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Notes that a call begins.
    pub fn ask(&self) -> Asked {
        let mut state = self.state.lock();
        state.since.get_or_insert_with(Instant::now);
        state.calls += 1;
        Asked(self.clone())
    }

    /// Notes a sign of life.
    pub fn alive(&self) {
        let mut state = self.state.lock();
        state.since = (state.calls > 0).then(Instant::now);
    }

    /// Returns for how long something that was asked has gone without a sign of life; none when nothing was.
    pub fn waiting(&self) -> Option<Duration> {
        self.state.lock().since.map(|since| since.elapsed())
    }
}

impl Asked {
    /// Notes that the call has ended with an answer.
    pub fn answered(self) {
        let liveness = self.0.clone();
        drop(self);
        liveness.alive();
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.state.lock().calls -= 1;
    }
}
