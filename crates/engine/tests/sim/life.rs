//! One life of a store and a solver: jobs come and go, calls are let on in random order, troubles happen in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kiln_engine::again::Attempts;
use kiln_solver::{
    CacheUse, Edge, Job, JobSpec, Limits, SolveError, Solved, Solver, StepSlot, Vertex, VertexEvent, VertexOptions,
};
use kiln_stdx::{ErrorClass, ManualClock};
use kiln_store::ImmutableRef;
use parking_lot::Mutex;

use crate::keys::SimKeys;
use crate::op::{Shared, SimOp};
use crate::rng::Rng;
use crate::trouble::Swarm;

/// More steps than any life needs.
const MOST_STEPS: usize = 20_000;
type Outcome = Result<Solved<ImmutableRef>, SolveError>;

/// A build.
pub struct SimJob {
    wants: Vec<(usize, u32)>,
    ignores: BTreeSet<usize>,
    attempt: u32,
    /// The damage that it has met, as the engine keeps it of a build.
    met: Attempts,
    job: Option<Arc<Job<ImmutableRef>>>,
    outcomes: Arc<Mutex<Vec<(usize, Outcome)>>>,
    answered: usize,
    cancelled: bool,
    retry: bool,
    pub results: Vec<ImmutableRef>,
    closing: Option<tokio::task::JoinHandle<()>>,
    done: bool,
}

pub struct Life {
    pub rng: Rng,
    pub swarm: Swarm,
    pub shared: Arc<Shared>,
    pub jobs: Vec<SimJob>,
    clock: ManualClock,
    solver: Solver<ImmutableRef>,
}

impl Life {
    /// Begins a life. Must be called within a runtime.
    pub fn new(rng: Rng, swarm: Swarm, shared: Arc<Shared>, clock: ManualClock, executions: usize) -> Self {
        // Calls end by themselves when they are called off.
        let limits = Limits { executions, grace: Duration::from_secs(600) };
        let solver = Solver::new(Arc::new(SimKeys::new(shared.clone())), limits);
        Self { rng, swarm, shared, jobs: Vec::new(), clock, solver }
    }

    /// Adds a build of random edges of a random generation.
    pub fn plan(&mut self) {
        let world = self.shared.world.clone();
        let defs = &world.generations[self.rng.below(world.generations.len())];
        let mut wants = Vec::new();
        for _ in 0..1 + self.rng.below(2) {
            let def = defs[defs.len() - 1 - self.rng.below(defs.len()).min(self.rng.below(defs.len()))];
            wants.push((def, self.rng.below(world.defs[def].outputs as usize) as u32));
        }
        let ignores = self.swarm.ignores && self.rng.chance(40);
        let ignores = defs.iter().copied().filter(|_| ignores && self.rng.chance(30)).collect();
        self.add(wants, ignores);
    }

    /// Adds a build of everything there is.
    pub fn plan_all(&mut self) {
        let world = self.shared.world.clone();
        for generation in &world.generations {
            self.add(generation.iter().map(|def| (*def, 0)).collect(), BTreeSet::new());
        }
    }

    fn add(&mut self, wants: Vec<(usize, u32)>, ignores: BTreeSet<usize>) {
        self.jobs.push(SimJob {
            wants,
            ignores,
            attempt: 0,
            met: Attempts::default(),
            job: None,
            outcomes: Arc::default(),
            answered: 0,
            cancelled: false,
            retry: false,
            results: Vec::new(),
            closing: None,
            done: false,
        });
    }

    /// Lives until all builds are done, or the machine dies. An error is what did not hold.
    pub async fn live(&mut self) -> Result<(), String> {
        for step in 0.. {
            if self.shared.machine.is_dead() {
                return Ok(());
            }
            if let Some(broken) = self.shared.checks.lock().broken.clone() {
                return Err(broken);
            }
            let waiting = self.shared.gate.waiting();
            let alive: Vec<usize> = (0..self.jobs.len()).filter(|at| !self.jobs[*at].done).collect();
            if alive.is_empty() && waiting.is_empty() {
                return Ok(());
            }
            if step > MOST_STEPS {
                return Err(format!("no end: {waiting:?} wait, jobs {alive:?} are open"));
            }
            let seconds = if self.rng.chance(5) { 40 } else { 0 };
            self.clock.advance(Duration::from_secs(seconds) + Duration::from_millis(7));
            if self.rng.chance(12) {
                self.shared.machine.look();
            }
            if self.rng.chance(12) {
                self.trouble()?;
            }
            if !waiting.is_empty() && self.rng.chance(70) {
                let what = self.rng.pick(&waiting).and_then(|id| self.shared.gate.release(*id));
                self.shared.checks.lock().note(&what.unwrap_or_default());
            } else if let Some(&at) = self.rng.pick(&alive) {
                self.act(at).await?;
            }
            self.shared.gate.settle().await;
            for at in alive {
                self.take_outcomes(at)?;
            }
        }
        Ok(())
    }

