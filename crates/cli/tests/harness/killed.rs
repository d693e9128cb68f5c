//! One build whose engine is killed in the midst of it, seen from outside: when the engine died, when the client gave
//! up, what was left and for how long.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_testkit::Run;

use crate::client::Client;
use crate::processes::{Family, Process, engines};
use crate::project::DEADLINE;

/// What a client may take to end once its engine is dead.
const CLIENT: Duration = Duration::from_secs(5);
/// What steps and mounts may take.
const STEPS: Duration = Duration::from_secs(1);
/// How often the engine's descendants are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What is left of a killed engine that only the next one can clear.
pub struct Remains {
    /// Names in `drafts/` and `tmp/`.
    pub files: BTreeSet<PathBuf>,
    groups: BTreeSet<PathBuf>,
    /// What the engine had made for the time of its life.
    runtime: Vec<PathBuf>,
    /// How many processes the engine had started.
    pub processes: usize,
    /// How long the client and the last process took to end.
    pub took: [Duration; 2],
}

/// Starts the client and waits for the death of its engine: by a fault hook, or here when the client prints `mark`.
///
/// # Errors
/// The engine does not die, something outlives it, or the client hangs or does not tell of an error.
pub fn killed(root: &Path, client: Run, mark: Option<&str>) -> Result<Remains, String> {
    let mut client = Client::start(client);
    let mut family = Family::default();
    let deadline = Instant::now() + DEADLINE;
    let mut engine: Option<Process> = None;
    let died = loop {
        if Instant::now() > deadline {
            return Err(format!("the engine does not die\n{}", client.text()));
        }
        let Some(process) = &engine else {
            if client.ended() {
                return Err(format!("the build ended without its engine being killed\n{}", client.text()));
            }
            engine = engines(root).into_iter().next();
            client.read(LOOK);
            continue;
        };
        family.look(process.id);
        if mark.is_some_and(|mark| client.said(mark)) {
            family.look(process.id);
            process.kill();
        }
        if process.gone_within(LOOK) {
            break Instant::now();
        }
        client.read(Duration::ZERO);
        // A dying engine closes its sockets first.
        if client.ended() && !process.gone_within(STEPS) {
            return Err(format!("the build ended without its engine being killed\n{}", client.text()));
        }
    };
    let engine = engine.map_or(0, |process| process.id);
    let mut gone = None;
    while gone.is_none() || !client.ended() {
        client.read(LOOK);
        let left = if gone.is_none() { family.left() } else { Vec::new() };
        if left.is_empty() {
            gone.get_or_insert_with(|| died.elapsed());
        } else if died.elapsed() > STEPS {
            return Err(format!("outlives the engine by {STEPS:?}: {left:?}\n{}", client.text()));
        }
        if !client.ended() && died.elapsed() > CLIENT {
            return Err(format!("the client outlives the engine by {CLIENT:?}\n{}", client.text()));
        }
    }
    let took = [died.elapsed(), gone.unwrap_or_default()];
    client.check()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if mounts.lines().any(|line| line.contains(&format!("{}/", root.display()))) {
        return Err(format!("a mount is left\n{mounts}"));
    }
    let processes = family.len();
    Ok(Remains { files: unfinished(root), groups: family.groups, runtime: runtime(engine), processes, took })
}

/// Returns what lies in the directories for unfinished things.
fn unfinished(root: &Path) -> BTreeSet<PathBuf> {
    let dirs = ["drafts", "tmp"].map(|name| fs::read_dir(root.join(name)));
    dirs.into_iter().flatten().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Returns the directories that the engine, which does not live any more, made outside its root.
fn runtime(engine: i32) -> Vec<PathBuf> {
    let prefix = format!("kiln-engine-{engine}-");
    let entries = fs::read_dir("/run").into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes())))
        .collect()
}

impl Remains {
    /// Says what is still there of it; to be asked after the next build.
    pub fn left(&self, root: &Path) -> Vec<String> {
        let mut left: Vec<String> =
            unfinished(root).intersection(&self.files).map(|path| path.display().to_string()).collect();
        let dirs = self.runtime.iter().chain(&self.groups).filter(|dir| dir.is_dir());
        left.extend(dirs.map(|dir| dir.display().to_string()));
        left
    }
}
