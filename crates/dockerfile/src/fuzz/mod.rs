//! Fuzzing from seeds: the lexer, the parser, variables, ignore files, and the whole way to a graph.
//!
//! A body is a plain function of random numbers, so that a seed is all it takes to have a failure again. The test run
//! does a few hundred of each; `KILN_FUZZ_SECONDS=600 cargo test -p kiln-dockerfile --lib fuzz::` goes on for that
//! long with each, and `KILN_FUZZ_SEED` says where to begin.

mod corpus;
mod expander;
mod ignore;
mod lexer;
mod limits;
mod lowering;
mod parser;
mod random;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use random::Random;

/// A long run gives up on an input after this time: whatever it is, it is not allowed to hang.
const HANG: Duration = Duration::from_secs(20);
/// A long run must stay below this many KiB of memory.
const MEMORY_KIB: u64 = 2 << 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Tells which seed is in work when a body panics.
struct Seed<'a>(&'a str, u64);

impl Drop for Seed<'_> {
    #[expect(clippy::print_stderr, reason = "a test's own words")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: KILN_FUZZ_SEED={} has it again", self.0, self.1);
        }
    }
}

/// Runs a body with one seed after the other.
#[expect(clippy::print_stderr, reason = "a test's own words")]
fn campaign(name: &str, rounds: u64, body: impl Fn(&mut Random)) {
    let first = number("KILN_FUZZ_SEED").unwrap_or(0);
    let Some(seconds) = number("KILN_FUZZ_SECONDS") else {
        for seed in first..first + rounds {
            let _told = Seed(name, seed);
            body(&mut Random::new(seed));
        }
        return;
    };
    let (started, limit) = (Instant::now(), Duration::from_secs(seconds));
    let current = Arc::new(AtomicU64::new(first));
    watch(name.to_owned(), Arc::clone(&current));
    let mut seed = first;
    while started.elapsed() < limit {
        current.store(seed, Ordering::Relaxed);
        let _told = Seed(name, seed);
        body(&mut Random::new(seed));
        seed += 1;
    }
    current.store(u64::MAX, Ordering::Relaxed);
    let peak = peak_memory();
    eprintln!("{name}: {} inputs in {:?}, peak memory of the process {peak} KiB", seed - first, started.elapsed());
    assert!(peak < MEMORY_KIB, "{name}: {peak} KiB of memory");
}

/// Ends the process when a seed stays in work for too long; a hang could not be told otherwise.
#[expect(clippy::print_stderr, reason = "a test's own words")]
fn watch(name: String, current: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut last = u64::MAX - 1;
        loop {
            let now = current.load(Ordering::Relaxed);
            if now == u64::MAX {
                return;
            }
            if now == last {
                eprintln!("{name}: seed {now} takes longer than {HANG:?}");
                std::process::abort();
            }
            last = now;
            std::thread::sleep(HANG);
        }
    });
}

/// Returns the most memory that the process has had, in KiB; 0 where the system does not tell.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
