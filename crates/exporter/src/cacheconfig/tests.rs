//! The format both ways, with documents as BuildKit writes them and with broken ones.

use std::collections::BTreeMap;

use kiln_oci::{DiffId, ImageConfig, Manifest, media};

use super::*;

fn key(name: &str) -> Digest {
    Digest::of(name)
}

fn blob(name: &str) -> Descriptor {
    let mut descriptor = Descriptor::of(media::OCI_LAYER_GZIP, name.as_bytes());
    descriptor.annotations.insert(UNCOMPRESSED.into(), Digest::of(format!("{name} unpacked")).to_string());
    descriptor
}

fn blobs(names: &[&str]) -> BTreeMap<Digest, Descriptor> {
    names.iter().map(|n| (blob(n).digest, blob(n))).collect()
}

fn link(node: usize) -> CacheLink {
    CacheLink { selector: None, node }
}

fn root(name: &str) -> CacheNode {
    CacheNode { digest: key(name), inputs: vec![], results: vec![] }
}

fn step(name: &str, inputs: Vec<Vec<CacheLink>>, layers: &[&str]) -> CacheNode {
    let layers: Vec<_> = layers.iter().map(|l| blob(l)).collect();
    let results = if layers.is_empty() { vec![] } else { vec![CacheResult { layers, created: 100_000_000_001 }] };
    CacheNode { digest: key(name), inputs, results }
}

fn json(config: &CacheConfig) -> String {
    String::from_utf8(kiln_oci::to_ordered_json("test", config).unwrap()).unwrap()
}

