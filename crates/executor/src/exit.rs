//! How a process ended, and what it used.

use std::time::Duration;

/// The end of a process that did start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + n when signal n ended the process, as OCI runtimes report it.
    pub code: i32,
    /// The signal that ended the process.
    pub signal: Option<i32>,
    /// Whether the kernel killed something in the sandbox for want of memory. Known only where the step had a
    /// control group with memory accounting.
    pub oom: bool,
    /// What the process and its children used.
    pub usage: Usage,
}

impl Exit {
    /// Tells whether the exit counts as success; an empty list means 0 alone.
    pub fn is_success(&self, valid_exit_codes: &[i32]) -> bool {
        if valid_exit_codes.is_empty() { self.code == 0 } else { valid_exit_codes.contains(&self.code) }
    }

    pub(crate) fn from_wait_status(status: i32, oom: bool, usage: Usage) -> Self {
        if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            Self { code: 128 + signal, signal: Some(signal), oom, usage }
        } else {
            Self { code: libc::WEXITSTATUS(status), signal: None, oom, usage }
        }
    }
}

/// Resources used by a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// CPU time in user mode, in microseconds.
    pub user_micros: u64,
    /// CPU time in the kernel, in microseconds.
    pub system_micros: u64,
    /// The largest resident set of one process, or of the whole step where a control group counts it, in bytes.
    pub max_rss: u64,
    /// From before the process was started until it was gone, in microseconds.
    pub wall_micros: u64,
}

impl Usage {
    /// Returns user and system time together.
    pub fn cpu(&self) -> Duration {
        Duration::from_micros(self.user_micros + self.system_micros)
    }
}
