//! The engine: takes build requests, runs their frontends over the solver, hands results to outputs.

pub mod run;

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_session::attrs;
use kiln_solver::{JobSpec, Limits, Solver};
use kiln_stdx::ErrorClass;
use kiln_store::ImmutableRef;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::bridge::{Bridge, FrontendResult};
use crate::build::{BuildContext, BuildSettings, CacheMounts};
use crate::error::EngineError;
use crate::events::{EventLog, EventReader};
use crate::history::{History, Record};
use crate::keystore::StoreKeys;
use crate::parts::Parts;
use crate::policy::Policies;
use crate::request::{FrontendRequest, SolveRequest, SolveResponse};
use crate::source::offline;

/// How long a status or gateway call waits for the build it names: both may come before the build itself.
const BUILD_WAIT: Duration = Duration::from_secs(3);
/// How long the events of an ended build stay for readers that come late.
const LINGER: Duration = Duration::from_secs(10);

/// A build that is under way, or has just ended.
struct Running {
    log: EventLog,
    gateway: Option<Gateway>,
    /// Ends the build when it fires.
    cancel: tokio_util::sync::CancellationToken,
}

/// What a frontend ends with.
type Outcome = Result<FrontendResult, EngineError>;

/// A build that its client drives.
#[derive(Clone)]
struct Gateway {
    bridge: Bridge,
    inputs: std::collections::BTreeMap<String, kiln_llb::Definition>,
    done: Arc<Mutex<Option<oneshot::Sender<Outcome>>>>,
}

struct Inner {
    parts: Arc<Parts>,
    solver: Solver<ImmutableRef>,
    builds: Mutex<HashMap<String, Running>>,
    /// Counts registrations, so that whoever waits for a build is woken.
    registered: watch::Sender<u64>,
    history: History,
    active: watch::Sender<usize>,
}

