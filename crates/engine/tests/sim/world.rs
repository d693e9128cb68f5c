//! Random graphs of operations that make layers, and the naive evaluator that says what is in the results.

use std::collections::{BTreeMap, BTreeSet};

use kiln_solver::{CacheMap, DepMap, KeyLife, KeyRecord, VertexDigest};
use kiln_stdx::{Digest, StableHasher};

use crate::rng::{Rng, join};

/// The files of a result, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What users of a result see that look at a part of it.
pub const PART: &str = "c";

/// What an operation writes on what it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// Nothing: an empty layer.
    Nothing,
    /// One file, of which there are three.
    Part,
    /// That file, and one that tells what was worked on.
    Both,
    /// A file of its own; one from below goes.
    Replace,
}

/// An operation. All about it follows from its number, so that one number means one operation.
#[derive(Debug, Clone)]
pub struct Def {
    pub digest: VertexDigest,
    pub inputs: Vec<(usize, u32)>,
    pub op: u64,
    pub outputs: u32,
    /// Whether results are chains on that of the first input.
    pub on_first: bool,
    pub life: KeyLife,
    content: Vec<bool>,
    writes: Writes,
}

impl Def {
    fn new(op: u64, inputs: Vec<(usize, u32)>, salt: u64) -> Self {
        let mut rng = Rng::new(op);
        let writes = [Writes::Nothing, Writes::Part, Writes::Both, Writes::Both, Writes::Replace][rng.below(5)];
        let on_first = !inputs.is_empty() && rng.chance(70);
        let mut def = Self {
            digest: VertexDigest(number("vertex", op)),
            content: inputs.iter().map(|_| rng.chance(45)).collect(),
            op,
            outputs: if rng.chance(20) { 2 } else { 1 },
            on_first,
            life: if inputs.is_empty() && rng.chance(15) { KeyLife::Run } else { KeyLife::Stored },
            writes: if on_first || writes != Writes::Nothing { writes } else { Writes::Part },
            inputs,
        };
        let mut hasher = StableHasher::new("sim").u64("op", op).u64("salt", salt);
        for (from, out) in &def.inputs {
            hasher = hasher.u64("from", *from as u64).u64("out", u64::from(*out));
        }
        def.digest = VertexDigest(hasher.finish());
        def
    }

    pub fn cache_map(&self) -> CacheMap {
        let deps = self.content.iter().map(|content| DepMap { selector: None, content: *content }).collect();
        let record = KeyRecord::new().with("op", self.op.to_string());
        CacheMap { digest: number("op", self.op), also: Vec::new(), record, deps, life: self.life }
    }

    /// Returns the path of what counts of an input, if it counts by content.
    pub fn selects(&self, input: usize) -> Option<&'static str> {
        let all = input == 0 && self.on_first;
        self.content.get(input).copied().unwrap_or(false).then_some(if all { "/" } else { "/c" })
    }

    /// Returns what identifies the work of running this on these inputs.
    pub fn work(&self, inputs: &[&Files]) -> u64 {
        inputs.iter().enumerate().fold(self.op, |work, (at, files)| match self.selects(at) {
            Some("/c") => join(work, files.get(PART).map_or(0, |part| number_of(part))),
            _ => join(work, tree_number(files)),
        })
    }

    /// Returns what one output writes, and what it removes, on `below`.
    pub fn changes(&self, work: u64, output: u32, below: &Files) -> (Files, Option<String>) {
        let work = join(work, u64::from(output));
        let part = (PART.to_owned(), vec![b'0' + (work % 3) as u8]);
        let told = |name: String| (name, format!("{work:016x}").into_bytes());
        let mut files = Files::new();
        match self.writes {
            Writes::Nothing => {}
            Writes::Part => files.extend([part]),
            Writes::Both => files.extend([part, told("f".to_owned())]),
            Writes::Replace => files.extend([part, told(format!("d/{}", self.op % 4))]),
        }
        let removed = (self.writes == Writes::Replace && below.contains_key("f")).then(|| "f".to_owned());
        (files, removed)
    }
}

/// All definitions there are; a generation is a list of some of them, inputs first.
#[derive(Default)]
pub struct World {
    pub defs: Vec<Def>,
    pub by_digest: BTreeMap<VertexDigest, usize>,
    pub generations: Vec<Vec<usize>>,
    /// What each output of each definition holds.
    pub expected: Vec<Vec<Files>>,
}

