//! The simulator of the solver and the store together: random graphs, concurrent builds, pruning, damage, failing writes
//! and deaths at every write, against the real store on a file system in memory, compared with a naive evaluator.
//!
//! `KILN_SIM_SEEDS=n` sets how many seeds a run has, `KILN_SIM_FIRST=n` at which it begins, `KILN_SIM_SEED=n` runs one,
//! `KILN_SIM_TRACE=1` adds its trace to the message of a failure.
//!
//! The solver is the real one on a runtime of one thread; each call of an operation or of the key store waits at a gate
//! (`gate`) until the seed lets it go on. Operations (`op`) make layers of a few bytes, whose content follows from their
//! inputs (`world`). A death (`machine`) is a fault hook at which the root is taken from under the store; the next life opens
//! what was there, or less of it if the power failed. `check` says what must hold.

mod check;
mod gate;
mod history;
mod keys;
mod life;
mod machine;
mod op;
mod rng;
mod trouble;
mod world;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use history::Outcome;
use tempfile::TempDir;

/// How many seeds a run has when nothing else is said.
const SEEDS: u64 = 60;
/// Seeds that have found faults.
const FOUND: [u64; 7] = [16_407, 18_307, 27_335, 55_636, 71_507, 88_499, 95_369];
/// Of so many seeds one dies at every write of its first life in turn.
const EVERY: u64 = 50;

/// A fault that the checks have to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// Pruning takes what is in use.
    PruneHeld,
    /// Records are believed without a look at their layers.
    BelieveRecords,
    /// An epoch is closed before its files are on the disk.
    EarlyEpoch,
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Returns a directory in memory, where there is such.
fn base() -> TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::Builder::new().prefix("kiln-sim-").tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

/// Runs a seed, and for some of them every death that its first life may die.
fn run(seed: u64, base: &Path) -> Result<Outcome, String> {
    let outcome = history::run(seed, base, None, None)?;
    if seed % EVERY == 7 {
        for nth in 1..=outcome.passes {
            history::run(seed, base, None, Some(nth)).map_err(|e| format!("death at write {nth}: {e}"))?;
        }
    }
    Ok(outcome)
}

fn told(seed: u64, error: &str) -> String {
    format!("seed {seed} (repeat with KILN_SIM_SEED={seed} KILN_SIM_TRACE=1): {error}")
}

#[test]
fn seeds_that_have_found_faults_pass() {
    let base = base();
    let failed = FOUND.iter().filter_map(|seed| run(*seed, base.path()).err().map(|error| told(*seed, &error)));
    assert_eq!(failed.collect::<Vec<_>>().join("\n\n"), "");
}

#[test]
fn invariants_hold() {
    let (first, count) = match from_env("KILN_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (from_env("KILN_SIM_FIRST").unwrap_or(0), from_env("KILN_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let (next, executions, deaths) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        let (base, mut errors) = (base(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return errors;
            }
            match run(seed, base.path()) {
                Ok(outcome) => {
                    executions.fetch_add(outcome.executions, Ordering::Relaxed);
                    deaths.fetch_add(u64::from(outcome.deaths), Ordering::Relaxed);
                }
                Err(error) => errors.push(told(seed, &error)),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let errors: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(errors.is_empty(), "{}", errors.join("\n\n"));
    let (executions, deaths) = (executions.into_inner(), deaths.into_inner());
    assert!(
        count < 50 || (executions > 5 * count && deaths > count / 4),
        "trivial: {executions} runs, {deaths} deaths"
    );
}

#[test]
fn a_seed_gives_one_trace() {
    let base = base();
    for seed in 1000..1012 {
        let first = history::run(seed, base.path(), None, None).unwrap();
        assert_eq!(first, history::run(seed, base.path(), None, None).unwrap(), "seed {seed}");
    }
}

#[test]
fn planted_faults_are_found() {
    let base = base();
    let faults = [
        (Planted::PruneHeld, "is in use and was pruned"),
        (Planted::BelieveRecords, "holds"),
        (Planted::EarlyEpoch, "holds"),
    ];
    for (fault, symptom) in faults {
        let found = (0..2_000).find_map(|seed| Some((seed, history::run(seed, base.path(), Some(fault), None).err()?)));
        let Some((seed, error)) = found else { panic!("{fault:?} was not found") };
        let first = error.lines().next().unwrap_or_default();
        let told = [symptom, "wrong inputs", "failed at attempt"].iter().any(|told| first.contains(told));
        assert!(told, "{fault:?} at seed {seed} showed as: {first}");
    }
}
