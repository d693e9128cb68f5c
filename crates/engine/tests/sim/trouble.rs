//! What happens to a store while it is used: pruning, damage, leases, exports, repair.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_snapshot::compress::Compression;
use kiln_stdx::ErrorClass;
use kiln_store::{BlobOptions, ImmutableRef, Lease, PrunePolicy, RecordType, StoreError};

use crate::Planted;
use crate::check;
use crate::life::Life;
use crate::machine::name_of;
use crate::rng::Rng;

/// Which kinds of trouble a run has.
#[derive(Debug, Clone, Copy)]
pub struct Swarm {
    pub prune: bool,
    pub damage: bool,
    pub cancels: bool,
    pub ignores: bool,
    pub deaths: bool,
    pub power: bool,
    pub no_space: bool,
    pub exports: bool,
    pub lost_metadata: bool,
}

impl Swarm {
    pub fn random(rng: &mut Rng) -> Self {
        let calm = rng.chance(15);
        let mut on = |percent| !calm && rng.chance(percent);
        Self {
            prune: on(60),
            damage: on(45),
            cancels: on(40),
            ignores: on(30),
            deaths: on(65),
            power: on(40),
            no_space: on(15),
            exports: on(40),
            lost_metadata: on(15),
        }
    }

    /// Returns whether all that was saved is found again as long as it is there.
    pub fn is_strict(&self) -> bool {
        !(self.cancels || self.ignores || self.no_space || self.lost_metadata)
    }
}

