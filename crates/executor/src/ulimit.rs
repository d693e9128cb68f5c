//! Resource limits by the names `docker build --ulimit` uses, checked before anything is started.

use crate::sys::process;
use crate::{ExecError, Ulimit};

/// Name and `RLIMIT_*` number.
const NAMES: &[(&str, u32)] = &[
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// Returns each limit as number, soft and hard value.
///
/// # Errors
/// [`ExecError::InvalidSpec`] for an unknown name or a soft limit above the hard one, [`ExecError::UlimitForbidden`] for
/// a value that the engine may not set.
pub(crate) fn resolve(ulimits: &[Ulimit]) -> Result<Vec<(u32, u64, u64)>, ExecError> {
    ulimits.iter().map(resolve_one).collect()
}

/// Returns the name of a limit that [`resolve`] returned.
pub(crate) fn name(number: u32) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == number).map_or("", |(name, _)| name)
}

fn resolve_one(ulimit: &Ulimit) -> Result<(u32, u64, u64), ExecError> {
    let name = ulimit.name.to_ascii_lowercase();
    let Some(&(_, number)) = NAMES.iter().find(|(known, _)| *known == name) else {
        let nearest = kiln_stdx::suggest::nearest(&name, NAMES.iter().map(|(known, _)| *known));
        let hint = nearest.map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
        return Err(ExecError::InvalidSpec(format!("unknown ulimit `{}`{hint}", ulimit.name)));
    };
    let (soft, hard) = (value(&name, ulimit.soft)?, value(&name, ulimit.hard)?);
    if soft > hard {
        return Err(ExecError::InvalidSpec(format!("ulimit `{name}`: soft limit {soft} is above hard limit {hard}")));
    }
    if let Some(allowed) = ceiling(number).filter(|&allowed| hard > allowed) {
        return Err(ExecError::UlimitForbidden { name, requested: show(hard), allowed: show(allowed) });
    }
    Ok((number, soft, hard))
}

fn value(name: &str, value: i64) -> Result<u64, ExecError> {
    match value {
        -1 => Ok(u64::MAX),
        0.. => Ok(value.unsigned_abs()),
        _ => Err(ExecError::InvalidSpec(format!("ulimit `{name}`: {value} is not a limit"))),
    }
}

fn show(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

/// Returns the highest hard limit this process can give, or `None` when any can be given.
fn ceiling(number: u32) -> Option<u64> {
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
    let own = process::limit(number).ok()?.1;
    let files = || std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    match (privileged, number == libc::RLIMIT_NOFILE) {
        (false, _) => Some(own),
        // Even root cannot have more open files than the kernel's own setting.
        (true, true) => files(),
        (true, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, soft: i64, hard: i64) -> Result<Vec<(u32, u64, u64)>, ExecError> {
        resolve(&[Ulimit { name: name.to_owned(), soft, hard }])
    }

    #[test]
    fn known_names_and_values_resolve() {
        let (_, hard) = process::limit(libc::RLIMIT_NOFILE).unwrap();
        let hard = i64::try_from(hard).unwrap_or(1024).min(1024);
        assert_eq!(limit("NOFILE", 64, hard).unwrap(), [(libc::RLIMIT_NOFILE, 64, hard as u64)]);
        assert_eq!(limit("core", 0, 0).unwrap(), [(libc::RLIMIT_CORE, 0, 0)]);
    }

    #[test]
    fn bad_limits_say_what_is_wrong() {
        assert!(limit("nofiles", 1, 1).unwrap_err().to_string().contains("did you mean `nofile`"));
        assert!(limit("cpu", 2, 1).unwrap_err().to_string().contains("above hard limit"));
        assert!(limit("cpu", -2, 1).unwrap_err().to_string().contains("not a limit"));
    }

    #[test]
    fn more_files_than_the_kernel_allows_are_refused_before_the_start() {
        let error = limit("nofile", 1, i64::MAX).unwrap_err();
        assert!(matches!(error, ExecError::UlimitForbidden { .. }), "{error}");
    }
}
