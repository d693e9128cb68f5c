//! Tests of pruning and its policies.

use super::*;
use crate::testing::{fixture, one_file};
use crate::{Lease, MountOwner, Sharing};

fn ids(store: &Store) -> Vec<String> {
    let mut all: Vec<_> = store.usage().unwrap().into_iter().map(|r| r.description).collect();
    all.sort();
    all
}

#[test]
fn keep_bytes_follows_the_three_limits() {
    let policy = |reserved_space, max_used_space, min_free_space| PrunePolicy {
        reserved_space,
        max_used_space,
        min_free_space,
        ..PrunePolicy::default()
    };
    for (limits, used, free, want) in [
        ((0, 0, 0), 100, 5, None),
        ((0, 50, 0), 100, 5, Some(50)),
        ((70, 50, 0), 100, 5, Some(70)),
        ((0, 0, 25), 100, 5, Some(80)),
        ((0, 60, 25), 100, 5, Some(60)),
        ((0, 90, 25), 100, 5, Some(80)),
        ((90, 0, 25), 100, 5, Some(90)),
        ((0, 60, 25), 100, 500, Some(60)),
    ] {
        let (a, b, c) = limits;
        assert_eq!(policy(a, b, c).keep_bytes(used, free), want, "{limits:?}");
    }
}

#[test]
fn least_recently_used_first_and_parents_after_children() {
    let f = fixture(Duration::from_secs(60));
    let empty = f.store.scratch();
    let (_, base) = one_file(&empty, "base", &[1; 1000]);
    f.clock.advance(Duration::from_secs(100));
    let (_, child) = one_file(&base, "child", &[2; 1000]);
    f.clock.advance(Duration::from_secs(100));
    let (_, other) = one_file(&empty, "other", &[3; 1000]);
    drop(child);
    let order = |policy: &PrunePolicy| {
        let mut gone = Vec::new();
        f.store.prune(policy, |r| gone.push(r.description.clone())).unwrap();
        gone
    };
    let keep = PrunePolicy { keep_duration: Duration::from_secs(50), ..PrunePolicy::default() };
    assert_eq!(order(&keep), ["child"], "the base is held, the other is young");
    drop((base, other));
    assert_eq!(ids(&f.store), ["base", "other"]);
    f.clock.advance(Duration::from_secs(100));
    let (_, base) = one_file(&f.store.scratch(), "first of two", b"");
    let (_, top) = one_file(&base, "top", b"");
    drop((base, top));
    assert_eq!(order(&PrunePolicy::default()), ["base", "other", "top", "first of two"]);
    assert!(ids(&f.store).is_empty());
    assert_eq!(std::fs::read_dir(f.store.root().join("layers")).unwrap().count(), 0);
}

#[test]
fn what_is_gone_is_known_by_rule_and_time_for_a_while() {
    let f = fixture(Duration::from_secs(60));
    let (layer, held) = one_file(&f.store.scratch(), "one", &[1; 1000]);
    let ids = [layer.id()];
    drop((layer, held));
    assert_eq!(f.store.evicted(&ids), None);
    let rule = PrunePolicy { rule: "rule 3".to_owned(), ..PrunePolicy::default() };
    f.store.prune(&rule, |_| {}).unwrap();
    let gone = f.store.evicted(&ids).expect("it is remembered");
    assert_eq!((gone.rule.as_str(), gone.at), ("rule 3", kiln_stdx::Clock::unix(&f.clock)));
    f.clock.advance(Duration::from_secs(61 * 24 * 3600));
    let (layer, held) = one_file(&f.store.scratch(), "two", &[2; 1000]);
    let later = [layer.id()];
    drop((layer, held));
    f.store.prune(&PrunePolicy::default(), |_| {}).unwrap();
    assert_eq!(f.store.evicted(&ids), None);
    assert_eq!(f.store.evicted(&later).map(|gone| gone.rule), Some("prune".to_owned()));
}

#[test]
fn stops_at_the_budget() {
    let f = fixture(Duration::from_secs(60));
    for i in 0..10 {
        one_file(&f.store.scratch(), &format!("f{i}"), &[0; 100_000]);
        f.clock.advance(Duration::from_secs(100));
    }
    let used = f.store.used_bytes().unwrap();
    let policy = PrunePolicy { max_used_space: used - 250_000, ..PrunePolicy::default() };
    f.store.gc(&[policy.clone(), policy], |_| {}).unwrap();
    assert_eq!(ids(&f.store).len(), 7);
    assert_eq!(ids(&f.store)[0], "f3");
}

#[test]
fn filters_types_leases_and_guards() {
    let f = fixture(Duration::from_secs(60));
    let (layer, held) = one_file(&f.store.scratch(), "held", b"1");
    let (leased, r) = one_file(&f.store.scratch(), "leased", b"2");
    f.store.put_lease("image", &Lease { layers: vec![leased.id()], blobs: Vec::new() });
    let (internal, i) = one_file(&f.store.scratch(), "internal", b"3");
    f.store.describe(&internal, "internal", RecordType::Internal).unwrap();
    let mut mount = f
        .store
        .try_cache_mount(&crate::MountKey::named("k"), Sharing::Shared, MountOwner::default(), "mount")
        .unwrap()
        .unwrap();
    mount.mark_ready().unwrap();
    drop((leased, r, internal, i));
    let prune = |policy| f.store.prune(&policy, |_| {}).unwrap().records;
    assert_eq!(prune(PrunePolicy::default()), 0);
    assert_eq!(prune(PrunePolicy { all: true, ..Default::default() }), 1, "the internal one");
    drop(mount);
    let filters = vec!["type==exec.cachemount".to_owned()];
    assert_eq!(prune(PrunePolicy { filters, ..Default::default() }), 1);
    assert_eq!(ids(&f.store), ["held", "leased"]);
    assert!(held.is_valid() && !layer.is_gone());
    f.store.delete_lease("image");
    drop((held, layer));
    assert_eq!(prune(PrunePolicy::default()), 2);
}
