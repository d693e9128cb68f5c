//! One seed: a store lives several times, ends in order or dies, and is looked at in between.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_stdx::{Digest, ManualClock};
use kiln_store::{Store, StoreConfig};
use parking_lot::Mutex;

use crate::Planted;
use crate::check::{self, Checks};
use crate::gate::Gate;
use crate::life::Life;
use crate::machine::{Behind, Machine};
use crate::op::Shared;
use crate::rng::{Rng, mix};
use crate::trouble::Swarm;
use crate::world::World;

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub trace: Digest,
    pub executions: u64,
    /// How many writes the first life has, each of which it may die at.
    pub passes: u64,
    pub deaths: u32,
}

/// What goes on from one life to the next.
struct History {
    base: PathBuf,
    rng: Rng,
    swarm: Swarm,
    world: Arc<World>,
    checks: Arc<Mutex<Checks>>,
    clock: ManualClock,
    planted: Option<Planted>,
    /// The number of the root.
    at: u32,
    passes: u64,
    deaths: u32,
    /// What everything took when the store was closed, if nothing has happened to it since.
    usage: Option<BTreeMap<String, u64>>,
}

/// Runs one seed in an empty directory; `die_at` names the write at which the first life ends. An error tells which invariant
/// broke.
pub fn run(seed: u64, base: &Path, planted: Option<Planted>, die_at: Option<u64>) -> Result<Outcome, String> {
    kiln_stdx::id::seed_ids(Some(mix(seed ^ 0x6b69_6c6e)));
    let result = lives(seed, base, planted, die_at);
    kiln_stdx::id::seed_ids(None);
    Machine::observe(None);
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir_all(entry.path());
    }
    result
}

fn lives(seed: u64, base: &Path, planted: Option<Planted>, die_at: Option<u64>) -> Result<Outcome, String> {
    let mut rng = Rng::new(seed);
    let mut swarm = Swarm::random(&mut rng);
    match planted {
        Some(Planted::PruneHeld | Planted::BelieveRecords) => swarm.prune = true,
        Some(Planted::EarlyEpoch) => (swarm.deaths, swarm.power) = (true, true),
        None => {}
    }
    let world = Arc::new(World::new(&mut rng));
    let checks = Arc::new(Mutex::new(Checks::new(&world, swarm.is_strict())));
    let mut history = History {
        base: base.to_owned(),
        swarm,
        world,
        checks,
        clock: ManualClock::at(1_700_000_000),
        planted,
        at: 0,
        passes: 0,
        deaths: 0,
        usage: None,
        rng,
    };
    let count = 1 + history.rng.below(3);
    for life in 0..=count {
        let (first, last) = (life == 0, life == count);
        history.live(last, die_at.filter(|_| first)).map_err(|e| history.told(&e))?;
    }
    let mut checks = history.checks.lock();
    Ok(Outcome { trace: checks.trace(), executions: checks.executions, passes: history.passes, deaths: history.deaths })
}

impl History {
    /// Adds the trace to what broke.
    fn told(&self, error: &str) -> String {
        let mut checks = self.checks.lock();
        checks.fail(error);
        checks.broken.clone().unwrap_or_default()
    }

    fn root(&self, at: u32) -> PathBuf {
        self.base.join(at.to_string())
    }

    fn live(&mut self, last: bool, die_at: Option<u64>) -> Result<(), String> {
        let machine = Machine::new(self.root(self.at), self.root(self.at + 1), self.checks.clone());
        Machine::observe(Some(machine.clone()));
        let behind = if self.rng.chance(50) { Behind::Nothing } else { Behind::Since };
        if let Some(nth) = die_at {
            machine.die_at(nth, behind);
        } else if self.swarm.deaths && !last && self.rng.chance(75) {
            machine.die_at(1 + self.rng.below(40) as u64, behind);
        }
        let recheck = if self.swarm.damage || self.swarm.power { 0 } else { 60 };
        let config = StoreConfig {
            root: self.root(self.at),
            recheck: Duration::from_secs(recheck),
            clock: Arc::new(self.clock.clone()),
        };
        match Store::open(config) {
            Ok(store) if !machine.is_dead() => {
                machine.attach(Some(store.clone()));
                let lived = self.use_store(store, &machine, last);
                machine.attach(None);
                lived?;
            }
            Ok(_) => {}
            Err(_) if machine.is_dead() => {}
            Err(e) => return Err(format!("open: {e}")),
        }
        if self.passes == 0 {
            self.passes = machine.passes();
        }
        Machine::observe(None);
        self.between(&machine, behind)
    }

