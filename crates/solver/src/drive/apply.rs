//! One future for each effect.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::task::noop_waker_ref;
use kiln_stdx::ErrorClass;
use tokio_util::sync::CancellationToken;

use super::{Driver, JobEntry, OpRef, Stores, WantEntry, ask};
use crate::context::{JobContext, JobId, OpContext, WantedBy};
use crate::core::{Effect, Event, LoadOutcome, TaskId, VertexId};
use crate::event::VertexEvent;
use crate::keystore::{KeyStoreError, Loaded, RecordRef, Save, StoreId};
use crate::miss::MissReason;
use crate::op::OpError;

impl<R: Clone + Send + Sync + 'static> Driver<R> {
    /// Applies the effects that call operations, and hands the others on.
    pub(super) fn apply(&mut self, effect: Effect<R, OpRef<R>>) {
        match effect {
            Effect::CacheMap { task, vertex, op } => {
                let cx = self.context(task, vertex, None);
                let call = {
                    let cx = cx.clone();
                    async move { op.cache_map(&cx).await }
                };
                self.call(&cx, Place::Here, call, move |outcome| Event::Mapped { task, outcome });
            }
            Effect::ContentKey { task, vertex, op, input, result } => {
                let cx = self.context(task, vertex, None);
                let call = {
                    let cx = cx.clone();
                    async move { op.content_key(&cx, input, &result).await }
                };
                self.call(&cx, Place::Task, call, move |outcome| Event::ContentKeyed { task, outcome });
            }
            Effect::Explain { task, vertex, op, input, old, new, result } => {
                let cx = self.context(task, vertex, None);
                let call = {
                    let cx = cx.clone();
                    async move { Ok(op.explain(&cx, input, &old, &new, &result).await) }
                };
                self.call(&cx, Place::Task, call, move |outcome| Event::Explained {
                    task,
                    difference: outcome.unwrap_or(None),
                });
            }
            Effect::Execute { task, vertex, op, inputs, miss } => {
                let cx = self.context(task, vertex, Some(miss));
                let call = {
                    let cx = cx.clone();
                    async move { op.execute(&cx, &inputs).await }
                };
                self.call(&cx, Place::Task, call, move |outcome| Event::Executed { task, outcome });
            }
            Effect::Load { task, vertex, record } => self.load(task, vertex, record),
            Effect::Abort { task } => {
                if let Some(cancel) = self.cancels.get(&task) {
                    cancel.cancel();
                }
            }
            Effect::Query { .. }
            | Effect::Records { .. }
            | Effect::Recall { .. }
            | Effect::Save { .. }
            | Effect::Link { .. }
            | Effect::Forget { .. } => self.apply_to_stores(effect),
            Effect::Remember { .. }
            | Effect::Report { .. }
            | Effect::Reply { .. }
            | Effect::Wanted { .. }
            | Effect::Dropped { .. }
            | Effect::Closed { .. } => self.tell(effect),
        }
    }

    fn apply_to_stores(&mut self, effect: Effect<R, OpRef<R>>) {
        match effect {
            Effect::Query { task, stores, asks } => {
                let stores = self.pick_stores(&stores);
                let none = Event::Queried { task, answers: Vec::new() };
                self.ask(Some(none), async move {
                    Some(Event::Queried { task, answers: ask::targets(&stores, &asks).await })
                });
            }
            Effect::Records { task, stores, keys, max_age } => {
                let stores = self.pick_stores(&stores);
                let none = Event::RecordsFound { task, records: Vec::new(), gone: None };
                self.ask(Some(none), async move {
                    let (records, gone) = ask::records(&stores, &keys, max_age).await;
                    Some(Event::RecordsFound { task, records, gone })
                });
            }
            Effect::Recall { task, slots } => {
                let stores = self.pick_stores(&[StoreId::MAIN]);
                let none = Event::Recalled { task, record: None };
                self.ask(Some(none), async move {
                    Some(Event::Recalled { task, record: ask::recall(&stores, &slots).await })
                });
            }
            Effect::Save { task, key, op, links, result, loaded } => {
                let stores = self.pick_stores(&[StoreId::MAIN]);
                let made = loaded.map(|from| self.made(&from));
                let none = Event::Saved { task, record: None };
                self.ask(Some(none), async move {
                    let save = Save { key, op, links: &links, result: Some(&result), made };
                    Some(Event::Saved { task, record: ask::save(&stores, save).await })
                });
            }
            Effect::Link { key, op, links } => {
                let stores = self.pick_stores(&[StoreId::MAIN]);
                self.ask(None, async move {
                    ask::save(&stores, Save { key, op, links: &links, result: None, made: None }).await;
                    None
                });
            }
            Effect::Forget { record, why } => {
                let stores = self.pick_stores(&[record.store]);
                self.ask(None, async move {
                    for (_, store) in stores {
                        store.forget(record.key, &record.id, &why).await;
                    }
                    None
                });
            }
            _ => {}
        }
    }

    fn load(&mut self, task: TaskId, vertex: VertexId, record: RecordRef) {
        let Some((_, store)) = self.pick_stores(&[record.store]).pop() else {
            let outcome = LoadOutcome::Failed("the imported cache is not there any more".to_owned());
            self.ready.push(Event::RecordLoaded { task, outcome });
            return;
        };
        let cx = self.context(task, vertex, None);
        let call = {
            let cx = cx.clone();
            async move { Ok(store.load(&cx, record.key, &record.id).await) }
        };
        self.call(&cx, Place::Task, call, move |outcome: Result<Result<Loaded<R>, KeyStoreError>, OpError>| {
            let outcome = match outcome {
                Ok(Ok(Loaded::Hit(result))) => LoadOutcome::Hit(result),
                Ok(Ok(Loaded::Gone(why))) => LoadOutcome::Gone(why),
                Ok(Err(error)) => LoadOutcome::Failed(error.to_string()),
                Err(error) => LoadOutcome::Failed(error.to_string()),
            };
            Event::RecordLoaded { task, outcome }
        });
    }

    /// Returns when the result of a record was made; what does not tell counts as very old.
    fn made(&self, record: &RecordRef) -> u64 {
        self.stores.get(&record.store).and_then(|store| store.made(record.key, &record.id)).unwrap_or(0)
    }

    /// Returns what goes with a call for a vertex.
    fn context(&mut self, task: TaskId, vertex: VertexId, miss: Option<Arc<MissReason>>) -> OpContext {
        let cancel = CancellationToken::new();
        self.cancels.insert(task, cancel.clone());
        let entry = self.wanted.entry(vertex);
        let entry = entry.or_insert_with(WantEntry::nobody);
        let jobs = &self.jobs;
        let shared = entry.shared.get_or_insert_with(|| {
            let wanted = WantedBy::new();
            wanted.set(contexts(jobs, &entry.jobs));
            Arc::new(wanted)
        });
        OpContext { vertex: entry.digest, cancel, wanted: shared.clone(), miss }
    }

    /// Spawns a call of an operation. One that panics has failed; one that goes on too long after it was called off is
    /// dropped.
    fn call<T: Send + 'static>(
        &mut self,
        cx: &OpContext,
        place: Place,
        call: impl Future<Output = Result<T, OpError>> + Send + 'static,
        wrap: impl FnOnce(Result<T, OpError>) -> Event<R> + Send + 'static,
    ) {
        let (cancel, grace) = (cx.cancel.clone(), self.grace);
        let call = async move {
            let outcome = tokio::select! {
                biased;
                outcome = AssertUnwindSafe(call).catch_unwind() => outcome.unwrap_or_else(|panic| Err(panicked(&*panic))),
                () = overdue(cancel, grace) => Err(OpError::canceled()),
            };
            Some(wrap(outcome))
        };
        match place {
            Place::Here => self.try_here(call),
            Place::Task => {
                self.tasks.spawn(call);
            }
        }
    }

    /// Runs a future of a store, in place if it is done at once; `fallback` stands in for one that panics.
    pub(super) fn ask(
        &mut self,
        fallback: Option<Event<R>>,
        future: impl Future<Output = Option<Event<R>>> + Send + 'static,
    ) {
        let guarded = AssertUnwindSafe(future).catch_unwind();
        let guarded = guarded.map(|outcome| match outcome {
            Ok(event) => event,
            Err(panic) => {
                tracing::error!(error = %panicked(&*panic), "a key store panicked");
                fallback
            }
        });
        self.try_here(guarded);
    }

    /// Takes a future's outcome if it is there at once, else spawns it.
    fn try_here(&mut self, future: impl Future<Output = Option<Event<R>>> + Send + 'static) {
        // The cooperative budget would make a long batch of answers pending for no reason.
        let mut future = Box::pin(tokio::task::unconstrained(future));
        match future.as_mut().poll(&mut Context::from_waker(noop_waker_ref())) {
            Poll::Ready(event) => self.ready.extend(event),
            Poll::Pending => {
                self.tasks.spawn(future);
            }
        }
    }

    pub(super) fn pick_stores(&self, ids: &[StoreId]) -> Stores<R> {
        ids.iter().filter_map(|id| Some((*id, self.stores.get(id)?.clone()))).collect()
    }

    /// Applies the effects that need no future.
    fn tell(&mut self, effect: Effect<R, OpRef<R>>) {
        match effect {
            Effect::Remember { slot, record } => self.remember.push((slot, record)),
            Effect::Report { job, vertex, what } => {
                if let Some(entry) = self.jobs.get(&job) {
                    entry.events.event(VertexEvent { vertex, what });
                }
            }
            Effect::Reply { job, ticket, outcome } => {
                if let Some(reply) = self.replies.remove(&(job, ticket)) {
                    // Whoever asked may have given up waiting.
                    let _ = reply.send(outcome);
                }
            }
            Effect::Wanted { vertex, digest, jobs } => {
                let entry = self.wanted.entry(vertex).or_insert_with(WantEntry::nobody);
                entry.digest = digest;
                entry.jobs = jobs;
                if let Some(shared) = &entry.shared {
                    shared.set(contexts(&self.jobs, &entry.jobs));
                }
            }
            Effect::Dropped { vertex } => {
                self.wanted.remove(&vertex);
            }
            Effect::Closed { job } => {
                if let Some(entry) = self.jobs.remove(&job) {
                    for store in &entry.imports {
                        self.stores.remove(store);
                    }
                    // Only `Job::close` waits for it.
                    let _ = entry.closed.send(());
                }
            }
            _ => {}
        }
    }
}

/// Where a call is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On the solver's own task: most keys are computed without waiting for anything, and a task for each of them would
    /// cost more than that.
    Here,
    Task,
}

fn contexts(jobs: &BTreeMap<JobId, JobEntry>, ids: &[JobId]) -> BTreeMap<JobId, JobContext> {
    ids.iter().filter_map(|id| Some((*id, jobs.get(id)?.context.clone()))).collect()
}

/// Ends when a call has outlived its cancellation by `grace`.
async fn overdue(cancel: CancellationToken, grace: Duration) {
    cancel.cancelled().await;
    tokio::time::sleep(grace).await;
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> OpError {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    OpError::new(ErrorClass::Bug, format!("panic: {}", text.unwrap_or("of unknown kind")))
}
