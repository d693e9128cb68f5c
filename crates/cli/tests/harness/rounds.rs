//! Damage between builds, of roots and of remote caches, with other trouble around it: whatever is deleted, cut or changed,
//! the next build gives what a cold one does.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::choices::{Choices, number, rounds, seed};
use crate::damage::{Class, damage, victims};
use crate::project::{Job, Packing, Project};
use crate::remote::{Kind, Remotes};
use crate::trouble::{self, Trouble};

/// Rounds on one root. Damage that no build has met yet may pile up; a failure is repeated from the root's beginning.
///
/// As many as there are classes of damage and kinds of trouble, so that each has its turn once on each root; ten roots have
/// all pairs.
const SERIES: usize = 10;
const _: () = assert!(Class::ALL.len() == SERIES && Trouble::ALL.len() == SERIES);

/// What becomes of the engine before the damage.
#[derive(Debug, Clone, Copy)]
enum Engine {
    Running,
    Stopped,
    Killed,
}

/// One root and what has been done to it.
struct Series {
    project: Project,
    driver: &'static str,
    remotes: Remotes,
    choices: Choices,
    base: Vec<String>,
    story: Vec<String>,
}

impl Series {
    /// Lays out a project on an empty root; none when the host lacks what that needs.
    fn new(place: usize) -> Option<Self> {
        let driver = ["overlay", "copy"][place % 2];
        let mut project = Project::fresh(driver)?;
        // As users have it, each build looks once; now and then at each use.
        if place % 4 == 3 {
            project.variables.push(("KILN_RECHECK", "0".to_owned()));
        }
        let remotes = Remotes::new(project.env.path().join("remote"), place);
        let base = project.base_blobs();
        let story = vec![format!("driver {driver}")];
        Some(Self { project, driver, remotes, choices: Choices::new(seed(), place as u64), base, story })
    }

    fn job(&mut self) -> Job {
        self.project.job(Packing::ALL[self.choices.below(3)])
    }

    fn kind(&mut self) -> Kind {
        Kind::ALL[self.choices.below(3)]
    }

    /// The first build exports to a cache of each kind.
    fn begin(&mut self) -> Result<(), String> {
        let mut job = self.project.job(Packing::Gzip);
        for kind in Kind::ALL {
            job.extra.push(format!("--cache-to={}", self.remotes.to(kind, &mut Choices::new(2, 1))));
            self.remotes.seeds[kind as usize] = self.project.seeds();
        }
        self.project.check_job(&job).map(drop)
    }

    /// One round; tells what it counts as.
    fn round(&mut self, class: Class, trouble: Trouble) -> Result<String, String> {
        self.project.variables.retain(|(name, _)| *name != "KILN_CONFIG");
        let before = match trouble {
            Trouble::Cancel => {
                let job = self.job();
                self.project.reseed(&mut self.choices);
                trouble::cancelled(&self.project, &job, &mut self.choices)?
            }
            Trouble::Fault => {
                let job = self.job();
                // All steps run, for the sooner it is met.
                let seeds: Vec<String> = (0..3).map(|_| self.choices.next().to_string()).collect();
                self.project.restore(&seeds);
                trouble::faulted(&mut self.project, &job, &mut self.choices)?
            }
            Trouble::Collect => trouble::budget(&mut self.project, &mut self.choices),
            _ => String::new(),
        };
        if !before.is_empty() {
            self.story.push(format!("  {before}"));
        }
        // A new budget is for a new engine.
        let least = usize::from(trouble == Trouble::Collect);
        let engine = [Engine::Running, Engine::Stopped, Engine::Killed][least + self.choices.below(3 - least)];
        match engine {
            Engine::Running => {}
            Engine::Stopped => self.project.stop(),
            Engine::Killed => self.project.kill(),
        }
        let kind = self.kind();
        if class == Class::Remote {
            self.damage_remote(kind);
        } else {
            self.damage_root(class);
        }
        self.story.push(format!("  engine {engine:?}"));
        let outcome = self.build(class, trouble, kind);
        self.remotes.heal();
        outcome.map(|()| format!("{class:?} {trouble:?} {engine:?}"))
    }

    /// How much is damaged: sometimes more than one thing at once.
    fn times(&mut self) -> usize {
        if self.choices.below(4) == 0 { 2 + self.choices.below(3) } else { 1 }
    }

    fn damage_root(&mut self, class: Class) {
        let root = self.project.env.root().to_owned();
        let all = victims(&root, class, &self.base);
        for _ in 0..self.times() {
            let Some(victim) = self.choices.pick(&all) else {
                self.story.push("  there is none".to_owned());
                continue;
            };
            let how = damage(victim, &mut self.choices);
            self.story.push(format!("  {}: {how}", victim.strip_prefix(&root).unwrap_or(victim).display()));
        }
    }

    fn damage_remote(&mut self, kind: Kind) {
        let served = kind != Kind::Local;
        if served && self.choices.below(3) == 0 {
            let how = self.remotes.sicken(kind, &mut self.choices);
            self.story.push(format!("  {kind:?}: {how}"));
            return;
        }
        for _ in 0..self.times() {
            let how = self.remotes.damage(kind, &mut self.choices);
            self.story.push(format!("  {kind:?}: {how}"));
        }
    }

