//! What must hold: of what runs, of results, and of the store between lives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kiln_stdx::{Digest, DigestHasher};
use kiln_store::{ImmutableRef, LayerId, Problem, Store, StoreError, VerifyReport};

use crate::rng::join;
use crate::world::{Files, World};

/// An output of work: what it is, and which output.
type Work = (u64, u32);

pub struct Checks {
    /// Whether nothing happens that makes the keys forget.
    strict: bool,
    identities: Vec<u64>,
    storable: Vec<bool>,
    /// Which work made a chain.
    made: BTreeMap<Vec<LayerId>, Work>,
    /// The chains that were saved last.
    saved: BTreeMap<Work, Vec<LayerId>>,
    /// Names of what was damaged.
    pub damaged: BTreeSet<String>,
    /// How often something was damaged.
    pub damages: u64,
    /// Whether a build was done again after damage: it takes nothing that others have in hand, so it may repeat work of
    /// theirs that has just been saved.
    pub repeats: bool,
    /// The first thing that did not hold.
    pub broken: Option<String>,
    pub executions: u64,
    trace: DigestHasher,
    log: Option<Vec<String>>,
}

impl Checks {
    pub fn new(world: &World, strict: bool) -> Self {
        Self {
            strict,
            identities: identities(world),
            storable: world.storable(),
            made: BTreeMap::new(),
            saved: BTreeMap::new(),
            damaged: BTreeSet::new(),
            damages: 0,
            repeats: false,
            broken: None,
            executions: 0,
            trace: DigestHasher::new(),
            log: std::env::var_os("KILN_SIM_TRACE").map(|_| Vec::new()),
        }
    }

    /// Keeps a line of the trace.
    pub fn note(&mut self, what: &str) {
        self.trace.update(what.as_bytes());
        self.trace.update(b"\n");
        if let Some(log) = &mut self.log {
            log.push(what.to_owned());
        }
    }

    pub fn trace(&mut self) -> Digest {
        std::mem::take(&mut self.trace).finish()
    }

    /// Notes that something did not hold; what comes after is of no interest.
    pub fn fail(&mut self, what: impl Into<String>) {
        if self.broken.is_none() {
            let mut text = what.into();
            for line in self.log.iter().flatten() {
                text.push('\n');
                text.push_str(line);
            }
            self.broken = Some(text);
        }
    }

    /// From here on less is remembered than was saved.
    pub fn forgets(&mut self) {
        self.saved.clear();
    }

    pub fn damage(&mut self, name: impl Into<String>) {
        let name = name.into();
        self.note(&format!("damage {name}"));
        self.damages += 1;
        self.damaged.insert(name);
    }

    /// Is told that work begins. Nothing is run whose result is here.
    pub fn execute(&mut self, world: &World, def: usize, store: &Store) {
        self.executions += 1;
        let whole = |chain: &Vec<LayerId>| {
            chain.iter().all(|id| store.layer(*id).is_some() && !self.damaged.contains(&id.to_string()))
        };
        let work = self.identities[def];
        let here = (0..world.defs[def].outputs).all(|out| self.saved.get(&(work, out)).is_some_and(whole));
        if self.strict && !self.repeats && self.storable[def] && here {
            self.fail(format!("v{def} repeats work whose results are here"));
        }
    }

    pub fn made(&mut self, def: usize, output: u32, result: &ImmutableRef) {
        self.made.insert(result.layer_ids(), (self.identities[def], output));
    }

    pub fn saved(&mut self, result: &ImmutableRef) {
        let chain = result.layer_ids();
        if let Some(work) = self.made.get(&chain) {
            self.saved.insert(*work, chain);
        }
    }
}

/// Returns what identifies the key of each definition: definitions of one identity find each other's results.
fn identities(world: &World) -> Vec<u64> {
    let mut all: Vec<u64> = Vec::new();
    for (at, def) in world.defs.iter().enumerate() {
        let by_content = (0..def.inputs.len()).all(|input| def.selects(input).is_some());
        let mut identity = if by_content && !def.inputs.is_empty() { world.work_of(at) } else { def.op };
        for (input, (from, out)) in def.inputs.iter().enumerate() {
            if !by_content {
                // Mixed keys are told apart by definition, which is finer than they are.
                identity = join(join(identity, all[*from]), u64::from(*out) + 8 * input as u64);
            }
        }
        all.push(identity);
    }
    all
}

/// Reads what a result holds.
///
/// # Errors
/// Files that cannot be read.
pub fn read(result: &ImmutableRef) -> Result<Files, StoreError> {
    let (tree, dirs) = (result.tree()?, result.dirs());
    let mut files = Files::new();
    for node in tree.iter().filter(|node| node.entry.is_file()) {
        let name = String::from_utf8_lossy(&node.entry.path).into_owned();
        let path = dirs[node.layer].join(&name);
        let bytes =
            std::fs::read(&path).map_err(|source| StoreError::Io { what: "read", path: path.clone(), source })?;
        files.insert(name, bytes);
    }
    Ok(files)
}

/// Tells what is wrong with a store of which nothing is in use but what was damaged. After a death a row may tell of a blob
/// that was pruned.
pub fn between_lives(store: &Store, damaged: &BTreeSet<String>, died: bool) -> Result<VerifyReport, String> {
    store.finish_sweep();
    for name in ["drafts", "tmp"] {
        let left = names(&store.root().join(name));
        if !left.is_empty() {
            return Err(format!("left in {name}: {left:?}"));
        }
    }
    let known: BTreeSet<String> = store.layers().iter().map(|layer| layer.id().to_string()).collect();
    let there: BTreeSet<String> = names(&store.root().join("layers")).into_iter().collect();
    if known != there {
        return Err(format!("layers in the tables {known:?}, on disk {there:?}"));
    }
    let report = store.verify(false).map_err(|e| format!("verify: {e}"))?;
    let expected = |subject: &str| subject == "meta.db" || damaged.iter().any(|name| subject.contains(name.as_str()));
    let pruned = |problem: &Problem| died && problem.what == "file is missing";
    match report.problems.iter().find(|problem| !expected(&problem.subject) && !pruned(problem)) {
        Some(problem) => Err(format!("found, though nothing damaged it: {} {}", problem.subject, problem.what)),
        None => Ok(report),
    }
}

/// Repairs a store, after which nothing may be wrong.
pub fn repair(store: &Store) -> Result<(), String> {
    store.verify(true).map_err(|e| format!("repair: {e}"))?;
    let report = store.verify(false).map_err(|e| format!("verify: {e}"))?;
    match report.problems.first() {
        Some(problem) => Err(format!("wrong after repair: {} {}", problem.subject, problem.what)),
        None => Ok(()),
    }
}

/// Returns what everything takes, by id.
pub fn usage(store: &Store) -> Result<BTreeMap<String, u64>, String> {
    let records = store.usage().map_err(|e| format!("usage: {e}"))?;
    let count = records.len();
    let sizes: BTreeMap<String, u64> = records.into_iter().map(|record| (record.id, record.size)).collect();
    if sizes.len() == count { Ok(sizes) } else { Err("something is counted twice".to_owned()) }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
