//! Disposable metadata: named tables of checksummed values in one SQLite file.
//!
//! Reads see every earlier write of this process at once: writes wait in an overlay in memory until the one writer
//! thread has committed them in batches. Nothing here is precious. A value whose checksum fails, or a file that SQLite
//! will not read, is a miss: the file is moved aside, a new one started, and filled with what the store knows.
//!
//! The file is opened in exclusive locking mode (the store's own lock already keeps others out): SQLite then needs no
//! shared-memory file, whose truncation by someone else would kill the process.

mod db;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_stdx::fault;
use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use crate::repair::{RepairAction, RepairLog};
use db::DbError;

/// Writes that may wait before writers are held back: far more than a build makes, and a bound on memory.
const MOST_PENDING: usize = 50_000;
/// Writes per transaction: readers share the connection, and wait at most for so many.
const BATCH: usize = 256;
/// How long the writer waits for more before it commits, unless somebody waits for it: each transaction costs the same.
const GATHER: Duration = Duration::from_millis(3);
/// How often a batch that fails for want of space, or by a fault, is tried again.
const TRIES: u32 = 5;

/// The number of an uncommitted write, and its value.
type Pending = (u64, Option<Arc<[u8]>>);
/// One change: a key, and its new value or none.
pub(crate) type Change = (Vec<u8>, Option<Arc<[u8]>>);
type Reseed = Box<dyn Fn() -> Vec<Change> + Send + Sync>;

/// The tables.
pub struct Meta {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    damaged: PathBuf,
    log: RepairLog,
    queue: Mutex<Queue>,
    /// Signalled when the writer has something to do.
    wake: Condvar,
    /// Signalled when a batch is done.
    done: Condvar,
    db: Mutex<Db>,
    reseed: Mutex<Option<Reseed>>,
}

/// The open file. `generation` counts the files, so that two readers that meet the same damage replace it once.
struct Db {
    connection: Option<Connection>,
    generation: u64,
}

#[derive(Default)]
struct Queue {
    ops: VecDeque<(u64, Change)>,
    /// The latest uncommitted value of each key, with the number of the write.
    overlay: BTreeMap<Vec<u8>, Pending>,
    last: u64,
    committed: u64,
    reseed: bool,
    closing: bool,
    /// How many wait for everything to be committed.
    awaited: usize,
    /// Transactions so far.
    #[cfg(test)]
    commits: u64,
}

impl Queue {
    /// Tells whether to wait for more before the next transaction.
    fn may_grow(&self) -> bool {
        self.ops.len() < BATCH && self.awaited == 0 && !self.closing && !self.reseed
    }
}

/// A row as [`Meta::dump`] reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedRow {
    /// The name of its table.
    pub table: String,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// A named table.
#[derive(Clone)]
pub struct Table {
    shared: Arc<Shared>,
    prefix: Vec<u8>,
}

impl Meta {
    /// Opens the file, or starts a new one; damage is logged, and is never an error.
    pub fn open(path: PathBuf, damaged: PathBuf, log: RepairLog) -> Self {
        let shared = Arc::new(Shared {
            path,
            damaged,
            log,
            queue: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
            db: Mutex::new(Db { connection: None, generation: 0 }),
            reseed: Mutex::new(None),
        });
        shared.db.lock().connection = shared.start();
        let for_writer = shared.clone();
        let writer = std::thread::Builder::new().name("kiln-meta".into()).spawn(move || for_writer.write_loop()).ok();
        Self { shared, writer }
    }

    /// Reads all rows of a file that nobody uses.
    ///
    /// # Errors
    /// The file cannot be read, is in use, or is damaged.
    pub fn dump(path: &Path) -> std::io::Result<Vec<DumpedRow>> {
        // Opening makes a file where there is none.
        std::fs::metadata(path)?;
        let failed = |e: DbError| std::io::Error::other(e.to_string());
        let connection = db::open(path).map_err(failed)?;
        let split = |(key, value): (Vec<u8>, Vec<u8>)| {
            let at = key.iter().position(|b| *b == 0).unwrap_or(key.len());
            let name = String::from_utf8_lossy(&key[..at]).into_owned();
            DumpedRow { table: name, key: key.get(at + 1..).unwrap_or_default().to_vec(), value }
        };
        Ok(db::scan(&connection, b"").map_err(failed)?.into_iter().map(split).collect())
    }

