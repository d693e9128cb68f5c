//! Listens, says that it is ready, and serves until a signal or until nobody has needed it for a while.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::SelectAll;
use kiln_engine::Engine;
use kiln_session::direct::socket_path;
use kiln_session::proto::content::content_server::ContentServer;
use kiln_session::proto::control::control_server::ControlServer;
use kiln_session::proto::gateway::llb_bridge_server::LlbBridgeServer;
use kiln_session::proto::health::health_server::HealthServer;
use kiln_session::proto::kiln_v1::kiln_server::KilnServer;
use kiln_session::proto::opentelemetry::trace::v1::trace_service_server::TraceServiceServer;
use kiln_stdx::limits;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::bridge::{BridgeService, Builds};
use crate::content::BlobService;
use crate::control::ControlService;
use crate::health::Serving;
use crate::keep::{self, Direct, Socket};
use crate::kiln::KilnService;
use crate::listen::{Connections, Counted, Listener, listen};
use crate::notify::notify;
use crate::traces::{Collector, Passing};
use crate::workers::About;
use crate::{DaemonConfig, DaemonError, collect, compose, debug, memory};

/// How long running calls may take to end once the engine has been told to.
const GRACE: Duration = Duration::from_secs(5);
/// How long an engine that was started on demand waits for its turn, and how often it looks.
const TURN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);
/// Connections of one socket that may wait to be served.
const BACKLOG: usize = 64;

/// Runs an engine until it is told to end by SIGTERM or SIGINT, or until it has been idle for long enough.
///
/// # Errors
/// An address cannot be listened on, or the process cannot be set up.
pub fn run(config: DaemonConfig) -> Result<(), DaemonError> {
    init_log(&config);
    own_mount_namespace();
    memory::bound();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Start { what: "starting threads", source })?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(GRACE);
    result
}