/// Builds images. Clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl Engine {
    /// Returns an engine over these services. Must be called within a tokio runtime.
    pub fn new(parts: Arc<Parts>, history: History) -> Self {
        let keys = Arc::new(StoreKeys::new(parts.store.clone()));
        let most = parts.steps.max_parallelism.unwrap_or(kiln_stdx::limits::STEPS);
        let limits = Limits { executions: most, ..Limits::default() };
        Self(Arc::new(Inner {
            solver: Solver::new(keys, limits),
            parts,
            builds: Mutex::default(),
            registered: watch::Sender::new(0),
            history,
            active: watch::Sender::new(0),
        }))
    }

    /// Returns the engine's services.
    pub fn parts(&self) -> &Arc<Parts> {
        &self.0.parts
    }

    /// Returns the record of past builds.
    pub fn history(&self) -> &History {
        &self.0.history
    }

    /// Sees how many builds run.
    pub fn active(&self) -> watch::Receiver<usize> {
        self.0.active.subscribe()
    }

    /// Runs a build to its end. Dropping the future cancels the build.
    ///
    /// # Errors
    /// Whatever the build fails with; it has been shown to the readers of its events too.
    pub async fn solve(&self, request: SolveRequest) -> Result<SolveResponse, EngineError> {
        let mut open = OpenBuild::new(self, &request)?;
        let started = SystemTime::now();
        if !request.internal {
            self.0.history.started(&Record::started(&request, started));
        }
        let lost = self.session_lost(&request.session);
        let outcome = tokio::select! {
            outcome = self.run(&open, &request) => outcome,
            () = open.cancel.cancelled() => Err(EngineError::canceled()),
            () = lost => Err(EngineError::new(ErrorClass::Canceled, "the client's session ended")),
        };
        let outcome = outcome.map_err(|error| self.explained(error));
        if !request.internal {
            self.0.history.completed(&request, started, &open.build, &outcome, &self.0.parts.scribe);
        }
        open.succeeded = outcome.is_ok();
        outcome
    }

    /// Builds, and again where damage came to light that no check before use can see.
    async fn run(&self, open: &OpenBuild, request: &SolveRequest) -> Result<SolveResponse, EngineError> {
        for name in &request.entitlements {
            // What the engine does not allow is refused also where no step would need it.
            if !self.0.parts.entitlements.iter().any(|allowed| allowed == name) {
                return Err(EngineError::user(format!("entitlement {name} is not allowed"))
                    .with_hint(format!("start the engine with --allow-insecure-entitlement {name}")));
            }
        }
        crate::export::check(&request.exporters)?;
        crate::provenance::check(request)?;
        crate::sbom::Options::of(&request.frontend_attrs)?;
        crate::cache::check(&request.cache_exports)?;
        offline::check(request)?;
        let store = self.0.parts.store.clone();
        let swept = tokio::task::spawn_blocking(move || store.finish_sweep()).await;
        swept.map_err(|e| EngineError::from_error(ErrorClass::Bug, e))?;
        let mut apart = false;
        loop {
            let outcome = self.attempt(open, request, apart).await;
            let Err(error) = outcome else { return outcome };
            if error.class() != ErrorClass::Damage || is_driven_by_client(request) {
                return Err(error);
            }
            // What a job cannot mend may be mended by asking the frontend again, once.
            if !open.build.goes_on_after(&error, &self.0.parts.store) && apart {
                return Err(error);
            }
            apart = true;
        }
    }

    async fn attempt(
        &self,
        open: &OpenBuild,
        request: &SolveRequest,
        apart: bool,
    ) -> Result<SolveResponse, EngineError> {
        let spec = JobSpec { context: open.build.clone(), events: open.build.clone(), imports: Vec::new(), apart };
        let job = self.0.solver.job(spec).await?;
        let bridge = Bridge::new(self.0.parts.clone(), open.build.clone(), self.0.solver.clone(), job);
        let _containers = crate::container::ReleaseGuard(bridge.clone());
        self.receive_ca(&open.build, request).await?;
        for import in &request.cache_imports {
            crate::cache::import(&bridge, import).await?;
        }
        let result = if is_driven_by_client(request) {
            bridge.scope().driven(&request.frontend_attrs, &request.frontend_inputs);
            self.driven_by_client(open, &bridge, request).await?
        } else {
            let frontend = FrontendRequest {
                definition: request.definition.clone(),
                frontend: request.frontend.clone(),
                attrs: request.frontend_attrs.clone(),
                inputs: request.frontend_inputs.clone(),
                cache_imports: Vec::new(),
                policies: Vec::new(),
                evaluate: false,
            };
            bridge.solve(frontend).await?
        };
        let result = with_epoch(result, request);
        crate::export::check_result(&bridge, request, &result)?;
        loop {
            let job = bridge.job().id();
            match self.deliver(&bridge, request, result.clone()).await {
                Err(error) if bridge.recovers(&error, job).await? => {}
                delivered => return delivered,
            }
        }
    }

    /// Builds what a frontend returned, and hands it to the outputs.
    async fn deliver(
        &self,
        bridge: &Bridge,
        request: &SolveRequest,
        result: FrontendResult,
    ) -> Result<SolveResponse, EngineError> {
        let result = crate::sbom::complete(bridge, request, result).await?;
        for reference in result.refs.all() {
            bridge.evaluate(&reference).await?;
        }
        let chosen = crate::export::session_exporters(bridge, request, &result).await?;
        let request = chosen.as_ref().unwrap_or(request);
        let mut response = crate::export::run(bridge, request, &result).await?;
        if !request.internal
            && let Err(error) = crate::provenance::Teller::keep(bridge, request, &result)
        {
            tracing::warn!(%error, "cannot tell the history how a result was made");
        }
        // What the frontend says for the client.
        let told = result.metadata.iter().filter(|(key, _)| key.starts_with("frontend."));
        response.exporter.extend(told.map(|(k, v)| (k.clone(), String::from_utf8_lossy(v).into_owned())));
        response.exporter.extend(crate::cache::export(bridge, &request.cache_exports, &result).await?);
        if chosen.is_some() {
            crate::export::tell_session(bridge, &response).await?;
        }
        self.sync().await;
        Ok(response)
    }

    /// Adds a hint to an error that says what it is about but not what to do.
    fn explained(&self, error: EngineError) -> EngineError {
        let full = error.to_string().contains("No space left on device");
        if error.hint.is_some() || !full {
            return error;
        }
        let root = self.0.parts.store.root().display().to_string();
        error.with_hint(format!("the disk of {root} is full; free space there, or with `kiln prune`"))
    }

    /// Makes what the build stored durable. A failure costs only the next start some checks.
    async fn sync(&self) {
        let store = self.0.parts.store.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.close_epoch() {
                tracing::warn!(%error, "cannot sync the store");
            }
        });
    }

    /// Brings the certificates that steps shall trust from the client, when the request says that it has some.
    async fn receive_ca(&self, build: &BuildContext, request: &SolveRequest) -> Result<(), EngineError> {
        let Some(id) = request.frontend_attrs.get(attrs::BUILD_CA) else { return Ok(()) };
        let session = self.0.parts.sessions.get(&request.session, kiln_stdx::limits::SESSION_WAIT).await?;
        let bundle = session.secret(id).await?;
        let bundle = bundle.ok_or_else(|| EngineError::user("the client does not send its CA certificates"))?;
        let mut file = tempfile::NamedTempFile::new_in(self.0.parts.runtime_dir.path())?;
        file.write_all(bundle.expose())?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        // A second one cannot come: a request has one attribute of the name.
        let _ = build.ca_bundle.set(file.into_temp_path());
        Ok(())
    }

    async fn driven_by_client(
        &self,
        open: &OpenBuild,
        bridge: &Bridge,
        request: &SolveRequest,
    ) -> Result<FrontendResult, EngineError> {
        let (done, returned) = oneshot::channel();
        let inputs = request.frontend_inputs.clone();
        let gateway = Gateway { bridge: bridge.clone(), inputs, done: Arc::new(Mutex::new(Some(done))) };
        if let Some(running) = self.0.builds.lock().get_mut(&open.reference) {
            running.gateway = Some(gateway);
        }
        self.0.registered.send_modify(|n| *n += 1);
        // The owner of this wait is the solve call: dropping it, or the end of the session, cancels.
        returned.await.map_err(|_| EngineError::canceled())?
    }

    /// Returns when the session ends; never for a build without one.
    async fn session_lost(&self, session: &str) {
        if session.is_empty() {
            return std::future::pending().await;
        }
        match self.0.parts.sessions.get(session, kiln_stdx::limits::SESSION_WAIT).await {
            Ok(session) => session.closed().await,
            // A build that needs no session may run without; one that does fails where it asks for it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns a reader of a build's events, waiting a short while for the build to begin.
    ///
    /// # Errors
    /// There is no such build.
    pub async fn status(&self, reference: &str) -> Result<EventReader, EngineError> {
        self.find(reference, |running| Some(running.log.reader())).await
    }

    /// Returns the bridge of a build that its client drives, waiting a short while for the build to begin.
    ///
    /// # Errors
    /// There is no such build.
    pub async fn gateway(&self, reference: &str) -> Result<Bridge, EngineError> {
        self.find(reference, |running| running.gateway.as_ref().map(|g| g.bridge.clone())).await
    }

    /// Returns the graphs that a client hands to the frontend it drives.
    ///
    /// # Errors
    /// There is no such build.
    pub async fn frontend_inputs(
        &self,
        reference: &str,
    ) -> Result<std::collections::BTreeMap<String, kiln_llb::Definition>, EngineError> {
        self.find(reference, |running| running.gateway.as_ref().map(|g| g.inputs.clone())).await
    }

    /// Ends the frontend part of a build that its client drives.
    ///
    /// # Errors
    /// There is no such build, or it has ended before.
    pub async fn finish(
        &self,
        reference: &str,
        result: Result<FrontendResult, EngineError>,
    ) -> Result<(), EngineError> {
        let gateway = self.find(reference, |running| running.gateway.clone()).await?;
        let done = gateway.done.lock().take();
        let done = done.ok_or_else(|| EngineError::user(format!("build {reference} has returned already")))?;
        // An error means that the build was cancelled meanwhile, which its own caller is told.
        let _ = done.send(result);
        Ok(())
    }

    /// Cancels a build; no error when it is not there.
    pub fn cancel(&self, reference: &str) {
        if let Some(running) = self.0.builds.lock().get(reference) {
            running.cancel.cancel();
        }
    }

    async fn find<T>(&self, reference: &str, look: impl Fn(&Running) -> Option<T>) -> Result<T, EngineError> {
        let mut registered = self.0.registered.subscribe();
        let found = async {
            loop {
                registered.borrow_and_update();
                if let Some(found) = self.0.builds.lock().get(reference).and_then(&look) {
                    return found;
                }
                if registered.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(BUILD_WAIT, found).await.map_err(|_| EngineError::user(format!("no such job {reference}")))
    }
}

/// Adds the time that outputs are cut to, where the request has one and the frontend said nothing of it.
fn with_epoch(mut result: FrontendResult, request: &SolveRequest) -> FrontendResult {
    const KEY: &str = "source.date.epoch";
    // Anything but a number names a source, whose time the frontend tells.
    if let Some(epoch) = request.frontend_attrs.get("build-arg:SOURCE_DATE_EPOCH")
        && epoch.parse::<i64>().is_ok()
        && !result.metadata.keys().any(|key| key.starts_with(KEY))
    {
        result.metadata.insert(KEY.to_owned(), epoch.clone().into_bytes());
    }
    result
}

/// Tells whether the client makes the graph itself, over the gateway.
fn is_driven_by_client(request: &SolveRequest) -> bool {
    request.frontend.is_empty() && request.definition.is_none()
}

/// Keeps a build registered; dropping it ends the build's events and, after a while, forgets it.
struct OpenBuild {
    engine: Engine,
    reference: String,
    build: Arc<BuildContext>,
    cancel: tokio_util::sync::CancellationToken,
    /// Set when the build ended well; otherwise what still runs for it is shown as canceled.
    succeeded: bool,
}

impl OpenBuild {
    fn new(engine: &Engine, request: &SolveRequest) -> Result<Self, EngineError> {
        let store = &engine.0.parts.store;
        store.doubt_checks();
        let spool = tempfile::tempfile_in(store.temp_dir())?;
        let log = EventLog::new(spool);
        let settings = BuildSettings {
            session: request.session.clone(),
            entitlements: request.entitlements.clone(),
            shm_size: None,
            max_age: request.frontend_attrs.get(attrs::MAX_AGE).and_then(|seconds| seconds.parse().ok()),
            cache_mounts: CacheMounts::of_attr(request.frontend_attrs.get(attrs::CACHE_MOUNTS)),
            offline: offline::is_asked_for(request),
            keeps_wrecks: is_driven_by_client(request),
        };
        let policies = Policies::new(request.policies.clone(), request.policy_session.clone());
        let build = BuildContext::new(request.reference.clone(), settings, log.clone()).with_policies(policies);
        let build = Arc::new(build);
        let cancel = tokio_util::sync::CancellationToken::new();
        let running = Running { log, gateway: None, cancel: cancel.clone() };
        {
            let mut builds = engine.0.builds.lock();
            // The events of one that has ended may still be read; a new build of the same name replaces it.
            if builds.get(&request.reference).is_some_and(|running| !running.log.is_closed()) {
                return Err(EngineError::user(format!("job ID {} exists", request.reference)));
            }
            builds.insert(request.reference.clone(), running);
        }
        engine.0.registered.send_modify(|n| *n += 1);
        engine.0.active.send_modify(|n| *n += 1);
        Ok(Self { engine: engine.clone(), reference: request.reference.clone(), build, cancel, succeeded: false })
    }
}

impl Drop for OpenBuild {
    fn drop(&mut self) {
        if !self.succeeded {
            self.build.interrupt();
        }
        self.build.log.close();
        self.engine.0.active.send_modify(|n| *n -= 1);
        let (engine, reference) = (self.engine.clone(), std::mem::take(&mut self.reference));
        if let Some(running) = engine.0.builds.lock().get_mut(&reference) {
            running.gateway = None;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            tokio::time::sleep(LINGER).await;
            let mut builds = engine.0.builds.lock();
            if builds.get(&reference).is_some_and(|running| running.log.is_closed()) {
                builds.remove(&reference);
            }
        });
    }
}
