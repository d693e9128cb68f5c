//! Vertices of equal key: one is executed, the others follow it.
//!
//! A vertex follows only when it would be executed itself, so all its inputs are complete; the one it follows is past that
//! point. So nothing that is followed waits for anything but its own execution, and followers cannot wait in a circle.
//! A follower's jobs count as wanting the vertex it follows.

use super::Core;
use super::demand::Change;
use super::graph::{Exec, Freshness, Known, Made, Node, OutputRef, Prepared, VertexId};
use crate::job::Origin;
use crate::op::OpError;
use crate::vertex::CacheUse;

impl<R: Clone, O: Clone> Core<R, O> {
    /// Notes that the execution of a vertex begins.
    pub(super) fn register(&mut self, vertex: VertexId) {
        if let Some(digest) = self.nodes.get(&vertex).and_then(|node| node.cache_map()).map(|map| map.digest) {
            self.flights.entry(digest).or_default().insert(vertex);
        }
    }

    pub(super) fn unregister(&mut self, digest: kiln_stdx::Digest, vertex: VertexId) {
        if let Some(flights) = self.flights.get_mut(&digest) {
            flights.remove(&vertex);
            if flights.is_empty() {
                self.flights.remove(&digest);
            }
        }
    }

    pub(super) fn unregister_vertex(&mut self, vertex: VertexId) {
        if let Some(digest) = self.nodes.get(&vertex).and_then(|node| node.cache_map()).map(|map| map.digest) {
            self.unregister(digest, vertex);
        }
    }

    /// Returns a vertex of equal key whose execution is under way or done.
    pub(super) fn find_leader(&self, vertex: VertexId, prepared: &Prepared<R, O>) -> Option<VertexId> {
        #[cfg(test)]
        if self.planted(super::Planted::NoSingleFlight) {
            return None;
        }
        let node = self.nodes.get(&vertex)?;
        let flights = self.flights.get(&node.cache_map()?.digest)?;
        flights.iter().copied().filter(|other| *other != vertex).find(|other| {
            let Some(other) = self.nodes.get(other) else { return false };
            let known = match &other.exec {
                Exec::Recalling(_, p)
                | Exec::Explaining(_, p, _)
                | Exec::Queued(p)
                | Exec::Running(_, p)
                | Exec::Stopping(p) => &p.known,
                // What others have in hand may be just what was found to be of no use, whichever output that was, and
                // whether it was saved yet or not.
                Exec::Done(_) if self.is_apart(node) && is_of_others(other, node) => return false,
                Exec::Done(made) => &made.known,
                Exec::Idle | Exec::Following(..) => return false,
            };
            equal_keys(&prepared.known, known) && self.may_share(node, other)
        })
    }

    /// Returns whether a vertex belongs to a job that takes nothing that others have.
    fn is_apart(&self, node: &Node<R, O>) -> bool {
        node.jobs.keys().any(|job| self.jobs.get(job).is_some_and(|state| state.apart))
    }

    /// Returns whether a vertex may use what another of equal key makes, as far as ignoring the cache goes.
    fn may_share(&self, node: &Node<R, O>, other: &Node<R, O>) -> bool {
        match node.fresh {
            // It would take any result of that key from the cache.
            Freshness::Plain => true,
            // Its inputs must be the same run, not only of the same key.
            Freshness::Fresh(_) => {
                let ignores = node.cache == CacheUse::Use || other.cache == CacheUse::Ignore;
                let inputs = node.inputs.iter().zip(&other.inputs);
                ignores
                    && node.inputs.len() == other.inputs.len()
                    && inputs.into_iter().all(|(a, b)| self.same_run(a.edge, b.edge))
            }
        }
    }

    fn same_run(&self, a: OutputRef, b: OutputRef) -> bool {
        a == b || (a.index == b.index && self.origin(a).is_some_and(|origin| Some(origin) == self.origin(b)))
    }

