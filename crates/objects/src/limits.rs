//! How long requests may take and how often they are repeated.

use std::time::Duration;

use kiln_registry::{Pause, RegistryConfig, RetryPolicy, Timeouts};

/// What all requests to a store keep to.
#[derive(Clone)]
pub struct Limits {
    /// Limits on waiting for one answer.
    pub timeouts: Timeouts,
    /// How failed requests are repeated.
    pub retry: RetryPolicy,
    /// How the client waits between attempts.
    pub pause: Pause,
    /// Longest time that reading manifests may take in all: a build waits for it.
    pub manifests: Duration,
    /// Blobs of more bytes are sent in parts where the store knows parts.
    pub whole: u64,
    /// Bytes of a part.
    pub part: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let wait = Duration::from_secs(30);
        Self {
            timeouts: Timeouts { connect: Duration::from_secs(10), response: wait, stall: wait },
            retry: RetryPolicy {
                attempts: 4,
                base: Duration::from_millis(250),
                cap: Duration::from_secs(5),
                total: Duration::from_secs(60),
            },
            pause: RegistryConfig::default().pause,
            manifests: Duration::from_secs(90),
            whole: 1 << 30,
            part: 64 << 20,
        }
    }
}

impl Limits {
    /// Takes `wait` as the longest time without an answer or a byte.
    pub(crate) fn set_wait(&mut self, wait: Duration) {
        self.timeouts = Timeouts { connect: wait.min(self.timeouts.connect), response: wait, stall: wait };
        let all = wait * self.retry.attempts;
        self.manifests = self.manifests.min(all);
        self.retry.total = self.retry.total.min(all);
    }

    /// Takes `total` as the longest sum of waits between attempts, and nothing else as longer than that.
    pub(crate) fn set_total(&mut self, total: Duration) {
        let Timeouts { connect, response, stall } = self.timeouts;
        self.timeouts =
            Timeouts { connect: connect.min(total), response: response.min(total), stall: stall.min(total) };
        self.manifests = self.manifests.min(total);
        self.retry.total = total;
    }

    /// Returns how many bytes of a blob of `size` go into one part: a store takes ten thousand.
    pub(crate) fn part_of(&self, size: u64) -> usize {
        let least = usize::try_from(size / 10_000 + 1).unwrap_or(usize::MAX);
        self.part.max(least)
    }
}