impl World {
    pub fn new(rng: &mut Rng) -> Self {
        let mut world = Self::default();
        let mut first = Vec::new();
        for _ in 0..2 + rng.below(6) {
            let (op, inputs, salt) = world.random(rng, &first);
            first.push(world.add(Def::new(op, inputs, salt)));
        }
        world.generations.push(first);
        for _ in 0..rng.below(3) {
            let last = world.generations.last().cloned().unwrap_or_default();
            let next = world.mutate(rng, &last);
            world.generations.push(next);
        }
        world
    }

    fn add(&mut self, def: Def) -> usize {
        if let Some(&at) = self.by_digest.get(&def.digest) {
            return at;
        }
        let at = self.defs.len();
        let inputs: Vec<&Files> = def.inputs.iter().map(|(from, out)| &self.expected[*from][*out as usize]).collect();
        let work = def.work(&inputs);
        let below = if def.on_first { inputs[0].clone() } else { Files::new() };
        let outputs = (0..def.outputs).map(|output| {
            let (written, removed) = def.changes(work, output, &below);
            let mut files = below.clone();
            files.retain(|name, _| removed.as_ref() != Some(name));
            files.extend(written);
            files
        });
        let outputs = outputs.collect();
        self.expected.push(outputs);
        self.by_digest.insert(def.digest, at);
        self.defs.push(def);
        at
    }

    fn random(&self, rng: &mut Rng, before: &[usize]) -> (u64, Vec<(usize, u32)>, u64) {
        if rng.chance(20)
            && let Some(&twin) = rng.pick(before)
        {
            // The same work under another digest.
            return (self.defs[twin].op, self.defs[twin].inputs.clone(), rng.next());
        }
        let mut inputs = Vec::new();
        if !before.is_empty() && !rng.chance(20) {
            for _ in 0..1 + rng.below(3) {
                // Deep graphs rather than wide ones: mostly a recent vertex.
                let from = before[before.len() - 1 - rng.below(before.len()).min(rng.below(before.len()))];
                inputs.push((from, rng.below(self.defs[from].outputs as usize) as u32));
            }
        }
        (rng.next() % 8 + 1000 * inputs.len() as u64, inputs, 0)
    }

    /// Returns a generation in which some operations are others, and all that is made from them.
    fn mutate(&mut self, rng: &mut Rng, last: &[usize]) -> Vec<usize> {
        let mut moved: BTreeMap<usize, usize> = BTreeMap::new();
        let mut next = Vec::new();
        for &at in last {
            let old = self.defs[at].clone();
            let mut inputs = Vec::new();
            for (from, out) in &old.inputs {
                let to = moved.get(from).copied().unwrap_or(*from);
                inputs.push((to, (*out).min(self.defs[to].outputs - 1)));
            }
            let changed = rng.chance(25);
            let op = if changed { 100 + rng.next() % 100 + 1000 * inputs.len() as u64 } else { old.op };
            let to = if changed || inputs != old.inputs { self.add(Def::new(op, inputs, at as u64)) } else { at };
            moved.insert(at, to);
            next.push(to);
        }
        next
    }

    /// Returns the definitions that a set of them is made from, themselves included, inputs first.
    pub fn closure(&self, of: &[usize]) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let mut stack = of.to_vec();
        while let Some(at) = stack.pop() {
            if seen.insert(at) {
                stack.extend(self.defs[at].inputs.iter().map(|(from, _)| *from));
            }
        }
        // Definitions are only made from earlier ones.
        seen.into_iter().collect()
    }

    /// Returns what a definition works on, and what identifies that work.
    pub fn work_of(&self, def: usize) -> u64 {
        let inputs = self.defs[def].inputs.iter().map(|(from, out)| &self.expected[*from][*out as usize]);
        self.defs[def].work(&inputs.collect::<Vec<_>>())
    }

    /// Returns for each definition whether its result can be found again by a later run.
    pub fn storable(&self) -> Vec<bool> {
        let mut all: Vec<bool> = Vec::new();
        for def in &self.defs {
            let inputs = def.inputs.iter().enumerate().all(|(at, (from, _))| all[*from] || def.selects(at).is_some());
            all.push(def.life == KeyLife::Stored && inputs);
        }
        all
    }
}

pub fn number(domain: &str, n: u64) -> Digest {
    StableHasher::new(domain).u64("n", n).finish()
}

fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, byte| join(n, u64::from(*byte)))
}

fn tree_number(files: &Files) -> u64 {
    files.iter().fold(1, |n, (name, bytes)| join(join(n, number_of(name.as_bytes())), number_of(bytes)))
}
