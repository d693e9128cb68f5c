//! Cache mounts: directories that outlive the steps that write them, found by a key and the platform of the step.

mod files;
mod list;
mod mark;
mod travel;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kiln_stdx::rand_id;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::budget::LetGo;
use crate::disk;
use crate::error::{IoContext, Result};
use crate::repair::RepairAction;
use crate::store::{Inner, Store};

pub use files::MountFile;
pub use list::MountInfo;
pub use mark::{Mark, WriteEnd};
pub use travel::MountReading;

const KIND: &str = "kiln.mount.v1";

/// How steps may use a cache mount at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Together.
    Shared,
    /// Each alone: a second one gets a directory of its own.
    Private,
    /// Each alone: a second one waits.
    Locked,
}

/// How the top of a new cache mount looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountOwner {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Default for MountOwner {
    fn default() -> Self {
        Self { uid: 0, gid: 0, mode: 0o755 }
    }
}

/// What a cache mount is found by.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountKey {
    /// What tells it from others. A NUL begins the names of the engine's own.
    pub key: String,
    /// What steps, and people, call it.
    pub id: String,
    /// The platform of the steps that share it.
    pub platform: String,
}

impl MountKey {
    /// Returns the key of a mount that all platforms share.
    pub fn named(key: &str) -> Self {
        Self { key: key.to_owned(), id: key.to_owned(), platform: String::new() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MountRecord {
    /// Names the directory.
    pub id: String,
    pub key: String,
    /// What steps call it.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub platform: String,
    pub description: String,
    pub created: u64,
    pub used: u64,
    pub uses: u64,
    /// Bytes on disk when last measured; nothing if it was used since.
    pub size: Option<u64>,
    /// Whether its first content is complete.
    pub ready: bool,
    /// Whether a step writes to it. True in a record that is read back: the engine ended meanwhile.
    #[serde(default)]
    pub writing: bool,
    /// Why it may be damaged.
    #[serde(default)]
    pub mark: Option<Mark>,
}

impl MountRecord {
    fn is_of(&self, key: &MountKey) -> bool {
        self.key == key.key && self.platform == key.platform
    }
}

#[derive(Default)]
pub(crate) struct MountTable {
    pub mounts: Mutex<HashMap<String, MountState>>,
    changed: Arc<Notify>,
}

pub(crate) struct MountState {
    pub record: MountRecord,
    shared: usize,
    exclusive: bool,
    /// Steps that write to it.
    writers: usize,
    /// Bytes on disk when last measured, whatever happened since.
    known: u64,
    /// Not to be found any more; deleted when its last user is done.
    retired: bool,
}

impl MountState {
    fn new(record: MountRecord) -> Self {
        let known = record.size.unwrap_or_default();
        Self { record, shared: 0, exclusive: false, writers: 0, known, retired: false }
    }

    pub fn in_use(&self) -> bool {
        self.exclusive || self.shared > 0
    }
}

/// A cache mount in use. Dropping it lets the next user in.
pub struct CacheMount {
    store: Store,
    id: String,
    sharing: Sharing,
    fresh: bool,
    path: PathBuf,
    /// What steps call it.
    name: String,
    /// Why it may be damaged, as it was when it was taken.
    mark: Option<Mark>,
    writing: bool,
}

impl std::fmt::Debug for CacheMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheMount").field("id", &self.id).field("sharing", &self.sharing).finish_non_exhaustive()
    }
}

impl CacheMount {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names the directory in usage records.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Tells whether it is new and waits for its first content; then fill it and call [`CacheMount::mark_ready`], else it is
    /// deleted when dropped.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The first content is complete.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn mark_ready(&mut self) -> Result<()> {
        self.fresh = false;
        self.store.0.update_mount(&self.id, |record| record.ready = true)?;
        // Those who share it waited for the content, not for the end of this use.
        self.store.0.mounts.changed.notify_waiters();
        Ok(())
    }
}

impl Drop for CacheMount {
    fn drop(&mut self) {
        self.end_write(WriteEnd::CutOff("was called off"));
        self.store.0.release_mount(&self.id, self.sharing, self.fresh);
    }
}

