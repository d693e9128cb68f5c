//! The loader against definitions that no builder makes.

use bytes::Bytes;
use kiln_llb::op::{FileInput, MountKind, Op, SourceOp};
use kiln_llb::{Definition, Graph, LlbError, LoadOptions, pb};
use kiln_stdx::Digest;
use prost::Message;

fn source(id: &str) -> pb::Op {
    let source = pb::SourceOp { identifier: id.into(), ..pb::SourceOp::default() };
    pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }
}

fn input(of: &[u8], index: i64) -> pb::Input {
    pb::Input { digest: Digest::of(of).to_string(), index }
}

fn bytes(op: &pb::Op) -> Bytes {
    op.encode_to_vec().into()
}

fn head(of: &[u8], index: i64) -> Bytes {
    bytes(&pb::Op { inputs: vec![input(of, index)], ..pb::Op::default() })
}

fn load(ops: Vec<Bytes>) -> Result<Graph, LlbError> {
    Graph::load(&Definition { ops, ..Definition::default() }, &LoadOptions::default())
}

/// Loads one operation over two sources, as the result.
fn load_over_sources(op: pb::op::Op) -> Result<Graph, LlbError> {
    let (a, b) = (bytes(&source("local://a")), bytes(&source("local://b")));
    let inputs = vec![input(&a, 0), input(&b, 0)];
    let op = bytes(&pb::Op { inputs, op: Some(op), ..pb::Op::default() });
    let last = head(&op, 0);
    load(vec![a, b, op, last])
}

fn exec(mounts: Vec<pb::Mount>) -> pb::op::Op {
    let meta = pb::Meta { args: vec!["x".into()], cwd: "/".into(), ..pb::Meta::default() };
    pb::op::Op::Exec(pb::ExecOp { meta: Some(meta), mounts, ..pb::ExecOp::default() })
}

fn mount(dest: &str, input: i64, output: i64) -> pb::Mount {
    pb::Mount { dest: dest.into(), input, output, ..pb::Mount::default() }
}

#[test]
fn envelopes_are_checked() {
    let a = bytes(&source("local://a"));
    assert_eq!(load(vec![]).unwrap_err(), LlbError::Empty);
    assert_eq!(load(vec![a.clone()]).unwrap_err().to_string(), "invalid LLB with 1 vertexes");
    assert_eq!(load(vec![a.clone(), bytes(&source("local://b"))]).unwrap_err(), LlbError::NoResult);
    assert!(matches!(load(vec![a.clone(), head(b"other", 0)]), Err(LlbError::MissingInput(_))));
    assert!(matches!(load(vec![a.clone(), Bytes::from_static(b"\xff\xff")]), Err(LlbError::Decode { index: 1, .. })));
    assert!(matches!(load(vec![a.clone(), head(&a, 1)]), Err(LlbError::Invalid { .. })), "a source has one output");
    assert!(matches!(load(vec![a.clone(), head(&a, -1)]), Err(LlbError::Invalid { .. })));
    let few = LoadOptions { max_ops: 1, ..LoadOptions::default() };
    let two = Definition { ops: vec![a.clone(), head(&a, 0)], ..Definition::default() };
    assert_eq!(Graph::load(&two, &few).unwrap_err(), LlbError::TooMany);
    assert!(Graph::load(&two, &LoadOptions::default()).is_ok());
}

#[test]
fn unknown_fields_stay_in_the_digest_and_in_the_bytes() {
    let mut odd = source("local://a").encode_to_vec();
    odd.extend([0xfa, 0x01, 0x02, b'h', b'i']); // field 31, a string nobody knows
    let odd = Bytes::from(odd);
    let graph = load(vec![odd.clone(), head(&odd, 0)]).unwrap();
    assert_eq!(graph.vertices()[0].raw, odd);
    assert_eq!(graph.result().vertex, Digest::of(&odd));
    let untouched = graph.replace_sources(|_, _| Ok::<_, LlbError>(None)).unwrap();
    assert_eq!(untouched.vertices()[0].raw, odd);
}

