//! What one output needs next: a function of its own state and of what its inputs have reached.
//!
//! The order of the search for keys:
//! 1. the keys of all inputs that follow from definitions, and the links from them;
//! 2. for inputs that lead nowhere: more keys of theirs, then the digest of their content, if it counts;
//! 3. the same for the other inputs, if all lead somewhere but not to one node;
//! 4. as soon as one input has nothing left to try and leads nowhere, the search is hopeless.
//!
//! Then all inputs are completed and their contents keyed, since the result is saved under these keys too.

use kiln_stdx::Digest;

use super::graph::{Call, Key, Known, Level, Out, Search, State};
use crate::key::{Link, LinkFrom, OutputKey, content_key_id};
use crate::keystore::RecordRef;
use crate::op::{CacheMap, KeyLife};
use crate::vertex::CacheUse;

/// What an input has reached.
pub(crate) struct Dep {
    pub reached: Level,
    /// Whether it shows keys only when it is complete: before that nobody knows whether it has to run.
    pub late: bool,
    /// Its keys to look up by.
    pub lookup: Vec<Key>,
}

/// The part of a vertex that its outputs share.
pub(crate) struct Head<'a> {
    pub index: u32,
    pub cache: CacheUse,
    pub map: Option<&'a CacheMap>,
    pub deps: &'a [Dep],
    pub contents: &'a [&'a Call<Option<Digest>>],
    pub exec: Phase,
    /// How many saves there have been.
    pub saves: u64,
    /// The number of the last save of this operation.
    pub last_save: u64,
}

/// How far the vertex's execution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Idle,
    Busy,
    Done,
}

/// What is to be started for an output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Map,
    Content(usize),
    Query(Vec<(usize, Known)>),
    Records(Vec<Key>),
    Load(RecordRef),
    /// Drop the load under way.
    Unload,
    Execute,
    /// Take the result of the finished execution.
    Take,
}

/// What is left to try for one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// An answer is awaited.
    Wait,
    /// It has to get further itself.
    Ask(Level),
    /// Its content can be keyed.
    Content,
    Exhausted,
}

impl Head<'_> {
    /// Returns whether the content of an input counts; known only with the cache map.
    fn content_counts(&self, input: usize) -> bool {
        self.map.and_then(|map| map.deps.get(input)).is_some_and(|dep| dep.content)
    }

    fn selector(&self, input: usize) -> Option<Digest> {
        self.map.and_then(|map| map.deps.get(input)).and_then(|dep| dep.selector)
    }

    /// Returns the keys by which an input can be looked up.
    fn candidates(&self, input: usize) -> impl Iterator<Item = Known> + '_ {
        let selector = self.selector(input);
        let stored = self.deps[input].lookup.iter().filter(|key| key.life == KeyLife::Stored);
        let by_definition = stored.map(move |&key| Known { key, selector });
        by_definition.chain(content_known(self.contents[input]))
    }

    fn is_complete(&self, input: usize) -> bool {
        self.deps[input].reached == Level::Complete
    }
}

/// Returns the key of an input's content, if that is known.
pub(crate) fn content_known(content: &Call<Option<Digest>>) -> Option<Known> {
    let digest = content.value()?.as_ref()?;
    Some(Known { key: Key { id: content_key_id(digest), life: KeyLife::Stored }, selector: None })
}

/// Returns the question for a key of an input.
pub(crate) fn link_from(op: OutputKey, input: usize, known: &Known) -> LinkFrom {
    LinkFrom { from: known.key.id, link: Link { op, input: input as u32, selector: known.selector } }
}

