//! The machine that the store runs on: it dies at a given write, and may lose what was not synced.
//!
//! Death is the root's directory renamed away at the moment when a fault hook is passed, with the metadata as it was or
//! as it was some time before: whatever the store does afterwards happens in a place where nobody looks.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_stdx::fault;
use kiln_store::Store;
use parking_lot::Mutex;

use crate::check::Checks;
use crate::rng::Rng;

/// What the metadata has of the time before a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Everything that was written.
    Nothing,
    /// What was there at the last look.
    Since,
}

pub struct Machine(Mutex<State>);

struct State {
    dead: bool,
    passes: u64,
    die_at: Option<u64>,
    behind: Behind,
    /// Which passings fail without a death.
    errors: Option<Rng>,
    failed: u64,
    root: PathBuf,
    next: PathBuf,
    store: Option<Store>,
    checks: Arc<Mutex<Checks>>,
    meta: Meta,
    /// Files that are on the disk for good, by path below the root, with their inodes; and the metadata of that time.
    synced: BTreeSet<(PathBuf, u64)>,
    synced_meta: Meta,
}

/// The files of the metadata.
type Meta = Vec<(&'static str, Vec<u8>)>;

const META: [&str; 2] = ["meta.db", "meta.db-wal"];

fn read_meta(root: &Path) -> Meta {
    META.iter().filter_map(|name| Some((*name, std::fs::read(root.join(name)).ok()?))).collect()
}

fn write_meta(root: &Path, meta: &Meta) -> io::Result<()> {
    for name in META {
        let path = root.join(name);
        // A new inode: the old one is still open.
        let _ = std::fs::remove_file(&path);
        if let Some((_, bytes)) = meta.iter().find(|(of, _)| *of == name) {
            std::fs::write(path, bytes)?;
        }
    }
    Ok(())
}

impl Machine {
    pub fn new(root: PathBuf, next: PathBuf, checks: Arc<Mutex<Checks>>) -> Arc<Self> {
        let meta = read_meta(&root);
        Arc::new(Self(Mutex::new(State {
            dead: false,
            passes: 0,
            die_at: None,
            behind: Behind::Nothing,
            errors: None,
            failed: 0,
            synced: files(&root).into_iter().collect(),
            synced_meta: meta.clone(),
            meta,
            root,
            next,
            store: None,
            checks,
        })))
    }

    /// Lets the machine die at the `nth` hook from now on.
    pub fn die_at(&self, nth: u64, behind: Behind) {
        let mut state = self.0.lock();
        state.die_at = Some(state.passes + nth);
        state.behind = behind;
    }

    /// Lets writes fail now and then, or not any more.
    pub fn fail(&self, errors: Option<Rng>) {
        self.0.lock().errors = errors;
    }

    /// Tells whose metadata are flushed before a death.
    pub fn attach(&self, store: Option<Store>) {
        self.0.lock().store = store;
    }

    pub fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    pub fn passes(&self) -> u64 {
        self.0.lock().passes
    }

    /// Returns how many writes failed.
    pub fn failed(&self) -> u64 {
        self.0.lock().failed
    }

    /// Remembers the metadata as they are.
    pub fn look(&self) {
        let mut state = self.0.lock();
        if let Some(store) = &state.store
            && !state.dead
        {
            store.meta().flush();
            state.meta = read_meta(&state.root);
        }
    }

    /// Notes that all is on the disk.
    pub fn synced(&self) {
        self.look();
        let mut state = self.0.lock();
        if !state.dead {
            state.synced = files(&state.root).into_iter().collect();
            state.synced_meta = state.meta.clone();
        }
    }

    /// Hears of a hook.
    pub fn pass(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.dead {
            return Err(io::Error::from_raw_os_error(libc_eio()));
        }
        state.passes += 1;
        let passes = state.passes;
        state.checks.lock().note(&format!("hook {passes} {name}"));
        if state.die_at == Some(passes) {
            state.die()?;
            return Err(io::Error::from_raw_os_error(libc_eio()));
        }
        if state.errors.as_mut().is_some_and(|rng| rng.chance(4)) {
            state.failed += 1;
            state.checks.lock().note("no space");
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        Ok(())
    }

    /// Has this thread's hooks heard by the machine, or by nobody.
    pub fn observe(machine: Option<Arc<Self>>) {
        fault::observe(machine.map(|machine| -> fault::Observer { Arc::new(move |name| machine.pass(name)) }));
    }

    /// Loses what a power failure may lose of what was written last. Returns names of what is damaged.
    pub fn lose(&self, rng: &mut Rng) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let mut damaged = Vec::new();
        for (path, ino) in files(&state.next) {
            if state.synced.contains(&(path.clone(), ino)) || !rng.chance(25) {
                continue;
            }
            let full = state.next.join(&path);
            let meta = std::fs::metadata(&full)?;
            match rng.below(3) {
                0 => std::fs::remove_file(&full)?,
                1 => std::fs::File::options().write(true).open(&full)?.set_len(0)?,
                // Right size and time, and not a byte of it.
                _ => {
                    std::fs::write(&full, vec![0; meta.len() as usize])?;
                    std::fs::File::options().write(true).open(&full)?.set_modified(meta.modified()?)?;
                }
            }
            damaged.extend(name_of(&path));
        }
        if rng.chance(50) {
            write_meta(&state.next, &state.synced_meta)?;
        }
        Ok(damaged)
    }
}

impl State {
    fn die(&mut self) -> io::Result<()> {
        if self.behind == Behind::Nothing
            && let Some(store) = &self.store
        {
            store.meta().flush();
            self.meta = read_meta(&self.root);
        }
        std::fs::rename(&self.root, &self.next)?;
        write_meta(&self.next, &self.meta)?;
        self.dead = true;
        self.checks.lock().note("death");
        Ok(())
    }
}

/// Returns the files of layers and blobs below a root, in order.
fn files(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut work = vec![root.join("layers"), root.join("blobs")];
    while let Some(dir) = work.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = std::fs::symlink_metadata(entry.path()) else { continue };
            if meta.is_dir() {
                work.push(entry.path());
            } else if meta.is_file()
                && let Ok(path) = entry.path().strip_prefix(root)
            {
                found.push((path.to_owned(), meta.ino()));
            }
        }
    }
    found.sort();
    found
}

/// Returns the id of the layer or the digits of the blob whose file this is.
pub fn name_of(path: &Path) -> Option<String> {
    let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
    match parts.next()?.as_str() {
        "layers" => parts.next(),
        _ => parts.next_back(),
    }
}

fn libc_eio() -> i32 {
    rustix::io::Errno::IO.raw_os_error()
}
