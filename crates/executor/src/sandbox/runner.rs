//! Runs one step through the helper: network, control group, streams, and the wait for its end.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::SandboxConfig;
use super::follow::Follower;
use super::helper::HelperProcess;
use super::prepare::{self, Place};
use super::{connect, root};
use crate::cgroup::{Groups, StepGroup};
use crate::io::{pump_input, pump_output, pump_terminal};
use crate::sys::fds;
use crate::wire::{self, WireRuntime};
use crate::{
    ExecError, Exit, Namespace, Network, Networks, Output, ProcessIo, ProcessSpec, SecurityMode, Stdin, Usage,
};

/// How long the helper may take to fork; it does nothing else.
const ACCEPT: Duration = Duration::from_secs(10);

/// What both executors share.
pub(crate) struct Runner {
    helper: HelperProcess,
    groups: Arc<Groups>,
    networks: Networks,
    sandboxes: Sandboxes,
}

/// Descriptors of the first processes of running sandboxes, by the ids of their runs.
type Sandboxes = Arc<Mutex<HashMap<String, OwnedFd>>>;

/// What a process is put into.
enum Home<'a> {
    /// A sandbox of its own, with this network.
    New(&'a Namespace),
    /// The sandbox of a running process.
    Joined(OwnedFd),
}

impl Runner {
    pub(crate) fn new(config: &SandboxConfig) -> Result<Self, ExecError> {
        Ok(Self {
            helper: HelperProcess::start(config.helper.clone())?,
            groups: Groups::new(&config.cgroup_parent),
            networks: config.networks.clone(),
            sandboxes: Sandboxes::default(),
        })
    }

    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    pub(crate) async fn run(
        &self,
        spec: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
        runtime: Option<WireRuntime>,
    ) -> Result<Exit, ExecError> {
        let began = Instant::now();
        prepare::check(&spec)?;
        if cancel.is_cancelled() {
            return Err(ExecError::Canceled);
        }
        let hostname = spec.hostname.clone().unwrap_or_default();
        let Network { namespace, resolv_conf, guard } = self.networks.get(spec.network).acquire(&hostname).await?;
        let group = if runtime.is_some() { None } else { self.own_group(&spec).await? };
        let insecure = spec.security == SecurityMode::Insecure;
        let (cgroup, devices_guarded) = match (&group, &runtime) {
            (Some(group), _) => group.wire(),
            (None, None) => self.groups.shared(insecure),
            // The runtime puts the process into a group of its own and keeps devices out of its reach.
            (None, Some(_)) => {
                let unified = self.groups.is_unified();
                (wire::WireCgroup { unified, ..wire::WireCgroup::default() }, true)
            }
        };
        let (tty, id) = (spec.tty.is_some(), spec.id.clone());
        let place = Place { network: &namespace, resolv_conf, cgroup, devices_guarded, runtime };
        let (spec, contents) = prepare::wire(spec, place)?;
        let spec = wire::seal(&spec, &contents)?;
        drop(kiln_stdx::Secret::new(contents));
        let ended = self.step(spec, &id, Home::New(&namespace), io, &cancel, tty).await;
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        drop(guard);
        let (status, usage) = ended?;
        let wall_micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let oom = group.as_ref().is_some_and(StepGroup::oom);
        let max_rss = group.as_ref().and_then(StepGroup::peak_memory).unwrap_or(usage.max_rss);
        Ok(Exit::from_wait_status(status, oom, Usage { wall_micros, max_rss, ..usage }))
    }

