//! Which user and group ids a sandbox has when the engine is not root: a user namespace and the ids mapped into it.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The programs that may map more than one id (shadow-utils).
const NEWUIDMAP: &str = "newuidmap";
const NEWGIDMAP: &str = "newgidmap";
/// Where they are looked for.
const DIRS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMaps {
    pub users: Vec<Range>,
    pub groups: Vec<Range>,
    /// The programs that write the maps; without them a process may only map its own user and group.
    pub programs: Option<(String, String)>,
}

impl IdMaps {
    /// Returns the maps this process needs: none when it is root, which has all ids already.
    pub(crate) fn detect() -> Option<Self> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if uid == 0 {
            return None;
        }
        let name = account_name(&read("/etc/passwd"), uid);
        let programs = find(NEWUIDMAP).zip(find(NEWGIDMAP));
        Some(Self::build((uid, gid), &name, &read("/etc/subuid"), &read("/etc/subgid"), programs))
    }

    fn build(own: (u32, u32), name: &str, subuid: &str, subgid: &str, programs: Option<(String, String)>) -> Self {
        let (users, groups) = (subordinate(subuid, name, own.0), subordinate(subgid, name, own.0));
        let single = |id| vec![Range { inside: 0, outside: id, count: 1 }];
        if programs.is_none() || users.is_empty() || groups.is_empty() {
            return Self { users: single(own.0), groups: single(own.1), programs: None };
        }
        Self { users: after(own.0, &users), groups: after(own.1, &groups), programs }
    }

    /// Tells whether there is more than the one id of the engine itself.
    pub(crate) fn is_full(&self) -> bool {
        self.programs.is_some()
    }
}

/// Id 0 is the engine's own; the subordinate ids follow from 1 on.
fn after(own: u32, ranges: &[(u32, u32)]) -> Vec<Range> {
    let mut map = vec![Range { inside: 0, outside: own, count: 1 }];
    let mut inside = 1u32;
    for &(outside, count) in ranges {
        map.push(Range { inside, outside, count });
        inside = inside.saturating_add(count);
    }
    map
}

/// Returns start and count of each line of subuid(5) that is for the user, by name or number.
fn subordinate(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next().filter(|owner| (!name.is_empty() && *owner == name) || *owner == number)?;
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (!owner.is_empty() && count > 0).then_some((start, count))
    });
    lines.collect()
}

fn account_name(passwd: &str, uid: u32) -> String {
    let number = uid.to_string();
    let entry = passwd.lines().find(|line| line.split(':').nth(2) == Some(&number));
    entry.and_then(|line| line.split(':').next()).unwrap_or_default().to_owned()
}

fn find(program: &str) -> Option<String> {
    DIRS.iter().map(|dir| format!("{dir}/{program}")).find(|path| Path::new(path).is_file())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_follow_the_own_one() {
        let programs = || Some(("u".to_owned(), "g".to_owned()));
        let range = |inside, outside, count| Range { inside, outside, count };
        let subuid = "other:1:1\nann:100000:65536\n1000:300000:10\n";
        let maps = IdMaps::build((1000, 1001), "ann", subuid, "ann:200000:65536\n", programs());
        assert_eq!(maps.users, [range(0, 1000, 1), range(1, 100_000, 65_536), range(65_537, 300_000, 10)]);
        assert_eq!(maps.groups, [range(0, 1001, 1), range(1, 200_000, 65_536)]);
        assert!(maps.is_full());
    }

    #[test]
    fn without_them_there_is_one_id() {
        for (subgid, programs) in [("", Some(("u".to_owned(), "g".to_owned()))), ("ann:2:2", None)] {
            let maps = IdMaps::build((1000, 1001), "ann", "ann:1:2", subgid, programs);
            assert_eq!(maps.users, [Range { inside: 0, outside: 1000, count: 1 }]);
            assert_eq!(maps.groups, [Range { inside: 0, outside: 1001, count: 1 }]);
            assert!(!maps.is_full());
        }
        assert_eq!(account_name("root:x:0:0\nann:x:1000:1\n", 1000), "ann");
    }
}
