//! Ends an engine process, and waits for that without polling.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::error::{CliError, io_text};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was gone already.
    Before,
    /// It ended when asked.
    Asked,
    /// It had to be killed.
    Killed,
}

/// Asks a process to end and waits up to `patience`; then kills it when `force` is set.
pub async fn terminate(pid: i32, patience: Duration, force: bool) -> Result<Ended, CliError> {
    let work = move || end(pid, patience, force);
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(CliError::environment(e.to_string())))
}

fn end(pid: i32, patience: Duration, force: bool) -> Result<Ended, CliError> {
    let failed = |e: rustix::io::Errno| {
        CliError::environment(format!("cannot stop the engine (process {pid}): {}", io_text(&e.into())))
    };
    let Some(id) = Pid::from_raw(pid) else { return Ok(Ended::Before) };
    let handle = match pidfd_open(id, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(Ended::Before),
        Err(e) => return Err(failed(e)),
    };
    let wait = |limit: Duration| {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)).map(|n| n > 0)
    };
    match kill_process(id, Signal::TERM) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(Ended::Before),
        Err(e) => return Err(failed(e)),
    }
    if wait(patience).map_err(failed)? {
        return Ok(Ended::Asked);
    }
    if !force {
        let text = format!("the engine (process {pid}) has not ended after {} seconds", patience.as_secs());
        return Err(CliError::environment(text).hint("end it with: kiln daemon stop"));
    }
    match kill_process(id, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(failed(e)),
    }
    wait(Duration::from_secs(10)).map_err(failed)?;
    Ok(Ended::Killed)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn shell(script: &str) -> std::process::Child {
        let mut child = Command::new("/bin/sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("sh");
        // The script says when it is ready.
        let mut byte = [0u8; 1];
        let read = std::io::Read::read_exact(child.stdout.as_mut().expect("pipe"), &mut byte);
        read.expect("ready");
        child
    }

    #[test]
    fn a_willing_process_is_asked_only() {
        let mut child = shell("echo; exec sleep 60");
        assert_eq!(end(child.id() as i32, Duration::from_secs(10), true).ok(), Some(Ended::Asked));
        child.wait().expect("wait");
    }

    #[test]
    fn an_unwilling_one_is_killed_if_so_wished() {
        let mut child = shell("trap '' TERM; echo; sleep 60 & wait; wait");
        let pid = child.id() as i32;
        assert!(end(pid, Duration::ZERO, false).is_err());
        assert_eq!(end(pid, Duration::ZERO, true).ok(), Some(Ended::Killed));
        child.wait().expect("wait");
        assert_eq!(end(pid, Duration::ZERO, true).ok(), Some(Ended::Before));
    }
}
