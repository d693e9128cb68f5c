//! What was built, when, and how it ended: one record a build, in a file of its own beside the store's metadata.
//!
//! Records hold the request without anything secret: attribute values that carry credentials never enter a request,
//! and build arguments whose names look secret are masked.

mod attachment;
mod later;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_stdx::{Digest, ErrorClass};
use kiln_store::{Meta, Table};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use later::Later;

pub use attachment::{ATTACHMENT_MAX, Attachment, Attachments, Failure, Kept, PREDICATE_KEY, Scribe, Telling};

use crate::build::BuildContext;
use crate::error::EngineError;
use crate::events::EventLog;
use crate::request::{SolveRequest, SolveResponse};
use crate::why::{REASONS_TYPE, StepReason, is_secret};

/// How many records are kept, and for how long; pinned ones stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    pub entries: usize,
    pub age: Duration,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { entries: 50, age: Duration::from_secs(48 * 3600) }
    }
}

/// Media types of what is kept.
const LOGS_TYPE: &str = "application/vnd.buildkit.status.v0";
// The misspelling is that of the clients.
const FAILURE_TYPE: &str = "application/vnd.googeapis.google.rpc.status+proto";
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
/// Changes that a listener may lag behind before it has to read the list again.
const CHANGES: usize = 256;

/// One build. Times are nanoseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub reference: String,
    pub frontend: String,
    pub frontend_attrs: BTreeMap<String, String>,
    /// Kinds of the outputs with their attributes.
    pub exporters: Vec<(String, BTreeMap<String, String>)>,
    pub created: u64,
    /// 0 while the build runs.
    pub completed: u64,
    /// Empty for a build that succeeded.
    pub error: String,
    pub canceled: bool,
    pub exporter_response: BTreeMap<String, String>,
    pub total_steps: usize,
    pub completed_steps: usize,
    pub cached_steps: usize,
    pub warnings: usize,
    pub pinned: bool,
    pub generation: i32,
    /// The status code of a build that failed.
    pub error_code: i32,
    /// The error with all that is known of it.
    pub failure: Option<Attachment>,
    /// What was shown while the build ran.
    pub logs: Option<Attachment>,
    /// When each step ran.
    pub trace: Option<Attachment>,
    /// Why each step ran.
    pub reasons: Option<Attachment>,
    /// What outputs delivered, by their number.
    pub results: BTreeMap<usize, Attachment>,
    /// The manifests and indexes of images among them.
    pub documents: Vec<Attachment>,
    /// What is told of the results, by platform; under no name for a result without platforms.
    pub statements: BTreeMap<String, Vec<Attachment>>,
}

/// A change of the history.
#[derive(Debug, Clone)]
pub enum Change {
    Started(Record),
    Completed(Record),
    Deleted(Record),
}

impl Change {
    /// Returns the record that changed.
    pub fn record(&self) -> &Record {
        match self {
            Self::Started(record) | Self::Completed(record) | Self::Deleted(record) => record,
        }
    }
}

impl Record {
    /// Returns the record of a build that begins.
    pub fn started(request: &SolveRequest, at: SystemTime) -> Self {
        Self {
            reference: request.reference.clone(),
            frontend: request.frontend.clone(),
            frontend_attrs: request.frontend_attrs.iter().map(|(k, v)| (k.clone(), shown(k, v))).collect(),
            exporters: request.exporters.iter().map(|e| (e.kind.clone(), e.attrs.clone())).collect(),
            created: nanos(at),
            ..Self::default()
        }
    }

    /// Returns the record of a build that has ended, without what is kept beside it.
    fn ended(
        request: &SolveRequest,
        started: SystemTime,
        build: &BuildContext,
        outcome: &Result<SolveResponse, EngineError>,
    ) -> Self {
        let mut record = Self::started(request, started);
        record.completed = nanos(SystemTime::now());
        let steps = build.steps();
        (record.total_steps, record.completed_steps, record.cached_steps) =
            (steps.total, steps.completed, steps.cached);
        record.warnings = build.log.warnings();
        record.generation = 1;
        match outcome {
            Ok(response) => record.exporter_response.clone_from(&response.exporter),
            Err(error) => {
                record.error = error.to_string();
                record.canceled = error.class() == ErrorClass::Canceled;
            }
        }
        record.results = build.kept.results();
        record
    }

