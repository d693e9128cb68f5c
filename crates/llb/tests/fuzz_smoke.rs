//! Definitions from fixed seeds, good ones mutated in their bytes and in their fields: the loader and whatever reads a
//! loaded graph answer, and never panic.
//!
//! `KILN_FUZZ_SECONDS=n` goes on for so long; `KILN_FUZZ_SEED=n` begins at a seed, which what fails names.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kiln_llb::builder::{Builder, FileActions, FileOptions, Meta, Output};
use kiln_llb::{Definition, Graph, LlbError, LoadOptions, pb};
use kiln_oci::Platform;
use kiln_stdx::Digest;
use prost::Message;

/// Seeds of a run without the variable.
const FEW: u64 = 3000;

/// A small generator of numbers, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A graph of every kind of operation.
fn honest() -> Definition {
    let op = |inputs: Vec<pb::Input>, op| pb::Op { inputs, op: Some(op), ..pb::Op::default() }.encode_to_vec();
    let source = |id: &str| {
        let source = pb::SourceOp { identifier: id.into(), ..pb::SourceOp::default() };
        op(vec![], pb::op::Op::Source(source))
    };
    let input = |of: &[u8]| pb::Input { digest: Digest::of(of).to_string(), index: 0 };
    let (image, local) = (source("docker-image://docker.io/library/a:1"), source("local://context"));
    let git = source("git://example.org/a.git#main:sub");
    let mount = |dest: &str, input, output| pb::Mount { dest: dest.into(), input, output, ..pb::Mount::default() };
    let meta = pb::Meta {
        args: vec!["sh".into(), "-c".into(), "true".into()],
        env: vec!["A=b".into()],
        cwd: "/".into(),
        ..pb::Meta::default()
    };
    let cache = pb::Mount {
        mount_type: pb::MountType::Cache.into(),
        cache_opt: Some(pb::CacheOpt { id: "c".into(), ..Default::default() }),
        ..mount("/c", -1, -1)
    };
    let exec = pb::ExecOp {
        meta: Some(meta),
        mounts: vec![mount("/", 0, 0), mount("/src", 1, 1), cache],
        ..pb::ExecOp::default()
    };
    let exec = op(vec![input(&image), input(&local)], pb::op::Op::Exec(exec));
    let merge = pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }] };
    let merge = op(vec![input(&exec), input(&git)], pb::op::Op::Merge(merge));
    let diff =
        pb::DiffOp { lower: Some(pb::LowerDiffInput { input: 0 }), upper: Some(pb::UpperDiffInput { input: 1 }) };
    let diff = op(vec![input(&image), input(&merge)], pb::op::Op::Diff(diff));
    let mut builder = Builder::new(Platform::host());
    let actions = FileActions::new().mkfile("/a", 0o644, b"x".to_vec(), FileOptions::default());
    let made = builder.file(Output::SCRATCH, actions, Meta::named("make"));
    let made = builder.definition(made).expect("a definition");
    let last = pb::Op { inputs: vec![input(&diff)], ..pb::Op::default() }.encode_to_vec();
    let mut ops: Vec<Bytes> = made.ops[..made.ops.len() - 1].to_vec();
    ops.extend([image, local, git, exec, merge, diff, last].map(Bytes::from));
    Definition { ops, metadata: made.metadata, source: None }
}

/// Joins the operations again after their bytes have changed: what names an old digest names the new one.
fn relink(ops: &mut [Bytes], old: &[Digest]) {
    for at in 0..ops.len() {
        let Ok(mut op) = pb::Op::decode(ops[at].clone()) else { continue };
        let mut moved = false;
        for input in &mut op.inputs {
            let was = old.iter().position(|digest| digest.to_string() == input.digest);
            if let Some(of) = was.filter(|of| *of < ops.len()) {
                input.digest = Digest::of(&ops[of]).to_string();
                moved = true;
            }
        }
        if moved {
            ops[at] = op.encode_to_vec().into();
        }
    }
}