    /// What happens to the files while nobody has them open.
    fn between(&mut self, machine: &Machine, behind: Behind) -> Result<(), String> {
        if !machine.is_dead() {
            if self.swarm.lost_metadata && self.rng.chance(50) {
                let path = self.root(self.at).join("meta.db");
                let lost = if self.rng.chance(50) { std::fs::remove_file(path) } else { std::fs::write(path, b"gone") };
                lost.map_err(|e| format!("meta.db: {e}"))?;
                self.checks.lock().damage("meta.db");
                self.checks.lock().forgets();
                self.usage = None;
            }
            return Ok(());
        }
        self.usage = None;
        self.deaths += 1;
        // What is left there was written after the death.
        let _ = std::fs::remove_dir_all(self.root(self.at));
        self.at += 1;
        if behind == Behind::Since {
            self.checks.lock().forgets();
        }
        if self.swarm.power && self.rng.chance(70) {
            let lost = machine.lose(&mut self.rng).map_err(|e| format!("power: {e}"))?;
            let mut checks = self.checks.lock();
            checks.forgets();
            for name in lost {
                checks.damage(name);
            }
        }
        Ok(())
    }

    fn use_store(&mut self, store: Store, machine: &Arc<Machine>, last: bool) -> Result<(), String> {
        self.look_at(&store, machine, last)?;
        if machine.is_dead() {
            return Ok(());
        }
        if self.swarm.no_space && !last {
            machine.fail(Some(Rng::new(self.rng.next())));
        }
        let shared = Arc::new(Shared {
            world: self.world.clone(),
            gate: Gate::default(),
            checks: self.checks.clone(),
            machine: machine.clone(),
            store,
            planted: self.planted,
            held: Mutex::default(),
        });
        let threads = machine.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .on_thread_start(move || Machine::observe(Some(threads.clone())))
            .build()
            .map_err(|e| format!("runtime: {e}"))?;
        let (rng, executions) = (Rng::new(self.rng.next()), 1 + self.rng.below(4));
        let calm = Swarm { prune: false, damage: false, cancels: false, ignores: false, ..self.swarm };
        let swarm = if last { calm } else { self.swarm };
        let lived = runtime.block_on(async {
            let mut life = Life::new(rng, swarm, shared.clone(), self.clock.clone(), executions);
            if last {
                life.plan_all();
            } else {
                for _ in 0..1 + self.rng.below(3) {
                    life.plan();
                }
            }
            let lived = life.live().await;
            life.end();
            lived
        });
        drop(runtime);
        lived?;
        machine.fail(None);
        let Some(shared) = Arc::into_inner(shared) else { return Err("a life has not let go of its store".to_owned()) };
        self.close(&shared.store, machine, last)
    }

    /// Looks at a store that was just opened: nothing may be wrong with it but what was damaged.
    fn look_at(&mut self, store: &Store, machine: &Machine, last: bool) -> Result<(), String> {
        let damaged = self.checks.lock().damaged.clone();
        let looked = check::between_lives(store, &damaged, self.deaths > 0);
        if machine.is_dead() {
            return Ok(());
        }
        let report = looked?;
        if let Some(before) = self.usage.take()
            && self.checks.lock().damages == 0
            && !self.swarm.no_space
        {
            let now = check::usage(store);
            if machine.is_dead() {
                return Ok(());
            }
            let now = now?;
            if now != before {
                return Err(format!("what is used: {before:?}, after opening again: {now:?}"));
            }
        }
        self.checks.lock().note(&format!("opened, {} problems", report.problems.len()));
        if last || self.rng.chance(40) {
            let repaired = check::repair(store);
            if machine.is_dead() {
                return Ok(());
            }
            repaired?;
            self.checks.lock().damaged.clear();
        }
        Ok(())
    }

    /// Looks at a store once more before it is closed.
    fn close(&mut self, store: &Store, machine: &Machine, last: bool) -> Result<(), String> {
        if machine.is_dead() {
            return Ok(());
        }
        if last {
            check::repair(store)?;
        }
        if self.rng.chance(50) && store.close_epoch().is_ok() {
            machine.synced();
        }
        let usage = check::usage(store);
        if !machine.is_dead() {
            self.usage = Some(usage?);
        }
        Ok(())
    }
}
