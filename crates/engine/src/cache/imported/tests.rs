//! A cache that misbehaves is left, and told of once.

use std::collections::VecDeque;

use kiln_exporter::cacheconfig::{CacheNode, CacheResult};
use kiln_oci::media;

use super::*;
use crate::build::BuildSettings;
use crate::events::{Event, EventLog};

/// What a source does when it is asked.
#[derive(Clone, Copy)]
enum Does {
    Gives,
    Fails(ErrorClass),
    Damages,
    Hangs,
}

struct Scripted {
    script: Mutex<VecDeque<Does>>,
    asked: AtomicU32,
}

impl Scripted {
    fn new(script: &[Does]) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(script.iter().copied().collect()), asked: AtomicU32::new(0) })
    }

    async fn act(&self) -> Result<(), EngineError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let next = self.script.lock().pop_front().expect("asked too often");
        match next {
            Does::Gives => Ok(()),
            Does::Fails(class) => Err(EngineError::new(class, "no")),
            Does::Damages => {
                let mut error = EngineError::new(ErrorClass::Remote, "other bytes");
                error.further_mut().damaged = true;
                Err(error)
            }
            Does::Hangs => std::future::pending().await,
        }
    }
}

#[async_trait]
impl StackSource for Scripted {
    fn name(&self) -> String {
        "far".to_owned()
    }

    async fn has(&self, _: &Descriptor) -> Result<bool, EngineError> {
        self.act().await.map(|()| true)
    }

    async fn layer(
        &self,
        _: &Descriptor,
        _: &Store,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), EngineError> {
        progress(LEAST - 1);
        self.act().await
    }
}

fn build() -> Arc<BuildContext> {
    let log = EventLog::new(tempfile::tempfile().expect("file"));
    Arc::new(BuildContext::new("build".into(), BuildSettings::default(), log))
}

fn blob(text: &str) -> Descriptor {
    Descriptor::of(media::OCI_LAYER, text.as_bytes())
}

fn add(build: &BuildContext, source: &Arc<Scripted>) -> Arc<Imported> {
    let result = CacheResult { layers: vec![blob("offered")], created: 1 };
    let node = CacheNode { digest: Digest::of("key"), inputs: Vec::new(), results: vec![result] };
    let parsed = ParsedCache { nodes: vec![node], dropped: 0 };
    Imported::add(build, ("kiln-cache://far".into(), source.clone()), &[parsed], Some(Duration::from_millis(50)))
}

#[tokio::test]
async fn a_cache_that_keeps_failing_is_asked_no_more_in_any_attempt() {
    let build = build();
    let remote = Does::Fails(ErrorClass::Remote);
    let source =
        Scripted::new(&[remote, Does::Gives, Does::Damages, Does::Fails(ErrorClass::UserInput), remote, remote]);
    let cache = add(&build, &source);
    assert!(cache.offers(&blob("offered").digest) && !cache.offers(&blob("other").digest));
    let ask = async |text: &str| cache.has(&blob(text)).await.map_err(|error| error.to_string());
    assert_eq!(ask("a").await, Err("no".to_owned()));
    assert_eq!(ask("b").await, Ok(true));
    // What is known is not asked again; damage and refusals say nothing of the next blob.
    assert_eq!(ask("b").await, Ok(true));
    for (text, want) in [("c", "other bytes"), ("d", "no"), ("e", "no"), ("f", "no")] {
        assert_eq!(ask(text).await, Err(want.to_owned()), "{text}");
    }
    let given_up = Err("far: given up after 2 transfers that failed".to_owned());
    assert_eq!(ask("g").await, given_up);
    let again = add(&build, &source);
    assert_eq!(again.has(&blob("g")).await.map_err(|error| error.to_string()), given_up);
    assert_eq!(source.asked.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn a_cache_that_gives_nothing_is_left() {
    let dir = tempfile::tempdir().expect("dir");
    let store = Store::open(kiln_store::StoreConfig::new(dir.path())).expect("store");
    let cache = add(&build(), &Scripted::new(&[Does::Hangs, Does::Hangs]));
    let error = cache.has(&blob("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "far: timed out: no answer for 50ms");
    let error = cache.layer(&blob("a"), &store, &|_| ()).await.unwrap_err();
    assert_eq!(error.to_string(), "far: timed out: next to nothing came for 50ms");
}

#[test]
fn a_cache_is_warned_of_once_in_a_build() {
    let build = build();
    let cache = add(&build, &Scripted::new(&[]));
    let progress = Progress::of_build(&build, Digest::of("vertex"));
    for why in ["denied", "gone"] {
        cache.warn(&progress, &EngineError::user(why));
    }
    add(&build, &Scripted::new(&[])).warn(&progress, &EngineError::user("later"));
    build.log.close();
    let text = |event: &Arc<Event>| match event.as_ref() {
        Event::Warning(warning) => Some(String::from_utf8_lossy(&warning.short).into_owned()),
        _ => None,
    };
    let warnings: Vec<String> = build.log.snapshot().iter().filter_map(text).collect();
    assert_eq!(warnings, ["a result cannot be taken from cache far: denied"]);
}