    /// Sets what a new file is filled with after damage.
    pub(crate) fn on_replaced(&self, reseed: impl Fn() -> Vec<Change> + Send + Sync + 'static) {
        *self.shared.reseed.lock() = Some(Box::new(reseed));
    }

    /// Returns the table `name`, which holds no NUL.
    pub fn table(&self, name: &str) -> Table {
        let mut prefix = name.replace('\0', "").into_bytes();
        prefix.push(0);
        Table { shared: self.shared.clone(), prefix }
    }

    /// Waits until everything written so far is committed (not: on disk; see `Store::close_epoch`).
    pub fn flush(&self) {
        let mut queue = self.shared.queue.lock();
        let target = queue.last;
        queue.awaited += 1;
        while queue.committed < target && self.writer.is_some() {
            self.shared.wake.notify_one();
            self.shared.done.wait_for(&mut queue, Duration::from_millis(200));
        }
        queue.awaited -= 1;
    }

    /// Reads every row and returns how many there are and how many failed their check; with `repair` a file with a bad
    /// one is replaced.
    pub(crate) fn verify(&self, repair: bool) -> (u64, u64) {
        self.flush();
        let mut db = self.shared.db.lock();
        let Some(connection) = &db.connection else { return (0, 0) };
        let (rows, bad, why) = match db::verify(connection) {
            Ok((rows, bad)) => (rows, bad, format!("{bad} of {rows} rows fail their checksum")),
            Err(e) => (0, 1, e.to_string()),
        };
        if bad > 0 && repair {
            self.shared.replace(&mut db, &why);
        }
        (rows, bad)
    }
}

impl Drop for Meta {
    fn drop(&mut self) {
        self.shared.queue.lock().closing = true;
        self.shared.wake.notify_all();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        // Tables may outlive the store; the file must not stay open, since the store's lock goes now.
        self.shared.db.lock().connection = None;
    }
}

impl Table {
    fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    /// Returns the value of `key`; what fails its checksum is not there.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let key = self.key(key);
        if let Some((_, value)) = self.shared.queue.lock().overlay.get(&key) {
            return value.as_ref().map(|v| v.to_vec());
        }
        self.shared.read(None, |connection| db::get(connection, &key))
    }

    /// Returns all keys that begin with `prefix`, in order, with their values.
    pub fn scan_prefix(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let full = self.key(prefix);
        let pending: Vec<Change> = {
            let queue = self.shared.queue.lock();
            let range = queue.overlay.range(full.clone()..).take_while(|(key, _)| key.starts_with(&full));
            range.map(|(key, (_, value))| (key.clone(), value.clone())).collect()
        };
        let rows = self.shared.read(Vec::new(), |connection| db::scan(connection, &full));
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = rows.into_iter().collect();
        for (key, value) in pending {
            match value {
                Some(value) => merged.insert(key, value.to_vec()),
                None => merged.remove(&key),
            };
        }
        let cut = self.prefix.len();
        merged.into_iter().map(|(key, value)| (key[cut..].to_vec(), value)).collect()
    }

    /// Sets the value of `key`. Waits only when very many writes are pending.
    pub fn put(&self, key: &[u8], value: &[u8]) {
        self.batch([(key.to_vec(), Some(value.to_vec()))]);
    }

    /// Removes `key`.
    pub fn delete(&self, key: &[u8]) {
        self.batch([(key.to_vec(), None)]);
    }

    /// Makes several changes; after a crash either none of up to 256 is there or all are.
    pub fn batch(&self, changes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>) {
        let changes =
            changes.into_iter().map(|(key, value)| (self.key(&key), value.map(Arc::<[u8]>::from))).collect::<Vec<_>>();
        self.shared.enqueue(changes);
    }

    /// Returns a number that grows when a damaged file was replaced by a new one, in which most of this table is lost.
    pub fn generation(&self) -> u64 {
        self.shared.db.lock().generation
    }

    /// Returns a change of this table for [`Meta::on_replaced`].
    pub(crate) fn change(&self, key: &[u8], value: &[u8]) -> Change {
        (self.key(key), Some(Arc::from(value)))
    }
}