#[test]
fn order_of_entries_does_not_matter_and_strangers_are_left_out() {
    let (a, stranger) = (bytes(&source("local://a")), bytes(&source("local://stranger")));
    let actions = vec![pb::FileAction {
        input: 0,
        secondary_input: -1,
        output: 0,
        action: Some(pb::file_action::Action::Rm(pb::FileActionRm { path: "/x".into(), ..Default::default() })),
    }];
    let file = pb::op::Op::File(pb::FileOp { actions });
    let file = bytes(&pb::Op { inputs: vec![input(&a, 0)], op: Some(file), ..pb::Op::default() });
    let last = head(&file, 0);
    let graph = load(vec![file, stranger, a.clone(), last]).unwrap();
    let digests: Vec<_> = graph.vertices().iter().map(|v| v.digest).collect();
    assert_eq!(digests.len(), 2);
    assert_eq!(digests[0], Digest::of(&a));
    assert_eq!(graph.vertices()[1].name, "rm /x");
}

#[test]
fn unknown_capabilities_are_refused_unless_nobody_asks() {
    let a = bytes(&source("local://a"));
    let mut definition = Definition { ops: vec![a.clone(), head(&a, 0)], ..Definition::default() };
    let caps = [("source.local".to_owned(), true), ("warp.drive".to_owned(), true)].into();
    definition.metadata.insert(Digest::of(&a).to_string(), pb::OpMetadata { caps, ..Default::default() });
    let error = Graph::load(&definition, &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("warp.drive"), "{error}");
    let lax = LoadOptions { check_caps: false, ..LoadOptions::default() };
    assert!(Graph::load(&definition, &lax).is_ok());
}

#[test]
fn process_mounts_are_checked() {
    let ok = load_over_sources(exec(vec![mount("/", 0, 0), mount("/m", 1, -1), mount("/n", -1, 1)])).unwrap();
    let Op::Exec(op) = &ok.vertices()[2].op else { panic!() };
    assert_eq!(
        op.mounts.iter().map(|m| (m.input, m.output)).collect::<Vec<_>>(),
        [(Some(0), Some(0)), (Some(1), None), (None, Some(1))]
    );
    for (mounts, complaint) in [
        (vec![], "no mounts"),
        (vec![mount("/a", 0, 0)], "no rootfs"),
        (vec![mount("/", 2, 0)], "input index 2"),
        (vec![mount("/", -2, 0)], "input index -2"),
        (vec![mount("/", 0, 0), mount("/", 1, 1)], "2 root mounts"),
        (vec![mount("/", 0, 0), pb::Mount { mount_type: 9, ..mount("/t", -1, -1) }], "unknown kind"),
        (vec![mount("/", 0, 0), pb::Mount { mount_type: 1, ..mount("/s", -1, -1) }], "secret without options"),
    ] {
        let error = load_over_sources(exec(mounts)).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
fn secrets_and_caches_have_no_output() {
    let secret = pb::Mount {
        mount_type: pb::MountType::Secret.into(),
        secret_opt: Some(pb::SecretOpt { id: "s".into(), ..Default::default() }),
        ..mount("/s", -1, 0)
    };
    let cache = pb::Mount {
        mount_type: pb::MountType::Cache.into(),
        cache_opt: Some(pb::CacheOpt::default()),
        ..mount("/c", -1, -1)
    };
    let graph = load_over_sources(exec(vec![mount("/", 0, 0), secret, cache])).unwrap();
    let Op::Exec(op) = &graph.vertices()[2].op else { panic!() };
    assert_eq!(graph.vertices()[2].op.output_count(), 1);
    assert_eq!(op.mounts[1].output, None);
    assert!(matches!(&op.mounts[2].kind, MountKind::Cache { id, .. } if id == "/c"), "the id is the path by default");
}

#[test]
fn file_actions_see_only_what_came_before() {
    let action = |input, secondary_input, output| pb::FileAction {
        input,
        secondary_input,
        output,
        action: Some(pb::file_action::Action::Copy(pb::FileActionCopy {
            mode: -1,
            timestamp: -1,
            ..Default::default()
        })),
    };
    let file = |actions| load_over_sources(pb::op::Op::File(pb::FileOp { actions }));
    let graph = file(vec![action(0, 1, -1), action(2, -1, 0)]).unwrap();
    let Op::File(op) = &graph.vertices()[2].op else { panic!() };
    assert_eq!(op.actions[1].input, FileInput::Action(0));
    assert_eq!((op.actions[0].output, op.actions[1].output), (None, Some(0)));
    assert!(file(vec![action(2, -1, 0)]).is_err(), "an action cannot use itself");
    assert!(file(vec![action(0, -1, -1)]).is_err(), "nothing comes out");
    assert!(file(vec![]).is_err());
}

#[test]
fn merges_diffs_and_passthroughs_are_checked() {
    let merge = |list: &[i64]| {
        let inputs = list.iter().map(|&input| pb::MergeInput { input }).collect();
        load_over_sources(pb::op::Op::Merge(pb::MergeOp { inputs }))
    };
    assert_eq!(merge(&[0, 1]).unwrap().vertices()[2].name, "merge (local://a, local://b)");
    assert!(merge(&[0]).is_err() && merge(&[0, 5]).is_err() && merge(&[0, -1]).is_err());
    let diff = |lower, upper| {
        load_over_sources(pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: lower }),
            upper: Some(pb::UpperDiffInput { input: upper }),
        }))
    };
    assert_eq!(diff(-1, 0).unwrap().vertices().last().unwrap().name, "diff scratch -> (local://a)");
    assert!(diff(0, 3).is_err());
    assert!(load_over_sources(pb::op::Op::Diff(pb::DiffOp::default())).is_err());
    let pass = |id: &str, outputs: &[i64]| {
        load_over_sources(pb::op::Op::Passthrough(pb::PassthroughOp { id: id.into(), outputs: outputs.to_vec() }))
    };
    assert_eq!(pass("g", &[1, 0]).unwrap().vertices()[2].op.output_count(), 2);
    assert!(pass("", &[0]).is_err() && pass("g", &[]).is_err() && pass("g", &[-1]).is_err());
}

