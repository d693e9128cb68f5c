//! Spans of time a step was at work. A vertex may run several times (a merged vertex, a group of vertices), and its
//! timer shows the time in which any of them was running, so overlapping spans count once.

use std::collections::BTreeMap;

use super::event::Stamp;

/// The spans of one step, keyed by their start so that a later report of the same run replaces the earlier one.
#[derive(Clone, Debug, Default)]
pub struct Intervals(BTreeMap<Stamp, Option<Stamp>>);

impl Intervals {
    /// Records a run; returns whether this changed anything.
    pub fn record(&mut self, start: Stamp, stop: Option<Stamp>) -> bool {
        self.0.insert(start, stop) != Some(stop)
    }

    /// Returns whether a run is still open.
    pub fn is_open(&self) -> bool {
        self.0.values().any(Option::is_none)
    }

    /// Returns the end of the last run, when no run is open.
    pub fn completed(&self) -> Option<Stamp> {
        if self.is_open() { None } else { self.0.values().flatten().max().copied() }
    }

    /// Returns the start of the span the latest output belongs to: the last start that no earlier run overlaps.
    pub fn latest_start(&self) -> Option<Stamp> {
        self.merged().last().map(|(start, _)| *start)
    }

    /// Returns the seconds in which at least one run was open, counting an open run up to `now`.
    pub fn seconds(&self, now: Stamp) -> f64 {
        self.merged().iter().map(|(start, stop)| stop.unwrap_or(now).seconds_since(*start).max(0.0)).sum()
    }

    /// Returns disjoint spans in order; an open run swallows all that follow it.
    fn merged(&self) -> Vec<(Stamp, Option<Stamp>)> {
        let mut spans: Vec<(Stamp, Option<Stamp>)> = Vec::new();
        for (&start, &stop) in &self.0 {
            match spans.last_mut() {
                Some((_, None)) => break,
                Some((_, end)) if *end >= Some(start) => *end = stop.and_then(|stop| (*end).max(Some(stop))),
                _ => spans.push((start, stop)),
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Span = (i64, Option<i64>);

    fn of(spans: &[Span]) -> Intervals {
        let mut intervals = Intervals::default();
        for (a, b) in spans {
            intervals.record(Stamp(a * 1_000_000_000), b.map(|b| Stamp(b * 1_000_000_000)));
        }
        intervals
    }

    #[test]
    fn overlaps_count_once() {
        let now = Stamp(100_000_000_000);
        let table: &[(&[Span], f64)] = &[
            (&[], 0.0),
            (&[(1, Some(3))], 2.0),
            (&[(1, Some(3)), (2, Some(5))], 4.0),
            (&[(1, Some(9)), (2, Some(5))], 8.0),
            (&[(1, Some(2)), (4, Some(5))], 2.0),
            (&[(90, None)], 10.0),
            (&[(80, Some(85)), (84, None), (95, Some(96))], 20.0),
            (&[(3, Some(3))], 0.0),
        ];
        for (spans, want) in table {
            assert_eq!(of(spans).seconds(now), *want, "{spans:?}");
        }
    }

    #[test]
    fn a_later_report_replaces_the_earlier() {
        let mut intervals = of(&[(1, None)]);
        assert!(intervals.is_open());
        assert_eq!(intervals.completed(), None);
        assert!(intervals.record(Stamp(1_000_000_000), Some(Stamp(4_000_000_000))));
        assert!(!intervals.record(Stamp(1_000_000_000), Some(Stamp(4_000_000_000))));
        assert_eq!(intervals.completed(), Some(Stamp(4_000_000_000)));
    }
}