impl Life {
    /// Lets one of the troubles happen.
    pub fn trouble(&mut self) -> Result<(), String> {
        match self.rng.below(10) {
            0..=2 if self.swarm.prune => self.prune(),
            3 | 4 if self.swarm.damage => self.damage(),
            5 if self.swarm.exports => self.export(),
            6 => self.lease(),
            7 => self.close_epoch(),
            8 if self.swarm.damage && self.rng.chance(30) => self.repair_now(),
            9 => {
                self.shared.store.rest();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Returns what nobody may take away: results and inputs that are in use.
    fn held(&self) -> Vec<ImmutableRef> {
        let under_way = self.shared.held.lock().values().flatten().cloned().collect::<Vec<_>>();
        let results = self.jobs.iter().flat_map(|job| job.results.iter().cloned());
        under_way.into_iter().chain(results).collect()
    }

    fn prune(&mut self) -> Result<(), String> {
        let rng = &mut self.rng;
        let policy = PrunePolicy {
            all: rng.chance(60),
            filters: if rng.chance(20) { vec!["type==regular".to_owned()] } else { Vec::new() },
            keep_duration: Duration::from_secs([0, 0, 5, 60][rng.below(4)]),
            max_used_space: [0, 0, 1, 30_000][rng.below(4)],
            ..PrunePolicy::default()
        };
        let held: Vec<ImmutableRef> = self.held().into_iter().filter(ImmutableRef::is_valid).collect();
        let store = self.shared.store.clone();
        let leased: Vec<_> = store.leases().into_iter().flat_map(|(_, lease)| lease.layers).collect();
        let leased: Vec<_> = leased.into_iter().filter(|id| store.layer(*id).is_some()).collect();
        let mut in_use = Vec::new();
        let pruned = store.prune(&policy, |record| {
            if record.in_use {
                in_use.push(record.id.clone());
            }
        });
        if self.shared.planted == Some(Planted::PruneHeld)
            && let Some(layer) = held.first().and_then(|result| result.layers().last())
        {
            // The planted fault: something that is in use goes.
            let _ = std::fs::remove_dir_all(store.root().join("layers").join(layer.id().to_string()));
        }
        if self.shared.machine.is_dead() {
            return Ok(());
        }
        let mut checks = self.shared.checks.lock();
        match pruned {
            Ok(pruned) => checks.note(&format!("pruned {}", pruned.records)),
            Err(e) if e.is_no_space() => return Ok(()),
            Err(e) => return Err(format!("prune: {e}")),
        }
        if !in_use.is_empty() {
            return Err(format!("pruned what it calls in use: {in_use:?}"));
        }
        let damaged =
            |result: &&ImmutableRef| result.layer_ids().iter().any(|id| checks.damaged.contains(&id.to_string()));
        for result in held.iter().filter(|result| !damaged(result)) {
            if !result.is_valid() || result.dirs().iter().any(|dir| !dir.is_dir()) {
                return Err(format!("{result:?} is in use and was pruned"));
            }
        }
        match leased.into_iter().find(|id| store.layer(*id).is_none()) {
            Some(id) => Err(format!("layer {id} is leased and was pruned")),
            None => Ok(()),
        }
    }

    fn damage(&mut self) -> Result<(), String> {
        let root = self.shared.store.root().to_owned();
        let mut layers = self.shared.store.layers();
        layers.sort_by_key(kiln_store::Layer::id);
        let Some(id) = self.rng.pick(&layers).map(kiln_store::Layer::id) else { return Ok(()) };
        let dir = root.join("layers").join(id.to_string());
        let name = id.to_string();
        match self.rng.below(5) {
            0 => {
                let _ = std::fs::remove_dir_all(&dir);
                self.shared.checks.lock().damage(name);
            }
            1 => self.spoil(&dir.join("manifest"), name),
            2 => self.spoil(&dir.join("info"), name),
            3 => {
                let mut blobs = Vec::new();
                find_files(&root.join("blobs"), &mut blobs);
                blobs.sort();
                if let Some(blob) = self.rng.pick(&blobs).cloned() {
                    let name = blob.strip_prefix(&root).ok().and_then(name_of).unwrap_or_default();
                    self.spoil(&blob, name);
                }
            }
            _ => {
                let mut files = Vec::new();
                find_files(&dir.join("fs"), &mut files);
                files.sort();
                if let Some(file) = self.rng.pick(&files).cloned() {
                    self.spoil(&file, name);
                }
            }
        }
        Ok(())
    }

    /// Deletes, cuts or changes a file.
    fn spoil(&mut self, path: &Path, name: String) {
        let Ok(mut bytes) = std::fs::read(path) else { return };
        let done = match self.rng.below(3) {
            0 => std::fs::remove_file(path),
            1 => std::fs::File::options().write(true).open(path).and_then(|f| f.set_len(bytes.len() as u64 / 2)),
            _ => {
                let at = self.rng.below(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0x55;
                }
                std::fs::write(path, bytes)
            }
        };
        if done.is_ok() {
            self.shared.checks.lock().damage(name);
        }
    }

    /// Makes the blob of a layer in use, as exports do.
    fn export(&mut self) -> Result<(), String> {
        let held = self.held();
        let Some(layer) = self.rng.pick(&held).and_then(|result| result.layers().last()).cloned() else {
            return Ok(());
        };
        let compression = if self.rng.chance(50) { Compression::NONE } else { Compression::GZIP };
        let options = BlobOptions { compression, force: self.rng.chance(50), epoch: None, here: false };
        let store = &self.shared.store;
        let made = store.layer_blob(&layer, &options).and_then(|made| {
            let Some(blob) = made.blob else { return Ok(None) };
            let mut bytes = Vec::new();
            let failed = |source| StoreError::Io { what: "read", path: blob.path().to_owned(), source };
            blob.open_verified()?.read_to_end(&mut bytes).map_err(failed)?;
            Ok(Some(blob.digest()))
        });
        match made {
            Ok(made) => self.shared.checks.lock().note(&format!("exported {made:?}")),
            Err(e) => self.allow("export", &e)?,
        }
        if self.rng.chance(30) {
            // What came of it is known by its archive from then on.
            let named = held.iter().find(|result| result.layers().last().is_some_and(|top| top.id() == layer.id()));
            if let Some(result) = named.filter(|result| result.is_valid())
                && let Err(e) = self.shared.store.identify(result)
            {
                self.allow("identify", &e)?;
            }
        }
        Ok(())
    }

    /// Lets an error pass that has its cause in a trouble.
    fn allow(&self, what: &str, error: &StoreError) -> Result<(), String> {
        let checks = self.shared.checks.lock();
        let damaged = checks.damages > 0;
        if self.shared.machine.is_dead()
            || (error.is_no_space() && self.swarm.no_space)
            || (damaged && matches!(error.class(), ErrorClass::Damage | ErrorClass::Environment))
        {
            return Ok(());
        }
        Err(format!("{what}: {error} ({:?})", error.class()))
    }

    fn lease(&mut self) -> Result<(), String> {
        let store = self.shared.store.clone();
        if self.rng.chance(40) {
            store.delete_lease("sim");
            return Ok(());
        }
        let held = self.held();
        if let Some(result) = self.rng.pick(&held).filter(|result| result.is_valid()) {
            let layers = result.layer_ids();
            store.put_lease("sim", &Lease { layers: layers.into_iter().rev().take(1).collect(), blobs: Vec::new() });
            if let Some(layer) = result.layers().last()
                && let Err(e) = store.describe(layer, "leased", RecordType::Regular)
            {
                self.allow("describe", &e)?;
            }
        }
        Ok(())
    }

    fn close_epoch(&mut self) -> Result<(), String> {
        if self.shared.planted == Some(Planted::EarlyEpoch) {
            // The planted fault: an epoch is closed whose files have not been written back.
            let _ = self.shared.store.close_epoch();
            return Ok(());
        }
        match self.shared.store.close_epoch() {
            Ok(()) => self.shared.machine.synced(),
            Err(e) => self.allow("close epoch", &e)?,
        }
        Ok(())
    }

    fn repair_now(&mut self) -> Result<(), String> {
        match self.shared.store.verify(true) {
            Ok(report) => {
                self.shared.checks.lock().note(&format!("repaired {}", report.problems.len()));
                Ok(())
            }
            Err(e) => self.allow("verify", &e),
        }
    }

    /// Checks a result as whoever exports it does, and compares it with what it has to be.
    pub fn examine(&self, result: &ImmutableRef, def: usize, output: u32) -> Result<Result<(), StoreError>, String> {
        let found = self.shared.store.check(result).and_then(|()| check::read(result));
        match found {
            Ok(files) if files == self.shared.world.expected[def][output as usize] => Ok(Ok(())),
            Ok(files) => Err(format!("v{def} holds {files:?}")),
            Err(e) => Ok(Err(e)),
        }
    }
}

fn find_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_files(&entry.path(), found);
        } else if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            found.push(entry.path());
        }
    }
}
