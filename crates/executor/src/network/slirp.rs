//! Networks whose packets `slirp4netns` carries: an ordinary process beside the step, which needs nothing of the host.
//!
//! It ends when its standard input is closed, which the engine's end does, however it comes.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::pool::{Made, Maker};
use super::{namespace, resolver};

/// The program.
const PROGRAM: &str = "slirp4netns";
/// Where its own name server is.
const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3));
/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// The largest packet: nothing but memory carries it.
const MTU: &str = "--mtu=65520";
/// How much of what it says is told when it fails.
const WORDS: u64 = 4096;

/// Starts the program for each network.
pub(super) struct Slirp {
    program: PathBuf,
}

impl Slirp {
    /// Finds the program; none where it is not installed.
    pub(super) fn find() -> Option<Self> {
        crate::runc::find(Path::new(PROGRAM)).map(|program| Self { program })
    }
}

/// The program at work; dropping it ends it.
struct Working {
    child: Child,
}

impl Drop for Working {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Maker for Slirp {
    fn name(&self) -> &'static str {
        "slirp"
    }

    fn make(&self) -> io::Result<Made> {
        let (namespace, ()) = namespace::make(|| Ok(()), |_, _, ()| Ok(()))?;
        // A path into this process, so that no descriptor has to be left open for every process that is started.
        let place = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        let child = Command::new(&self.program)
            .args(["--configure", MTU, "--disable-host-loopback", "--netns-type=path"])
            .args(["--exit-fd=0", "--ready-fd=1", &place, "tap0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut working = Working { child };
        wait(&mut working.child)?;
        Ok(Made { namespace, guard: Box::new(working) })
    }

    fn resolv_conf(&self) -> Vec<u8> {
        resolver::served_by(RESOLVER)
    }
}

/// Waits until the program says that the network is there.
fn wait(child: &mut Child) -> io::Result<()> {
    let Some(ready) = child.stdout.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
    let ready = OwnedFd::from(ready);
    let limit = Timespec { tv_sec: i64::try_from(READY.as_secs()).unwrap_or(10), tv_nsec: 0 };
    if poll(&mut [PollFd::new(&ready, PollFlags::IN)], Some(&limit))? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{PROGRAM} was not ready in time")));
    }
    let mut word = [0_u8; 8];
    if rustix::io::read(&ready, &mut word)? > 0 {
        // What it says from now on nobody needs; its end of the pipe stays open for it.
        if let Some(mut errors) = child.stderr.take() {
            std::thread::Builder::new()
                .name("kiln-slirp".to_owned())
                .spawn(move || io::copy(&mut errors, &mut io::sink()))?;
        }
        return Ok(());
    }
    let mut said = String::new();
    if let Some(errors) = child.stderr.take() {
        let _ = child.kill();
        errors.take(WORDS).read_to_string(&mut said)?;
    }
    Err(io::Error::other(format!("{PROGRAM} failed: {}", said.trim())))
}