/// Updates an output's search, its asks and how far it has come, and returns what to start.
pub(crate) fn plan<R>(head: &Head<'_>, out: &mut Out<R>) -> Vec<Action> {
    let target = out.target();
    match out.state {
        State::Loading(..) if target < Level::Complete => {
            out.asks.fill(Level::None);
            return vec![Action::Unload];
        }
        State::Loading(..) | State::Saving(..) => {
            out.asks.fill(Level::None);
            return Vec::new();
        }
        State::Complete(_) => {
            out.reached = Level::Complete;
            out.asks.fill(Level::None);
            return Vec::new();
        }
        State::Open => {}
    }
    if target == Level::None {
        out.asks.fill(Level::None);
        return Vec::new();
    }
    if target == Level::Complete {
        match head.exec {
            Phase::Idle => {}
            Phase::Busy => {
                out.asks.fill(Level::None);
                return Vec::new();
            }
            Phase::Done => {
                out.asks.fill(Level::None);
                return vec![Action::Take];
            }
        }
    }
    match head.cache {
        CacheUse::Use => search(head, out, target),
        CacheUse::Ignore => {
            out.reached = out.reached.max(Level::Slow);
            out.search = Search::Hopeless;
            if target == Level::Complete { execute(head, out) } else { Vec::new() }
        }
    }
}

fn search<R>(head: &Head<'_>, out: &mut Out<R>, target: Level) -> Vec<Action> {
    if head.map.is_none() {
        ask_all(out, Level::Fast);
        return vec![Action::Map];
    }
    find_keys(head, out);
    if target == Level::Complete {
        match records(out) {
            Found::Start(action) => {
                out.probed_since.get_or_insert(head.saves);
                return vec![action];
            }
            Found::Wait => return Vec::new(),
            Found::Nothing => {}
        }
    }
    if out.search == Search::Looking {
        let actions = look(head, out, target);
        if out.search == Search::Looking {
            return actions;
        }
    }
    out.reached = out.reached.max(Level::Slow);
    if target == Level::Complete { execute(head, out) } else { Vec::new() }
}

/// What is known of records.
enum Found {
    Start(Action),
    Wait,
    Nothing,
}

/// Looks for a record of the keys at hand.
fn records<R>(out: &mut Out<R>) -> Found {
    if out.records.task.is_some() {
        return Found::Wait;
    }
    if let Some(record) = out.records.found.pop_front() {
        out.asks.fill(Level::None);
        return Found::Start(Action::Load(record));
    }
    let fresh: Vec<Key> = out.keys.iter().skip(out.records.asked).copied().collect();
    let stored: Vec<Key> = fresh.into_iter().filter(|key| key.life == KeyLife::Stored).collect();
    if stored.is_empty() {
        return Found::Nothing;
    }
    Found::Start(Action::Records(stored))
}

/// Joins what the inputs lead to.
fn find_keys<R>(head: &Head<'_>, out: &mut Out<R>) {
    let Some(map) = head.map else { return };
    if head.deps.is_empty() {
        if out.keys.is_empty() {
            out.keys.extend(map.roots(head.index).map(|op| Key { id: op.root(), life: map.life }));
        }
        return;
    }
    let Some((first, rest)) = out.probes.split_first() else { return };
    let common = first.matches.keys().filter(|id| rest.iter().all(|probe| probe.matches.contains_key(id)));
    for &id in common {
        let key = Key { id, life: KeyLife::Stored };
        if !out.keys.contains(&key) {
            out.keys.push(key);
        }
    }
}

/// Takes the search one step further.
fn look<R>(head: &Head<'_>, out: &mut Out<R>, target: Level) -> Vec<Action> {
    let mut actions = Vec::new();
    let unasked = unasked(head, out);
    if !unasked.is_empty() && out.query.is_none() {
        out.probed_since.get_or_insert(head.saves);
        actions.push(Action::Query(unasked.clone()));
    }
    let mut awaited = vec![false; head.deps.len()];
    let asked = out.query.iter().flat_map(|(_, asks)| asks);
    unasked.iter().chain(asked).for_each(|(input, _)| awaited[*input] = true);
    let steps: Vec<Step> = awaited.iter().enumerate().map(|(input, awaited)| step(head, input, *awaited)).collect();
    let matched = |out: &Out<R>, input: usize| !out.probes[input].matches.is_empty();
    if steps.iter().enumerate().any(|(input, step)| *step == Step::Exhausted && !matched(out, input)) {
        out.search = Search::Hopeless;
        return Vec::new();
    }
    let found = !out.keys.is_empty();
    let fast_done = out.query.is_none() && unasked.is_empty() && head.deps.iter().all(|dep| dep.reached >= Level::Fast);
    if fast_done {
        out.reached = out.reached.max(if found { Level::Slow } else { Level::Fast });
    }
    let all_matched = (0..head.deps.len()).all(|input| matched(out, input));
    // With a key at hand, others are worth looking for only when it has no record.
    let go_on = target >= Level::Slow && (!found || target == Level::Complete);
    if go_on && all_matched && steps.iter().all(|step| *step == Step::Exhausted) {
        out.search = Search::Hopeless;
        return Vec::new();
    }
    for (input, step) in steps.iter().enumerate() {
        let advance = go_on && (all_matched || !matched(out, input));
        match step {
            Step::Ask(Level::Fast) => out.asks[input] = out.asks[input].max(Level::Fast),
            Step::Ask(level) if advance => out.asks[input] = out.asks[input].max(*level),
            Step::Content if advance => actions.push(Action::Content(input)),
            Step::Ask(_) | Step::Content | Step::Wait | Step::Exhausted => {}
        }
    }
    actions
}

