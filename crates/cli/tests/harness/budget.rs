//! The cache keeps its budget at every moment: builds of random layers on a small disk, several at once, while what the
//! engine says it keeps and what the disk says is used are looked at all the time. Then the disk is filled from outside.
//!
//! `KILN_BUDGET_BUILDS=n` sets how many builds run; 200 is the full number.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kiln_testkit::disk::Disk;
use kiln_testkit::{TestEnv, report, write_tree};

use crate::choices::{Choices, number, seed};
use crate::engine::Engine;

/// Builds without the variable.
const FEW: usize = 10;
/// Builds at once.
const CLIENTS: usize = 3;
/// The disk, and the budget, in megabytes.
const DISK: u64 = 700;
const BUDGET: u64 = 150;
/// What one step, file or cache mount has at most, in megabytes.
const LARGEST: usize = 16;
const MB: u64 = 1_000_000;
/// What a build may write before somebody has looked: a step's file. What it is sent, and copies, has room made for it before.
const BUILD: u64 = LARGEST as u64 * MB;
/// How often is looked.
const LOOK: Duration = Duration::from_millis(30);
/// What the engine's own files may take beyond, and what the disk's file system keeps for itself meanwhile.
const SLACK: u64 = 8 * MB;

const DOCKERFILE: &str = "FROM base
ARG A B N
RUN echo $N; head -c ${A}000000 /dev/urandom > /a; for i in $(seq 1 200); do echo $i > /s$i; done
RUN --mount=type=cache,target=/c,id=c echo $N; head -c ${B}000000 /dev/urandom > /c/file; cp /c/file /b
COPY large /large
";

/// What the looking found.
#[derive(Default)]
struct Seen {
    samples: usize,
    most: u64,
    most_on_disk: u64,
    wrong: Vec<String>,
}

fn used(disk: &Path) -> u64 {
    let stat = rustix::fs::statvfs(disk).unwrap_or_else(|e| panic!("{}: {e}", disk.display()));
    stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize)
}

/// Looks until `over`.
fn watch(engine: &Engine, disk: &Path, before: u64, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let budget = BUDGET * MB;
    let on_disk = budget + CLIENTS as u64 * BUILD + SLACK;
    while !over.load(Ordering::Relaxed) {
        let taken = used(disk).saturating_sub(before);
        let names = ["kiln_cache_bytes", "kiln_cache_held_bytes"];
        if let [Some(cache), Some(held)] = engine.metrics(names) {
            let (cache, held) = (cache as u64, held as u64);
            seen.samples += 1;
            seen.most = seen.most.max(cache);
            if cache > budget.max(held + SLACK) {
                seen.wrong.push(format!("{cache} kept, {held} of it held"));
            }
        }
        seen.most_on_disk = seen.most_on_disk.max(taken);
        if taken > on_disk {
            seen.wrong.push(format!("{taken} on the disk"));
        }
        std::thread::sleep(LOOK);
    }
    seen
}

fn build(env: &TestEnv, base: &str, number: usize) -> kiln_testkit::Finished {
    let mut choices = Choices::new(seed(), 9_000 + number as u64);
    let mut size = || 1 + choices.below(LARGEST - 1);
    let (a, b, large) = (size(), size(), size());
    let ctx = env.path().join(format!("ctx-{number}"));
    write_tree(&ctx, &[("Dockerfile", DOCKERFILE)]);
    let bytes: Vec<u8> = (0..large * MB as usize / 8).flat_map(|_| choices.next().to_le_bytes()).collect();
    std::fs::write(ctx.join("large"), bytes).unwrap_or_else(|e| panic!("{e}"));
    let [a, b, n] = [("A", a), ("B", b), ("N", number)].map(|(name, value)| format!("--build-arg={name}={value}"));
    let base = format!("--build-context={base}");
    let path = ctx.display().to_string();
    let args = ["build", "--progress=plain", "--output=type=cacheonly", &base, &a, &b, &n, &path];
    let done = env.kiln(args).deadline(Duration::from_secs(300)).finish();
    let _ = std::fs::remove_dir_all(&ctx);
    done
}

/// Runs builds, several at once, and returns what those that failed say.
fn builds(env: &TestEnv, base: &str, count: usize) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|n| *n < count);
        let failed = numbers.map(|n| build(env, base, n)).filter(|done| done.code != Some(0));
        failed.map(|done| done.report()).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|_| vec!["a panic".to_owned()])).collect()
    })
}

/// Writes a file until nothing more goes in.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for size in [1 << 20, 4096, 1] {
        let piece = vec![1; size];
        while file.write_all(&piece).is_ok() {}
    }
}

#[test]
fn the_budget_holds_at_every_moment_and_a_full_disk_is_survived() {
    let disk = match Disk::new("ext4", DISK) {
        Ok(disk) => disk,
        Err(why) => {
            kiln_testkit::skip!("no loop-mounted disks on this host: {}", why.lines().next().unwrap_or_default())
        }
    };
    let env = TestEnv::new(env!("CARGO_BIN_EXE_kiln")).with_root(disk.path().join("root"));
    let Some(base) = env.base() else { kiln_testkit::skip!("no static busybox on this host") };
    let before = used(disk.path());
    let rule =
        format!("[worker.oci]\ngc = true\n[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = {}\n", BUDGET * MB);
    let engine = Engine::start_with(&env, &rule);
    let count = number("KILN_BUDGET_BUILDS").unwrap_or(FEW);
    let over = AtomicBool::new(false);
    let (failed, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&engine, disk.path(), before, &over));
        let failed = builds(&env, &base, count);
        over.store(true, Ordering::Relaxed);
        (failed, watcher.join().unwrap_or_default())
    });
    assert!(failed.is_empty(), "{} of {count} builds failed\n{}", failed.len(), failed.join("\n"));
    assert!(seen.wrong.is_empty(), "{} of {} samples: {:?}", seen.wrong.len(), seen.samples, &seen.wrong);
    assert!(seen.samples > count && seen.most > BUDGET * MB / 3, "{} samples, {} at most", seen.samples, seen.most);
    report(&format!(
        "{count} builds, {} samples: {} MB kept at most, {} MB on the disk",
        seen.samples,
        seen.most / MB,
        seen.most_on_disk / MB
    ));

    let filler = disk.path().join("filler");
    fill(&filler);
    let done = build(&env, &base, count);
    let text = done.report();
    assert!(done.code != Some(0) && text.to_lowercase().contains("no space left"), "{text}");
    assert!(text.contains("kiln prune"), "it says what to do\n{text}");
    fill(&disk.path().join("rest"));
    let _ = env.kiln(["prune", "--all", "--force"]).finish().ok();
    let _ = env.kiln(["cache", "verify"]).finish().ok();
    std::fs::remove_file(&filler).unwrap_or_else(|e| panic!("{e}"));
    let _ = build(&env, &base, count).ok();
    drop(engine);
}
