//! Who the process is: looked up in the root's own `/etc/passwd` and `/etc/group`, as OCI runtimes' clients do.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags};

use crate::oci_config::ProcessUser;
use crate::sys::mount;
use crate::wire::Failure;

/// The largest passwd or group file that is read, in bytes.
const MAX_FILE: u64 = 10 << 20;

/// Numbers and home of the process's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; the primary one is among them.
    pub groups: Vec<u32>,
    /// For `HOME` when the step does not set it.
    pub home: String,
}

impl Identity {
    /// Returns the same for an OCI config.
    pub(super) fn as_process_user(&self) -> ProcessUser {
        ProcessUser { uid: self.uid, gid: self.gid, groups: self.groups.clone(), home: self.home.clone() }
    }
}

/// Looks `user` up: `name`, `uid`, either with `:group` or `:gid`; empty is root.
pub(super) fn resolve(root: &OwnedFd, user: &str) -> Result<Identity, Failure> {
    lookup(user, &read(root, "etc/passwd"), &read(root, "etc/group"))
}

/// Returns a file of the root as text, or nothing where it is missing or not a plain file.
fn read(root: &OwnedFd, path: &str) -> String {
    let Ok(file) = mount::open_in_root(root, path, OFlags::RDONLY | OFlags::NONBLOCK) else { return String::new() };
    match rustix::fs::fstat(&file) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {}
        _ => return String::new(),
    }
    let mut bytes = Vec::new();
    let _ = File::from(file).take(MAX_FILE).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lookup(user: &str, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let (user, group_wanted) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = entries(passwd).find(|fields| fields.first() == Some(&user)).or_else(|| {
        let number = number?;
        entries(passwd).find(|fields| parse(fields, 2) == Some(number))
    });
    let mut identity = match (&entry, number) {
        (Some(fields), _) => Identity {
            uid: parse(fields, 2).unwrap_or(0),
            gid: parse(fields, 3).unwrap_or(0),
            groups: Vec::new(),
            home: fields.get(5).filter(|home| !home.is_empty()).map_or("/", |home| *home).to_owned(),
        },
        (None, Some(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: "/".to_owned() },
        (None, None) if user == "root" => Identity { uid: 0, gid: 0, groups: Vec::new(), home: "/".to_owned() },
        (None, None) => return Err(Failure::UnknownUser { group: false, name: user.to_owned() }),
    };
    match group_wanted {
        Some(name) => identity.gid = group_number(name, group)?,
        None => {
            let name = entry.as_ref().and_then(|fields| fields.first().copied()).unwrap_or("");
            let member = |fields: &[&str]| fields.get(3).is_some_and(|list| list.split(',').any(|user| user == name));
            let groups = entries(group).filter(|fields| !name.is_empty() && member(fields));
            identity.groups = groups.filter_map(|fields| parse(&fields, 2)).collect();
        }
    }
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    Ok(identity)
}

fn group_number(name: &str, group: &str) -> Result<u32, Failure> {
    let named = entries(group).find(|fields| fields.first() == Some(&name));
    named
        .and_then(|fields| parse(&fields, 2))
        .or_else(|| name.parse().ok())
        .or_else(|| (name == "root").then_some(0))
        .ok_or_else(|| Failure::UnknownUser { group: true, name: name.to_owned() })
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| line.split(':').collect())
}

fn parse(fields: &[&str], at: usize) -> Option<u32> {
    fields.get(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n\nbare:x:7:8::\n12:x:55:55::/odd:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\ndocker:x:998:app\n77:x:3:\n";

    fn who(user: &str) -> (u32, u32, Vec<u32>, String) {
        let found = lookup(user, PASSWD, GROUP).unwrap();
        (found.uid, found.gid, found.groups, found.home)
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(who(""), (0, 0, vec![0, 10], "/root".into()));
        assert_eq!(who("app"), (1000, 1001, vec![1001, 10, 998], "/home/app".into()));
        assert_eq!(who("1000"), (1000, 1001, vec![1001, 10, 998], "/home/app".into()));
        assert_eq!(who("app:docker"), (1000, 998, vec![998], "/home/app".into()));
        assert_eq!(who("app:4242"), (1000, 4242, vec![4242], "/home/app".into()));
        assert_eq!(who("4000"), (4000, 0, vec![0], "/".into()));
        assert_eq!(who("4000:5000"), (4000, 5000, vec![5000], "/".into()));
        assert_eq!(who("bare"), (7, 8, vec![8], "/".into()));
    }

    #[test]
    fn a_name_of_digits_wins_over_the_number() {
        assert_eq!(who("12").0, 55);
        assert_eq!(who("app:77").1, 3);
    }

    #[test]
    fn unknown_names_are_told_apart() {
        let text = |user| format!("{:?}", lookup(user, PASSWD, GROUP).unwrap_err());
        assert!(text("nobody").contains("group: false") && text("nobody").contains("nobody"));
        assert!(text("app:nogroup").contains("group: true"));
        assert!(lookup("root", "", "").is_ok_and(|found| found.uid == 0));
        assert!(lookup("app", "", "").is_err());
    }
}
