//! One simulated life of a solver core: jobs come and go, effects are answered in random order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_stdx::{Digest, DigestHasher, ErrorClass};

use super::check::Checks;
use super::rng::Rng;
use super::world::{Fault, Swarm, Val, World};
use crate::context::JobId;
use crate::core::{Answer, Core, Effect, Event, LoadOutcome, Patience, Planted, Spec, TaskId, Ticket, VertexId};
use crate::key::{KeyId, LinkFrom, OutputKey};
use crate::keystore::{Loaded, RecordRef, Save, StoreId};
use crate::memory::Tables;
use crate::miss::Gone;
use crate::op::OpError;
use crate::vertex::{CacheUse, Edge, StepSlot};

/// An effect that waits to be answered.
pub(super) enum Pending {
    Map(VertexId, usize),
    Content { def: usize, input: usize, val: Val },
    Query(Vec<StoreId>, Vec<LinkFrom>),
    Records(Vec<StoreId>, Vec<KeyId>),
    Load(RecordRef),
    Recall(Vec<StepSlot>),
    Explain,
    Execute { vertex: VertexId, def: usize, inputs: Vec<Val> },
    Save { key: KeyId, op: OutputKey, links: Vec<LinkFrom>, result: Val },
}

/// A pending effect, and how it fares.
pub(super) struct Waiting {
    pending: Pending,
    aborted: bool,
    /// Answered only when there is nothing better to do, mostly.
    slow: bool,
}

/// A job of the plan.
pub(super) struct JobPlan {
    pub id: JobId,
    pub generation: usize,
    /// Definition and output, each with its ticket.
    pub wants: Vec<(Ticket, usize, u32)>,
    pub ignores: BTreeSet<usize>,
    pub stores: Vec<StoreId>,
    pub next_want: usize,
    pub open: bool,
    pub ended: bool,
    pub session: bool,
}

pub(super) struct Sim {
    pub rng: Rng,
    pub swarm: Swarm,
    pub world: World,
    pub core: Core<Val, usize>,
    pub main: Tables<Val>,
    pub import: Tables<Val>,
    pub pending: BTreeMap<TaskId, Waiting>,
    pub jobs: Vec<JobPlan>,
    pub wanted: BTreeMap<VertexId, Vec<JobId>>,
    pub faults: BTreeMap<(usize, &'static str), u32>,
    pub checks: Checks,
    trace: DigestHasher,
    next_ticket: u64,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub trace: Digest,
    pub steps: usize,
    pub executions: usize,
}

/// Runs one seed; an error tells which invariant broke.
pub(super) fn run(seed: u64, planted: Option<Planted>) -> Result<Outcome, String> {
    let mut rng = Rng::new(seed);
    let swarm = Swarm::random(&mut rng);
    let world = World::new(&mut rng, &swarm);
    let limit = 1 + rng.below(4);
    let mut core = Core::new(limit);
    core.planted = planted;
    if seed % 2 == 1 && planted.is_none() {
        core.set_patience(Patience::MOST);
    }
    let checks = Checks::new(&world, &swarm, limit);
    let mut sim = Sim {
        rng,
        swarm,
        world,
        core,
        main: Tables::default(),
        import: Tables::default(),
        pending: BTreeMap::new(),
        jobs: Vec::new(),
        wanted: BTreeMap::new(),
        faults: BTreeMap::new(),
        checks,
        trace: DigestHasher::new(),
        next_ticket: 0,
    };
    sim.life()
}

impl Sim {
    fn life(&mut self) -> Result<Outcome, String> {
        let mut steps = 0;
        let rounds = 1 + self.rng.below(3);
        for round in 0..rounds {
            let count = 1 + self.rng.below(4);
            for _ in 0..count {
                self.plan_job();
            }
            self.live_until_quiet(&mut steps)?;
            if self.swarm.imports && round == 0 {
                // What was cached here is from then on a remote cache.
                self.import = std::mem::take(&mut self.main);
            }
        }
        if self.swarm.is_strict() {
            // All is cached now, so this must find everything that can be found.
            self.checks.warm = true;
            self.plan_job();
            if let Some(job) = self.jobs.last_mut() {
                let generation = &self.world.generations[job.generation];
                let known: Vec<_> =
                    generation.iter().copied().filter(|def| self.checks.solved.contains(&(*def, 0))).collect();
                job.wants.retain(|(_, def, out)| *out == 0 && known.contains(def));
            }
            self.live_until_quiet(&mut steps)?;
        }
        self.checks.at_end(&self.core)?;
        let trace = std::mem::take(&mut self.trace).finish();
        Ok(Outcome { trace, steps, executions: self.checks.executions })
    }