/// Changes fields of one operation.
fn change(random: &mut Random, op: &mut pb::Op) {
    const NUMBERS: [i64; 8] = [-2, -1, 0, 1, 2, 77, i64::MIN, i64::MAX];
    const TEXTS: [&str; 9] = ["", "/", "..", "a", "local://", "docker-image://@", "\u{0}", "http://x", "git://#:"];
    for input in &mut op.inputs {
        if random.below(4) == 0 {
            input.index = random.pick(&NUMBERS);
        }
    }
    match &mut op.op {
        Some(pb::op::Op::Source(source)) => {
            source.identifier = format!("{}{}", random.pick(&TEXTS), source.identifier);
            source.attrs.insert("http.checksum".into(), random.pick(&TEXTS).into());
        }
        Some(pb::op::Op::Exec(exec)) => {
            for mount in &mut exec.mounts {
                match random.below(6) {
                    0 => mount.input = random.pick(&NUMBERS),
                    1 => mount.output = random.pick(&NUMBERS),
                    2 => mount.dest = random.pick(&TEXTS).into(),
                    3 => mount.mount_type = random.pick(&[-1, 0, 1, 2, 3, 4, 5, 99]),
                    4 => mount.selector = random.pick(&TEXTS).into(),
                    _ => {}
                }
            }
            exec.network = random.pick(&[-1, 0, 1, 2, 9]);
            if random.below(3) == 0 {
                exec.meta = None;
            }
        }
        Some(pb::op::Op::Merge(merge)) => {
            merge.inputs.push(pb::MergeInput { input: random.pick(&NUMBERS) });
        }
        Some(pb::op::Op::Diff(diff)) => {
            diff.lower = Some(pb::LowerDiffInput { input: random.pick(&NUMBERS) });
        }
        Some(pb::op::Op::File(file)) => {
            for action in &mut file.actions {
                action.input = random.pick(&NUMBERS);
                action.secondary_input = random.pick(&NUMBERS);
                action.output = random.pick(&NUMBERS);
            }
        }
        _ => op.inputs.clear(),
    }
}

fn mutate(random: &mut Random) -> Vec<u8> {
    let mut definition = honest();
    let old: Vec<Digest> = definition.ops.iter().map(Digest::of).collect();
    for _ in 0..=random.below(3) {
        let at = random.below(definition.ops.len());
        match random.below(5) {
            0 => drop(definition.ops.remove(at)),
            1 => {
                let other = random.below(definition.ops.len());
                definition.ops.swap(at, other);
            }
            2 => {
                let mut bytes = definition.ops[at].to_vec();
                let place = random.below(bytes.len());
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 1 << random.below(8);
                }
                bytes.truncate(bytes.len() - random.below(2) * random.below(bytes.len()));
                definition.ops[at] = bytes.into();
            }
            _ => {
                if let Ok(mut op) = pb::Op::decode(definition.ops[at].clone()) {
                    change(random, &mut op);
                    definition.ops[at] = op.encode_to_vec().into();
                }
            }
        }
        if definition.ops.is_empty() {
            break;
        }
    }
    // Every other time broken links are left as they are.
    if random.below(2) == 0 {
        relink(&mut definition.ops, &old);
    }
    let mut bytes = definition.encode();
    if random.below(4) == 0 && !bytes.is_empty() {
        let place = random.below(bytes.len());
        bytes[place] = random.below(256) as u8;
    }
    bytes
}

/// Reads bytes as a definition and does with the graph what an engine does first; tells whether it is one.
fn load(bytes: &[u8]) -> bool {
    let Ok(definition) = Definition::decode(bytes) else { return false };
    let loaded = Graph::load(&definition, &LoadOptions::default());
    let graph = match loaded {
        Ok(graph) => graph,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    for (at, vertex) in graph.vertices().iter().enumerate() {
        assert_eq!(vertex.digest, Digest::of(&vertex.raw));
        let before = &graph.vertices()[..at];
        assert!(vertex.inputs.iter().all(|edge| before.iter().any(|v| v.digest == edge.vertex)), "inputs come first");
    }
    let same = graph.replace_sources(|_, _| Ok::<_, LlbError>(None)).expect("nothing is replaced");
    assert_eq!(same.result(), graph.result());
    true
}

#[test]
fn definitions_that_are_none_are_refused() {
    assert!(load(&honest().encode()), "the seed is a good one");
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (first, start) = (number("KILN_FUZZ_SEED").unwrap_or(0), Instant::now());
    let limit = number("KILN_FUZZ_SECONDS").map(Duration::from_secs);
    let (mut seed, mut good) = (first, 0);
    while limit.map_or(seed < first + FEW, |limit| start.elapsed() < limit) {
        let bytes = mutate(&mut Random(seed.wrapping_mul(0x9e37_79b9)));
        let read = std::panic::catch_unwind(|| load(&bytes));
        good += usize::from(read.unwrap_or_else(|_| panic!("KILN_FUZZ_SEED={seed}")));
        seed += 1;
    }
    assert!(good > 10, "only {good} mutations loaded: they are too coarse to reach what comes behind the loader");
}