impl Store {
    /// Takes the cache mount of `key`, or returns `None` if it must be waited for: then await
    /// [`Store::cache_mounts_changed`], taken before this call, and try again.
    ///
    /// # Errors
    /// A new directory cannot be created.
    pub fn try_cache_mount(
        &self,
        key: &MountKey,
        sharing: Sharing,
        owner: MountOwner,
        description: &str,
    ) -> Result<Option<CacheMount>> {
        let inner = &self.0;
        let mut mounts = inner.mounts.mounts.lock();
        let mut candidates: Vec<&mut MountState> =
            mounts.values_mut().filter(|m| m.record.is_of(key) && !m.retired).collect();
        candidates.sort_by(|a, b| (b.record.used, &b.record.id).cmp(&(a.record.used, &a.record.id)));
        let mut waiting = false;
        for state in candidates {
            let path = inner.mount_dir(&state.record.id);
            let free = match sharing {
                // A fresh one is being filled by its first user; nobody may see it half full.
                Sharing::Shared => !state.exclusive && (state.record.ready || state.shared == 0),
                Sharing::Private | Sharing::Locked => !state.in_use(),
            };
            if !free {
                // Others of the first content are worth waiting for, and so is the one user of a locked mount.
                waiting |= sharing == Sharing::Locked || (sharing == Sharing::Shared && !state.record.ready);
                continue;
            }
            if !fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) || !state.record.ready {
                state.retired = true;
                if state.record.ready {
                    inner.log.add(format!("cache mount {}", state.record.id), "missing", RepairAction::Dropped);
                }
                continue;
            }
            inner.take_mount(state, sharing);
            return Ok(Some(self.taken(&state.record, sharing, false)));
        }
        if waiting {
            return Ok(None);
        }
        let record = inner.create_mount(key, owner, description)?;
        let mount = self.taken(&record, sharing, true);
        let mut state = MountState::new(record);
        inner.take_mount(&mut state, sharing);
        mounts.insert(mount.id.clone(), state);
        drop(mounts);
        inner.sweep_mounts();
        Ok(Some(mount))
    }

    fn taken(&self, record: &MountRecord, sharing: Sharing, fresh: bool) -> CacheMount {
        CacheMount {
            store: self.clone(),
            id: record.id.clone(),
            sharing,
            fresh,
            path: self.0.mount_dir(&record.id),
            name: record.name.clone(),
            mark: record.mark.clone(),
            writing: false,
        }
    }

    /// Signals whenever a cache mount was let go or has got its first content.
    pub fn cache_mounts_changed(&self) -> Arc<Notify> {
        self.0.mounts.changed.clone()
    }

    /// Makes the next user of `key` begin with an empty directory; present users keep what they have.
    pub fn reset_cache_mount(&self, key: &MountKey) {
        for state in self.0.mounts.mounts.lock().values_mut().filter(|m| m.record.is_of(key)) {
            state.retired = true;
        }
        self.0.sweep_mounts();
    }
}

impl Inner {
    pub(crate) fn load_mounts(&self) {
        let mut mounts = self.mounts.mounts.lock();
        for entry in fs::read_dir(self.layout.mounts()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let record = disk::read(&entry.path().join("info"))
                .and_then(|bytes| serde_json::from_slice::<MountRecord>(disk::unseal(KIND, &bytes)?).ok())
                .filter(|record| record.id == name);
            match record {
                // One that was never filled is as good as none.
                Some(record) if record.ready => {
                    let record = mark::read_back(record, self.clock.unix());
                    mounts.insert(name, MountState::new(record));
                }
                Some(_) => self.discard(&entry.path()),
                None => {
                    self.log.add(
                        format!("cache mount {name}"),
                        "its record is missing or damaged",
                        RepairAction::Dropped,
                    );
                    self.discard(&entry.path());
                }
            }
        }
    }

    fn mount_dir(&self, id: &str) -> PathBuf {
        self.layout.mounts().join(id).join("fs")
    }

    fn create_mount(&self, key: &MountKey, owner: MountOwner, description: &str) -> Result<MountRecord> {
        let now = self.clock.unix();
        let record = MountRecord {
            id: rand_id(),
            key: key.key.clone(),
            name: key.id.clone(),
            platform: key.platform.clone(),
            description: description.to_owned(),
            created: now,
            used: now,
            uses: 0,
            size: None,
            ready: false,
            writing: false,
            mark: None,
        };
        let dir = self.layout.tmp();
        let fill = || {
            let top = dir.join("fs");
            fs::create_dir(&dir).at("create", &dir)?;
            fs::create_dir(&top).at("create", &top)?;
            if (owner.uid, owner.gid) != (0, 0) {
                std::os::unix::fs::chown(&top, Some(owner.uid), Some(owner.gid)).at("change owner of", &top)?;
            }
            fs::set_permissions(&top, fs::Permissions::from_mode(owner.mode)).at("change mode of", &top)?;
            disk::write_new(&dir.join("info"), &seal(&record))?;
            let target = self.layout.mounts().join(&record.id);
            kiln_stdx::fault::point("store.mount.rename").at("rename", &target)?;
            fs::rename(&dir, &target).at("rename", &target)
        };
        if let Err(e) = fill() {
            let _ = disk::remove_tree(&dir);
            return Err(e);
        }
        Ok(record)
    }

    fn take_mount(&self, state: &mut MountState, sharing: Sharing) {
        match sharing {
            Sharing::Shared => state.shared += 1,
            Sharing::Private | Sharing::Locked => state.exclusive = true,
        }
        state.record.used = self.clock.unix();
        state.record.uses += 1;
        state.record.size = None;
    }

