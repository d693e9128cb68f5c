//! Damage between builds: whatever is deleted, cut or changed below the root, the next build gives what a cold one does.

use std::collections::BTreeMap;

use crate::choices::{Choices, number, rounds, seed};
use crate::damage::{Class, damage, victims};
use crate::project::{Packing, Project};

/// Rounds on one root. Damage that no build has met yet may pile up; a failure is repeated from the root's beginning.
const SERIES: usize = 9;

/// What becomes of the engine before the damage.
#[derive(Debug, Clone, Copy)]
enum Engine {
    Running,
    Stopped,
    Killed,
}

/// Runs the rounds of one root; a failure says what was done.
fn series(place: usize, count: usize, done: &mut BTreeMap<String, usize>) -> Result<(), String> {
    let mut choices = Choices::new(seed(), place as u64);
    let driver = ["overlay", "copy"][place % 2];
    let Some(mut project) = Project::fresh(driver) else { return Ok(()) };
    project.variables.push(("KILN_RECHECK", "0".to_owned()));
    let base = project.base_blobs();
    let mut story = vec![format!("driver {driver}")];
    let failed = |story: &[String], text: String| Err(format!("{}\n{text}", story.join("\n")));
    if let Err(text) = project.check(Packing::Gzip) {
        return failed(&story, text);
    }
    for round in 0..count {
        let class = Class::ALL[(place * SERIES + round) % Class::ALL.len()];
        let engine = [Engine::Running, Engine::Stopped, Engine::Killed][choices.below(3)];
        match engine {
            Engine::Running => {}
            Engine::Stopped => project.stop(),
            Engine::Killed => project.kill(),
        }
        let all = victims(project.env.root(), class, &base);
        // Sometimes more than one thing at once.
        let times = if choices.below(4) == 0 { 2 + choices.below(3) } else { 1 };
        for _ in 0..times {
            let Some(victim) = choices.pick(&all) else {
                story.push(format!("round {round}, {class:?}: there is none, engine {engine:?}"));
                continue;
            };
            let how = damage(victim, &mut choices);
            let name = victim.strip_prefix(project.env.root()).unwrap_or(victim).display();
            story.push(format!("round {round}, {class:?}: {name}: {how}, engine {engine:?}"));
        }
        if !all.is_empty() {
            *done.entry(format!("{class:?} {engine:?}")).or_default() += 1;
        }
        project.reseed(&mut choices);
        let packing = Packing::ALL[choices.below(3)];
        story.push(format!("  then a build, {packing:?}"));
        if let Err(text) = project.check(packing) {
            return failed(&story, text);
        }
    }
    Ok(())
}

#[test]
#[expect(clippy::print_stderr, reason = "a test's own words")]
fn builds_after_damage_are_as_cold_ones() {
    if kiln_testkit::base::busybox().is_none() {
        kiln_testkit::skip!("no static busybox on this host");
    }
    let total = rounds();
    let only = number("KILN_HARNESS_SERIES");
    let (mut done, mut failures) = (BTreeMap::new(), Vec::new());
    for place in 0..total.div_ceil(SERIES) {
        if only.is_some_and(|only| only != place) {
            continue;
        }
        let count = SERIES.min(total - place * SERIES);
        if let Err(text) = series(place, count, &mut done) {
            let repeat =
                format!("KILN_HARNESS_SEED={} KILN_HARNESS_ROUNDS={total} KILN_HARNESS_SERIES={place}", seed());
            eprintln!("failed, repeat with {repeat}\n{text}\n");
            failures.push(repeat);
        }
    }
    eprintln!("seed {}, {total} rounds: {done:?}, {} series failed", seed(), failures.len());
    assert!(failures.is_empty(), "{} series failed\n{}", failures.len(), failures.join("\n"));
}
