//! The walk for remote caches.

use std::sync::Arc;

use kiln_solver::{
    ExportOptions, KeyId, KeyStore, Link, Loaded, MemoryKeyStore, OpContext, OutputKey, Vertex, content_key_id,
};
use kiln_stdx::Digest;

use crate::kit::{Text, bench, edge, vertex};

fn graph() -> [Vertex<Text>; 3] {
    let base = vertex("base").gives("base").done();
    let context = vertex("context").run_key().gives("files").done();
    let copy = vertex("copy").input(&base).by_content(&context).done();
    [base, context, copy]
}

#[tokio::test]
async fn an_export_has_the_shape_that_remote_caches_have() {
    let [base, context, copy] = graph();
    let bench = bench();
    let (job, _) = bench.job("job", &[&base, &context, &copy]).await;
    job.build(edge(&copy)).await.unwrap();
    let graph = job.export(edge(&copy), ExportOptions::default()).await.unwrap();

    let root = &graph.nodes[graph.root.unwrap()];
    assert_eq!(root.digest, OutputKey::new(&Digest::of("copy"), 0).0);
    assert_eq!(root.vertex, Some((copy.digest, 0)));
    assert_eq!(root.result.as_deref().map(String::as_str), Some("copy(base,files)"));
    assert_eq!(root.records.len(), 1);
    let inputs: Vec<Vec<Digest>> =
        root.inputs.iter().map(|links| links.iter().map(|link| graph.nodes[link.node].digest).collect()).collect();
    // A key of this run is left out; the content stands for it.
    let content = content_key_id(&Digest::of("files"));
    assert_eq!(inputs, [vec![OutputKey::new(&Digest::of("base"), 0).0], vec![content.0]]);
    assert!(root.inputs.iter().flatten().all(|link| link.node < graph.root.unwrap()));
}

#[tokio::test]
async fn results_that_were_not_needed_can_be_loaded_for_the_export() {
    let [base, context, copy] = graph();
    let top = vertex("top").input(&copy).done();
    let bench = bench();
    bench.build(&[&base, &context, &copy, &top]).await.0.unwrap();
    let (job, _) = bench.job("job", &[&base, &context, &copy, &top]).await;
    job.build(edge(&top)).await.unwrap();
    let graph = job.export(edge(&top), ExportOptions::default()).await.unwrap();
    let node = graph.nodes.iter().find(|node| node.vertex == Some((base.digest, 0))).unwrap();
    let cx = OpContext::detached(base.digest, []);
    match (&node.result, graph.load(&cx, &node.records[0]).await.unwrap()) {
        (None, Loaded::Hit(text)) => assert_eq!(text.as_str(), "base"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn backlinks_bring_the_ways_of_earlier_builds() {
    let bench = bench();
    let build = |key: &str| {
        let source = vertex("source").key(key).gives("same content").done();
        let user = vertex("user").by_content(&source).done();
        (source, user)
    };
    let (source, user) = build("v1");
    bench.build(&[&source, &user]).await.0.unwrap();
    let (source, user) = build("v2");
    let (job, _) = bench.job("job", &[&source, &user]).await;
    job.build(edge(&user)).await.unwrap();
    let old = OutputKey::new(&Digest::of("v1"), 0).0;
    let plain = job.export(edge(&user), ExportOptions::default()).await.unwrap();
    assert!(plain.nodes.iter().all(|node| node.digest != old));
    let full = job.export(edge(&user), ExportOptions { backlinks: true }).await.unwrap();
    let root = &full.nodes[full.root.unwrap()];
    let from: Vec<Digest> = root.inputs[0].iter().map(|link| full.nodes[link.node].digest).collect();
    assert!(from.contains(&old), "{from:?}");
    for (at, node) in full.nodes.iter().enumerate() {
        assert!(node.inputs.iter().flatten().all(|link| link.node < at));
    }
}

#[tokio::test]
async fn an_exported_graph_can_be_imported_by_its_digests_alone() {
    let [base, context, copy] = graph();
    let bench = bench();
    let (job, _) = bench.job("job", &[&base, &context, &copy]).await;
    let solved = job.build(edge(&copy)).await.unwrap();
    let exported = job.export(edge(&copy), ExportOptions::default()).await.unwrap();

    // A remote cache keeps digests and links; the ids of inner nodes are made up at import.
    let imported = MemoryKeyStore::new();
    let id = |at: usize| {
        let node = &exported.nodes[at];
        if node.inputs.is_empty() { KeyId(node.digest) } else { KeyId(Digest::of(format!("made up {at}"))) }
    };
    for (at, node) in exported.nodes.iter().enumerate() {
        for (input, links) in node.inputs.iter().enumerate() {
            for link in links {
                let label = Link { op: OutputKey(node.digest), input: input as u32, selector: link.selector };
                imported.add_link(id(link.node), label, id(at));
            }
        }
        if let Some(result) = &node.result {
            imported.add_record(id(at), result.clone());
        }
    }
    let here = crate::kit::bench();
    let stores: Vec<Arc<dyn KeyStore<Text>>> = vec![Arc::new(imported)];
    let (job, log) = here.job_with("job", &[&base, &context, &copy], stores).await;
    let found = job.build(edge(&copy)).await.unwrap();
    assert_eq!(found.result, solved.result);
    assert_eq!(log.of(&copy), ["cached Record"]);
    assert!(log.of(&base).iter().all(|what| what.starts_with("cached")));
}

#[tokio::test]
async fn an_operation_without_inputs_is_found_by_any_of_its_digests() {
    let of = |text: &str| OutputKey::new(&Digest::of(text), 0);
    let base = || vertex("base").key("layers").also("manifest").gives("base");
    let (image, user) = (base().done(), vertex("user").input(&base().done()).done());
    let imported = MemoryKeyStore::new();
    let made = KeyId(Digest::of("made up"));
    imported.add_link(of("manifest").root(), Link { op: of("user"), input: 0, selector: None }, made);
    imported.add_record(made, Arc::new("imported".to_owned()));
    let bench = bench();
    let stores: Vec<Arc<dyn KeyStore<Text>>> = vec![Arc::new(imported)];
    let (job, _) = bench.job_with("job", &[&image, &user], stores).await;
    assert_eq!(job.build(edge(&user)).await.unwrap().result.as_str(), "imported");
    let graph = job.export(edge(&user), ExportOptions::default()).await.unwrap();
    job.close().await;
    let from = &graph.nodes[graph.root.unwrap()].inputs[0];
    let from: Vec<Digest> = from.iter().map(|link| graph.nodes[link.node].digest).collect();
    assert_eq!(from, [of("manifest").0, of("layers").0]);

    // The main store has it under each of them now.
    for key in ["layers", "manifest"] {
        let image = vertex("base").key(key).salt(key).gives("base").done();
        let user = vertex("user").input(&image).done();
        assert_eq!(bench.build(&[&image, &user]).await.0.unwrap().as_str(), "imported", "{key}");
    }
}
