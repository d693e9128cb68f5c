//! The simulator: random graphs, jobs and troubles against the stepped core, compared with a naive evaluator.
//!
//! `KILN_SIM_SEEDS=n` sets how many seeds a run has, `KILN_SIM_SEED=n` runs one, `KILN_SIM_TRACE=1` adds its trace to the
//! message of a failure.

mod check;
mod rng;
mod run;
mod world;

use crate::core::Planted;

/// How many seeds a run has when nothing else is said.
const SEEDS: u64 = 2_000;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn invariants_hold() {
    let (first, count) = match from_env("KILN_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, from_env("KILN_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let mut executions = 0;
    for seed in first..first + count {
        match run::run(seed, None) {
            Ok(outcome) => executions += outcome.executions,
            Err(error) => panic!("seed {seed} (repeat with KILN_SIM_SEED={seed} KILN_SIM_TRACE=1): {error}"),
        }
    }
    assert!(count == 1 || executions as u64 > count, "the simulator has become trivial: {executions} executions");
}

#[test]
fn a_seed_gives_one_trace() {
    for seed in 0..200 {
        assert_eq!(run::run(seed, None), run::run(seed, None), "seed {seed}");
    }
}

#[test]
fn planted_faults_are_found() {
    let faults =
        [Planted::NoSingleFlight, Planted::NoWaitForStop, Planted::KeepDemands, Planted::NoRecheck, Planted::Leak];
    for fault in faults {
        let found = (0..from_env("KILN_SIM_SEEDS").unwrap_or(SEEDS))
            .find_map(|seed| Some((seed, run::run(seed, Some(fault)).err()?)));
        let Some((seed, error)) = found else { panic!("{fault:?} was not found") };
        let first = error.lines().next().unwrap_or_default();
        let told = fault_symptoms(fault).iter().any(|symptom| first.contains(symptom));
        assert!(told, "{fault:?} at seed {seed} showed as: {first}");
    }
}

/// Returns what the checks may say about a planted fault.
fn fault_symptoms(fault: Planted) -> &'static [&'static str] {
    match fault {
        Planted::NoSingleFlight | Planted::NoRecheck => &["repeats work"],
        Planted::NoWaitForStop => &["run while it runs", "started twice", "executions at once"],
        Planted::KeepDemands => &["yet wants inputs"],
        Planted::Leak => &["left at the end"],
    }
}
