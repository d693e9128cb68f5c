//! The order in which records go: those first that were idle for long, are large and are soon made again.

use std::cmp::Reverse;
use std::time::Duration;

use crate::record::RecordType;
use crate::usage::UsageRecord;

/// What was used within this time goes after everything else.
const FRESH: u64 = 600;
/// Making anything takes so long, in milliseconds, however little is measured.
const LEAST_COST: u64 = 100;
/// Bytes that count for something that takes none.
const LEAST_SIZE: u64 = 4096;

/// A record's place; the lowest goes first. Equal ones go by age, use and name, so that the order is always the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    fresh: bool,
    gain: Reverse<u128>,
    last_used_at: u64,
    usage_count: u64,
    pub id: String,
}

impl Turn {
    /// Returns the place of a record at the time `now`, in seconds since 1970.
    pub fn of(record: &UsageRecord, now: u64) -> Self {
        let idle = now.saturating_sub(record.last_used_at);
        let size = record.size.max(LEAST_SIZE);
        let cost = record.cost.unwrap_or_else(|| usual_cost(record));
        let cost = cost.as_millis().max(u128::from(LEAST_COST));
        let gain = u128::from(idle + 1) * u128::from(size) * 1000 / cost;
        Self {
            fresh: idle < FRESH,
            gain: Reverse(gain),
            last_used_at: record.last_used_at,
            usage_count: record.usage_count,
            id: record.id.clone(),
        }
    }
}

/// What it takes to make a record again of which nothing was measured: some time, and some for each byte.
fn usual_cost(record: &UsageRecord) -> Duration {
    let (millis, bytes_a_milli) = match record.record_type {
        RecordType::SourceLocal => (100, 200_000),
        RecordType::Internal => (100, 500_000),
        RecordType::SourceGitCheckout => (2_000, 20_000),
        RecordType::Frontend => (5_000, 20_000),
        RecordType::ExecCacheMount => (5_000, 10_000),
        RecordType::Regular if record.parents.is_empty() => (1_000, 20_000),
        RecordType::Regular => (10_000, 20_000),
    };
    Duration::from_millis(millis + record.size / bytes_a_milli)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_000;

    fn record(id: &str, idle: u64, size: u64, cost: u64) -> UsageRecord {
        UsageRecord {
            id: id.to_owned(),
            last_used_at: NOW - idle,
            size,
            cost: Some(Duration::from_secs(cost)),
            ..UsageRecord::default()
        }
    }

    fn order(records: &[UsageRecord]) -> Vec<&str> {
        let mut records: Vec<&UsageRecord> = records.iter().collect();
        records.sort_by_key(|record| Turn::of(record, NOW));
        records.into_iter().map(|record| record.id.as_str()).collect()
    }

    #[test]
    fn large_old_and_cheap_ones_go_first() {
        let day = 24 * 3600;
        let records = [
            record("compiled", day, 100 << 20, 600),
            record("copied", day, 100 << 20, 1),
            record("small", day, 1 << 20, 1),
            record("compiled long ago", 30 * day, 100 << 20, 600),
        ];
        assert_eq!(order(&records), ["copied", "compiled long ago", "small", "compiled"]);
    }

    #[test]
    fn fresh_ones_go_last_whatever_they_cost() {
        let records = [record("fresh", 599, 1 << 40, 0), record("old", 600, 0, 100_000)];
        assert_eq!(order(&records), ["old", "fresh"]);
    }

    #[test]
    fn equal_ones_go_by_name_and_unknown_costs_by_type() {
        let records = [record("b", 700, 5 << 20, 2), record("a", 700, 5 << 20, 2)];
        assert_eq!(order(&records), ["a", "b"]);
        let of = |id: &str, record_type| UsageRecord { record_type, cost: None, ..record(id, 700, 50 << 20, 0) };
        let records = [
            of("mount", RecordType::ExecCacheMount),
            of("git", RecordType::SourceGitCheckout),
            of("context", RecordType::SourceLocal),
        ];
        assert_eq!(order(&records), ["context", "git", "mount"]);
    }
}