/// Returns the keys of inputs that were not looked up.
fn unasked<R>(head: &Head<'_>, out: &Out<R>) -> Vec<(usize, Known)> {
    let mut unasked = Vec::new();
    for (input, probe) in out.probes.iter().enumerate() {
        let fresh = head.candidates(input).filter(|known| !probe.asked.contains(known));
        unasked.extend(fresh.map(|known| (input, known)));
    }
    unasked
}

/// Returns what is left to try for an input; `awaited` if a key of it is being looked up, or about to be.
fn step(head: &Head<'_>, input: usize, awaited: bool) -> Step {
    let reached = head.deps[input].reached;
    if reached < Level::Fast {
        return Step::Ask(Level::Fast);
    }
    if awaited {
        return Step::Wait;
    }
    if reached < Level::Slow {
        return Step::Ask(Level::Slow);
    }
    if head.deps[input].late && !head.is_complete(input) {
        return Step::Ask(Level::Complete);
    }
    if !head.content_counts(input) {
        return Step::Exhausted;
    }
    match head.contents[input] {
        Call::Done(_) => Step::Exhausted,
        Call::Running(_) | Call::Stopping(_) => Step::Wait,
        Call::Idle if head.is_complete(input) => Step::Content,
        Call::Idle => Step::Ask(Level::Complete),
    }
}

/// Prepares the execution: everything an input has to give is gathered first.
fn execute<R>(head: &Head<'_>, out: &mut Out<R>) -> Vec<Action> {
    ask_all(out, Level::Complete);
    if head.map.is_none() {
        return vec![Action::Map];
    }
    let mut actions = Vec::new();
    let mut ready = true;
    for input in 0..head.deps.len() {
        if !head.is_complete(input) {
            ready = false;
        } else if head.content_counts(input) {
            match head.contents[input] {
                Call::Done(_) => {}
                Call::Idle => {
                    ready = false;
                    actions.push(Action::Content(input));
                }
                Call::Running(_) | Call::Stopping(_) => ready = false,
            }
        }
    }
    if !ready || out.query.is_some() {
        return actions;
    }
    if head.cache == CacheUse::Use && head.last_save > out.probed_since.unwrap_or(0) {
        return recheck(head, out);
    }
    vec![Action::Execute]
}

/// Looks everything up once more: since it was looked up, somebody saved a result of this operation, perhaps this one.
fn recheck<R>(head: &Head<'_>, out: &mut Out<R>) -> Vec<Action> {
    out.probed_since = Some(head.saves);
    out.records.asked = 0;
    for probe in &mut out.probes {
        probe.asked.clear();
    }
    let all = unasked(head, out);
    if !all.is_empty() {
        return vec![Action::Query(all)];
    }
    match records(out) {
        Found::Start(action) => vec![action],
        Found::Wait | Found::Nothing => vec![Action::Execute],
    }
}

fn ask_all<R>(out: &mut Out<R>, level: Level) {
    for ask in &mut out.asks {
        *ask = (*ask).max(level);
    }
}