    /// Returns the digests of everything that is kept beside the record.
    fn attached(&self) -> BTreeSet<String> {
        let single = [&self.failure, &self.logs, &self.trace, &self.reasons].into_iter().flatten();
        single
            .chain(self.statements.values().flatten())
            .chain(&self.documents)
            .map(|attachment| attachment.digest.clone())
            .collect()
    }
}

/// Masks the values of build arguments whose names say that they are secret.
fn shown(key: &str, value: &str) -> String {
    if key == "cache-imports" {
        return caches_shown(value);
    }
    let Some(name) = key.strip_prefix("build-arg:") else { return value.to_owned() };
    if is_secret(name) { "****".to_owned() } else { value.to_owned() }
}

/// Masks keys and tokens of remote caches.
fn caches_shown(json: &str) -> String {
    let masked = || -> Option<String> {
        let mut entries: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(json).ok()?;
        for entry in &mut entries {
            for attrs in entry.values_mut().filter(|value| value.is_object()) {
                let plain: BTreeMap<String, String> = serde_json::from_value(attrs.clone()).ok()?;
                *attrs = serde_json::json!(kiln_objects::attrs::shown(&plain));
            }
        }
        serde_json::to_string(&entries).ok()
    };
    // What cannot be read may hold anything.
    masked().unwrap_or_else(|| "****".to_owned())
}

fn nanos(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The record of past builds. Clones share it.
///
/// What is kept of a build that succeeded is written after its client has been answered. Whoever asks for records waits for
/// that, so that a build is in the history once it has ended.
#[derive(Clone)]
pub struct History {
    shelf: Shelf,
    later: Arc<Later>,
}

/// A build that has ended, and what its record is made of.
struct Ended {
    record: Record,
    failure: Option<Failure>,
    started: SystemTime,
    at: SystemTime,
    log: EventLog,
    reasons: Vec<StepReason>,
    documents: Vec<(String, Vec<u8>)>,
    statements: Vec<(String, String, Telling)>,
}

/// Where records lie.
#[derive(Clone)]
struct Shelf {
    /// The file: it is written to for as long as somebody holds this.
    meta: Arc<Meta>,
    table: Arc<Table>,
    attachments: Attachments,
    changes: broadcast::Sender<Change>,
    limits: HistoryLimits,
}

impl History {
    /// Returns the history in `meta`, a file of its own; builds that a killed engine left open are closed as failed.
    pub fn new(meta: Meta, limits: HistoryLimits) -> Self {
        let attachments = Attachments::new(meta.table("history.attachments"));
        let (table, changes) = (Arc::new(meta.table("history")), broadcast::Sender::new(CHANGES));
        let shelf = Shelf { meta: Arc::new(meta), table, attachments, changes, limits };
        for mut record in shelf.list() {
            if record.completed == 0 {
                record.completed = record.created.max(1);
                "the engine ended while the build ran".clone_into(&mut record.error);
                shelf.put(&record);
            }
        }
        Self { shelf, later: Arc::new(Later::new()) }
    }

    /// Returns the records once what ended builds left is in them.
    fn settled(&self) -> &Shelf {
        self.later.settle();
        &self.shelf
    }

    /// Notes a build that begins.
    pub fn started(&self, record: &Record) {
        self.shelf.put(record);
        let _ = self.shelf.changes.send(Change::Started(record.clone()));
    }

    /// Notes a build that has ended, with what is kept of it, and drops old records.
    pub fn completed(
        &self,
        request: &SolveRequest,
        started: SystemTime,
        build: &BuildContext,
        outcome: &Result<SolveResponse, EngineError>,
        scribe: &Arc<dyn Scribe>,
    ) {
        // Not the build itself: it holds what it was made from, which may be pruned from now on.
        let ended = Ended {
            record: Record::ended(request, started, build, outcome),
            failure: outcome.as_ref().err().map(|error| scribe.failure(error)),
            started,
            at: SystemTime::now(),
            log: build.log.clone(),
            reasons: build.reasons(),
            documents: build.kept.take_documents(),
            statements: build.kept.take_statements(),
        };
        if outcome.is_err() {
            // Its log goes on: what still runs is shown as canceled, which is not how the build failed.
            return self.shelf.keep(ended, scribe.as_ref());
        }
        let (shelf, scribe) = (self.shelf.clone(), scribe.clone());
        self.later.add(move || shelf.keep(ended, scribe.as_ref()));
    }

    /// Returns the bytes of what is kept beside a record.
    pub fn attachment(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.settled().attachments.get(digest)
    }

    /// Returns what was shown while a build ran that is over; none if it is not, or there is no such build. Empty if nothing
    /// was kept.
    pub fn logs(&self, reference: &str) -> Option<Vec<u8>> {
        let record = self.get(reference).filter(|record| record.completed != 0)?;
        let kept = record.logs.and_then(|logs| self.attachment(&logs.digest.parse().ok()?));
        Some(kept.unwrap_or_default())
    }

    /// Returns all records, newest first.
    pub fn list(&self) -> Vec<Record> {
        self.settled().list()
    }

    /// Returns one record.
    pub fn get(&self, reference: &str) -> Option<Record> {
        serde_json::from_slice(&self.settled().table.get(reference.as_bytes())?).ok()
    }

    /// Pins or unpins a record.
    ///
    /// # Errors
    /// There is no such record.
    pub fn pin(&self, reference: &str, pinned: bool) -> Result<(), EngineError> {
        let mut record = self.get(reference).ok_or_else(|| missing(reference))?;
        record.pinned = pinned;
        record.generation += 1;
        self.shelf.put(&record);
        let _ = self.shelf.changes.send(Change::Completed(record));
        Ok(())
    }

    /// Deletes a record.
    ///
    /// # Errors
    /// There is no such record.
    pub fn delete(&self, reference: &str) -> Result<(), EngineError> {
        let record = self.get(reference).ok_or_else(|| missing(reference))?;
        self.shelf.drop_record(record);
        Ok(())
    }

    /// Waits until everything noted so far is in the file.
    pub fn flush(&self) {
        self.settled().meta.flush();
    }

    /// Returns a receiver of changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.shelf.changes.subscribe()
    }
}

