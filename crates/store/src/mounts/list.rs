//! Cache mounts as people look after them: listed by the names that steps give them, and removed.

use std::collections::HashSet;

use super::{Mark, MountRecord};
use crate::error::{Result, StoreError};
use crate::store::Store;

/// A cache mount that steps have made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Names the directory.
    pub directory: String,
    /// What tells it from others.
    pub key: String,
    /// What steps call it.
    pub id: String,
    /// The platform of the steps that share it.
    pub platform: String,
    /// For people.
    pub description: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Seconds since 1970.
    pub last_used: u64,
    /// How many steps have used it.
    pub uses: u64,
    /// Bytes on disk; nothing where they were not to be measured.
    pub size: Option<u64>,
    /// A step holds it.
    pub in_use: bool,
    /// Why its content may be damaged.
    pub mark: Option<Mark>,
}

impl Store {
    /// Lists the cache mounts that steps have made, by name. With `measure` sizes that are not known are measured, which
    /// reads the directories.
    pub fn cache_mounts(&self, measure: bool) -> Vec<MountInfo> {
        let records = match measure {
            true => self.0.mount_records(true),
            false => {
                let mounts = self.0.mounts.mounts.lock();
                mounts.values().filter(|m| !m.retired).map(|m| (m.record.clone(), m.in_use())).collect()
            }
        };
        let of_steps = records.into_iter().filter(|(record, _)| !record.key.starts_with('\0'));
        let mut mounts: Vec<MountInfo> = of_steps.map(|(record, in_use)| info(record, in_use)).collect();
        mounts.sort_by(|a, b| (&a.id, &a.platform, &a.directory).cmp(&(&b.id, &b.platform, &b.directory)));
        mounts
    }

    /// Removes cache mounts, named by their directories: all, or none when one is in use or not there.
    ///
    /// # Errors
    /// [`StoreError::Busy`] and [`StoreError::Invalid`] for that.
    pub fn remove_cache_mounts(&self, directories: &[String]) -> Result<()> {
        let wanted: HashSet<&String> = directories.iter().collect();
        {
            let mut mounts = self.0.mounts.mounts.lock();
            for directory in &wanted {
                match mounts.get(*directory).filter(|state| !state.retired) {
                    Some(state) if state.in_use() => {
                        return Err(StoreError::Busy(format!("cache mount {}", state.record.name)));
                    }
                    Some(_) => {}
                    None => return Err(StoreError::Invalid(format!("there is no cache mount {directory}"))),
                }
            }
            mounts.iter_mut().filter(|(id, _)| wanted.contains(id)).for_each(|(_, state)| state.retired = true);
        }
        self.0.sweep_mounts();
        Ok(())
    }
}

fn info(record: MountRecord, in_use: bool) -> MountInfo {
    MountInfo {
        directory: record.id,
        key: record.key,
        id: record.name,
        platform: record.platform,
        description: record.description,
        created: record.created,
        last_used: record.used,
        uses: record.uses,
        size: record.size,
        in_use,
        mark: record.mark,
    }
}
