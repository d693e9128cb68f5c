//! Steps whose processes run, and what they write: one of them is stopped when builds by themselves need more than the disk
//! has, so that it fails with its name rather than all of them with a full disk.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_stdx::ErrorClass;
use kiln_store::{Overrun, Store};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;

/// The steps that run now.
#[derive(Default)]
pub struct RunningSteps(Mutex<Vec<Arc<Step>>>);

struct Step {
    command: String,
    /// What its process writes to.
    dirs: Vec<PathBuf>,
    cancel: CancellationToken,
    verdict: Mutex<Option<EngineError>>,
}

/// A step that runs; it is no longer known when this is dropped.
pub struct Watched<'a> {
    steps: &'a RunningSteps,
    step: Arc<Step>,
}

impl RunningSteps {
    /// Notes a step that begins.
    pub fn watch(&self, command: String, dirs: Vec<PathBuf>, cancel: &CancellationToken) -> Watched<'_> {
        let step = Step { command, dirs, cancel: cancel.child_token(), verdict: Mutex::new(None) };
        let step = Arc::new(step);
        self.0.lock().push(step.clone());
        Watched { steps: self, step }
    }

    /// Stops the step that has written most, if one runs that has written anything. Reads what they have written.
    pub fn stop_largest(&self, store: &Store, overrun: Overrun) {
        let steps: Vec<Arc<Step>> = self.0.lock().iter().filter(|s| !s.cancel.is_cancelled()).cloned().collect();
        let sized = steps.into_iter().map(|step| (step.dirs.iter().map(|dir| store.size_of(dir)).sum::<u64>(), step));
        let Some((size, step)) = sized.max_by_key(|(size, _)| *size).filter(|(size, _)| *size > 0) else { return };
        let message = format!(
            "process {:?} did not complete successfully: it was stopped, having written {}: builds hold {}, more than the \
             cache's budget of {}, and the disk has {} left",
            step.command,
            megabytes(size),
            megabytes(overrun.used),
            megabytes(overrun.budget),
            megabytes(overrun.free)
        );
        tracing::warn!("{message}");
        let hint = "run fewer builds at once, free space on the disk, or raise the budget (maxUsedSpace); `kiln prune` \
                    removes what nothing uses";
        *step.verdict.lock() = Some(EngineError::new(ErrorClass::Environment, message).with_hint(hint));
        step.cancel.cancel();
    }
}

impl Watched<'_> {
    /// Cancelled with the step, or when it has to stop.
    pub fn cancel(&self) -> CancellationToken {
        self.step.cancel.clone()
    }

    /// Returns why it was stopped.
    pub fn verdict(&self) -> Option<EngineError> {
        self.step.verdict.lock().clone()
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.steps.0.lock().retain(|step| !Arc::ptr_eq(step, &self.step));
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use kiln_store::StoreConfig;

    use super::*;

    #[test]
    fn the_largest_is_stopped_and_told_why() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreConfig::new(dir.path().join("root"))).unwrap();
        let steps = RunningSteps::default();
        let overrun = Overrun { used: 7_000_000, budget: 5_000_000, free: 1 };
        steps.stop_largest(&store, overrun);
        let watch = |name: &str, bytes: usize| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            if bytes > 0 {
                std::fs::write(path.join("f"), vec![1; bytes]).unwrap();
            }
            steps.watch(format!("make {name}"), vec![path], &CancellationToken::new())
        };
        let idle = watch("idle", 0);
        steps.stop_largest(&store, overrun);
        assert!(idle.verdict().is_none(), "it has written nothing");
        let (small, large) = (watch("small", 5_000), watch("large", 3_000_000));
        steps.stop_largest(&store, overrun);
        assert!(idle.verdict().is_none() && small.verdict().is_none() && !small.cancel().is_cancelled());
        let error = large.verdict().expect("it is stopped");
        let text = error.to_string();
        assert!(
            large.cancel().is_cancelled() && text.contains("make large") && text.contains("written 4 MB"),
            "{text}"
        );
        assert!(text.contains("budget of 5 MB") && error.hint.unwrap().contains("maxUsedSpace"));
        drop(large);
        steps.stop_largest(&store, overrun);
        assert!(small.verdict().is_some());
    }
}
