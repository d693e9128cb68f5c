//! The key store of an imported cache answers as the solver asks.

use kiln_exporter::cacheconfig::{CacheLink, CacheNode};
use kiln_solver::VertexDigest;
use kiln_stdx::Digest;

use super::*;

/// Gives the number of layers, and fails where one of them is called broken.
struct Count;

#[async_trait]
impl StackLoader<usize> for Count {
    async fn load(&self, _: &OpContext, layers: &[Descriptor]) -> Result<usize, EngineError> {
        match layers.iter().any(|layer| layer.digest == Digest::of("broken")) {
            true => Err(EngineError::new(ErrorClass::Damage, "a layer is broken")),
            false => Ok(layers.len()),
        }
    }

    fn at_hand(&self, layers: &[Descriptor]) -> Option<usize> {
        layers.iter().all(|layer| layer.digest == Digest::of("here")).then_some(layers.len())
    }
}

fn stack(names: &[&str], created: i128) -> CacheResult {
    let layer = |name: &&str| Descriptor::new(kiln_oci::media::OCI_LAYER_GZIP, Digest::of(name), 1);
    CacheResult { layers: names.iter().map(layer).collect(), created }
}

fn node(name: &str, inputs: &[&[(usize, Option<&str>)]], results: Vec<CacheResult>) -> CacheNode {
    let link = |&(node, selector): &(usize, Option<&str>)| CacheLink { selector: selector.map(Digest::of), node };
    let inputs = inputs.iter().map(|links| links.iter().map(link).collect()).collect();
    CacheNode { digest: Digest::of(name), inputs, results }
}

fn keys(nodes: Vec<CacheNode>) -> ImportedKeys<usize> {
    ImportedKeys::new(ParsedCache { nodes, dropped: 0 }, Box::new(Count))
}

fn root(name: &str) -> KeyId {
    KeyId(Digest::of(name))
}

fn ask(from: KeyId, op: &str, input: u32, selector: Option<&str>) -> LinkFrom {
    LinkFrom { from, link: Link { op: OutputKey(Digest::of(op)), input, selector: selector.map(Digest::of) } }
}

async fn one_target(keys: &ImportedKeys<usize>, asks: &[LinkFrom]) -> Option<KeyId> {
    let targets = keys.targets(asks).await.unwrap();
    let first = targets.first()?.key;
    let asked: BTreeSet<usize> = targets.iter().map(|t| t.ask).collect();
    assert!(targets.iter().all(|t| t.key == first), "one node: {targets:?}");
    (asked.len() == asks.len()).then_some(first)
}

fn cx() -> OpContext {
    OpContext::detached(VertexDigest(Digest::of("v")), [])
}

#[tokio::test]
async fn links_lead_from_every_source_of_every_input_to_one_node() {
    let keys = keys(vec![
        node("base", &[], vec![]),
        node("files", &[], vec![]),
        node("definition", &[], vec![]),
        node("copy", &[&[(0, None)], &[(1, None), (2, Some("part"))]], vec![stack(&["a"], 1)]),
        node("run", &[&[(3, None)]], vec![stack(&["a", "b"], 1)]),
    ]);
    let by_content = [ask(root("base"), "copy", 0, None), ask(root("files"), "copy", 1, None)];
    let by_definition = [by_content[0], ask(root("definition"), "copy", 1, Some("part"))];
    let copy = one_target(&keys, &by_content).await.unwrap();
    assert_eq!(one_target(&keys, &by_definition).await, Some(copy));
    let run = one_target(&keys, &[ask(copy, "run", 0, None)]).await.unwrap();
    let found = keys.records(&[run]).await.unwrap().records;
    assert_eq!(keys.load(&cx(), run, &found[0].1).await.unwrap(), Loaded::Hit(2));
    for wrong in [
        ask(root("base"), "copy", 1, None),
        ask(root("definition"), "copy", 1, None),
        ask(root("base"), "run", 0, None),
    ] {
        assert_eq!(keys.targets(&[wrong]).await.unwrap(), [], "{wrong:?}");
    }
    assert_eq!(keys.backlinks(copy).await.unwrap().len(), 3);
}

#[tokio::test]
async fn operations_of_one_digest_are_told_apart_by_their_sources() {
    let keys = keys(vec![
        node("x", &[], vec![]),
        node("y", &[], vec![]),
        node("run", &[&[(0, None)]], vec![stack(&["a"], 1)]),
        node("run", &[&[(1, None)]], vec![]),
    ]);
    let of_x = one_target(&keys, &[ask(root("x"), "run", 0, None)]).await.unwrap();
    let of_y = one_target(&keys, &[ask(root("y"), "run", 0, None)]).await.unwrap();
    assert_ne!(of_x, of_y);
    assert_eq!(keys.records(&[of_y]).await.unwrap(), RecordsFound::default());
    assert_eq!(keys.records(&[of_x, of_y]).await.unwrap().records.len(), 1);
}

#[tokio::test]
async fn the_newest_record_comes_first_and_a_bad_one_goes() {
    let results = vec![stack(&["old"], 3), stack(&["broken"], 7)];
    let keys = keys(vec![node("run", &[], results)]);
    let key = root("run");
    let found = keys.records(&[key]).await.unwrap().records;
    assert_eq!(found.len(), 2);
    let Loaded::Gone(why) = keys.load(&cx(), key, &found[0].1).await.unwrap() else { panic!("loaded a broken one") };
    assert_eq!(why, Gone::Damaged { detail: "a layer is broken".into() });
    keys.forget(key, &found[0].1, &why).await;
    let left = keys.records(&[key]).await.unwrap();
    assert_eq!((left.records.as_slice(), left.gone), (&found[1..], None));
    keys.forget(key, &found[1].1, &why).await;
    assert_eq!(keys.records(&[key]).await.unwrap(), RecordsFound { records: Vec::new(), gone: Some(why) });
}

#[test]
fn what_lost_its_sources_is_left_out() {
    let keys = keys(vec![
        node("lost", &[&[(9, None)]], vec![stack(&["a"], 1)]),
        node("on lost", &[&[(0, None)]], vec![stack(&["a"], 1)]),
        node("root", &[], vec![stack(&["a"], 1)]),
    ]);
    assert_eq!((keys.links.len(), keys.records.lock().kept.len()), (0, 1));
}

#[tokio::test]
async fn what_is_known_here_is_named_without_being_fetched() {
    let nodes =
        vec![node("a", &[], vec![stack(&["here", "here"], 1)]), node("b", &[], vec![stack(&["here", "far"], 1)])];
    let keys = keys(nodes);
    let mut at_hand = Vec::new();
    for name in ["a", "b"] {
        let key = root(name);
        let found = keys.records(&[key]).await.unwrap().records;
        at_hand.push(keys.at_hand(key, &found[0].1));
    }
    assert_eq!(at_hand, [Some(2), None]);
}