    fn plan_job(&mut self) {
        let id = JobId(self.jobs.len() as u64 + 1);
        let generation = self.rng.below(self.world.generations.len());
        let defs = self.world.generations[generation].clone();
        let mut wants = Vec::new();
        for _ in 0..1 + self.rng.below(3) {
            let def = defs[defs.len() - 1 - self.rng.below(defs.len()).min(self.rng.below(defs.len()))];
            self.next_ticket += 1;
            wants.push((Ticket(self.next_ticket), def, self.rng.below(self.world.defs[def].outputs as usize) as u32));
        }
        let ignores = self.swarm.ignores && self.rng.chance(40);
        let ignores = defs.iter().copied().filter(|_| ignores && self.rng.chance(30)).collect();
        let stores = if self.swarm.imports && self.rng.chance(70) { vec![StoreId(1)] } else { Vec::new() };
        self.jobs.push(JobPlan {
            id,
            generation,
            wants,
            ignores,
            stores,
            next_want: 0,
            open: false,
            ended: false,
            session: true,
        });
    }

    /// Lets things happen until all jobs have ended and all is answered.
    fn live_until_quiet(&mut self, steps: &mut usize) -> Result<(), String> {
        loop {
            let alive: Vec<usize> = (0..self.jobs.len()).filter(|at| !self.jobs[*at].ended).collect();
            if alive.is_empty() && self.pending.is_empty() {
                return Ok(());
            }
            *steps += 1;
            if *steps > 20_000 {
                return self.checks.broken("no end within 20,000 steps");
            }
            let act = !alive.is_empty() && (self.pending.is_empty() || self.rng.chance(25));
            let mut events = Vec::new();
            if act {
                // Jobs that are through end soon, so that others are left alone with what they had in common.
                let through = alive.iter().copied().find(|at| self.is_through(*at)).filter(|_| self.rng.chance(60));
                let at = through.unwrap_or(alive[self.rng.below(alive.len())]);
                events.extend(self.act(at)?);
            } else {
                let batch = if self.rng.chance(30) { 3 } else { 1 };
                for _ in 0..batch {
                    events.extend(self.answer());
                }
            }
            if self.swarm.damage && self.rng.chance(3) {
                self.damage();
            }
            self.step(events)?;
            self.checks.after_step(*steps, &self.core, &self.pending)?;
        }
    }

    fn step(&mut self, events: Vec<Event<Val>>) -> Result<(), String> {
        let effects = self.core.step(events);
        for effect in effects {
            self.take(effect)?;
        }
        Ok(())
    }

    /// Lets a job do the next thing it has in mind.
    fn act(&mut self, at: usize) -> Result<Option<Event<Val>>, String> {
        let job = &mut self.jobs[at];
        let id = job.id;
        if !job.open {
            job.open = true;
            let event = Event::Open { job: id, stores: job.stores.clone(), apart: false };
            self.step(vec![event])?;
            self.load(at)?;
            return Ok(None);
        }
        if self.swarm.cancels && self.rng.chance(6) {
            return Ok(Some(self.end(at)));
        }
        if self.swarm.lost_sessions && self.rng.chance(4) {
            job.session = false;
        }
        if self.swarm.cancels
            && self.rng.chance(6)
            && let Some(&ticket) = self.checks.tickets_of(id).first()
        {
            self.checks.withdrawn.insert(ticket);
            return Ok(Some(Event::Withdraw { job: id, ticket }));
        }
        if let Some(&(ticket, def, index)) = job.wants.get(job.next_want) {
            job.next_want += 1;
            let edge = Edge { vertex: self.world.defs[def].digest, index };
            self.checks.want(id, ticket, def, index);
            return Ok(Some(Event::Want { job: id, ticket, edge }));
        }
        if self.checks.tickets_of(id).is_empty() {
            return Ok(Some(self.end(at)));
        }
        Ok(None)
    }