#[test]
fn replacing_a_source_moves_everything_above_it() {
    let (a, b) = (bytes(&source("docker-image://a")), bytes(&source("docker-image://b")));
    let merge =
        pb::op::Op::Merge(pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }] });
    let merge = bytes(&pb::Op { inputs: vec![input(&a, 0), input(&b, 0)], op: Some(merge), ..pb::Op::default() });
    let mut definition =
        Definition { ops: vec![a.clone(), b.clone(), merge.clone(), head(&merge, 0)], ..Default::default() };
    let named =
        pb::OpMetadata { description: [("llb.customname".to_owned(), "both".to_owned())].into(), ..Default::default() };
    definition.metadata.insert(Digest::of(&merge).to_string(), named);
    let graph = Graph::load(&definition, &LoadOptions::default()).unwrap();
    let replaced = graph
        .replace_sources(|_, s| {
            let pin = SourceOp { identifier: "docker-image://a@pinned".into(), attrs: s.attrs.clone() };
            Ok::<_, LlbError>((s.identifier == "docker-image://a").then_some(pin))
        })
        .unwrap();
    assert_eq!(replaced.vertices()[0].name, "docker-image://a@pinned");
    assert_eq!(replaced.vertices()[1].raw, b, "what is not touched keeps its bytes");
    assert_eq!(replaced.vertices()[2].name, "both", "metadata moves along");
    assert_ne!(replaced.result().vertex, graph.result().vertex);
    assert_eq!(replaced.vertices()[2].inputs[0].vertex, replaced.vertices()[0].digest);
}

#[test]
fn bytes_survive_the_envelope() {
    let a = bytes(&source("local://a"));
    let definition = Definition { ops: vec![a.clone(), head(&a, 0)], ..Definition::default() };
    assert_eq!(Definition::decode(&definition.encode()).unwrap(), definition);
    assert!(Definition::decode(b"\x0a\xff").is_err());
}
