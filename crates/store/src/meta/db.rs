//! The SQLite side of the metadata: one table of keys and checksummed values.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln_stdx::{DigestHasher, rand_id};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use super::Change;
use crate::disk;

/// Marks the file as this store's ("kiln"); another value means that it is some other database.
const APPLICATION_ID: i64 = 0x6b69_6c6e;
/// Layout of the table below.
const USER_VERSION: i64 = 1;
/// Bytes of checksum before each value.
const SUM: usize = 8;
/// How many damaged files are kept for whoever wants to look.
const KEPT: usize = 6;

/// A key and its value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

#[derive(Debug, thiserror::Error)]
pub(super) enum DbError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("a value fails its checksum")]
    Checksum,
    #[error("not a database of this store")]
    Foreign,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl DbError {
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Sqlite(e) => e.sqlite_error_code() == Some(ErrorCode::DiskFull),
            Self::Io(e) => matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)),
            _ => false,
        }
    }

    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Io(_))
    }
}

pub(super) fn open(path: &Path) -> Result<Connection, DbError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_prepared_statement_cache_capacity(16);
    // The order matters: exclusive mode before the first access in WAL mode is what avoids the shared-memory file.
    connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY; PRAGMA cache_size=-16384;")?;
    let id: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let fresh = id == 0 && version == 0 && tables == 0;
    if !fresh && (id != APPLICATION_ID || version != USER_VERSION) {
        return Err(DbError::Foreign);
    }
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")?;
    if fresh {
        connection.execute_batch(&format!(
            "BEGIN; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={USER_VERSION};
             CREATE TABLE kv(k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID; COMMIT;"
        ))?;
    }
    connection.prepare_cached("SELECT v FROM kv WHERE k = ?1")?;
    Ok(connection)
}

fn sum(key: &[u8], value: &[u8]) -> [u8; SUM] {
    let mut hasher = DigestHasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let mut out = [0; SUM];
    out.copy_from_slice(&hasher.finish().as_bytes()[..SUM]);
    out
}

fn checked(key: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
    let (head, value) = stored.split_at_checked(SUM)?;
    (head == sum(key, value)).then(|| value.to_vec())
}

pub(super) fn get(connection: &Connection, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
    let mut statement = connection.prepare_cached("SELECT v FROM kv WHERE k = ?1")?;
    let stored: Option<Vec<u8>> = statement.query_row([key], |row| row.get(0)).optional()?;
    stored.map(|stored| checked(key, &stored).ok_or(DbError::Checksum)).transpose()
}

pub(super) fn scan(connection: &Connection, prefix: &[u8]) -> Result<Vec<Row>, DbError> {
    let mut statement = connection.prepare_cached("SELECT k, v FROM kv WHERE k >= ?1 ORDER BY k")?;
    let mut rows = statement.query([prefix])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let key: Vec<u8> = row.get(0)?;
        if !key.starts_with(prefix) {
            break;
        }
        let stored: Vec<u8> = row.get(1)?;
        let value = checked(&key, &stored).ok_or(DbError::Checksum)?;
        out.push((key, value));
    }
    Ok(out)
}

pub(super) fn write<'a>(connection: &mut Connection, changes: impl Iterator<Item = &'a Change>) -> Result<(), DbError> {
    let transaction = connection.transaction()?;
    for (key, value) in changes {
        match value {
            Some(value) => {
                let stored = [&sum(key, value)[..], value].concat();
                transaction
                    .prepare_cached("INSERT INTO kv(k, v) VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE SET v = ?2")?
                    .execute(params![key, stored])?;
            }
            None => {
                transaction.prepare_cached("DELETE FROM kv WHERE k = ?1")?.execute([key])?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Returns the number of rows and of bad ones, after SQLite's own check of the file's structure.
pub(super) fn verify(connection: &Connection) -> Result<(u64, u64), DbError> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(DbError::Foreign);
    }
    let mut statement = connection.prepare("SELECT k, v FROM kv")?;
    let mut rows = statement.query([])?;
    let (mut count, mut bad) = (0, 0);
    while let Some(row) = rows.next()? {
        let (key, stored): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
        count += 1;
        bad += u64::from(checked(&key, &stored).is_none());
    }
    Ok((count, bad))
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Moves the file and its companions to `damaged`, of which only the latest few are kept.
pub(super) fn move_aside(path: &Path, damaged: &Path) {
    let name = rand_id();
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let from = with_suffix(path, suffix);
        if fs::symlink_metadata(&from).is_err() {
            continue;
        }
        let to = damaged.join(format!("meta-{name}{suffix}"));
        if fs::rename(&from, &to).is_err() {
            // What cannot be kept for inspection must still get out of the way.
            let _ = disk::remove_tree(&from);
        }
    }
    let mut kept: Vec<_> = fs::read_dir(damaged)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| (e.metadata().and_then(|m| m.modified()).ok(), e.path()))
        .collect();
    kept.sort();
    for (_, old) in kept.iter().rev().skip(KEPT) {
        let _ = disk::remove_tree(old);
    }
}