impl Shared {
    fn enqueue(&self, changes: Vec<Change>) {
        let mut queue = self.queue.lock();
        while queue.ops.len() > MOST_PENDING && !queue.closing {
            self.done.wait_for(&mut queue, Duration::from_millis(200));
        }
        let idle = queue.ops.is_empty();
        for (key, value) in changes {
            queue.last += 1;
            let seq = queue.last;
            queue.overlay.insert(key.clone(), (seq, value.clone()));
            queue.ops.push_back((seq, (key, value)));
        }
        // One that gathers need not be woken for each.
        let wake = idle || queue.ops.len() >= BATCH;
        drop(queue);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Opens the file; moves it aside and opens a new one if that fails.
    fn start(&self) -> Option<Connection> {
        match db::open(&self.path) {
            Ok(connection) => Some(connection),
            Err(e) if e.is_no_space() => {
                tracing::warn!(error = %e, "metadata is kept in memory only");
                None
            }
            Err(e) => {
                self.move_aside(&e.to_string());
                db::open(&self.path).map_err(|e| tracing::warn!(error = %e, "metadata is kept in memory only")).ok()
            }
        }
    }

    fn move_aside(&self, why: &str) {
        db::move_aside(&self.path, &self.damaged);
        self.log.add("meta.db", why, RepairAction::MovedAside);
    }

    /// Starts a new file in place of a damaged one and has the writer fill it.
    fn replace(&self, db: &mut Db, why: &str) {
        db.connection = None;
        self.move_aside(why);
        db.connection = self.start();
        db.generation += 1;
        self.queue.lock().reseed = true;
        self.wake.notify_one();
    }

    fn read<T>(&self, missing: T, read: impl Fn(&Connection) -> Result<T, DbError>) -> T {
        let mut db = self.db.lock();
        let Some(connection) = &db.connection else { return missing };
        match read(connection) {
            Ok(value) => value,
            Err(e) => {
                self.replace(&mut db, &e.to_string());
                missing
            }
        }
    }

    fn write_loop(&self) {
        loop {
            let (batch, reseed) = {
                let mut queue = self.queue.lock();
                while queue.ops.is_empty() && !queue.closing && !queue.reseed {
                    self.wake.wait(&mut queue);
                }
                if queue.ops.is_empty() && queue.closing {
                    return;
                }
                let until = Instant::now() + GATHER;
                while queue.may_grow() && !self.wake.wait_until(&mut queue, until).timed_out() {}
                let count = queue.ops.len().min(BATCH);
                (queue.ops.drain(..count).collect::<Vec<_>>(), std::mem::take(&mut queue.reseed))
            };
            if reseed {
                let changes = self.reseed.lock().as_ref().map(|reseed| reseed()).unwrap_or_default();
                self.enqueue(changes);
            }
            if !batch.is_empty() {
                self.write_batch(&batch);
            }
        }
    }

    fn write_batch(&self, batch: &[(u64, Change)]) {
        for attempt in 1..=TRIES {
            let mut db = self.db.lock();
            let Some(connection) = &mut db.connection else { break };
            let result = fault::point("store.db.commit")
                .map_err(DbError::from)
                .and_then(|()| db::write(connection, batch.iter().map(|(_, change)| change)));
            match result {
                Ok(()) => break,
                Err(e) if e.is_no_space() || e.is_fault() => {
                    drop(db);
                    let closing = self.queue.lock().closing;
                    if attempt == TRIES || closing {
                        tracing::warn!(error = %e, changes = batch.len(), "metadata not written");
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(20 << attempt));
                }
                Err(e) => self.replace(&mut db, &e.to_string()),
            }
        }
        let mut queue = self.queue.lock();
        for (seq, (key, _)) in batch {
            if queue.overlay.get(key).is_some_and(|(latest, _)| latest == seq) {
                queue.overlay.remove(key);
            }
        }
        #[cfg(test)]
        {
            queue.commits += 1;
        }
        queue.committed = batch.last().map_or(queue.committed, |(seq, _)| *seq);
        drop(queue);
        self.done.notify_all();
    }
}
