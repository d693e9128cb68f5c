//! Running programs in tests: a cleared environment, a deadline, and everything they printed.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::running::Running;

/// How long any program in a test may take before it counts as hanging.
const DEADLINE: Duration = Duration::from_secs(180);

/// A program to run.
pub struct Run {
    command: Command,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

/// What a program did.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The program did not end before its deadline and was killed.
    pub timed_out: bool,
    pub(crate) command: String,
}

impl Run {
    /// Prepares `program` with an environment that holds only `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        Self { command, stdin: None, deadline: DEADLINE }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives the program its standard input.
    #[must_use]
    pub fn stdin(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(data.into());
        self
    }

    /// Allows less or more time than usual.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts the program and leaves it running; its output can be read from the pipes of the child.
    ///
    /// # Panics
    /// The program cannot be started.
    pub fn spawn(mut self) -> Child {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", self.command))
    }

    /// Starts the program and reads along what it prints.
    ///
    /// # Panics
    /// The program cannot be started.
    pub fn start(self) -> Running {
        let (command, deadline) = (format!("{:?}", self.command), self.deadline);
        Running::new(self.spawn(), command, deadline)
    }

    /// Runs the program to its end or its deadline.
    ///
    /// # Panics
    /// The program cannot be started.
    pub fn finish(mut self) -> Finished {
        let input = self.stdin.take();
        self.command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", self.command));
        let (done, ended) = mpsc::channel();
        let drain = |source: Option<Box<dyn Read + Send>>, name: u8| {
            let done = done.clone();
            std::thread::spawn(move || {
                let mut all = Vec::new();
                if let Some(mut source) = source {
                    let _ = source.read_to_end(&mut all);
                }
                let _ = done.send((name, all));
            });
        };
        drain(child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>), 1);
        drain(child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>), 2);
        if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
            std::thread::spawn(move || {
                let _ = pipe.write_all(&input);
            });
        }
        let start = Instant::now();
        let mut finished = Finished {
            code: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            timed_out: false,
            command: format!("{:?}", self.command),
        };
        for _ in 0..2 {
            match ended.recv_timeout(self.deadline.saturating_sub(start.elapsed())) {
                Ok((1, data)) => finished.stdout = data,
                Ok((_, data)) => finished.stderr = data,
                Err(_) => {
                    finished.timed_out = true;
                    let _ = child.kill();
                    break;
                }
            }
        }
        finished.code = child.wait().ok().and_then(|status| status.code());
        finished
    }
}

impl Finished {
    /// Returns standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Checks that the program succeeded.
    ///
    /// # Panics
    /// It did not; the message holds all it printed.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == Some(0), "{}", self.report());
        self
    }

    /// Checks that the program failed by itself with a message that holds `text`.
    ///
    /// # Panics
    /// It did not; the message holds all it printed.
    #[track_caller]
    pub fn fails_with(self, text: &str) -> Self {
        let failed = self.code.is_some_and(|code| code != 0) && !self.timed_out;
        assert!(failed && self.err().contains(text), "expected a failure with `{text}`\n{}", self.report());
        self
    }

    /// Returns everything there is to know, for a failed assertion.
    pub fn report(&self) -> String {
        format!(
            "{}\nexit {:?}{}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.code,
            if self.timed_out { " (hung)" } else { "" },
            self.out(),
            self.err()
        )
    }
}
