//! The executor's control groups and those of single steps.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::devices::Filter;
use super::layout::Layout;
use crate::wire::WireCgroup;
use crate::{ExecError, Resources};

/// How long the removal of a group is tried.
const REMOVAL: Duration = Duration::from_secs(2);

/// The control groups of one executor: `<v2>/<parent>/<instance>/{sandbox,insecure}`, shared by all steps without limits
/// of their own.
pub(crate) struct Groups {
    layout: Layout,
    parent: String,
    base: Option<Base>,
}

struct Base {
    name: String,
    dir: PathBuf,
    /// Locked while this executor lives, so that others know the directory is not left over.
    _lock: OwnedFd,
    filter: Option<Filter>,
}

impl Groups {
    /// Makes the executor's groups. Where the host has none or forbids it, steps run without: the mounts then keep devices
    /// out of reach.
    pub(crate) fn new(parent: &str) -> Arc<Self> {
        let layout = Layout::detect();
        let parent = parent.trim_matches('/').to_owned();
        let base = layout.v2.as_ref().and_then(|v2| {
            // An engine that starts at the same time may take the directory for a left-over one before it is locked.
            (0..3).find_map(|_| Base::new(&layout, v2, &parent).ok())
        });
        Arc::new(Self { layout, parent, base })
    }

    /// Returns the group of a step without limits, and whether devices are out of its reach.
    pub(crate) fn shared(&self, insecure: bool) -> (WireCgroup, bool) {
        let unified = self.layout.is_unified();
        let Some(base) = &self.base else { return (WireCgroup { v2: None, v1: Vec::new(), unified }, false) };
        let name = if insecure { "insecure" } else { "sandbox" };
        (WireCgroup { v2: Some(base.dir.join(name)), v1: Vec::new(), unified }, base.filter.is_some())
    }

    /// Tells whether v2 is the only hierarchy.
    pub(crate) fn is_unified(&self) -> bool {
        self.layout.is_unified()
    }

    /// Returns the v2 tree of a host that has v1 hierarchies too.
    pub(crate) fn v2_beside_v1(&self) -> Option<PathBuf> {
        if self.layout.is_unified() { None } else { self.layout.v2.clone() }
    }

    /// Returns where a step's own group is in every hierarchy, without a leading slash.
    pub(crate) fn path(&self, id: &str, parent: Option<&str>) -> String {
        match (parent, &self.base) {
            (Some(parent), _) => format!("{}/kiln/{id}", parent.trim_matches('/')),
            (None, Some(base)) => format!("{}/{}/{id}", self.parent, base.name),
            (None, None) => format!("{}/{id}", self.parent),
        }
    }

    /// Makes a group for one step with limits or a parent of its own. Does file I/O.
    ///
    /// # Errors
    /// [`ExecError::NoController`] for a limit that this host cannot keep, [`ExecError::Setup`] when a group cannot be made.
    pub(crate) fn step(
        &self,
        id: &str,
        parent: Option<&str>,
        limits: &Resources,
        insecure: bool,
    ) -> Result<StepGroup, ExecError> {
        let below = self.path(id, parent);
        let mut group = StepGroup { v2: None, v1: Vec::new(), guarded: false, unified: self.layout.is_unified() };
        let settings = settings(limits);
        for setting in &settings {
            if !self.layout.v2_has(setting.controller) && !self.layout.v1.contains_key(setting.controller) {
                return Err(ExecError::NoController { limit: setting.limit, controller: setting.controller });
            }
        }
        if let Some(v2) = &self.layout.v2 {
            let wanted: Vec<&str> =
                settings.iter().map(|setting| setting.controller).filter(|name| self.layout.v2_has(name)).collect();
            let dir = make_v2(v2, &below, &wanted)?;
            group.v2 = Some(dir.clone());
            let filter = self.base.as_ref().and_then(|base| base.filter.as_ref());
            if let (Some(filter), false) = (filter, insecure) {
                group.guarded = open_dir(&dir).and_then(|dir| filter.attach(&dir)).is_ok();
            }
        }
        for setting in &settings {
            let in_v2 = self.layout.v2_has(setting.controller);
            let dir = match (&group.v2, in_v2) {
                (Some(dir), true) => dir.clone(),
                _ => group.join_v1(setting.controller, &self.layout.v1[setting.controller], &below)?,
            };
            let (file, value) = if in_v2 { &setting.v2 } else { &setting.v1 };
            let path = dir.join(file);
            fs::write(&path, value).map_err(|error| ExecError::setup(format!("write {}", path.display()), error))?;
        }
        Ok(group)
    }

