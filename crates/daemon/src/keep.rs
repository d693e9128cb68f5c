//! Keeping the engine's sockets where clients look for them.
//!
//! A socket is only a name in a directory: somebody who clears the directory cuts a running engine off, and since the
//! engine still holds the root's lock no other can take its place. So the directories are watched, and a socket that is
//! not in its place any more is made anew; open connections do not notice.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_session::SessionRegistry;
use kiln_session::direct::DirectListener;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::listen::bind_unix;

/// How often sockets are looked at where directories cannot be watched.
const LOOK: Duration = Duration::from_secs(1);
/// How long accepting rests after an error, as when there are too many open files.
const REST: Duration = Duration::from_millis(100);

/// A listening socket with a name.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    place: Option<Place>,
    group: Option<String>,
    owner: Owner,
}

/// User and group of a socket's file, where they are not the engine's own.
pub type Owner = (Option<u32>, Option<u32>);

/// What a name led to: device and inode.
type Place = (u64, u64);

fn place(path: &Path) -> Option<Place> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

impl Socket {
    /// Takes a listener over that has just been bound at `path` for `group` and `owner`.
    pub fn new(listener: UnixListener, path: PathBuf, group: Option<String>, owner: Owner) -> Self {
        Self { listener, place: place(&path), path, group, owner }
    }

    /// Hands connections on until `stop`; `changed` tells that the socket may have gone from its place.
    pub async fn serve(
        mut self,
        connections: mpsc::Sender<io::Result<UnixStream>>,
        mut changed: watch::Receiver<u64>,
        stop: CancellationToken,
    ) {
        loop {
            tokio::select! {
                // First: a name that goes because the engine ends does not come back.
                biased;
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        if connections.send(Ok(stream)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection");
                        tokio::time::sleep(REST).await;
                    }
                },
                () = next(&mut changed) => if place(&self.path) != self.place {
                    match bind_unix(&self.path, self.group.as_deref(), self.owner) {
                        Ok(listener) => {
                            tracing::warn!(path = %self.path.display(), "the socket was gone and is made anew");
                            self.listener = listener;
                            self.place = place(&self.path);
                        }
                        Err(error) => tracing::warn!(%error, "the socket is gone"),
                    }
                },
            }
        }
    }
}

/// The socket at which clients of the same host hand their directories over.
pub struct Direct {
    path: PathBuf,
    listener: Option<DirectListener>,
}

impl Direct {
    /// Binds it. Where that fails clients send their directories.
    pub fn bind(path: PathBuf) -> Self {
        let listener = DirectListener::bind(&path);
        let listener = listener.map_err(|error| tracing::warn!(%error, "directories cannot be handed over")).ok();
        Self { path, listener }
    }

    /// Takes directories until `stop`; `changed` tells that the socket may have gone from its place.
    pub async fn serve(self, sessions: SessionRegistry, mut changed: watch::Receiver<u64>, stop: CancellationToken) {
        let Self { path, mut listener } = self;
        loop {
            let now = place(&path);
            let serving = stop.child_token();
            let task = listener.take().map(|l| tokio::spawn(l.serve(sessions.clone(), serving.clone())));
            let stopped = loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break true,
                    () = next(&mut changed) => if place(&path) != now { break false },
                }
            };
            serving.cancel();
            if let Some(task) = task {
                // Its end removes what lies at the path, so the new one comes after it.
                let _ = task.await;
            }
            if stopped {
                return;
            }
            listener = Self::bind(path.clone()).listener;
        }
    }
}

/// Waits for the next change; for ever when there will be none.
async fn next(changed: &mut watch::Receiver<u64>) {
    if changed.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns what counts up whenever a name in one of the directories comes or goes.
pub fn watch(dirs: &[&Path]) -> watch::Receiver<u64> {
    let (sender, receiver) = watch::channel(0);
    match observe(dirs) {
        Ok(events) => drop(tokio::spawn(forward(events, sender))),
        Err(error) => {
            tracing::debug!(%error, "directories cannot be watched and are looked at");
            tokio::spawn(async move {
                while !sender.is_closed() {
                    tokio::time::sleep(LOOK).await;
                    sender.send_modify(|n| *n += 1);
                }
            });
        }
    }
    receiver
}

fn observe(dirs: &[&Path]) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    for dir in dirs {
        let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        inotify::add_watch(&events, *dir, names | WatchFlags::ONLYDIR)?;
    }
    // SAFETY: the descriptor is owned by the `AsyncFd` from here on, and closed by nobody else.
    unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }.map_err(Into::into)
}

async fn forward(events: AsyncFd<OwnedFd>, sender: watch::Sender<u64>) {
    loop {
        tokio::select! {
            () = sender.closed() => return,
            ready = events.readable() => {
                let Ok(mut ready) = ready else { return };
                let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
                // What happened to which name does not matter: sockets are looked at themselves.
                while rustix::io::read(events.get_ref(), &mut buffer[..]).is_ok_and(|(read, _)| !read.is_empty()) {}
                ready.clear_ready();
                sender.send_modify(|n| *n += 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever happens to the socket's name, a client that comes next gets through.
    #[tokio::test]
    async fn a_socket_that_loses_its_name_gets_it_again() {
        let dir = std::env::temp_dir().join(format!("kiln-keep-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("s.sock");
        let owner = (None, None);
        let socket = Socket::new(bind_unix(&path, None, owner).unwrap(), path.clone(), None, owner);
        let (sender, mut connections) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let served = tokio::spawn(socket.serve(sender, watch(&[&dir]), stop.clone()));
        for harm in ["none", "deleted", "a file in its place", "moved"] {
            let before = place(&path);
            match harm {
                "deleted" => std::fs::remove_file(&path).unwrap(),
                "moved" => std::fs::rename(&path, dir.join("t.sock")).unwrap(),
                "a file in its place" => {
                    std::fs::write(dir.join("f"), b"x").unwrap();
                    std::fs::rename(dir.join("f"), &path).unwrap();
                }
                _ => {}
            }
            let connected = async {
                loop {
                    if (harm == "none" || place(&path) != before)
                        && let Ok(stream) = UnixStream::connect(&path).await
                    {
                        return stream;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let stream = tokio::time::timeout(Duration::from_secs(20), connected).await.expect(harm);
            assert!(connections.recv().await.unwrap().is_ok(), "{harm}");
            drop(stream);
        }
        stop.cancel();
        served.await.unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