fn init_log(config: &DaemonConfig) {
    let usual = if config.debug { "debug" } else { "info" };
    let level = config.settings.log_level.as_deref().unwrap_or(usual);
    // Crates of the engine are named kiln_*; a filter's target matches by its beginning.
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,kiln={level}"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // Fails only when a log was set up before, which then stays.
    let _ = log.try_init();
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

async fn serve(mut config: DaemonConfig) -> Result<(), DaemonError> {
    let start = |what| move |source| DaemonError::Start { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(start("waiting for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(start("waiting for signals"))?;
    let tls = config.settings.tls.load()?;
    let Some((engine, about)) = open(&mut config).await? else { return Ok(()) };
    let connections = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let Sockets { mut incoming, paths: sockets, named } = Sockets::open(&config, tls.as_ref(), &connections).await?;
    let dirs: Vec<&Path> = sockets.iter().filter_map(|path| path.parent()).collect();
    let changed = keep::watch(&dirs);
    for (socket, direct) in named {
        let (accepted, streams) = mpsc::channel(BACKLOG);
        let counter = connections.clone();
        let counted = ReceiverStream::new(streams)
            .map(move |c: std::io::Result<UnixStream>| c.map(|io| Counted::unix(io, &counter)));
        incoming.push(Box::pin(counted));
        tokio::spawn(socket.serve(accepted, changed.clone(), stop.clone()));
        tokio::spawn(direct.serve(engine.parts().sessions.clone(), changed.clone(), stop.clone()));
    }
    if let Some(address) = &config.settings.debug_address {
        debug::serve(address, &engine, about.gc.clone(), stop.clone()).await?;
    }
    if !about.gc.is_empty() {
        tokio::spawn(collect::run(engine.clone(), about.gc.clone(), stop.clone()));
    }
    let collector = Collector::from_env(|name| std::env::var(name).ok());
    if let Some(collector) = collector.clone() {
        tokio::spawn(collector.run(engine.clone(), stop.clone()));
    }
    ready(&mut config);
    tokio::spawn(memory::give_back(engine.active(), engine.parts().store.clone()));
    notify("READY=1");
    let idle = idle(engine.clone(), connections, config.idle_timeout);
    let cut_off = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = idle => {}
        }
        notify("STOPPING=1");
        stop.cancel();
        // Calls that do not end by themselves are cut off: a stopping engine does not hang. A second word means now.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = tokio::time::sleep(GRACE) => {}
        }
    };
    let stopped = stop.clone().cancelled_owned();
    let server = router(&engine, about, collector).serve_with_incoming_shutdown(incoming, stopped);
    let result = tokio::select! {
        result = server => result,
        () = cut_off => Ok(()),
    };
    for path in sockets {
        let _ = std::fs::remove_file(path);
    }
    let _ = std::fs::remove_dir_all(engine.parts().runtime_dir.path());
    let (store, history) = (engine.parts().store.clone(), engine.history().clone());
    let synced = tokio::task::spawn_blocking(move || {
        history.flush();
        store.close_epoch()
    });
    if let Ok(Err(error)) = synced.await {
        tracing::warn!(%error, "cannot sync the store");
    }
    result.map_err(|e| DaemonError::Start { what: "serving", source: std::io::Error::other(e) })
}

/// What the engine listens on.
struct Sockets {
    incoming: SelectAll<Connections>,
    /// Unix sockets that go when the engine does.
    paths: Vec<PathBuf>,
    /// The same, with where directories are handed over.
    named: Vec<(Socket, Direct)>,
}

impl Sockets {
    /// Opens the addresses of a configuration.
    async fn open(
        config: &DaemonConfig,
        tls: Option<&TlsAcceptor>,
        connections: &Arc<AtomicUsize>,
    ) -> Result<Self, DaemonError> {
        let (mut incoming, mut paths, mut named) = (SelectAll::new(), Vec::new(), Vec::new());
        let (group, owner) = (config.group.as_deref(), config.settings.socket_owner);
        for address in &config.addresses {
            for listener in listen(address, group, owner).await? {
                tracing::info!("running server on {}", listener.place());
                match listener {
                    Listener::Unix(socket, Some(path)) => {
                        paths.push(path.clone());
                        let direct = Direct::bind(socket_path(&path));
                        named.push((Socket::new(socket, path, config.group.clone(), owner), direct));
                    }
                    other => {
                        if tls.is_none() && matches!(other, Listener::Tcp(_)) {
                            tracing::warn!("whoever reaches {} may use this engine: there is no TLS", other.place());
                        }
                        incoming.push(other.connections(connections, tls));
                    }
                }
            }
        }
        Ok(Self { incoming, paths, named })
    }
}

/// Tells the starter that clients are served.
fn ready(config: &mut DaemonConfig) {
    if let Some(fd) = config.ready_fd.take() {
        // A starter that is gone no longer cares.
        let _ = File::from(fd).write_all(b"ready\n");
    }
}

/// Opens the state. An engine that was started on demand waits a while for one that is just ending or has lost its
/// sockets; none when that one answers again.
async fn open(config: &mut DaemonConfig) -> Result<Option<(Engine, About)>, DaemonError> {
    let deadline = tokio::time::Instant::now() + TURN;
    loop {
        match compose::engine(config) {
            Err(DaemonError::InUse { .. }) if config.ready_fd.is_some() && tokio::time::Instant::now() < deadline => {}
            opened => return opened.map(Some),
        }
        let paths = config.addresses.iter().filter_map(|address| address.strip_prefix("unix://"));
        for path in paths {
            if UnixStream::connect(path).await.is_ok() {
                ready(config);
                return Ok(None);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn router(engine: &Engine, about: About, collector: Option<Collector>) -> Router {
    let control = ControlService { engine: engine.clone(), about: about.clone() };
    let bridge = BridgeService { builds: Builds::OfClients(engine.clone()), about };
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
        .add_service(TraceServiceServer::new(Passing(collector)))
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