    /// Removes what an OCI runtime that was killed left behind under `below`, in every hierarchy.
    pub(crate) fn remove_leftover(&self, below: &str) {
        for top in self.layout.v1_tops.iter().chain(&self.layout.v2) {
            remove_soon(top.join(below));
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if let Some(base) = &self.base {
            remove_instance(&self.layout, &self.parent, &base.name);
        }
    }
}

impl Base {
    fn new(layout: &Layout, v2: &Path, parent: &str) -> io::Result<Self> {
        fs::create_dir_all(v2.join(parent))?;
        remove_stale(layout, v2, parent);
        let name = format!("e{}", kiln_stdx::rand_id());
        let dir = v2.join(parent).join(&name);
        fs::create_dir(&dir)?;
        let lock = open_dir(&dir)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        for name in ["sandbox", "insecure"] {
            fs::create_dir(dir.join(name))?;
        }
        let guard = || -> io::Result<Filter> {
            let filter = Filter::load()?;
            filter.attach(&open_dir(&dir.join("sandbox"))?)?;
            Ok(filter)
        };
        let filter = guard().ok();
        Ok(Self { name, dir, _lock: lock, filter })
    }
}

/// Ends what engines that were killed left running, and removes their groups. An engine that lives holds a lock.
fn remove_stale(layout: &Layout, v2: &Path, parent: &str) {
    let tops = layout.v1_tops.iter().map(PathBuf::as_path).chain([v2]);
    let entries = tops.flat_map(|top| fs::read_dir(top.join(parent)).into_iter().flatten().flatten());
    // Directories of another form were not made here; the files of the group itself have a dot in their names.
    let ours = |name: &String| name.starts_with('e') && !name.contains('.');
    let names: BTreeSet<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(ours).collect();
    for name in names {
        let dir = v2.join(parent).join(&name);
        let lock = open_dir(&dir);
        let alive = |dir: &OwnedFd| rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive).is_err();
        if lock.as_ref().is_ok_and(alive) {
            continue;
        }
        let _ = fs::write(dir.join("cgroup.kill"), "1");
        remove_instance(layout, parent, &name);
    }
}

fn remove_instance(layout: &Layout, parent: &str, name: &str) {
    for top in layout.v1_tops.iter().chain(&layout.v2) {
        remove_tree(&top.join(parent).join(name));
    }
}

