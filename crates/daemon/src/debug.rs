//! The debug address: what the engine is about, for people and for Prometheus. It is for the administrator alone: it
//! has no TLS, and listens nowhere unless asked to.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use kiln_engine::Engine;
use kiln_engine::history::Change;
use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::DaemonError;
use crate::collect;
use crate::listen::bind_unix;
use crate::process_facts::ProcessFacts;

/// The media type of Prometheus's text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the pages tell of.
#[derive(Clone)]
struct Pages {
    engine: Engine,
    ended: Arc<Mutex<Ended>>,
    policies: Arc<Vec<kiln_store::PrunePolicy>>,
}

/// Builds that have ended since the engine began.
#[derive(Debug, Clone, Copy, Default)]
struct Ended {
    succeeded: u64,
    failed: u64,
    canceled: u64,
    seconds: f64,
    steps: u64,
    cached_steps: u64,
}

/// Listens at `host:port` or `unix://PATH` and serves until `stop`.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(
    address: &str,
    engine: &Engine,
    policies: Arc<Vec<kiln_store::PrunePolicy>>,
    stop: CancellationToken,
) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::Listen { address: address.to_owned(), source };
    let pages = Pages { engine: engine.clone(), ended: Arc::default(), policies };
    tokio::spawn(count(pages.clone()));
    let router = router(pages);
    if let Some(path) = address.strip_prefix("unix://") {
        let listener: UnixListener = bind_unix(path.as_ref(), None, (None, None)).map_err(failed)?;
        tracing::info!("debug handlers listening at {address}");
        tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).into_future());
        return Ok(());
    }
    let place = address.strip_prefix("tcp://").unwrap_or(address);
    let listener = TcpListener::bind(place).await.map_err(failed)?;
    tracing::info!("debug handlers listening at {}", listener.local_addr().map_err(failed)?);
    tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).into_future());
    Ok(())
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/debug/vars", get(vars))
        .route("/debug/requests", get(requests))
        .route("/debug/gc", get(gc).post(gc))
        .route("/debug/pprof/", get(|| async { "cmdline\n" }))
        .route("/debug/pprof/cmdline", get(|| async { command_line().join("\0") }))
        .with_state(pages)
}

/// Counts builds as they end.
async fn count(pages: Pages) {
    let mut changes = pages.engine.history().changes();
    loop {
        let record = match changes.recv().await {
            Ok(Change::Completed(record)) => record,
            Ok(_) | Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let mut ended = pages.ended.lock();
        match (record.canceled, record.error.is_empty()) {
            (true, _) => ended.canceled += 1,
            (false, true) => ended.succeeded += 1,
            (false, false) => ended.failed += 1,
        }
        ended.seconds += record.completed.saturating_sub(record.created) as f64 / 1e9;
        ended.steps += record.total_steps as u64;
        ended.cached_steps += record.cached_steps as u64;
    }
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let store = pages.engine.parts().store.clone();
    let (records, bytes, held) = match tokio::task::spawn_blocking(move || store.standing()).await {
        Ok(Ok(now)) => (now.records, now.accounts.cache, now.held + now.accounts.growing),
        _ => (0, 0, 0),
    };
    let ended = *pages.ended.lock();
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, f64)]| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let results = [
        ("{result=\"succeeded\"}", ended.succeeded as f64),
        ("{result=\"failed\"}", ended.failed as f64),
        ("{result=\"canceled\"}", ended.canceled as f64),
    ];
    let running = *pages.engine.active().borrow() as f64;
    metric("kiln_builds_running", "gauge", "Builds that run now.", &[("", running)]);
    metric("kiln_builds_total", "counter", "Builds that have ended.", &results);
    metric("kiln_build_seconds_total", "counter", "Time that builds which have ended took.", &[("", ended.seconds)]);
    metric("kiln_steps_total", "counter", "Steps of builds that have ended.", &[("", ended.steps as f64)]);
    metric(
        "kiln_steps_cached_total",
        "counter",
        "Of these, steps found in the cache.",
        &[("", ended.cached_steps as f64)],
    );
    metric("kiln_cache_records", "gauge", "Records in the store.", &[("", records as f64)]);
    metric("kiln_cache_bytes", "gauge", "Bytes of the disk that count against the budget.", &[("", bytes as f64)]);
    metric("kiln_cache_held_bytes", "gauge", "What running builds hold and write.", &[("", held as f64)]);
    let facts = ProcessFacts::read();
    metric("process_cpu_seconds_total", "counter", "Processor time of the engine.", &[("", facts.cpu_seconds)]);
    metric("process_resident_memory_bytes", "gauge", "Memory of the engine.", &[("", facts.resident_bytes as f64)]);
    metric("process_open_fds", "gauge", "Open descriptors of the engine.", &[("", facts.open_fds as f64)]);
    metric("process_threads", "gauge", "Threads of the engine.", &[("", facts.threads as f64)]);
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks() as f64;
    metric("kiln_tasks", "gauge", "Asynchronous tasks of the engine that have not ended.", &[("", tasks)]);
    metric("process_start_time_seconds", "gauge", "When the engine began.", &[("", facts.started)]);
    ([(axum::http::header::CONTENT_TYPE, PROMETHEUS)], text)
}

async fn vars() -> impl IntoResponse {
    let facts = ProcessFacts::read();
    let vars = serde_json::json!({
        "cmdline": command_line(),
        "memstats": { "Sys": facts.resident_bytes },
        "threads": facts.threads,
        "open_fds": facts.open_fds,
    });
    ([(axum::http::header::CONTENT_TYPE, "application/json; charset=utf-8")], vars.to_string())
}

/// Lists the builds that run, the oldest first.
async fn requests(State(pages): State<Pages>) -> String {
    let mut running = pages.engine.history().list();
    running.retain(|record| record.completed == 0);
    running.sort_by_key(|record| record.created);
    running.iter().map(|r| format!("{}\t{}\t{}\n", r.reference, r.frontend, r.created)).collect()
}

async fn gc(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    if pages.policies.is_empty() {
        return (StatusCode::NOT_FOUND, "garbage collection is turned off\n");
    }
    collect::apply(&pages.engine, pages.policies).await;
    (StatusCode::OK, "done\n")
}

fn command_line() -> Vec<String> {
    std::env::args_os().map(|arg| String::from_utf8_lossy(arg.as_bytes()).into_owned()).collect()
}
