//! Random graphs, and the naive evaluator that says what they evaluate to.

use std::collections::{BTreeMap, BTreeSet};

use kiln_stdx::{Digest, StableHasher};

use super::rng::{Rng, join};
use crate::key::KeyRecord;
use crate::op::{CacheMap, DepMap, KeyLife};
use crate::vertex::{Bound, VertexDigest};

/// What a vertex makes: the whole, and the part of it that users see by content. Few contents are possible, so that
/// different results often have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Val {
    pub full: u64,
    pub content: u64,
}

/// How an operation misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The first executions fail.
    Execute(u32),
    /// Every execution fails.
    Always,
    /// The first cache map fails.
    Map,
    /// The first content key fails.
    Content,
}

/// A vertex with its operation.
#[derive(Debug, Clone)]
pub(super) struct Def {
    pub digest: VertexDigest,
    pub inputs: Vec<(usize, u32)>,
    pub op: Digest,
    pub deps: Vec<DepMap>,
    pub outputs: u32,
    pub life: KeyLife,
    pub bound: Bound,
    pub fault: Fault,
    /// Which inputs turn out not to be known by content although they count by content.
    pub opaque: Vec<bool>,
}

impl Def {
    pub fn cache_map(&self) -> CacheMap {
        let record = KeyRecord::new().with("op", self.op.to_string());
        CacheMap { digest: self.op, also: self.also(), record, deps: self.deps.clone(), life: self.life }
    }

    /// Returns the other digests of some operations without inputs.
    fn also(&self) -> Vec<Digest> {
        let op = head(&self.op);
        (0..op % 3).filter(|_| self.inputs.is_empty()).map(|at| number("also", join(op, at))).collect()
    }

    /// Returns whether an input counts by its content only.
    pub fn by_content(&self, input: usize) -> bool {
        self.deps[input].content && !self.opaque[input]
    }

    /// Returns the content digest of an input.
    pub fn content_of(&self, input: usize, val: &Val) -> Option<Digest> {
        self.by_content(input).then(|| number("content", val.content))
    }

    /// Returns what identifies the work of running this operation on these inputs.
    pub fn work(&self, inputs: &[Val]) -> u64 {
        let mut work = head(&self.op);
        for (at, val) in inputs.iter().enumerate() {
            let seen = if self.by_content(at) { val.content } else { val.full };
            let selector = self.deps[at].selector.map_or(0, |selector| head(&selector));
            work = join(join(work, seen), selector);
        }
        work
    }

    /// Runs it.
    pub fn run(&self, inputs: &[Val]) -> Vec<Val> {
        let work = self.work(inputs);
        (0..self.outputs)
            .map(|index| {
                let full = join(work, u64::from(index));
                Val { full, content: full % 3 }
            })
            .collect()
    }
}

/// All definitions there are; a generation is a list of some of them, inputs first.
#[derive(Default)]
pub(super) struct World {
    pub defs: Vec<Def>,
    pub by_digest: BTreeMap<VertexDigest, usize>,
    pub generations: Vec<Vec<usize>>,
}

/// Which kinds of trouble a run has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Swarm {
    pub faults: bool,
    pub damage: bool,
    pub imports: bool,
    pub cancels: bool,
    pub ignores: bool,
    pub lost_sessions: bool,
    pub run_keys: bool,
}

impl Swarm {
    pub fn random(rng: &mut Rng) -> Self {
        let calm = rng.chance(35);
        let mut on = |percent| !calm && rng.chance(percent);
        Self {
            faults: on(50),
            damage: on(40),
            imports: on(40),
            cancels: on(60),
            ignores: on(40),
            lost_sessions: on(30),
            run_keys: on(50),
        }
    }

    /// Returns whether equal work must be done once only.
    pub fn is_strict(&self) -> bool {
        !(self.faults || self.damage || self.imports || self.cancels || self.ignores || self.lost_sessions)
    }
}

