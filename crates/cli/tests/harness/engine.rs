//! One engine in the foreground with a debug address, and what it holds at a moment: descriptors, mounts, tasks, steps,
//! unfinished files.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_testkit::{Running, TestEnv};
use rustix::process::Signal;

use crate::processes::{Family, Process};

/// How often the engine is looked at while something is awaited.
const LOOK: Duration = Duration::from_millis(50);

/// An engine that serves the environment's root; ended by SIGTERM when dropped.
pub struct Engine {
    running: Running,
    socket: PathBuf,
    root: PathBuf,
}

/// What an engine holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What its descriptors refer to, sorted; numbers of sockets and pipes are left out.
    pub descriptors: Vec<String>,
    /// Lines of its mount table.
    pub mounts: usize,
    /// Asynchronous tasks that have not ended.
    pub tasks: usize,
    /// Processes it has started.
    pub processes: usize,
    /// Names in the directories for unfinished things, and in its runtime directory.
    pub files: Vec<PathBuf>,
}

impl Engine {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start(env: &TestEnv) -> Self {
        Self::start_with(env, "")
    }

    /// As [`Engine::start`], with more in its configuration.
    ///
    /// # Panics
    /// It does not come up.
    pub fn start_with(env: &TestEnv, more: &str) -> Self {
        let socket = env.path().join("debug.sock");
        let config = env.path().join("engine.toml");
        let text = format!("[grpc]\ndebugAddress = \"unix://{}\"\n{more}", socket.display());
        fs::write(&config, text).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
        let args = ["daemon", "run", "--config"].map(std::ffi::OsStr::new);
        let run = env.kiln(args.into_iter().chain([config.as_os_str()])).deadline(Duration::from_secs(3600));
        let engine = Self { running: run.start(), socket, root: env.root().to_owned() };
        engine.wait("an engine that answers", Duration::from_secs(60), |engine| {
            engine.metric("process_open_fds").is_some()
        });
        engine
    }

    /// Returns its process id.
    pub fn id(&self) -> i32 {
        i32::try_from(self.running.id()).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Takes hold of the process.
    pub fn process(&self) -> Process {
        Process::open(self.id()).unwrap_or_else(|| panic!("the engine has ended\n{}", self.running.err()))
    }

    /// Waits until `good`, at most for `limit`.
    ///
    /// # Panics
    /// It does not come to that.
    #[track_caller]
    pub fn wait(&self, what: &str, limit: Duration, good: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !good(self) {
            let log = self.running.err();
            let end = log.len().saturating_sub(4000);
            let end = log.char_indices().map(|(at, _)| at).find(|at| *at >= end).unwrap_or_default();
            assert!(start.elapsed() < limit, "no {what} in {limit:?}: {:?}\n{}", self.held(), &log[end..]);
            std::thread::sleep(LOOK);
        }
    }

    /// Returns one of its metrics; none when it does not answer.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let [value] = self.metrics([name]);
        value
    }

    /// Returns some of its metrics, of one moment.
    pub fn metrics<const N: usize>(&self, names: [&str; N]) -> [Option<f64>; N] {
        let page = self.page().unwrap_or_default();
        names.map(|name| page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()))
    }

    fn page(&self) -> Option<String> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Returns its resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() * 1024
    }

    /// Returns what it holds now.
    pub fn held(&self) -> Held {
        let id = self.id();
        let mut descriptors: Vec<String> = links(&format!("/proc/{id}/fd"));
        descriptors.sort();
        let mounts = fs::read_to_string(format!("/proc/{id}/mountinfo")).unwrap_or_default().lines().count();
        let mut family = Family::default();
        family.look(id);
        let dirs = ["drafts", "tmp"].map(|name| self.root.join(name));
        let mut files: Vec<PathBuf> = dirs.iter().flat_map(|dir| names(dir)).collect();
        for dir in names(Path::new("/run")).into_iter().chain(names(&std::env::temp_dir())) {
            let ours =
                |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(format!("kiln-engine-{id}-").as_bytes());
            if dir.file_name().is_some_and(ours) {
                files.extend(names(&dir));
            }
        }
        files.sort();
        // The question itself is answered by a task.
        let tasks = self.metric("kiln_tasks").map_or(0, |n| n as usize);
        Held { descriptors, mounts, tasks, processes: family.len(), files }
    }
}

impl Held {
    /// Says what is held now that was not before; none when there is nothing.
    pub fn more_than(&self, before: &Self) -> Option<String> {
        let mut text = String::new();
        let mut known = before.descriptors.clone();
        for name in &self.descriptors {
            match known.iter().position(|k| k == name) {
                Some(at) => drop(known.swap_remove(at)),
                None => {
                    let _ = writeln!(text, "descriptor of {name}");
                }
            }
        }
        for file in self.files.iter().filter(|file| !before.files.contains(file)) {
            let _ = writeln!(text, "{}", file.display());
        }
        for (what, now, then) in [
            ("mounts", self.mounts, before.mounts),
            ("tasks", self.tasks, before.tasks),
            ("processes", self.processes, before.processes),
        ] {
            if now > then {
                let _ = writeln!(text, "{now} {what}, not {then}");
            }
        }
        Some(text).filter(|text| !text.is_empty())
    }
}

/// Returns where the links in a directory lead, without numbers that differ from one socket or pipe to the next.
fn links(dir: &str) -> Vec<String> {
    let targets = names(Path::new(dir)).into_iter().filter_map(|link| fs::read_link(link).ok());
    let plain = |target: PathBuf| {
        let text = target.to_string_lossy().into_owned();
        match text.split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            None => text,
        }
    };
    targets.map(plain).collect()
}

fn names(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(process) = Process::open(self.id()) {
            self.signal(Signal::TERM);
            if !process.gone_within(Duration::from_secs(20)) {
                process.kill();
            }
        }
    }
}
