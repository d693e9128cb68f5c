//! Where this host has its control groups: v1, v2, or both side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The mounted hierarchies.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// The v2 tree, wherever it is.
    pub v2: Option<PathBuf>,
    /// v1 hierarchies by controller.
    pub v1: BTreeMap<String, PathBuf>,
    /// Every v1 hierarchy, also those that have a name in place of a controller.
    pub v1_tops: BTreeSet<PathBuf>,
}

impl Layout {
    /// Reads the mounts of this process.
    pub(super) fn detect() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Parses `mountinfo` (proc(5)): the type and options follow ` - `.
    fn parse(mountinfo: &str) -> Self {
        let mut layout = Self::default();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let mut after = after.split(' ');
            let (kind, options) = (after.next().unwrap_or(""), after.nth(1).unwrap_or(""));
            let Some(place) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
            match kind {
                "cgroup2" => layout.v2 = layout.v2.or(Some(place)),
                "cgroup" => {
                    layout.v1_tops.insert(place.clone());
                    for name in options.split(',').filter(|name| !matches!(*name, "rw" | "ro") && !name.contains('=')) {
                        layout.v1.entry(name.to_owned()).or_insert_with(|| place.clone());
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// Tells whether v2 is the only one, so that a process may be shown it whole.
    pub(super) fn is_unified(&self) -> bool {
        self.v2.is_some() && self.v1.is_empty()
    }

    /// Tells whether the v2 tree itself has `controller`.
    pub(super) fn v2_has(&self, controller: &str) -> bool {
        let Some(v2) = &self.v2 else { return false };
        let controllers = std::fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
        controllers.split_whitespace().any(|name| name == controller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_hosts_have_both() {
        let layout = Layout::parse(HYBRID);
        assert_eq!(layout.v2.as_deref(), Some("/sys/fs/cgroup/unified".as_ref()));
        assert_eq!(layout.v1["cpu"], PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.v1["cpuacct"], layout.v1["cpu"]);
        assert!(!layout.v1.contains_key("name=systemd") && !layout.v1.contains_key("rw"));
        assert_eq!(layout.v1_tops.len(), 2);
        assert!(!layout.is_unified());
    }

    #[test]
    fn unified_hosts_have_one() {
        let layout = Layout::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(layout.is_unified());
        assert_eq!(Layout::parse("garbage\n"), Layout::default());
    }
}