    fn origin(&self, output: OutputRef) -> Option<VertexId> {
        let node = self.nodes.get(&output.vertex)?;
        let out = node.outputs.get(&output.index)?;
        match (&node.exec, out.done()?.origin) {
            (Exec::Done(made), Origin::Executed | Origin::Shared) => Some(made.origin),
            _ => None,
        }
    }

    /// Makes a vertex take its results from another.
    pub(super) fn follow(&mut self, vertex: VertexId, leader: VertexId, prepared: Box<Prepared<R, O>>) {
        let Some(node) = self.nodes.get_mut(&leader) else { return };
        let miss = node.miss.clone();
        let running = matches!(node.exec, Exec::Running(..));
        if let Exec::Done(made) = &node.exec {
            let made = Made { results: made.results.clone(), known: prepared.known, origin: made.origin };
            self.finish_follower(vertex, made);
            return;
        }
        node.followers.insert(vertex);
        self.set_exec(vertex, Exec::Following(leader, prepared));
        self.adjust_wanted(leader, self.wanting(vertex), Change::Gains);
        self.touch(leader);
        if let (true, Some(miss)) = (running, miss) {
            self.report_started(vertex, &miss);
        }
    }

    pub(super) fn unfollow(&mut self, vertex: VertexId, leader: VertexId) {
        if let Some(node) = self.nodes.get_mut(&leader) {
            if node.followers.remove(&vertex) {
                self.adjust_wanted(leader, self.wanting(vertex), Change::Loses);
            }
            self.touch(leader);
        }
    }

    /// Gives the results of a vertex to its followers.
    pub(super) fn complete_followers(&mut self, vertex: VertexId) {
        let Some(node) = self.nodes.get(&vertex) else { return };
        let Exec::Done(made) = &node.exec else { return };
        let (results, origin, miss) = (made.results.clone(), made.origin, node.miss.clone());
        for follower in self.take_followers(vertex) {
            let Exec::Following(_, prepared) = self.take_exec(follower) else { continue };
            if let Some(node) = self.nodes.get_mut(&follower) {
                node.miss = miss.clone();
            }
            let made = Made { results: results.clone(), known: prepared.known, origin };
            self.finish_follower(follower, made);
        }
    }

    fn finish_follower(&mut self, vertex: VertexId, made: Made<R>) {
        self.set_exec(vertex, Exec::Done(Box::new(made)));
        self.register(vertex);
        self.report_completed(vertex);
        self.touch(vertex);
    }

    /// Lets followers find their own way, since the vertex they follow was called off.
    pub(super) fn release_followers(&mut self, vertex: VertexId) {
        for follower in self.take_followers(vertex) {
            if let Exec::Following(..) = self.take_exec(follower) {
                self.report_interrupted(follower);
                self.touch(follower);
            }
        }
    }

    /// Fails followers with the vertex they follow: the same work would fail again.
    pub(super) fn fail_followers(&mut self, vertex: VertexId, error: &OpError) {
        for follower in self.take_followers(vertex) {
            if let Exec::Following(..) = self.take_exec(follower) {
                self.fail(follower, error.clone());
            }
        }
    }

    fn take_followers(&mut self, vertex: VertexId) -> Vec<VertexId> {
        let followers = self.nodes.get_mut(&vertex).map(|node| std::mem::take(&mut node.followers));
        let followers: Vec<VertexId> = followers.unwrap_or_default().into_iter().collect();
        for &follower in &followers {
            self.adjust_wanted(vertex, self.wanting(follower), Change::Loses);
        }
        followers
    }
}

/// Returns whether no job has both vertices.
fn is_of_others<R, O>(other: &Node<R, O>, node: &Node<R, O>) -> bool {
    other.jobs.keys().all(|job| !node.jobs.contains_key(job))
}

/// Returns whether two vertices of one operation have, for every input, a key in common.
fn equal_keys(a: &[Vec<Known>], b: &[Vec<Known>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.iter().any(|known| b.contains(known)))
}