    fn is_through(&self, at: usize) -> bool {
        let job = &self.jobs[at];
        job.next_want >= job.wants.len() && self.checks.tickets_of(job.id).is_empty()
    }

    fn end(&mut self, at: usize) -> Event<Val> {
        let job = &mut self.jobs[at];
        job.ended = true;
        self.checks.withdrawn.extend(self.checks.tickets_of(job.id));
        Event::End { job: job.id }
    }

    fn load(&mut self, at: usize) -> Result<(), String> {
        let job = &self.jobs[at];
        let wants: Vec<usize> = job.wants.iter().map(|(_, def, _)| *def).collect();
        let closure = self.world.closure(&wants);
        let mut specs: Vec<Spec<usize>> = Vec::new();
        for def_at in closure {
            let def = &self.world.defs[def_at];
            let edge = |(from, index): &(usize, u32)| Edge { vertex: self.world.defs[*from].digest, index: *index };
            specs.push(Spec {
                digest: def.digest,
                inputs: def.inputs.iter().map(edge).collect(),
                op: def_at,
                name: Arc::from(format!("v{def_at}")),
                max_age: None,
                cache: if job.ignores.contains(&def_at) { CacheUse::Ignore } else { CacheUse::Use },
                slot: (def_at % 3 != 0).then(|| StepSlot(format!("slot{}", def_at % 7))),
                bound: def.bound,
            });
        }
        // Order must not matter.
        if self.rng.chance(50) {
            specs.reverse();
        }
        let id = self.jobs[at].id;
        self.core.load(id, specs).map_err(|error| format!("load: {error}"))
    }

    fn damage(&mut self) {
        let table = if self.rng.chance(70) { &mut self.main } else { &mut self.import };
        let records = table.all_records();
        if !records.is_empty() {
            let (key, record) = &records[self.rng.below(records.len())];
            table.forget(*key, record, &Gone::Evicted { eviction: None });
        }
    }

    fn note(&mut self, what: &str) {
        self.trace.update(what.as_bytes());
        self.trace.update(b"\n");
        self.checks.note(what);
    }