    /// Builds in the way of the trouble, and compares.
    fn build(&mut self, class: Class, trouble: Trouble, kind: Kind) -> Result<(), String> {
        let mut job = self.job();
        let import = trouble == Trouble::Import || class == Class::Remote;
        if import {
            // What is in the cache is asked for, and is not here.
            self.project.restore(&self.remotes.seeds[kind as usize].clone());
            if self.choices.below(4) > 0 {
                trouble::prune(&self.project, &["prune", "-af"])?;
            }
            job.extra.push(format!("--cache-from={}", self.remotes.from(kind)));
            self.project.imported = true;
        } else {
            self.project.reseed(&mut self.choices);
        }
        if matches!(trouble, Trouble::Export | Trouble::Fresh) {
            // Else nothing would be good any more after some rounds.
            if self.remotes.hurt[kind as usize] && class != Class::Remote && self.choices.below(3) > 0 {
                self.remotes.empty(kind);
            }
            job.extra.push(format!("--cache-to={}", self.remotes.to(kind, &mut self.choices)));
        }
        self.story.push(format!("  then a build, {:?} {}", job.packing, job.extra.join(" ")));
        match trouble {
            Trouble::PruneBeside => {
                let said = trouble::pruned_beside(&self.project, &job, &mut self.choices)?;
                self.story.push(format!("  {said}"));
            }
            Trouble::Beside => {
                let said = trouble::beside(&self.project, &job, &mut self.choices)?;
                self.story.push(format!("  {said}"));
            }
            _ => {
                if trouble == Trouble::Prune {
                    let arguments = trouble::prune_arguments(&mut self.choices);
                    self.story.push(format!("  before it, {}", arguments.join(" ")));
                    trouble::prune(&self.project, &arguments)?;
                }
                self.project.check_job(&job)?;
            }
        }
        if matches!(trouble, Trouble::Export | Trouble::Fresh) {
            self.remotes.seeds[kind as usize] = self.project.seeds();
        }
        if trouble == Trouble::Fresh { self.fresh(kind) } else { Ok(()) }
    }

    /// Builds on an empty root with the cache that has just been written.
    fn fresh(&mut self, kind: Kind) -> Result<(), String> {
        let mut other = Project::fresh(self.driver).ok_or("no busybox")?;
        other.imported = true;
        other.restore(&self.remotes.seeds[kind as usize]);
        let mut job = other.job(Packing::ALL[self.choices.below(3)]);
        job.extra.push(format!("--cache-from={}", self.remotes.from(kind)));
        self.story.push(format!("  then on an empty root, {:?} {}", job.packing, job.extra.join(" ")));
        let done = other.check_job(&job)?;
        if !self.remotes.hurt[kind as usize] && !done.err().contains("CACHED") {
            return Err(format!("nothing is taken from a cache that is whole\n{}", done.report()));
        }
        verify(&other, &[])
    }

    /// Everything damaged that no build has met is found, and then nothing is.
    fn end(&mut self) -> Result<(), String> {
        self.story.push("verify".to_owned());
        verify(&self.project, &["--repair"])?;
        verify(&self.project, &[])
    }
}

fn verify(project: &Project, arguments: &[&str]) -> Result<(), String> {
    let done = project.kiln(["cache", "verify"].iter().chain(arguments)).finish();
    if done.code == Some(0) { Ok(()) } else { Err(format!("{}\n--- engine\n{}", done.report(), project.engine_log())) }
}

/// Runs the rounds of one root; says what was done, also of a failure.
fn series(place: usize, count: usize, done: &mut BTreeMap<String, usize>) -> Result<String, String> {
    let Some(mut series) = Series::new(place) else { return Ok(String::new()) };
    let ran = catch_unwind(AssertUnwindSafe(|| {
        series.begin()?;
        for round in 0..count {
            let class = Class::ALL[round];
            let trouble = Trouble::ALL[(round + place) % SERIES];
            series.story.push(format!("round {round}, {class:?}, {trouble:?}"));
            *done.entry(series.round(class, trouble)?).or_default() += 1;
        }
        series.end()
    }));
    let story = series.story.join("\n");
    match ran {
        Ok(Ok(())) => Ok(story),
        Ok(Err(text)) => Err(format!("{story}\n{text}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
            Err(format!("{story}\n{text}"))
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a test's own words")]
fn builds_after_damage_are_as_cold_ones() {
    if kiln_testkit::base::busybox().is_none() {
        kiln_testkit::skip!("no static busybox on this host");
    }
    let (total, started) = (rounds(), Instant::now());
    let only = number("KILN_HARNESS_SERIES");
    let (mut done, mut failures) = (BTreeMap::new(), Vec::new());
    for place in 0..total.div_ceil(SERIES) {
        if only.is_some_and(|only| only != place) {
            continue;
        }
        let count = SERIES.min(total - place * SERIES);
        match series(place, count, &mut done) {
            // Of one series that was asked for all is told.
            Ok(story) if only.is_some() => eprintln!("{story}"),
            Ok(_) => {}
            Err(text) => {
                let repeat =
                    format!("KILN_HARNESS_SEED={} KILN_HARNESS_ROUNDS={total} KILN_HARNESS_SERIES={place}", seed());
                eprintln!("failed, repeat with {repeat}\n{text}\n");
                failures.push(repeat);
            }
        }
    }
    let count = |at: usize| {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, times) in &done {
            *counts.entry(name.split(' ').nth(at).unwrap_or_default()).or_default() += times;
        }
        counts
    };
    let took = started.elapsed().as_secs();
    eprintln!("seed {}, {total} rounds in {took} s, {} series failed", seed(), failures.len());
    eprintln!("{:?}\n{:?}\n{:?}", count(0), count(1), count(2));
    assert!(failures.is_empty(), "{} series failed\n{}", failures.len(), failures.join("\n"));
}