impl Shelf {
    /// Writes the record of a build with what is kept beside it, and drops old ones.
    fn keep(&self, ended: Ended, scribe: &dyn Scribe) {
        let mut record = ended.record;
        if let Some(failure) = ended.failure {
            (record.error_code, record.error) = (failure.code, failure.message);
            record.failure = self.attachments.add(FAILURE_TYPE, &failure.encoded);
        }
        record.logs = self.attachments.add(LOGS_TYPE, &scribe.events(&ended.log, ATTACHMENT_MAX));
        let trace = trace::trace(&record.reference, ended.started, ended.at, &record.error, &ended.log);
        record.trace = self.attachments.add(trace::MEDIA_TYPE, &trace);
        if let Ok(json) = serde_json::to_vec(&ended.reasons) {
            record.reasons = self.attachments.add(REASONS_TYPE, &json);
        }
        // Archives go to the client, and images may be deleted before the record is looked at.
        for (media_type, document) in ended.documents {
            record.documents.extend(self.attachments.add(&media_type, &document));
        }
        for (platform, kind, predicate) in ended.statements {
            let kept = predicate().map(|predicate| self.attachments.add(STATEMENT_TYPE, &predicate));
            match kept {
                Ok(Some(mut attachment)) => {
                    attachment.annotations.insert(PREDICATE_KEY.to_owned(), kind);
                    record.statements.entry(platform).or_default().push(attachment);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "cannot tell the history how a result was made"),
            }
        }
        self.put(&record);
        let _ = self.changes.send(Change::Completed(record));
        self.expire();
    }

    /// Returns all records, newest first.
    fn list(&self) -> Vec<Record> {
        let mut records: Vec<Record> =
            self.table.scan_prefix(b"").iter().filter_map(|(_, json)| serde_json::from_slice(json).ok()).collect();
        records.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.reference.cmp(&b.reference)));
        records
    }

    fn put(&self, record: &Record) {
        if let Ok(json) = serde_json::to_vec(record) {
            self.table.put(record.reference.as_bytes(), &json);
        }
    }

    fn expire(&self) {
        let age = u64::try_from(self.limits.age.as_nanos()).unwrap_or(u64::MAX);
        let oldest = nanos(SystemTime::now()).saturating_sub(age);
        let most = self.limits.entries;
        let old = |(place, record): &(usize, Record)| *place >= most || record.completed < oldest;
        let finished = self.list().into_iter().filter(|r| r.completed != 0 && !r.pinned).enumerate();
        for (_, record) in finished.filter(old) {
            self.drop_record(record);
        }
    }

    fn drop_record(&self, record: Record) {
        self.table.delete(record.reference.as_bytes());
        let kept: BTreeSet<String> = self.list().iter().flat_map(Record::attached).collect();
        record.attached().difference(&kept).for_each(|digest| self.attachments.remove(digest));
        let _ = self.changes.send(Change::Deleted(record));
    }
}