    /// Takes an effect: those with a task wait, the others are done at once.
    fn take(&mut self, effect: Effect<Val, usize>) -> Result<(), String> {
        match effect {
            Effect::CacheMap { task, vertex, op } => self.wait(task, &format!("map {op}"), Pending::Map(vertex, op)),
            Effect::ContentKey { task, op, input, result, .. } => {
                let pending = Pending::Content { def: op, input, val: result };
                self.wait(task, &format!("content {op} {input}"), pending);
            }
            Effect::Query { task, stores, asks } => {
                self.wait(task, &format!("query {}", asks.len()), Pending::Query(stores, asks));
            }
            Effect::Records { task, stores, keys, max_age: _ } => {
                self.wait(task, &format!("records {}", keys.len()), Pending::Records(stores, keys));
            }
            Effect::Load { task, record, vertex } => {
                self.wait(task, &format!("load {} {}", vertex.0, record.id.0), Pending::Load(record));
            }
            Effect::Recall { task, slots } => self.wait(task, "recall", Pending::Recall(slots)),
            Effect::Explain { task, .. } => self.wait(task, "explain", Pending::Explain),
            Effect::Execute { task, vertex, op, inputs, miss } => {
                self.note(&format!("execute {op} {} {miss}", vertex.0));
                let wanted = self.wanted.get(&vertex).cloned().unwrap_or_default();
                self.checks.execute(&self.world, vertex, op, &inputs, &wanted, &self.jobs)?;
                self.enqueue(task, Pending::Execute { vertex, def: op, inputs });
            }
            Effect::Save { task, key, op, links, result, loaded: _ } => {
                self.wait(task, &format!("save {key:?}"), Pending::Save { key, op, links, result });
            }
            Effect::Link { key, op, links } => {
                self.note(&format!("link {key:?} {}", links.len()));
                self.main.save(&Save { key, op, links: &links, result: None, made: None });
            }
            Effect::Abort { task } => {
                self.note(&format!("abort {}", task.0));
                if let Some(waiting) = self.pending.get_mut(&task) {
                    waiting.aborted = true;
                }
            }
            Effect::Forget { record, why } => {
                self.table(record.store).forget(record.key, &record.id, &why);
            }
            Effect::Remember { slot, record } => self.main.remember(slot, record),
            Effect::Report { job, vertex, what } => {
                self.note(&format!("job {job} {vertex:?} {what:?}"));
                self.checks.report(&self.world, job, vertex, &what)?;
            }
            Effect::Reply { job, ticket, outcome } => {
                self.note(&format!("reply {job} {} {outcome:?}", ticket.0));
                self.checks.reply(&self.world, job, ticket, outcome)?;
            }
            Effect::Wanted { vertex, jobs, digest } => {
                self.checks.names.insert(vertex, digest);
                self.wanted.insert(vertex, jobs);
            }
            Effect::Dropped { vertex } => {
                self.wanted.remove(&vertex);
            }
            Effect::Closed { job } => self.checks.closed(job)?,
        }
        Ok(())
    }

    fn wait(&mut self, task: TaskId, what: &str, pending: Pending) {
        self.note(&format!("{} {what}", task.0));
        self.enqueue(task, pending);
    }

    fn enqueue(&mut self, task: TaskId, pending: Pending) {
        let slow = self.rng.chance(15);
        self.pending.insert(task, Waiting { pending, aborted: false, slow });
    }

    fn table(&mut self, store: StoreId) -> &mut Tables<Val> {
        if store == StoreId::MAIN { &mut self.main } else { &mut self.import }
    }

    /// Answers a random effect.
    fn answer(&mut self) -> Option<Event<Val>> {
        if self.pending.is_empty() {
            return None;
        }
        // What was called off tends to take its time.
        let prompt: Vec<TaskId> = self
            .pending
            .iter()
            .filter(|(_, waiting)| !waiting.aborted && !waiting.slow)
            .map(|(task, _)| *task)
            .collect();
        let task = if prompt.is_empty() || self.rng.chance(10) {
            *self.pending.keys().nth(self.rng.below(self.pending.len()))?
        } else {
            prompt[self.rng.below(prompt.len())]
        };
        let Waiting { pending, aborted, .. } = self.pending.remove(&task)?;
        self.note(&format!("answer {}", task.0));
        let aborted = aborted && !self.rng.chance(30);
        Some(match pending {
            Pending::Map(vertex, def) => Event::Mapped { task, outcome: self.map(vertex, def, aborted) },
            Pending::Content { def, input, val } => {
                Event::ContentKeyed { task, outcome: self.content(def, input, &val, aborted) }
            }
            Pending::Query(stores, asks) => {
                let mut answers = Vec::new();
                for store in stores {
                    let found = self.table(store).targets(&asks);
                    answers.extend(found.into_iter().map(|t| Answer { ask: t.ask, key: t.key, store }));
                }
                if self.swarm.damage && self.rng.chance(5) {
                    answers.clear();
                }
                Event::Queried { task, answers }
            }
            Pending::Records(stores, keys) => {
                let (mut records, mut gone) = (Vec::new(), None);
                for store in stores {
                    let found = self.table(store).records(&keys);
                    records.extend(found.records.into_iter().map(|(key, id)| RecordRef { store, key, id }));
                    gone = gone.or(found.gone);
                }
                let gone = gone.filter(|_| records.is_empty());
                Event::RecordsFound { task, records, gone }
            }
            Pending::Load(record) => Event::RecordLoaded { task, outcome: self.load_record(&record, aborted) },
            Pending::Recall(slots) => {
                Event::Recalled { task, record: slots.iter().find_map(|slot| self.main.recall(slot)) }
            }
            Pending::Explain => Event::Explained { task, difference: None },
            Pending::Execute { vertex, def, inputs } => {
                let outcome = self.execute(vertex, def, &inputs, aborted);
                self.checks.executed(vertex);
                Event::Executed { task, outcome }
            }
            Pending::Save { key, op, links, result } => {
                if self.swarm.damage && self.rng.chance(5) {
                    return Some(Event::Saved { task, record: None });
                }
                let id = self.main.save(&Save { key, op, links: &links, result: Some(&result), made: None });
                Event::Saved { task, record: id.map(|id| RecordRef { store: StoreId::MAIN, key, id }) }
            }
        })
    }

