//! Room for what is being written, made before it is: sizes that are known are promised, and processes, which announce
//! nothing, get a head start on what was last measured of them.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::budget::step;
use crate::store::Store;

/// All that is being written.
#[derive(Default)]
pub(crate) struct Rooms(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    rooms: HashMap<u64, Promise>,
}

struct Promise {
    dir: PathBuf,
    asked: u64,
    promised: u64,
    /// What of it was there when it was last measured.
    measured: u64,
    runs: bool,
}

/// Room for what is written to one directory. Dropping it takes the promise back: by then what was written has been
/// published, or is gone.
pub struct Room {
    store: Store,
    key: u64,
}

impl Rooms {
    /// Returns how many bytes are still to come; `head` for each directory that processes write to.
    pub fn left(&self, head: u64) -> u64 {
        let of = |room: &Promise| room.promised.saturating_sub(room.measured) + if room.runs { head } else { 0 };
        self.0.lock().rooms.values().map(of).sum()
    }

    /// Notes what a directory was found to take.
    pub fn measured(&self, dir: &Path, bytes: u64) {
        for room in self.0.lock().rooms.values_mut().filter(|room| room.dir == dir) {
            room.measured = bytes;
        }
    }

    fn change<T>(&self, key: u64, change: impl FnOnce(&mut Promise) -> T) -> Option<T> {
        self.0.lock().rooms.get_mut(&key).map(change)
    }
}

impl Store {
    /// Returns the room of a directory that is being written to, empty so far.
    pub fn room(&self, dir: &Path) -> Room {
        let mut open = self.0.counters.rooms.0.lock();
        open.last += 1;
        let key = open.last;
        open.rooms.insert(key, Promise { dir: dir.to_owned(), asked: 0, promised: 0, measured: 0, runs: false });
        Room { store: self.clone(), key }
    }
}

impl Room {
    /// Makes room for `bytes` more that are about to be written. Collects what is idle as far as it has to; waits for that.
    pub fn take(&self, bytes: u64) {
        let more = self.rooms().change(self.key, |room| {
            room.asked += bytes;
            let short = room.asked.saturating_sub(room.promised);
            // In steps, so that not each file asks.
            let more = if short > 0 { step(room.promised, short) } else { 0 };
            room.promised += more;
            more
        });
        if let Some(more) = more.filter(|more| *more > 0) {
            self.store.0.admit(more);
        }
    }

    /// Makes room for what is unpacked of an archive, as it comes.
    pub fn for_archive<R: Read>(&self, archive: R) -> Admitted<'_, R> {
        Admitted { archive, room: self }
    }

    /// Gives back what was not needed.
    pub fn give_back(&self, bytes: u64) {
        self.rooms().change(self.key, |room| {
            room.asked = room.asked.saturating_sub(bytes);
            room.promised = room.promised.saturating_sub(bytes);
        });
    }

    /// From now on somebody writes there who does not ask: a part of the budget is kept free ahead of what was last measured.
    pub fn runs(&self) {
        self.rooms().change(self.key, |room| room.runs = true);
        self.store.0.admit(0);
    }

    /// All is written, and counted in another way.
    pub(crate) fn settle(&self) {
        self.rooms().change(self.key, |room| (room.asked, room.promised, room.runs) = (0, 0, false));
    }

    fn rooms(&self) -> &Rooms {
        &self.store.0.counters.rooms
    }
}

/// An archive for whose bytes room is made as they are read.
pub struct Admitted<'a, R> {
    archive: R,
    room: &'a Room,
}

impl<R: Read> Read for Admitted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.archive.read(buf)?;
        self.room.take(n as u64);
        Ok(n)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.rooms().0.lock().rooms.remove(&self.key);
    }
}