fn missing(reference: &str) -> EngineError {
    EngineError::user(format!("build record {reference} not found"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use kiln_store::{Store, StoreConfig};
    use parking_lot::Mutex;

    use super::*;
    use crate::build::BuildSettings;

    /// Writes nothing before it is told to.
    struct Slow(Mutex<Receiver<()>>);

    impl Scribe for Slow {
        fn events(&self, _: &EventLog, _: usize) -> Vec<u8> {
            let _ = self.0.lock().recv();
            b"said".to_vec()
        }

        fn failure(&self, error: &EngineError) -> Failure {
            Failure { message: error.to_string(), ..Failure::default() }
        }
    }

    fn history(dir: &std::path::Path) -> History {
        let store = Store::open(StoreConfig::new(dir.join("store"))).unwrap();
        let meta = Meta::open(dir.join("history.db"), dir.join("damaged"), store.repairs().clone());
        History::new(meta, HistoryLimits::default())
    }

    fn ended(history: &History, scribe: &Arc<dyn Scribe>, outcome: &Result<SolveResponse, EngineError>) {
        let request = SolveRequest { reference: "b1".to_owned(), ..SolveRequest::default() };
        let log = EventLog::new(tempfile::tempfile().unwrap());
        let build = BuildContext::new("b1".to_owned(), BuildSettings::default(), log);
        build.kept.told("", "good", Box::new(|| Ok(bytes::Bytes::from_static(b"told"))));
        build.kept.told("", "bad", Box::new(|| Err(EngineError::user("no graph"))));
        let now = SystemTime::now();
        history.started(&Record::started(&request, now));
        history.completed(&request, now, &build, outcome, scribe);
    }

    #[test]
    fn nobody_waits_for_the_record_of_a_build_but_its_readers() {
        let dir = tempfile::tempdir().unwrap();
        let history = history(dir.path());
        let mut changes = history.changes();
        let (go, wait) = channel();
        let scribe: Arc<dyn Scribe> = Arc::new(Slow(Mutex::new(wait)));
        // It returns although nothing can be written yet.
        ended(&history, &scribe, &Ok(SolveResponse::default()));
        assert!(matches!(changes.try_recv(), Ok(Change::Started(_))) && changes.try_recv().is_err());
        go.send(()).unwrap();
        let record = history.get("b1").unwrap();
        assert_eq!((record.completed > 0, history.logs("b1").as_deref()), (true, Some(&b"said"[..])));
        let told: Vec<_> = record.statements[""].iter().map(|told| told.annotations[PREDICATE_KEY].as_str()).collect();
        assert_eq!(told, ["good"], "what cannot be told is left out");
        assert!(matches!(changes.try_recv(), Ok(Change::Completed(_))));
    }

    #[test]
    fn a_stop_loses_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let (go, wait) = channel();
        let scribe: Arc<dyn Scribe> = Arc::new(Slow(Mutex::new(wait)));
        let before = history(dir.path());
        ended(&before, &scribe, &Ok(SolveResponse::default()));
        go.send(()).unwrap();
        drop(before);
        let record = history(dir.path()).get("b1").unwrap();
        assert_eq!((record.error.as_str(), record.logs.is_some()), ("", true));
    }

    #[test]
    fn a_failed_build_is_recorded_before_its_client_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let history = history(dir.path());
        let (go, wait) = channel();
        go.send(()).unwrap();
        let scribe: Arc<dyn Scribe> = Arc::new(Slow(Mutex::new(wait)));
        let mut changes = history.changes();
        ended(&history, &scribe, &Err(EngineError::user("it broke")));
        assert!(matches!(changes.try_recv(), Ok(Change::Started(_))));
        let Ok(Change::Completed(record)) = changes.try_recv() else { panic!("not recorded") };
        assert_eq!(record.error, "it broke");
    }

    #[test]
    fn secret_looking_arguments_are_masked() {
        assert_eq!(shown("build-arg:NPM_TOKEN", "x"), "****");
        assert_eq!(shown("build-arg:KEYBOARD", "x"), "x");
        assert_eq!(shown("target", "token"), "token");
        let caches = r#"[{"Type":"s3","Attrs":{"bucket":"b","secret_access_key":"hunter2"}}]"#;
        let masked = shown("cache-imports", caches);
        assert!(masked.contains(r#""bucket":"b""#) && !masked.contains("hunter2"), "{masked}");
        assert_eq!(shown("cache-imports", "hunter2"), "****");
    }
}