    /// Runs a further process in the sandbox of a run.
    pub(crate) async fn exec(
        &self,
        inside: &str,
        spec: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<Exit, ExecError> {
        let began = Instant::now();
        prepare::check(&spec)?;
        let first = self.first_process(inside)?;
        let (tty, id) = (spec.tty.is_some(), spec.id.clone());
        // Without a control group of its own nothing keeps it from devices but that it cannot make any.
        let cgroup = wire::WireCgroup { unified: self.groups.is_unified(), ..wire::WireCgroup::default() };
        let network = Namespace::Host;
        let place = Place { network: &network, resolv_conf: None, cgroup, devices_guarded: false, runtime: None };
        let (mut spec, _) = prepare::wire(spec, place)?;
        spec.mounts.clear();
        spec.join = true;
        let spec = wire::seal(&spec, &[])?;
        let (status, usage) = self.step(spec, &id, Home::Joined(first), io, &cancel, tty).await?;
        let wall_micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(Exit::from_wait_status(status, false, Usage { wall_micros, ..usage }))
    }

    /// Connects to a port inside the sandbox of a run.
    pub(crate) async fn connect(&self, inside: &str, port: u16) -> Result<tokio::net::TcpStream, ExecError> {
        connect::connect(self.first_process(inside)?, port).await
    }

    /// Opens a directory of the sandbox of a run.
    pub(crate) fn open(&self, inside: &str, dest: &str) -> Result<OwnedFd, ExecError> {
        root::open(&self.first_process(inside)?, dest)
    }

    /// Returns the descriptor of the first process of a sandbox.
    fn first_process(&self, inside: &str) -> Result<OwnedFd, ExecError> {
        let sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let first = sandboxes.get(inside).and_then(|pidfd| pidfd.try_clone().ok());
        first.ok_or_else(|| ExecError::InvalidSpec(format!("no process runs in sandbox {inside}")))
    }

    /// Gives a step to the helper and waits until it took it; a helper that died before is tried a second time.
    async fn hand_over(&self, passed: &[BorrowedFd<'_>]) -> Result<Follower, ExecError> {
        for _ in 0..2 {
            let (socket, theirs) = fds::pair().map_err(|error| ExecError::setup("make a socket pair", error))?;
            let follower = Follower::new(socket)?;
            self.helper.send(&[&[theirs.as_fd()], passed].concat()).await?;
            drop(theirs);
            match tokio::time::timeout(ACCEPT, follower.accepted()).await {
                Ok(true) => return Ok(follower),
                Ok(false) => self.helper.settle().await,
                Err(_) => return Err(ExecError::TimedOut { what: "the helper's answer", limit: ACCEPT }),
            }
        }
        Err(ExecError::HelperLost("it could not start a process for the step".to_owned()))
    }

    /// Makes a control group where the shared one is not enough.
    async fn own_group(&self, spec: &ProcessSpec) -> Result<Option<StepGroup>, ExecError> {
        if spec.resources.is_empty() && spec.cgroup_parent.is_none() {
            return Ok(None);
        }
        let (groups, id, parent) = (Arc::clone(&self.groups), spec.id.clone(), spec.cgroup_parent.clone());
        let (limits, insecure) = (spec.resources.clone(), spec.security == SecurityMode::Insecure);
        let made = tokio::task::spawn_blocking(move || groups.step(&id, parent.as_deref(), &limits, insecure)).await;
        made.map_err(|error| ExecError::setup("make a control group", std::io::Error::other(error)))?.map(Some)
    }

    async fn step(
        &self,
        spec: OwnedFd,
        id: &str,
        home: Home<'_>,
        io: ProcessIo,
        cancel: &CancellationToken,
        tty: bool,
    ) -> Result<(i32, Usage), ExecError> {
        let ProcessIo { stdin, stdout, stderr, control, started } = io;
        let input = Pipe::input(!tty && matches!(stdin, Stdin::Reader(_)))?;
        let output = Pipe::output(!tty && matches!(stdout, Output::Channel(_)))?;
        let errors = Pipe::output(!tty && matches!(stderr, Output::Channel(_)))?;
        let mut passed = vec![spec.as_fd(), input.theirs.as_fd(), output.theirs.as_fd(), errors.theirs.as_fd()];
        match &home {
            Home::New(Namespace::Existing(netns)) => passed.push(netns.as_fd()),
            Home::New(_) => {}
            Home::Joined(first) => passed.push(first.as_fd()),
        }
        let (terminal, master) = oneshot::channel();
        let socket = self.hand_over(&passed).await?;
        drop(spec);
        let (sandboxes, id) = (matches!(home, Home::New(_)).then(|| self.sandboxes.clone()), id.to_owned());
        let mut follower = socket.with_terminal(tty.then_some(terminal)).when_started(move |pidfd| {
            if let (Some(sandboxes), Ok(pidfd)) = (sandboxes, pidfd.try_clone()) {
                sandboxes.lock().unwrap_or_else(PoisonError::into_inner).insert(id, pidfd);
            }
            // Whoever asked may not wait for it any more.
            let _ = started.map(|started| started.send(()));
        });
        let (done, gone) = watch::channel(false);
        let (input, output, errors) = (input.into_ours(), output.into_ours(), errors.into_ours());
        let follow = async {
            let ended = follower.follow(control, cancel).await;
            // This also closes the terminal's and the socket's last holds, and tells the pumps to finish.
            drop(follower);
            let _ = done.send(true);
            ended
        };
        if tty {
            let ((), ended) = tokio::join!(pump_terminal(master, stdin, stdout, gone), follow);
            return ended;
        }
        let feed = async {
            let mut gone = gone.clone();
            tokio::select! {
                () = feed(stdin, input) => {}
                _ = gone.wait_for(|gone| *gone) => {}
            }
        };
        let (ended, (), out, err) =
            tokio::join!(follow, feed, drain(output, stdout, gone.clone()), drain(errors, stderr, gone.clone()));
        let end = ended?;
        out.and(err).map_err(|error| ExecError::setup("read the process's output", error))?;
        Ok(end)
    }
}

async fn feed(stdin: Stdin, sink: Option<OwnedFd>) {
    if let Some(sink) = sink {
        pump_input(stdin, sink).await;
    }
}

async fn drain(source: Option<OwnedFd>, sink: Output, gone: watch::Receiver<bool>) -> std::io::Result<()> {
    match source {
        Some(source) => pump_output(source, sink, gone).await,
        None => Ok(()),
    }
}

/// One standard stream: the process's end, and the engine's where somebody is there to use it.
struct Pipe {
    ours: Option<OwnedFd>,
    theirs: OwnedFd,
}

impl Pipe {
    fn input(wanted: bool) -> Result<Self, ExecError> {
        if !wanted {
            return Self::null();
        }
        let (read, write) = Self::pair()?;
        Ok(Self { ours: Some(write), theirs: read })
    }

    fn output(wanted: bool) -> Result<Self, ExecError> {
        if !wanted {
            return Self::null();
        }
        let (read, write) = Self::pair()?;
        Ok(Self { ours: Some(read), theirs: write })
    }

    fn pair() -> Result<(OwnedFd, OwnedFd), ExecError> {
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| ExecError::setup("make a pipe", errno))
    }

    fn null() -> Result<Self, ExecError> {
        let theirs = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| ExecError::setup("open /dev/null", errno))?;
        Ok(Self { ours: None, theirs })
    }

    /// Closes the process's end here, so that the stream ends when the process's own copies are closed.
    fn into_ours(self) -> Option<OwnedFd> {
        self.ours
    }
}
