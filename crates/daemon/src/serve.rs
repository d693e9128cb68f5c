//! Listens, says that it is ready, and serves until a signal or until nobody has needed it for a while.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::SelectAll;
use kiln_engine::Engine;
use kiln_session::direct::{DirectListener, socket_path};
use kiln_session::proto::content::content_server::ContentServer;
use kiln_session::proto::control::control_server::ControlServer;
use kiln_session::proto::gateway::llb_bridge_server::LlbBridgeServer;
use kiln_session::proto::health::health_server::HealthServer;
use kiln_session::proto::kiln_v1::kiln_server::KilnServer;
use kiln_stdx::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router};

use crate::bridge::BridgeService;
use crate::content::BlobService;
use crate::control::ControlService;
use crate::health::Serving;
use crate::kiln::KilnService;
use crate::{DaemonConfig, DaemonError, compose};

/// How long running calls may take to end once the engine has been told to.
const GRACE: Duration = Duration::from_secs(5);

/// Runs an engine until it is told to end by SIGTERM or SIGINT, or until it has been idle for long enough.
///
/// # Errors
/// An address cannot be listened on, or the process cannot be set up.
pub fn run(config: DaemonConfig) -> Result<(), DaemonError> {
    init_log(config.debug);
    own_mount_namespace();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Start { what: "starting threads", source })?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(GRACE);
    result
}

fn init_log(debug: bool) {
    let level = if debug { "debug" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,kiln={level}"));
    // Fails only when a log was set up before, which then stays.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}

/// Gives the process a mount namespace of its own, before it has threads: what steps mount is nobody else's.
///
/// A process that may not do this serves all the same; the sandbox makes namespaces of its own.
fn own_mount_namespace() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // SAFETY: only the calling thread's view of mounts changes, and it is the only thread there is.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
    if unshared.is_ok() {
        let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        if let Err(error) = mount_change("/", flags) {
            tracing::warn!(%error, "mounts of the host still reach the engine");
        }
    }
}

async fn serve(config: DaemonConfig) -> Result<(), DaemonError> {
    let start = |what| move |source| DaemonError::Start { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(start("waiting for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(start("waiting for signals"))?;
    let engine = compose::engine(&config)?;
    let connections = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let mut incoming = SelectAll::new();
    let mut sockets = Vec::new();
    let mut direct = Vec::new();
    for address in &config.addresses {
        let socket = Socket::bind(address, config.group.as_deref())?;
        direct.push(DirectListener::bind(&socket_path(&socket.1)));
        let counter = connections.clone();
        incoming.push(UnixListenerStream::new(socket.0).map(move |c| c.map(|io| Counted::new(io, &counter))));
        sockets.push(socket.1);
    }
    for listener in direct {
        match listener {
            Ok(listener) => drop(tokio::spawn(listener.serve(engine.parts().sessions.clone(), stop.clone()))),
            // Clients then send their directories.
            Err(error) => tracing::warn!(%error, "directories cannot be handed over"),
        }
    }
    if let Some(fd) = config.ready_fd {
        // A starter that is gone no longer cares.
        let _ = File::from(fd).write_all(b"ready\n");
    }
    let idle = idle(engine.clone(), connections, config.idle_timeout);
    let ended = {
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = idle => {}
            }
            stop.cancel();
        }
    };
    let server = router(&engine, &config.build_id).serve_with_incoming_shutdown(incoming, ended);
    let result = tokio::select! {
        result = server => result,
        // Calls that do not end by themselves are cut off: a stopping engine does not hang.
        () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    };
    for path in sockets {
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::remove_dir_all(&engine.parts().runtime_dir);
    let store = engine.parts().store.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.close_epoch()).await {
        tracing::warn!(%error, "cannot sync the store");
    }
    result.map_err(|e| DaemonError::Start { what: "serving", source: std::io::Error::other(e) })
}

fn router(engine: &Engine, build_id: &str) -> Router {
    let control = ControlService { engine: engine.clone(), build_id: build_id.to_owned() };
    let bridge = BridgeService { engine: engine.clone(), build_id: build_id.to_owned() };
    Server::builder()
        .http2_max_header_list_size(limits::GRPC_HEADERS)
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        .add_service(
            ControlServer::new(control)
                .max_decoding_message_size(limits::GRPC_MESSAGE)
                .max_encoding_message_size(limits::GRPC_MESSAGE),
        )
        .add_service(
            LlbBridgeServer::new(bridge)
                .max_decoding_message_size(limits::GRPC_MESSAGE)
                .max_encoding_message_size(limits::GRPC_MESSAGE),
        )
        .add_service(ContentServer::new(BlobService { engine: engine.clone() }))
        .add_service(KilnServer::new(KilnService { engine: engine.clone() }))
        .add_service(HealthServer::new(Serving))
}

/// Returns once there have been neither connections nor builds for `timeout`; never without one.
async fn idle(engine: Engine, connections: Arc<AtomicUsize>, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    let step = (timeout / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
    let mut quiet = Duration::ZERO;
    while quiet < timeout {
        tokio::time::sleep(step).await;
        let busy = connections.load(Ordering::SeqCst) > 0 || *engine.active().borrow() > 0;
        quiet = if busy { Duration::ZERO } else { quiet + step };
    }
}

/// A connection that is counted while it lives.
struct Counted {
    io: UnixStream,
    connections: Arc<AtomicUsize>,
}

impl Counted {
    fn new(io: UnixStream, connections: &Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::SeqCst);
        Self { io, connections: connections.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Connected for Counted {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

type Polled<T> = std::task::Poll<std::io::Result<T>>;

impl AsyncRead for Counted {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Polled<()> {
        std::pin::Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>, data: &[u8]) -> Polled<usize> {
        std::pin::Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Polled<()> {
        std::pin::Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Polled<()> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

struct Socket(UnixListener, PathBuf);

impl Socket {
    /// Binds a socket that only its user (and `group`, where given) may use, in place of one that nobody listens on.
    fn bind(address: &str, group: Option<&str>) -> Result<Socket, DaemonError> {
        let listen = |source| DaemonError::Listen { address: address.to_owned(), source };
        let Some(path) = address.strip_prefix("unix://").map(Path::new) else {
            return Err(listen(std::io::ErrorKind::Unsupported.into()));
        };
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(listen(std::io::ErrorKind::AddrInUse.into()));
        }
        if path.symlink_metadata().is_ok() {
            std::fs::remove_file(path).map_err(listen)?;
        }
        let listener = UnixListener::bind(path).map_err(listen)?;
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(listen)?;
        if let Some(group) = group {
            let gid = group_id(group).ok_or_else(|| listen(std::io::Error::other(format!("no group {group}"))))?;
            std::os::unix::fs::chown(path, None, Some(gid)).map_err(listen)?;
        }
        Ok(Socket(listener, path.to_owned()))
    }
}

/// Returns the number of a group that is given by name or number.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(id) = group.parse() {
        return Some(id);
    }
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(group))?;
    line.split(':').nth(2)?.parse().ok()
}
