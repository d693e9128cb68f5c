//! When to try again, and how long to wait before.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::config::RetryPolicy;
use crate::error::ErrorKind;

/// Most attempts where no connection comes about: a wrong name should be told soon.
const CONNECTS: u32 = 3;

/// Counts attempts and waits of one request against its policy.
#[derive(Debug)]
pub struct Retries<'a> {
    policy: &'a RetryPolicy,
    failed: u32,
    waited: Duration,
}

impl<'a> Retries<'a> {
    /// Returns the count of a request that has not been sent yet.
    pub fn new(policy: &'a RetryPolicy) -> Self {
        Self { policy, failed: 0, waited: Duration::ZERO }
    }

    /// Notes a failed attempt and returns how long to wait before the next; none when this was the last.
    pub fn after(&mut self, kind: &ErrorKind) -> Option<Duration> {
        self.failed += 1;
        let attempts = match kind {
            ErrorKind::Connect(_) => self.policy.attempts.min(CONNECTS),
            _ => self.policy.attempts,
        };
        if !kind.is_transient() || self.failed >= attempts {
            return None;
        }
        let own = backoff(self.policy, self.failed);
        let wait = match kind {
            ErrorKind::RateLimited { retry_after: Some(asked) }
            | ErrorKind::Status { retry_after: Some(asked), .. } => own.max(*asked),
            _ => own,
        };
        if self.waited + wait > self.policy.total {
            return None;
        }
        self.waited += wait;
        Some(wait)
    }
}

/// Returns the wait after `failed` failures: doubling, capped, with up to a quarter of jitter taken off.
pub fn backoff(policy: &RetryPolicy, failed: u32) -> Duration {
    let doubled = policy.base.saturating_mul(1u32 << failed.saturating_sub(1).min(16));
    doubled.min(policy.cap).mul_f64(1.0 - rand::random::<f64>() / 4.0)
}

/// Reads `Retry-After`: seconds, or an HTTP date relative to `now` (seconds since 1970).
pub fn retry_after(headers: &HeaderMap, now: u64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second();
    Some(Duration::from_secs(u64::try_from(date).ok()?.saturating_sub(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            attempts: 4,
            base: Duration::from_millis(100),
            cap: Duration::from_millis(250),
            total: Duration::from_secs(60),
        }
    }

    #[test]
    fn waits_grow_to_the_cap_and_attempts_are_bounded() {
        let policy = policy();
        let mut retries = Retries::new(&policy);
        let kind = ErrorKind::Interrupted(String::new());
        let waits: Vec<_> = std::iter::from_fn(|| retries.after(&kind)).collect();
        assert_eq!(waits.len(), 3);
        for (wait, full) in waits.iter().zip([100, 200, 250]) {
            assert!((full * 3 / 4..=full).contains(&(wait.as_millis() as u64)), "{wait:?} of {full}");
        }
    }

    #[test]
    fn a_server_may_ask_for_more_but_not_for_ever() {
        let policy = policy();
        let limited = |s| ErrorKind::RateLimited { retry_after: Some(Duration::from_secs(s)) };
        let mut retries = Retries::new(&policy);
        assert_eq!(retries.after(&limited(40)), Some(Duration::from_secs(40)));
        assert_eq!(retries.after(&limited(40)), None);
        assert_eq!(Retries::new(&policy).after(&ErrorKind::NotFound), None);
    }

    #[test]
    fn both_forms_of_retry_after() {
        let headers = |v: &'static str| HeaderMap::from_iter([(RETRY_AFTER, v.parse().unwrap())]);
        assert_eq!(retry_after(&headers("7"), 0), Some(Duration::from_secs(7)));
        let date = headers("Thu, 01 Jan 1970 00:02:00 GMT");
        assert_eq!(retry_after(&date, 90), Some(Duration::from_secs(30)));
        assert_eq!(retry_after(&date, 500), Some(Duration::ZERO));
        assert_eq!(retry_after(&headers("soon"), 0), None);
    }
}