impl World {
    pub fn new(rng: &mut Rng, swarm: &Swarm) -> Self {
        let mut world = Self::default();
        let size = 1 + rng.below(14);
        let mut first = Vec::new();
        for _ in 0..size {
            let def = world.random_def(rng, swarm, &first);
            first.push(world.add(def));
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
        self.by_digest.insert(def.digest, at);
        self.defs.push(def);
        at
    }

    fn random_def(&self, rng: &mut Rng, swarm: &Swarm, before: &[usize]) -> Def {
        if !before.is_empty() && rng.chance(30) {
            // The same work under another digest.
            let twin = self.defs[before[rng.below(before.len())]].clone();
            return sign(twin, rng.next());
        }
        let mut inputs = Vec::new();
        if !before.is_empty() && !rng.chance(20) {
            for _ in 0..1 + rng.below(3) {
                // Deep graphs rather than wide ones: mostly a recent vertex.
                let from = before[before.len() - 1 - rng.below(before.len()).min(rng.below(before.len()))];
                inputs.push((from, rng.below(self.defs[from].outputs as usize) as u32));
            }
        }
        let deps = inputs.iter().map(|_| DepMap {
            selector: rng.chance(25).then(|| number("selector", rng.next() % 2)),
            content: rng.chance(45),
        });
        let deps: Vec<DepMap> = deps.collect();
        let opaque = inputs.iter().map(|_| rng.chance(10)).collect();
        let run_key = swarm.run_keys && inputs.is_empty() && rng.chance(40);
        let op =
            if run_key { number("run", rng.next()) } else { number("op", rng.next() % 8 + 1000 * inputs.len() as u64) };
        let fault = match (swarm.faults, rng.below(12)) {
            (true, 0) => Fault::Execute(1 + rng.below(2) as u32),
            (true, 1) => Fault::Always,
            (true, 2) => Fault::Map,
            (true, 3) => Fault::Content,
            _ => Fault::None,
        };
        let def = Def {
            digest: VertexDigest(op),
            inputs,
            op,
            deps,
            outputs: if rng.chance(20) { 2 } else { 1 },
            life: if run_key { KeyLife::Run } else { KeyLife::Stored },
            bound: if rng.chance(15) { Bound::Unlimited } else { Bound::Limited },
            fault,
            opaque,
        };
        self.consistent(sign(def, 0))
    }

    /// One operation digest must mean one operation: what is not in its digest is taken from the first of its kind.
    fn consistent(&self, mut def: Def) -> Def {
        if let Some(other) = self.defs.iter().find(|other| other.op == def.op) {
            def.deps = other.deps.clone();
            def.opaque = other.opaque.clone();
            def.outputs = other.outputs;
            def.life = other.life;
        }
        sign(def, 0)
    }

    /// Returns a generation in which some operations are others, and all that is made from them.
    fn mutate(&mut self, rng: &mut Rng, last: &[usize]) -> Vec<usize> {
        let mut moved: BTreeMap<usize, usize> = BTreeMap::new();
        let mut next = Vec::new();
        for &at in last {
            let mut def = self.defs[at].clone();
            let inputs: Vec<_> = def.inputs.iter().map(|(from, out)| self.move_input(&moved, *from, *out)).collect();
            let changed = rng.chance(20);
            if changed {
                def.op = number("op", 100 + rng.next() % 100 + 1000 * def.inputs.len() as u64);
            }
            let to = if changed || inputs != def.inputs {
                def.inputs = inputs;
                let salt = head(&def.digest.0);
                let def = if changed { self.consistent(def) } else { def };
                self.add(sign(def, salt))
            } else {
                at
            };
            moved.insert(at, to);
            next.push(to);
        }
        next
    }

    fn move_input(&self, moved: &BTreeMap<usize, usize>, from: usize, out: u32) -> (usize, u32) {
        let to = moved.get(&from).copied().unwrap_or(from);
        (to, out.min(self.defs[to].outputs - 1))
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

    /// Evaluates everything, each definition once, without any cache.
    pub fn evaluate(&self) -> Vec<Vec<Val>> {
        let mut all: Vec<Vec<Val>> = Vec::new();
        for def in &self.defs {
            let inputs: Vec<Val> = def.inputs.iter().map(|(from, out)| all[*from][*out as usize]).collect();
            all.push(def.run(&inputs));
        }
        all
    }

    /// Returns for each definition whether its result can be found again by a later run.
    pub fn storable(&self) -> Vec<bool> {
        let mut all: Vec<bool> = Vec::new();
        for def in &self.defs {
            let inputs = def.inputs.iter().enumerate().all(|(at, (from, _))| all[*from] || def.by_content(at));
            all.push(def.life == KeyLife::Stored && inputs);
        }
        all
    }
}

/// Gives a definition the digest it deserves.
fn sign(mut def: Def, salt: u64) -> Def {
    let mut hasher = StableHasher::new("sim").digest("op", &def.op).u64("salt", salt);
    for (from, out) in &def.inputs {
        hasher = hasher.u64("from", *from as u64).u64("out", u64::from(*out));
    }
    def.digest = VertexDigest(hasher.finish());
    def
}

pub(super) fn number(domain: &str, n: u64) -> Digest {
    StableHasher::new(domain).u64("n", n).finish()
}

/// Returns the first bytes of a digest as a number.
pub(super) fn head(digest: &Digest) -> u64 {
    digest.as_bytes().iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}