    fn map(&mut self, vertex: VertexId, def: usize, aborted: bool) -> Result<crate::op::CacheMap, OpError> {
        if aborted {
            return Err(OpError::canceled());
        }
        if let Some(error) = self.lost(vertex, def) {
            return Err(error);
        }
        if self.world.defs[def].fault == Fault::Map && self.first(def, "map", 1) {
            return Err(self.fault(def));
        }
        Ok(self.world.defs[def].cache_map())
    }

    fn content(&mut self, def: usize, input: usize, val: &Val, aborted: bool) -> Result<Option<Digest>, OpError> {
        if aborted {
            return Err(OpError::canceled());
        }
        if self.world.defs[def].fault == Fault::Content && self.first(def, "content", 1) {
            return Err(self.fault(def));
        }
        Ok(self.world.defs[def].content_of(input, val))
    }

    fn load_record(&mut self, record: &RecordRef, aborted: bool) -> LoadOutcome<Val> {
        if aborted {
            return LoadOutcome::Failed("canceled".to_owned());
        }
        if self.swarm.damage && self.rng.chance(15) {
            let detail = "bits flipped".to_owned();
            return if self.rng.chance(50) {
                LoadOutcome::Gone(Gone::Damaged { detail })
            } else {
                LoadOutcome::Failed(detail)
            };
        }
        match self.table(record.store).load(record.key, &record.id) {
            Loaded::Hit(val) => LoadOutcome::Hit(val),
            Loaded::Gone(why) => LoadOutcome::Gone(why),
        }
    }

    fn execute(&mut self, vertex: VertexId, def: usize, inputs: &[Val], aborted: bool) -> Result<Vec<Val>, OpError> {
        if aborted {
            return Err(OpError::canceled());
        }
        if let Some(error) = self.lost(vertex, def) {
            return Err(error);
        }
        let failing = match self.world.defs[def].fault {
            Fault::Always => true,
            Fault::Execute(times) => self.first(def, "execute", times),
            Fault::None | Fault::Map | Fault::Content => false,
        };
        if failing { Err(self.fault(def)) } else { Ok(self.world.defs[def].run(inputs)) }
    }

    /// An operation takes the first job's session; if that is dead, it fails.
    fn lost(&mut self, vertex: VertexId, def: usize) -> Option<OpError> {
        let first = *self.wanted.get(&vertex)?.first()?;
        let alive = self.jobs.iter().any(|job| job.id == first && job.session);
        if alive {
            return None;
        }
        self.checks.failed.insert(self.world.defs[def].op);
        Some(OpError::session_lost("session ended"))
    }

    fn first(&mut self, def: usize, what: &'static str, times: u32) -> bool {
        let count = self.faults.entry((def, what)).or_insert(0);
        *count += 1;
        *count <= times
    }

    fn fault(&mut self, def: usize) -> OpError {
        self.checks.failed.insert(self.world.defs[def].op);
        OpError::new(ErrorClass::UserInput, "planned fault")
    }
}