    fn update_mount(&self, id: &str, change: impl FnOnce(&mut MountRecord)) -> Result<()> {
        let mut mounts = self.mounts.mounts.lock();
        let Some(state) = mounts.get_mut(id) else { return Ok(()) };
        change(&mut state.record);
        self.write_mount(&state.record)
    }

    fn write_mount(&self, record: &MountRecord) -> Result<()> {
        let path = self.layout.mounts().join(&record.id).join("info");
        disk::replace(&path, self.layout.tmp(), &seal(record), "store.mount.info", false)
    }

    fn release_mount(&self, id: &str, sharing: Sharing, unfilled: bool) {
        if let Some(state) = self.mounts.mounts.lock().get_mut(id) {
            match sharing {
                Sharing::Shared => state.shared = state.shared.saturating_sub(1),
                Sharing::Private | Sharing::Locked => state.exclusive = false,
            }
            state.retired |= unfilled;
        }
        if !unfilled {
            // Only times and counts changed: that they may be lost is no reason to fail.
            let _ = self.update_mount(id, |_| {});
        }
        self.sweep_mounts();
        drop(LetGo);
        self.mounts.changed.notify_waiters();
    }

    /// Looks for directories and records that are not there, and returns how many mounts there are and what was found. With
    /// `repair` it is logged; records are written again, mounts without directory are dropped.
    pub(crate) fn check_mounts(&self, repair: bool) -> (u64, Vec<(String, String)>) {
        let mut problems = Vec::new();
        let mut mounts = self.mounts.mounts.lock();
        let looked_at = mounts.len() as u64;
        for state in mounts.values_mut().filter(|state| !state.retired && state.record.ready) {
            let id = &state.record.id;
            let dir = self.layout.mounts().join(id);
            let subject = format!("cache mount {id}");
            let (what, action) = if !fs::symlink_metadata(dir.join("fs")).is_ok_and(|m| m.is_dir()) {
                ("its directory is missing", RepairAction::Dropped)
            } else if disk::read(&dir.join("info")).is_none_or(|bytes| disk::unseal(KIND, &bytes).is_none()) {
                ("its record is missing or damaged", RepairAction::Repaired)
            } else {
                continue;
            };
            if repair {
                match action {
                    RepairAction::Dropped => state.retired = true,
                    _ => drop(self.write_mount(&state.record)),
                }
                self.log.add(subject.clone(), what, action);
            }
            problems.push((subject, what.to_owned()));
        }
        drop(mounts);
        self.sweep_mounts();
        (looked_at, problems)
    }

    /// Deletes retired mounts that nobody uses.
    pub(crate) fn sweep_mounts(&self) {
        let mut doomed = Vec::new();
        self.mounts.mounts.lock().retain(|id, state| {
            let dead = state.retired && !state.in_use();
            if dead {
                doomed.push(id.clone());
            }
            !dead
        });
        for id in doomed {
            self.discard(&self.layout.mounts().join(id));
        }
    }

    /// Removes a mount if nobody uses it.
    pub(crate) fn prune_mount(&self, id: &str) -> bool {
        match self.mounts.mounts.lock().get_mut(id) {
            Some(state) if !state.in_use() => state.retired = true,
            _ => return false,
        }
        self.sweep_mounts();
        true
    }

    /// Returns the records, sizes measured where they are not known; of those in use only with `all`, else as last known.
    pub(crate) fn mount_records(&self, all: bool) -> Vec<(MountRecord, bool)> {
        let mut records: Vec<(MountRecord, bool)> = {
            let mounts = self.mounts.mounts.lock();
            let record = |m: &MountState| {
                let size = m.record.size.or((m.in_use() && !all).then_some(m.known));
                (MountRecord { size, ..m.record.clone() }, m.in_use())
            };
            mounts.values().filter(|m| !m.retired).map(record).collect()
        };
        for (record, _) in records.iter_mut().filter(|(record, _)| record.size.is_none()) {
            let size = disk::tree_size(&self.mount_dir(&record.id));
            record.size = Some(size);
            let known = self.mounts.mounts.lock().get(&record.id).map_or(size, |state| state.known);
            let grown = if all { size.saturating_sub(known) } else { 0 };
            if grown > 0 {
                // Others make room for it before it counts. Whoever collects does not ask for all, and is not asked.
                self.counters.coming.fetch_add(grown, Ordering::Relaxed);
                self.admit(0);
            }
            if let Some(state) = self.mounts.mounts.lock().get_mut(&record.id) {
                state.known = size;
                if !state.in_use() {
                    state.record.size = Some(size);
                }
            }
            self.counters.coming.fetch_sub(grown, Ordering::Relaxed);
        }
        records
    }

    /// Returns what cache mounts take, as they were last measured.
    pub(crate) fn mount_bytes(&self) -> u64 {
        self.mounts.mounts.lock().values().map(|m| m.known).sum()
    }
}

fn seal(record: &MountRecord) -> Vec<u8> {
    disk::seal(KIND, serde_json::to_vec(record).unwrap_or_default())
}

#[cfg(test)]
mod tests;