/// Removes a group whose processes have been waited for; the kernel may count the last of them a moment longer.
fn remove_soon(dir: PathBuf) {
    let busy = |dir: &Path| fs::remove_dir(dir).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY));
    if busy(&dir) {
        std::thread::spawn(move || {
            let began = Instant::now();
            while began.elapsed() < REMOVAL && busy(&dir) {
                std::thread::sleep(REMOVAL / 400);
            }
        });
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    remove_soon(dir.to_owned());
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes `below` in the v2 tree and turns on controllers all the way down.
fn make_v2(top: &Path, below: &str, controllers: &[&str]) -> Result<PathBuf, ExecError> {
    let mut dir = top.to_owned();
    for part in below.split('/') {
        for controller in controllers {
            let path = dir.join("cgroup.subtree_control");
            fs::write(&path, format!("+{controller}"))
                .map_err(|error| ExecError::setup(format!("turn on {controller} in {}", path.display()), error))?;
        }
        dir.push(part);
        make_dir(&dir)?;
    }
    Ok(dir)
}

fn make_dir(dir: &Path) -> Result<(), ExecError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(ExecError::setup(format!("make control group {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

/// One step's own group; dropping it removes it.
pub(crate) struct StepGroup {
    v2: Option<PathBuf>,
    v1: Vec<(String, PathBuf)>,
    guarded: bool,
    unified: bool,
}

impl StepGroup {
    fn join_v1(&mut self, controller: &str, top: &Path, below: &str) -> Result<PathBuf, ExecError> {
        if let Some((_, dir)) = self.v1.iter().find(|(name, _)| name == controller) {
            return Ok(dir.clone());
        }
        let mut dir = top.to_owned();
        for part in below.split('/') {
            if controller == "cpuset" {
                inherit_cpuset(&dir);
            }
            dir.push(part);
            make_dir(&dir)?;
        }
        if controller == "cpuset" {
            inherit_cpuset(&dir);
        }
        self.v1.push((controller.to_owned(), dir.clone()));
        Ok(dir)
    }

    /// Returns what the helper needs, and whether devices are out of reach.
    pub(crate) fn wire(&self) -> (WireCgroup, bool) {
        (WireCgroup { v2: self.v2.clone(), v1: self.v1.clone(), unified: self.unified }, self.guarded)
    }

    /// Tells whether the kernel killed something in the group for want of memory.
    pub(crate) fn oom(&self) -> bool {
        let v2 = self.v2.iter().map(|dir| dir.join("memory.events"));
        let v1 = self.v1.iter().filter(|(name, _)| name == "memory").map(|(_, dir)| dir.join("memory.oom_control"));
        v2.chain(v1).any(|file| counter(&fs::read_to_string(file).unwrap_or_default(), "oom_kill") > 0)
    }

    /// Returns the most memory the group ever used, in bytes.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        let v2 = self.v2.iter().map(|dir| dir.join("memory.peak"));
        let v1 = self.v1.iter().filter(|(name, _)| name == "memory");
        let v1 = v1.map(|(_, dir)| dir.join("memory.max_usage_in_bytes"));
        v2.chain(v1).find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
    }
}

impl Drop for StepGroup {
    fn drop(&mut self) {
        for dir in self.v1.iter().map(|(_, dir)| dir).chain(&self.v2) {
            remove_soon(dir.clone());
        }
    }
}

/// A v1 cpuset group starts empty and takes no process until both its lists are set.
fn inherit_cpuset(dir: &Path) {
    let Some(parent) = dir.parent() else { return };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(dir.join(file)).unwrap_or_default();
        if own.trim().is_empty() {
            let above = fs::read_to_string(parent.join(file)).unwrap_or_default();
            let _ = fs::write(dir.join(file), above.trim());
        }
    }
}

fn counter(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    value.unwrap_or(0)
}

/// One limit as both kinds of control group write it.
struct Setting {
    limit: &'static str,
    controller: &'static str,
    v1: (&'static str, String),
    v2: (&'static str, String),
}

fn settings(limits: &Resources) -> Vec<Setting> {
    let mut out = Vec::new();
    let mut add = |limit, controller, v1: (&'static str, String), v2: (&'static str, String)| {
        out.push(Setting { limit, controller, v1, v2 });
    };
    if let Some(memory) = limits.memory {
        add("memory", "memory", ("memory.limit_in_bytes", memory.to_string()), ("memory.max", memory.to_string()));
    }
    if let Some(both) = limits.memory_swap {
        // v1 limits the sum, v2 the swap alone.
        let swap = u64::try_from(both)
            .map_or("max".to_owned(), |both| both.saturating_sub(limits.memory.unwrap_or(0)).to_string());
        add("memory-swap", "memory", ("memory.memsw.limit_in_bytes", both.to_string()), ("memory.swap.max", swap));
    }
    if let Some(shares) = limits.cpu_shares {
        // The kernel's own conversion: [2, 262144] to [1, 10000].
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        add("cpu-shares", "cpu", ("cpu.shares", shares.to_string()), ("cpu.weight", weight.to_string()));
    }
    if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        let period = limits.cpu_period.unwrap_or(100_000);
        let quota = limits.cpu_quota.unwrap_or(-1);
        let most = if quota < 0 { "max".to_owned() } else { quota.to_string() };
        if limits.cpu_period.is_some() {
            add(
                "cpu-period",
                "cpu",
                ("cpu.cfs_period_us", period.to_string()),
                ("cpu.max", format!("{most} {period}")),
            );
        }
        add("cpu-quota", "cpu", ("cpu.cfs_quota_us", quota.to_string()), ("cpu.max", format!("{most} {period}")));
    }
    for (limit, value, file) in
        [("cpuset-cpus", &limits.cpuset_cpus, "cpuset.cpus"), ("cpuset-mems", &limits.cpuset_mems, "cpuset.mems")]
    {
        if let Some(value) = value {
            add(limit, "cpuset", (file, value.clone()), (file, value.clone()));
        }
    }
    if let Some(pids) = limits.pids {
        add("pids", "pids", ("pids.max", pids.to_string()), ("pids.max", pids.to_string()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_translate_to_both_kinds() {
        let limits = Resources {
            memory: Some(100),
            memory_swap: Some(150),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            pids: Some(7),
            ..Resources::default()
        };
        let text: Vec<String> = settings(&limits)
            .iter()
            .map(|s| format!("{} {}={} {}={}", s.controller, s.v1.0, s.v1.1, s.v2.0, s.v2.1))
            .collect();
        assert_eq!(
            text,
            [
                "memory memory.limit_in_bytes=100 memory.max=100",
                "memory memory.memsw.limit_in_bytes=150 memory.swap.max=50",
                "cpu cpu.shares=1024 cpu.weight=39",
                "cpu cpu.cfs_quota_us=50000 cpu.max=50000 100000",
                "pids pids.max=7 pids.max=7",
            ]
        );
        assert!(settings(&Resources::default()).is_empty());
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "low 0\noom 3\noom_kill 2\noom_kill_disable 0\n";
        assert_eq!(counter(text, "oom_kill"), 2);
        assert_eq!(counter(text, "oom_group_kill"), 0);
    }
}
