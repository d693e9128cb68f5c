//! The engine is killed in every phase of a build; the client fails at once, nothing outlives the engine, and the next
//! build gives what a cold one does.

use std::time::Duration;

use crate::choices::{number, seed, share};
use crate::killed::{Remains, killed};
use crate::project::{HELD, HOLD, Packing, Project};

/// Where the engine dies.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// At the n-th passing of a fault hook.
    Hook(&'static str, u32),
    /// The same, while a step runs beside it.
    Beside(&'static str, u32),
    /// While a step runs that had the cache for this much of the build before it: nothing, or all but itself.
    Step { warm: bool },
}

/// Ten places in each phase.
const PHASES: [(&str, [Place; 10]); 4] = {
    use Place::{Beside, Hook, Step};
    [
        (
            "unpack",
            [
                Hook("store.lazy.rename", 1),
                Hook("store.lazy.rename", 2),
                Hook("store.blob.renamed", 3),
                Hook("store.blob.renamed", 4),
                Hook("store.unpack.start", 1),
                Hook("store.unpack.start", 2),
                Hook("store.unpack.fs", 1),
                Hook("store.unpack.fs", 2),
                Hook("store.unpack.manifest", 1),
                Hook("store.unpack.manifest", 2),
            ],
        ),
        (
            "run",
            [
                Step { warm: false },
                Step { warm: true },
                Hook("engine.step.start", 1),
                Hook("engine.step.start", 2),
                Hook("engine.step.end", 1),
                Hook("engine.step.end", 3),
                Step { warm: true },
                Beside("engine.step.start", 3),
                Beside("engine.step.end", 2),
                Step { warm: false },
            ],
        ),
        (
            "commit",
            [
                Hook("store.layer.manifest", 1),
                Hook("store.layer.manifest", 5),
                Hook("store.layer.info", 2),
                Beside("store.layer.info", 5),
                Hook("store.layer.rename", 1),
                Beside("store.layer.rename", 5),
                Hook("store.layer.rename", 7),
                Hook("store.layer.renamed", 1),
                Beside("store.layer.renamed", 6),
                Hook("store.layer.renamed", 8),
            ],
        ),
        (
            "export",
            [
                Hook("engine.export.start", 1),
                Hook("engine.export.built", 1),
                Hook("store.image.blob", 1),
                Hook("store.image.small", 1),
                Hook("store.image.copy", 1),
                Hook("store.image.index", 1),
                Hook("engine.export.done", 1),
                Hook("exporter.archive.entry", 1),
                Hook("exporter.archive.entry", 6),
                Hook("engine.export.done", 2),
            ],
        ),
    ]
};

fn one(place: Place, driver: &'static str) -> Result<Remains, String> {
    let mut project = Project::fresh(driver).ok_or("no busybox")?;
    let packing = Packing::ALL[usize::try_from(seed() % 3).unwrap_or(0)];
    let hook = match place {
        Place::Hook(name, nth) => Some(format!("{name}:kill:{nth}")),
        Place::Beside(name, nth) => {
            project.set_seed("data", HOLD);
            Some(format!("{name}:kill:{nth}"))
        }
        Place::Step { warm } => {
            if warm {
                project.check(packing)?;
            }
            project.set_seed("data", HOLD);
            None
        }
    };
    let mark = hook.is_none().then_some(HELD);
    project.variables.extend(hook.map(|hook| ("KILN_FAULT", hook)));
    let build = project.build(packing);
    let remains = killed(project.env.root(), build, mark)?;
    if matches!(place, Place::Step { .. }) && remains.processes < 3 {
        return Err(format!("helper, its fork and a step were to be seen, not {}", remains.processes));
    }
    if project.archive().exists() {
        return Err("part of an archive is left".to_owned());
    }
    project.variables.clear();
    project.set_seed("data", "after");
    project.check(packing)?;
    let left = remains.left(project.env.root());
    if !left.is_empty() {
        return Err(format!("after the next build there is still {left:?}"));
    }
    // What was cut off has not been believed, and nothing bad is left for later builds.
    let verified = project.kiln(["cache", "verify"]).finish();
    match verified.code {
        Some(0) => Ok(remains),
        _ => Err(verified.report()),
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a test's own words")]
fn builds_after_a_kill_are_as_cold_ones() {
    if kiln_testkit::base::busybox().is_none() {
        kiln_testkit::skip!("no static busybox on this host");
    }
    let only = number("KILN_HARNESS_KILL");
    let count = share(10);
    let (mut kills, mut longest, mut failures) = (0, [Duration::ZERO; 2], Vec::new());
    for (phase, (name, places)) in PHASES.iter().enumerate() {
        for turn in 0..count {
            // With few turns, another seed has other places.
            let place = (turn + usize::try_from(seed()).unwrap_or(0) * 3) % places.len();
            let id = phase * places.len() + place;
            if only.is_some_and(|only| only != id) {
                continue;
            }
            kills += 1;
            let driver = ["overlay", "copy"][id % 2];
            match one(places[place], driver) {
                Ok(remains) => {
                    for (longest, took) in longest.iter_mut().zip(remains.took) {
                        *longest = took.max(*longest);
                    }
                }
                Err(text) => {
                    let repeat = format!("KILN_HARNESS_ROUNDS=500 KILN_HARNESS_KILL={id}");
                    eprintln!("{name}, {:?}, driver {driver}: failed, repeat with {repeat}\n{text}\n", places[place]);
                    failures.push(repeat);
                }
            }
        }
    }
    let [client, steps] = longest;
    eprintln!("{kills} kills, {} failed; clients ended within {client:?}, steps within {steps:?}", failures.len());
    assert!(failures.is_empty(), "{} kills failed\n{}", failures.len(), failures.join("\n"));
}
