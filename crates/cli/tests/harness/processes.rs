//! Looking at processes from outside: engines by their root, what an engine has started, and when either is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that cannot be mistaken for a later one with the same number.
pub struct Process {
    pub id: i32,
    handle: OwnedFd,
}

impl Process {
    /// Takes hold of a process; none when it is gone.
    pub fn open(id: i32) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(id)?, PidfdFlags::empty()).ok()?;
        Some(Self { id, handle })
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// Waits until the process is gone, at most for `limit`; tells whether it is.
    pub fn gone_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                answer => return answer == Ok(1),
            }
        }
    }
}

/// Returns the engines that serve the state root, by their command lines: whatever became of socket and lock file.
pub fn engines(root: &Path) -> Vec<Process> {
    let root = root.as_os_str().as_encoded_bytes();
    let serves = |id: &i32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|&b| b == 0).collect();
        words.contains(&b"--on-demand".as_slice()) && words.contains(&root)
    };
    all().into_iter().filter(serves).filter_map(Process::open).collect()
}

fn all() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// What an engine had started, collected while it lived.
#[derive(Default)]
pub struct Family {
    /// Start time by process id: an id that is used again has another.
    members: BTreeMap<i32, u64>,
    /// Control groups of the steps; their names are never used again, as those of mount namespaces are.
    pub groups: BTreeSet<PathBuf>,
}

impl Family {
    /// Notes the engine and everything below it.
    pub fn look(&mut self, engine: i32) {
        let mut parents = BTreeMap::new();
        for id in all() {
            if let Some((parent, state, start)) = stat(id) {
                parents.insert(id, (parent, state, start));
            }
        }
        let mut found = BTreeSet::from([engine]);
        loop {
            let more: Vec<i32> = parents
                .iter()
                .filter(|(id, (parent, _, _))| found.contains(parent) && !found.contains(id))
                .map(|(id, _)| *id)
                .collect();
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        for id in found {
            let Some((_, _, start)) = parents.get(&id) else { continue };
            if id != engine {
                self.members.insert(id, *start);
                // A process joins its group some time after its start.
                self.note_group(id);
            }
        }
    }

    fn note_group(&mut self, id: i32) {
        let text = std::fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
        let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let ours = paths.filter(|path| path.split('/').any(|part| part.starts_with("kiln")));
        let tops = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let dirs = ours.flat_map(|path| tops.map(|top| top.join(path.trim_start_matches('/'))));
        self.groups.extend(dirs.filter(|dir| dir.is_dir()));
    }

    /// Returns how many processes there were besides the engine.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns what is left: processes that were seen, and processes in the control groups of the steps. Their mounts are
    /// in mount namespaces of their own, which go with the last of them.
    pub fn left(&self) -> Vec<String> {
        let alive = |id: &i32| stat(*id).filter(|(_, state, _)| !matches!(state, 'Z' | 'X')).map(|(_, _, start)| start);
        let mut left: BTreeSet<i32> =
            self.members.iter().filter(|(id, start)| alive(id) == Some(**start)).map(|(id, _)| *id).collect();
        for group in &self.groups {
            let ids = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            left.extend(ids.split_whitespace().filter_map(|id| id.parse().ok()).filter(|id| alive(id).is_some()));
        }
        let shown = |id: i32| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            format!("process {id} ({})", String::from_utf8_lossy(&line).replace('\0', " "))
        };
        left.into_iter().map(shown).collect()
    }
}

/// Returns parent, state and start time of a process.
fn stat(id: i32) -> Option<(i32, char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(1)?.parse().ok()?, fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}
