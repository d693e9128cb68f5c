//! Receiving a client's directory by file sync: what looks unchanged since the last state is not asked for.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use bytes::Bytes;
use kiln_session::SyncTarget;
use kiln_session::proto::fs::Stat;
use kiln_session::stat::Kind as StatKind;
use kiln_snapshot::{Entry, Kind};
use kiln_store::{Room, Store};

use super::assemble::{Contents, Last, print_of};
use super::metadata::{self, Listing};

/// Most contents kept open for writing at once; descriptors are scarce.
const OPEN_FILES: usize = 256;

/// A listing that arrives, with the contents that were asked for in temporary files.
pub struct Received {
    last: Option<Last>,
    /// Whether equal size and time mean equal content.
    trusts_metadata: bool,
    dir: PathBuf,
    pub entries: Vec<Entry>,
    /// The place of a path, for hard links.
    places: HashMap<Vec<u8>, usize>,
    pub links: HashMap<usize, usize>,
    /// The transfer's number of the file at a place.
    ids: HashMap<usize, u32>,
    open: BTreeMap<u32, File>,
    /// Keeps most entries as metadata only, if that is what is wanted.
    listing: Option<Listing>,
    room: Room,
    pub bytes: u64,
}

impl Received {
    /// Returns an empty listing; contents go to a fresh directory of `store`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(store: &Store, last: Option<Last>, trusts_metadata: bool, listing: Option<Listing>) -> io::Result<Self> {
        let dir = store.temp_path();
        std::fs::create_dir(&dir)?;
        let room = store.room(&dir);
        Ok(Self {
            last,
            trusts_metadata,
            dir,
            entries: Vec::new(),
            places: HashMap::new(),
            links: HashMap::new(),
            ids: HashMap::new(),
            open: BTreeMap::new(),
            listing,
            room,
            bytes: 0,
        })
    }

    /// Returns the last state it was compared with.
    pub fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    /// Hashes what was received of files that look as they did in the last state: an unchanged directory is that very
    /// layer again, also where everything has been sent to make sure of it. Blocking.
    ///
    /// # Errors
    /// A file that was received cannot be read.
    pub fn settle(&mut self) -> io::Result<()> {
        let Some(last) = &self.last else { return Ok(()) };
        for (&place, &id) in &self.ids {
            let Some(entry) = self.entries.get(place) else { continue };
            let looks_the_same = |old: &Entry| old.same_object(&Entry { digest: old.digest, ..entry.clone() });
            if last.get(&entry.path).is_some_and(looks_the_same) {
                let digest = print_of(File::open(self.path(id))?)?;
                self.entries[place].digest = Some(digest);
            }
        }
        for (&place, &first) in &self.links {
            self.entries[place].digest = self.entries[first].digest;
        }
        Ok(())
    }

    fn path(&self, id: u32) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn push(&mut self, entry: Entry) -> usize {
        let place = self.entries.len();
        self.places.insert(entry.path.clone(), place);
        self.entries.push(entry);
        place
    }

    /// Puts the file of records where it belongs in the listing, which is in component order.
    fn place_records(&mut self) {
        if let Some(listing) = &mut self.listing
            && !std::mem::replace(&mut listing.placed, true)
        {
            let place = self.push(metadata::records_entry());
            self.ids.insert(place, metadata::RECORDS_ID);
        }
    }

    /// Takes down the entry, and tells whether that is all that is wanted of it.
    fn is_listed_only(&mut self, stat: &Stat, entry: &Entry) -> bool {
        let Some(listing) = &mut self.listing else { return false };
        if entry.path == metadata::RECORDS_NAME {
            return true;
        }
        let parents = listing.note(stat, entry);
        if kiln_snapshot::path::cmp(&entry.path, metadata::RECORDS_NAME).is_gt() {
            self.place_records();
        }
        let Some(parents) = parents else { return true };
        for parent in parents {
            self.push(parent);
        }
        false
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl SyncTarget for Received {
    fn entry(&mut self, id: u32, stat: Stat) -> io::Result<bool> {
        let mut entry = entry(&stat);
        if self.is_listed_only(&stat, &entry) {
            return Ok(false);
        }
        if stat.kind() == StatKind::HardLink {
            match self.places.get(&stat.linkname).copied() {
                Some(first) => {
                    let original = self.entries.get(first).cloned().unwrap_or_else(|| entry.clone());
                    let place = self.push(Entry { path: entry.path, ..original });
                    self.links.insert(place, first);
                    return Ok(false);
                }
                // The first name was listed only: the later one is a file of its own.
                None if self.listing.is_some() => {}
                None => return Err(io::Error::other("a hard link to a file that was not sent")),
            }
        }
        let mut wanted = entry.kind == Kind::File;
        if wanted
            && self.trusts_metadata
            && let Some(old) = self.last.as_ref().and_then(|last| last.get(&entry.path))
            && old.same_object(&Entry { digest: old.digest, ..entry.clone() })
        {
            entry.digest = old.digest;
            wanted = false;
        }
        let size = entry.size;
        let place = self.push(entry);
        if wanted {
            self.room.take(size);
            self.ids.insert(place, id);
        }
        Ok(wanted)
    }

    fn listed(&mut self) -> io::Result<()> {
        self.place_records();
        let Some(listing) = &self.listing else { return Ok(()) };
        if let Some(&place) = self.places.get(metadata::RECORDS_NAME) {
            self.entries[place].size = listing.records.len() as u64;
        }
        std::fs::write(self.path(metadata::RECORDS_ID), &listing.records)
    }

    fn data(&mut self, id: u32, data: Bytes) -> io::Result<()> {
        self.bytes += data.len() as u64;
        if !self.open.contains_key(&id) {
            if self.open.len() >= OPEN_FILES {
                // Closed ones are opened again for appending.
                self.open.pop_first();
            }
            let file = File::options().create(true).append(true).open(self.path(id))?;
            self.open.insert(id, file);
        }
        match self.open.get_mut(&id) {
            Some(file) => file.write_all(&data),
            None => Ok(()),
        }
    }

    fn end(&mut self, id: u32) -> io::Result<()> {
        self.open.remove(&id);
        let path = self.path(id);
        if !path.exists() {
            File::create(path)?;
        }
        Ok(())
    }
}

impl Contents for Received {
    fn open(&self, place: usize, _: &Entry) -> io::Result<File> {
        let id = self.ids.get(&place).ok_or_else(|| io::Error::other("a file was not sent"))?;
        File::open(self.path(*id))
    }

    fn read(&self, _: usize, _: &Entry, _: &File) {}
}

/// Returns what a stat says, owned by root as file sync has it.
fn entry(stat: &Stat) -> Entry {
    let kind = match stat.kind() {
        StatKind::Dir => Kind::Dir,
        StatKind::Symlink => Kind::Symlink,
        StatKind::Fifo => Kind::Fifo,
        StatKind::CharDevice => Kind::CharDevice,
        StatKind::BlockDevice => Kind::BlockDevice,
        _ => Kind::File,
    };
    let mut entry = Entry::new(stat.path.to_vec(), kind);
    entry.mode = if kind == Kind::Symlink { 0o777 } else { stat.permissions() };
    entry.mtime = stat.mtime();
    entry.xattrs = stat.xattrs.iter().map(|(k, v)| (k.clone().into_bytes(), v.to_vec())).collect();
    match kind {
        Kind::File => entry.size = u64::try_from(stat.size).unwrap_or_default(),
        Kind::Symlink => entry.target = stat.linkname.to_vec(),
        Kind::CharDevice | Kind::BlockDevice => {
            entry.rdev =
                (u32::try_from(stat.devmajor).unwrap_or_default(), u32::try_from(stat.devminor).unwrap_or_default());
        }
        _ => {}
    }
    entry
}