#[test]
fn the_document_has_the_fields_and_quirks_of_the_format() {
    let nodes = [root("source"), step("run", vec![vec![link(0)]], &["a", "b"])];
    let (config, used) = build(&nodes);
    let (a, b) = (blob("a").digest, blob("b").digest);
    // Sorted by digest; the bottom layer says -1, an upper one on index 0 says nothing.
    let layer = |digest: Digest, parent: i64| match parent {
        0 => format!(r#"{{"blob":"{digest}"}}"#),
        p => format!(r#"{{"blob":"{digest}","parent":{p}}}"#),
    };
    let layers = if a < b { [layer(a, -1), layer(b, 0)] } else { [layer(b, 1), layer(a, -1)] };
    let top = if a < b { 1 } else { 0 };
    let source = format!(r#"{{"digest":"{}"}}"#, key("source"));
    let run = |at: usize| {
        format!(
            r#"{{"layers":[{{"layer":{top},"createdAt":"1970-01-01T00:01:40.000000001Z"}}],"digest":"{}","inputs":[[{{"link":{at}}}]]}}"#,
            key("run")
        )
    };
    let records = if key("source") < key("run") { [source, run(0)] } else { [run(1), source] };
    let want = format!(r#"{{"layers":[{}],"records":[{}]}}"#, layers.join(","), records.join(","));
    assert_eq!(json(&config), want);
    assert_eq!(used.len(), 2);
}

#[test]
fn reading_gives_back_what_was_written() {
    let selector = Some(key("part"));
    let nodes = [
        root("source"),
        root("context"),
        step("copy", vec![vec![link(0)], vec![CacheLink { selector, node: 1 }]], &["a"]),
        step("run", vec![vec![link(2)]], &["a", "b"]),
        step("other", vec![vec![link(2), link(0)]], &["a", "c"]),
    ];
    let (config, used) = build(&nodes);
    let parsed = parse(json(&config).as_bytes(), &used.iter().map(|b| (b.digest, b.clone())).collect()).unwrap();
    assert_eq!((parsed.nodes.len(), parsed.dropped), (5, 0));
    let again = build(&parsed.nodes).0;
    assert_eq!(json(&again), json(&config));
    for (index, node) in parsed.nodes.iter().enumerate() {
        assert!(node.inputs.iter().flatten().all(|l| l.node < index), "inputs come first");
    }
    let copy = parsed.nodes.iter().find(|n| n.digest == key("copy")).unwrap();
    assert_eq!(copy.inputs[1][0].selector, selector);
    assert_eq!(copy.results[0].layers, [blob("a")]);
}

#[test]
fn the_order_of_nodes_does_not_show() {
    let forward = [root("s"), step("x", vec![vec![link(0)]], &["a"]), step("y", vec![vec![link(1)]], &["a", "b"])];
    let backward = [step("y", vec![vec![link(1)]], &["a", "b"]), step("x", vec![vec![link(2)]], &["a"]), root("s")];
    assert_eq!(json(&build(&forward).0), json(&build(&backward).0));
}

#[test]
fn equal_keys_are_merged_and_the_newest_result_wins() {
    let mut old = step("x", vec![vec![link(0)]], &["old"]);
    old.results[0].created = 100_000_000_000;
    let nodes = [root("s"), old, step("x", vec![vec![link(0), link(3)]], &["new"]), root("t")];
    let (config, used) = build(&nodes);
    assert_eq!(config.records.len(), 3);
    assert_eq!(used, [blob("new")]);
    let record = config.records.iter().find(|r| r.digest == key("x").to_string()).unwrap();
    assert_eq!(record.inputs[0].as_ref().unwrap().len(), 2, "both ways to it are kept");
}

#[test]
fn keys_that_lead_nowhere_are_left_out() {
    let nodes = [root("s"), step("used", vec![vec![link(0)]], &["a"]), step("unused", vec![vec![link(0)]], &[])];
    let (config, _) = build(&nodes);
    assert_eq!(config.records.len(), 2);
    assert_eq!(build(&[root("s")]).0, CacheConfig::default());
}

#[test]
fn loops_are_cut_when_writing_and_when_reading() {
    let nodes = [
        step("a", vec![vec![link(1), link(2)]], &["x"]),
        step("b", vec![vec![link(0)]], &["y"]),
        root("s"),
        step("alone", vec![vec![link(3)]], &["z"]),
    ];
    let (config, _) = build(&nodes);
    let digests: Vec<_> = config.records.iter().map(|r| r.digest.clone()).collect();
    assert!(digests.contains(&key("a").to_string()) && !digests.contains(&key("alone").to_string()));

    let text = format!(
        r#"{{"layers":[{{"blob":"{0}","parent":-1}},{{"blob":"{0}","parent":2}},{{"blob":"{0}","parent":1}}],"records":[
           {{"digest":"{1}","inputs":[[{{"link":1}}]],"layers":[{{"layer":0}}]}},
           {{"digest":"{2}","inputs":[[{{"link":0}}]],"layers":[{{"layer":1}}]}},
           {{"digest":"{3}","layers":[{{"layer":1}},{{"layer":0}}]}}]}}"#,
        blob("x").digest,
        key("p"),
        key("q"),
        key("r")
    );
    let parsed = parse(text.as_bytes(), &blobs(&["x"])).unwrap();
    let kept: Vec<_> = parsed.nodes.iter().map(|n| (n.digest, n.results.len())).collect();
    assert_eq!(kept, [(key("r"), 1)]);
    assert!(parsed.dropped >= 3);
}

#[test]
fn damage_costs_only_what_it_touches() {
    let good = format!(r#"{{"digest":"{}","layers":[{{"layer":0,"createdAt":"2020-01-01T00:00:00Z"}}]}}"#, key("good"));
    for bad in [
        "7".to_owned(),
        "null".to_owned(),
        r#"{"digest":"sha256:zz"}"#.to_owned(),
        r#"{"digest":"random:abc"}"#.to_owned(),
        format!(r#"{{"digest":"{}","inputs":[[]]}}"#, key("bad")),
        format!(r#"{{"digest":"{}","inputs":[null]}}"#, key("bad")),
        format!(r#"{{"digest":"{}","inputs":[[{{"link":99}}]]}}"#, key("bad")),
        format!(r#"{{"digest":"{}","inputs":[[{{"link":-1}}]]}}"#, key("bad")),
        format!(r#"{{"digest":"{}","inputs":[[{{"link":1,"selector":"?"}}]]}}"#, key("bad")),
        format!(r#"{{"digest":"{}","layers":"no"}}"#, key("bad")),
    ] {
        let text = format!(r#"{{"layers":[{{"blob":"{}","parent":-1}}],"records":[{bad},{good}]}}"#, blob("x").digest);
        let parsed = parse(text.as_bytes(), &blobs(&["x"])).unwrap();
        assert_eq!(parsed.nodes.len(), 1, "{bad}");
        assert_eq!((parsed.nodes[0].digest, parsed.nodes[0].results.len()), (key("good"), 1));
        assert!(parsed.dropped > 0);
    }
    for text in ["", "[]x", "3", "{\"records\":4}"] {
        assert!(parse(text.as_bytes(), &BTreeMap::new()).is_err(), "{text}");
    }
}

#[test]
fn results_without_their_blobs_are_left_out() {
    let nodes = [step("x", vec![], &["a", "b"]), step("y", vec![], &["a"])];
    let parsed = parse(json(&build(&nodes).0).as_bytes(), &blobs(&["a"])).unwrap();
    let with_results: Vec<_> = parsed.nodes.iter().filter(|n| !n.results.is_empty()).map(|n| n.digest).collect();
    assert_eq!((parsed.nodes.len(), with_results), (2, vec![key("y")]));
}

#[test]
fn a_deep_config_does_not_exhaust_the_stack() {
    let mut nodes = vec![root("0")];
    for i in 1..50_000 {
        nodes.push(step(&i.to_string(), vec![vec![link(i - 1)]], &[]));
    }
    nodes.last_mut().unwrap().results = step("", vec![], &["a"]).results;
    nodes.reverse();
    let count = nodes.len();
    for link in nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten()) {
        link.node = count - 1 - link.node;
    }
    assert_eq!(build(&nodes).0.records.len(), 50_000);
}

#[test]
fn manifests_of_all_forms_are_read_back() {
    let config = Descriptor::of(media::CACHE_CONFIG, b"{}");
    for (form, media_type) in [
        (CacheForm::ImageManifest, media::OCI_MANIFEST),
        (CacheForm::Index, media::OCI_INDEX),
        (CacheForm::DockerIndex, media::DOCKER_INDEX),
    ] {
        let (descriptor, bytes) = write_manifest(form, config.clone(), &[blob("a"), blob("b")]).unwrap();
        assert_eq!((descriptor.media_type.as_str(), descriptor.size), (media_type, bytes.len() as u64));
        let CacheManifest::Config { config: got, blobs } = read_manifest(&bytes).unwrap() else { panic!("{form:?}") };
        assert_eq!((*got, blobs.len()), (config.clone(), 2));
        assert!(blobs[&blob("a").digest].annotations.contains_key(UNCOMPRESSED));
    }
    let image = Manifest::new(media::OCI_MANIFEST, Descriptor::of(media::OCI_CONFIG, b"{}"), vec![blob("a")]);
    assert!(matches!(read_manifest(&image.to_manifest_json().unwrap()).unwrap(), CacheManifest::Image(_)));
    assert!(read_manifest(b"{}").is_err());
}

#[test]
fn the_inline_cache_counts_the_images_layers() {
    let nodes = [
        root("s"),
        step("first", vec![vec![link(0)]], &["a"]),
        step("second", vec![vec![link(1)]], &["a", "b"]),
        step("moved", vec![vec![link(0)]], &["b"]),
        step("elsewhere", vec![vec![link(0)]], &["not in the image"]),
    ];
    let uncompressed = |name: &str| Digest::of(format!("{name} unpacked"));
    let layers = [(blob("a").digest, uncompressed("a")), (key("recompressed"), uncompressed("b"))];
    let records = inline_records(&nodes, &layers).unwrap().unwrap();

    let mut image = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
    image.rootfs.diff_ids = vec![DiffId(uncompressed("a")), DiffId(uncompressed("b"))];
    let encode = |records: &[u8]| {
        use base64::Engine as _;
        base64::prelude::BASE64_STANDARD.encode(records)
    };
    image.extra.insert("moby.buildkit.cache.v0".into(), encode(&records).into());
    let other = Descriptor::new(media::OCI_LAYER_ZSTD, key("recompressed"), 5);
    let config = Descriptor::of(media::OCI_CONFIG, b"");
    let manifest = Manifest::new(media::OCI_MANIFEST, config, vec![blob("a"), other]);
    let parsed = parse_inline(&image.to_config_json().unwrap(), &manifest).unwrap().unwrap();
    let found = |name: &str| parsed.nodes.iter().find(|n| n.digest == key(name)).unwrap();
    let digests = |name: &str| found(name).results[0].layers.iter().map(|l| l.digest).collect::<Vec<_>>();
    assert_eq!(digests("first"), [blob("a").digest]);
    assert_eq!(digests("second"), [blob("a").digest, key("recompressed")]);
    assert_eq!(digests("moved"), [key("recompressed")]);
    assert!(!parsed.nodes.iter().any(|n| n.digest == key("elsewhere")));

    assert_eq!(inline_records(&nodes, &[]).unwrap(), None);
    image.rootfs.diff_ids.pop();
    assert_eq!(parse_inline(&image.to_config_json().unwrap(), &manifest).unwrap(), None);
    image.extra.clear();
    assert_eq!(parse_inline(&image.to_config_json().unwrap(), &manifest).unwrap(), None);
}

#[test]
fn a_config_without_a_manifest_tells_what_its_layers_are() {
    let mut nodes = [root("source"), step("run", vec![vec![link(0)]], &["a", "b"])];
    let created = "2020-01-01T00:00:00Z";
    nodes[1].results[0].layers[1].annotations.insert(CREATED_AT.into(), created.into());
    let (config, _) = build_annotated(&nodes);
    let text = json(&config);
    let want = format!(
        r#""annotations":{{"mediaType":"{}","diffID":"{}","size":1,"createdAt":"{created}"}}"#,
        media::OCI_LAYER_GZIP,
        Digest::of("b unpacked")
    );
    assert!(text.contains(&want) && text.contains(r#""createdAt":"0001-01-01T00:00:00Z""#), "{text}");
    let parsed = parse_annotated(text.as_bytes()).unwrap();
    assert_eq!(parsed.dropped, 0);
    let run = parsed.nodes.iter().find(|n| n.digest == key("run")).unwrap();
    let mut top = blob("b");
    top.annotations.insert(CREATED_AT.into(), created.into());
    assert_eq!(run.results[0].layers, [blob("a"), top]);
    // A layer that does not say enough costs what is made of it.
    for (from, to) in
        [("\"diffID\":\"sha256:", "\"diffID\":\"md5:"), ("\"size\":1", "\"size\":-1"), ("annotations", "x")]
    {
        let parsed = parse_annotated(text.replace(from, to).as_bytes()).unwrap();
        assert!(parsed.dropped > 0 && parsed.nodes.iter().all(|n| n.results.is_empty()), "{from}");
    }
    assert!(parse_annotated(b"<html>").is_err());
}

#[test]
fn a_sealed_config_is_read_as_it_was_or_not_at_all() {
    let nodes = [root("source"), step("run", vec![vec![link(0)]], &["a", "b"])];
    let text = json(&build_annotated(&nodes).0);
    let (plain, sealed) = (parse_annotated(text.as_bytes()).unwrap(), seal(text.as_bytes()));
    assert_eq!(parse_annotated(&sealed).unwrap(), plain);
    // Other readers see one field more.
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&sealed).unwrap();
    let digest = Digest::of(text.as_bytes()).to_string();
    assert_eq!((fields.len(), &fields["io.kiln.digest"]), (3, &serde_json::Value::from(digest)));
    for place in 0..sealed.len() {
        for bit in 0..8 {
            let mut changed = sealed.clone();
            changed[place] ^= 1 << bit;
            assert!(parse_annotated(&changed).is_ok_and(|read| read == plain) || parse_annotated(&changed).is_err());
        }
        if let Ok(read) = parse_annotated(&sealed[..place]) {
            panic!("{read:?} of {place} bytes");
        }
    }
    assert_eq!(seal(b"{}"), b"{}");
}
