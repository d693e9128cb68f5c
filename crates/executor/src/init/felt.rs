//! Signals to PID 1. The kernel drops those it has no handler for, so a plain `sleep` in a sandbox could not be
//! interrupted; here they do what they do to any other process.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::sys::process;

/// Signals whose default is to do nothing or to stop: nothing is lost when PID 1 does not feel them.
const HARMLESS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Sends a signal, or SIGKILL in its place where the process would not feel it. Returns whether it was in its place.
pub(super) fn send(pidfd: &OwnedFd, number: i32) -> bool {
    if HARMLESS.contains(&number) || number == libc::SIGKILL || minds(pidfd, number) {
        process::signal(pidfd.as_fd(), number);
        return false;
    }
    process::signal(pidfd.as_fd(), libc::SIGKILL);
    true
}

/// Returns the wait status to tell: that of the signal which was meant when SIGKILL took its place.
pub(super) fn status(status: i32, felt: Option<i32>) -> i32 {
    match felt {
        Some(number) if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL => number,
        _ => status,
    }
}

/// Tells whether the process catches or ignores a signal; true when that cannot be found out.
fn minds(pidfd: &OwnedFd, number: i32) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let pid = info.ok().and_then(|text| field(&text, "Pid:").and_then(|v| v.parse::<i32>().ok()));
    let status = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
    status.is_none_or(|text| {
        let has = |name| field(&text, name).and_then(|v| u64::from_str_radix(v, 16).ok()).unwrap_or(0);
        let bit = u32::try_from(number - 1).ok().and_then(|shift| 1u64.checked_shl(shift)).unwrap_or(0);
        (has("SigCgt:") | has("SigIgn:")) & bit != 0
    })
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_took_the_place_of_a_signal_is_translated() {
        assert_eq!(status(libc::SIGKILL, Some(libc::SIGTERM)), libc::SIGTERM);
        assert_eq!(status(libc::SIGKILL, None), libc::SIGKILL);
        // It ended by itself before the signal came.
        assert_eq!(status(3 << 8, Some(libc::SIGTERM)), 3 << 8);
    }

    #[test]
    fn fields_of_proc() {
        assert_eq!(field("Name:\tx\nSigCgt:\t0000000000004002\n", "SigCgt:"), Some("0000000000004002"));
        assert_eq!(field("Name:\tx\n", "SigCgt:"), None);
    }
}