    /// Lets a build do the next thing it has in mind.
    async fn act(&mut self, at: usize) -> Result<(), String> {
        let cancel = self.swarm.cancels && self.rng.chance(8);
        let reverse = self.rng.chance(50);
        let job = &mut self.jobs[at];
        if let Some(closing) = &job.closing {
            if closing.is_finished() {
                job.closing = None;
                job.done = !job.retry;
                job.retry = false;
            }
            return Ok(());
        }
        match &job.job {
            None => self.begin(at, reverse).await,
            Some(open) if job.answered == job.wants.len() || cancel => {
                job.cancelled |= job.answered < job.wants.len();
                open.cancel();
                if job.answered == job.wants.len() {
                    self.close(at);
                }
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    async fn begin(&mut self, at: usize, reverse: bool) -> Result<(), String> {
        let events = |_: VertexEvent| {};
        let spec = JobSpec {
            context: Arc::new(()),
            events: Arc::new(events),
            imports: Vec::new(),
            apart: self.jobs[at].attempt > 0,
        };
        self.shared.checks.lock().repeats |= spec.apart;
        let open = self.solver.job(spec).await.map_err(|e| format!("open: {e}"))?;
        let job = &mut self.jobs[at];
        job.attempt += 1;
        job.answered = 0;
        job.cancelled = false;
        let world = &self.shared.world;
        let defs: Vec<usize> = job.wants.iter().map(|(def, _)| *def).collect();
        let mut vertices = Vec::new();
        for def in world.closure(&defs) {
            let edge = |(from, index): &(usize, u32)| Edge { vertex: world.defs[*from].digest, index: *index };
            vertices.push(Vertex {
                digest: world.defs[def].digest,
                inputs: world.defs[def].inputs.iter().map(edge).collect(),
                op: Arc::new(SimOp { sim: self.shared.clone(), def }),
                name: format!("v{def}"),
                options: VertexOptions {
                    cache: if job.ignores.contains(&def) { CacheUse::Ignore } else { CacheUse::Use },
                    slot: (!def.is_multiple_of(3)).then(|| StepSlot(format!("slot{}", def % 5))),
                    ..VertexOptions::default()
                },
            });
        }
        if reverse {
            vertices.reverse();
        }
        open.load(vertices).await.map_err(|e| format!("load: {e}"))?;
        let open = Arc::new(open);
        for (number, (def, index)) in job.wants.iter().enumerate() {
            let edge = Edge { vertex: world.defs[*def].digest, index: *index };
            let (open, outcomes, shared) = (open.clone(), job.outcomes.clone(), self.shared.clone());
            tokio::spawn(async move {
                let outcome = open.build(edge).await;
                drop(open);
                outcomes.lock().push((number, outcome));
                shared.gate.touch();
            });
        }
        job.job = Some(open);
        self.shared.checks.lock().note(&format!("job {at} begins, attempt {}", job.attempt));
        Ok(())
    }

    /// Ends a build; what it called off may take its time.
    fn close(&mut self, at: usize) {
        let job = &mut self.jobs[at];
        job.results.clear();
        if let Some(open) = job.job.take().and_then(Arc::into_inner) {
            let shared = self.shared.clone();
            job.closing = Some(tokio::spawn(async move {
                open.close().await;
                shared.gate.touch();
            }));
        }
    }

    fn take_outcomes(&mut self, at: usize) -> Result<(), String> {
        let outcomes = std::mem::take(&mut *self.jobs[at].outcomes.lock());
        for (number, outcome) in outcomes {
            self.jobs[at].answered += 1;
            let (def, output) = self.jobs[at].wants[number];
            let told = match &outcome {
                Ok(solved) => format!("job {at}: v{def} is {:?}, {:?}", solved.result, solved.origin),
                Err(error) => format!("job {at}: v{def} failed: {error}"),
            };
            self.shared.checks.lock().note(&told);
            if self.shared.machine.is_dead() {
                return Ok(());
            }
            match outcome {
                Ok(solved) => match self.examine(&solved.result, def, output)? {
                    Ok(()) => self.jobs[at].results.push(solved.result),
                    Err(e) => self.failed(at, def, e.class(), &e.to_string())?,
                },
                Err(SolveError::Canceled) if self.jobs[at].cancelled => {}
                Err(error) => self.failed(at, def, error.class(), &error.to_string())?,
            }
        }
        Ok(())
    }

    /// A build failed: for damage it is tried again, by the engine's own rule. Each attempt meets a damage of its own,
    /// whatever other builds have in hand.
    fn failed(&mut self, at: usize, def: usize, class: ErrorClass, error: &str) -> Result<(), String> {
        if self.shared.machine.is_dead() {
            return Ok(());
        }
        let (damages, repairs) = (self.shared.checks.lock().damages, self.shared.store.repairs().total());
        let job = &mut self.jobs[at];
        // Another wish of the same attempt may have failed before.
        let excused = class == ErrorClass::Damage && damages >= u64::from(job.attempt);
        // One result may be damaged more often here than a build has results.
        if (excused && (job.retry || job.met.goes_on(error, repairs, usize::MAX))) || self.shared.machine.failed() > 0 {
            job.retry = true;
            return Ok(());
        }
        Err(format!("v{def} failed at attempt {}, {damages} damages: {error} ({class:?})", job.attempt))
    }

    /// Lets go of everything.
    pub fn end(mut self) {
        self.jobs.clear();
        drop(self.solver);
        self.shared.held.lock().clear();
    }
}
