//! Network namespaces that nothing holds but a descriptor: they are gone when it is closed, and so is what is in them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::thread::UnshareFlags;

use super::link::Links;

/// Makes a namespace with loopback up. `outside` runs on the thread before, `inside` after it has entered.
pub(super) fn make<A: Send, B: Send>(
    outside: impl FnOnce() -> io::Result<A> + Send,
    inside: impl FnOnce(&OwnedFd, &mut Links, A) -> io::Result<B> + Send,
) -> io::Result<(OwnedFd, B)> {
    let work = || {
        let before = outside()?;
        // SAFETY: only this thread's view of the network changes, and it ends with this function.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        let namespace = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
        let mut links = Links::open()?;
        let (loopback, _) = links.find("lo")?;
        links.up(loopback)?;
        let made = inside(&namespace, &mut links, before)?;
        Ok((namespace, made))
    };
    // A thread of its own: it never comes back from the network it enters.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("kiln-netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("a thread that made a network ended early"))?
    })
}
