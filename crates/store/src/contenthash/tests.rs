//! Tests of content digests, against values that BuildKit computes.

use std::time::Duration;

use kiln_snapshot::Kind;
use kiln_snapshot::layer::{FileMeta, LayerBuilder};
use kiln_stdx::Digest;

use super::*;
use crate::LayerInfo;
use crate::testing::{commit, fixture, is_root, meta, one_file};

/// Path, flags (F follow links, W wildcard), include and exclude patterns, and the digest that BuildKit computes for the
/// tree below, made with its own code.
type Case = (&'static str, &'static str, &'static [&'static str], &'static [&'static str], &'static str);

const CASES: &[Case] = &[
    ("/", "", &[], &[], "30312f479d728e2ed6a7558a8401245c6babc7af3f4334ddb8c9fb31a8d22ee5"),
    ("/a", "", &[], &[], "2deb46b6681a0e216a02a379bc63816de069eb8965b94d73d26224b239434410"),
    ("/a/one", "", &[], &[], "173de3e4e7f73d844d8f35dad187c1839e7fbe41a3f57cb0d7400078074151cd"),
    ("a/empty", "", &[], &[], "700591407496206b27e3739e92128dd4d3a119e929d3b3677835a1ab6627aa3d"),
    ("/link", "", &[], &[], "11e1183554c1fd542204d7c98efec859fb8e4f9781dc6342d0740b0204d562c6"),
    ("/link", "F", &[], &[], "173de3e4e7f73d844d8f35dad187c1839e7fbe41a3f57cb0d7400078074151cd"),
    ("/dirlink/one", "", &[], &[], "173de3e4e7f73d844d8f35dad187c1839e7fbe41a3f57cb0d7400078074151cd"),
    ("/dirlink", "F", &[], &[], "2deb46b6681a0e216a02a379bc63816de069eb8965b94d73d26224b239434410"),
    ("/a/sub/../one", "", &[], &[], "173de3e4e7f73d844d8f35dad187c1839e7fbe41a3f57cb0d7400078074151cd"),
    ("/abs", "F", &[], &[], "8ddf97ffb25724bc5f9b00b45bf0cd942e4098f09fee7f465a62ff9d25b3a3fe"),
    ("/setuid", "", &[], &[], "32e603680d4669d79e8d18d769c0047aa4e63ba1b7717b8ab4909298ccef7088"),
    ("/pipe", "", &[], &[], "df86591a50f2862155e76a1d53cdad72c7f3f6c13413e4dbfb6410e347bd9ff9"),
    ("/caps", "", &[], &[], "fe8211a7b7adfb7ece6fa499d78e1afe4fab9bdbd6632d6b34980734c944b55b"),
    ("/a-b", "", &[], &[], "644eb05342a543b351c95a6f1f85da322991b194c7d85b18098815f8c43149f0"),
    ("/sticky", "", &[], &[], "b1bbefda9a870b530d613617b852b14deb13b17e42322f94b5b49eaf98ad22f3"),
    ("/hard1", "", &[], &[], "ce2d42f4bf12b97fa80e1bcaba9c09b34e34290a812af369200988413b65b33b"),
    ("/*", "W", &[], &[], "3afe6911dcd833df016f50ae3119e88896dda0c5ba9d9ba3dcbd2dcf1db05883"),
    ("/a*", "W", &[], &[], "4d0fdeb54ff850fb5270d6618ec53e479ba0b5aa6f363d5a40c9d0f35d22070b"),
    ("/a/*", "W", &[], &[], "e7c25edafdb0c1147418e162080604b433eedf5260139b51495cefd7e7df95af"),
    ("/dirlink/o*", "W", &[], &[], "04b194939110d6b37a3425d66b0f12e83ea26754e8a9b36790e6a14faff38b95"),
    ("/l*", "FW", &[], &[], "aa058a170bec0555f16059243ea45f1d7b36b56d87fde781c273a7f10f1fab87"),
    ("/nothing*", "W", &[], &[], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("/a", "W", &[], &[], "c8421fa4eb193b08bb70f717bb641722d9326423ee52cd5586ddaba3df4e59c0"),
    ("/a/", "W", &[], &[], "e7c25edafdb0c1147418e162080604b433eedf5260139b51495cefd7e7df95af"),
    ("/", "W", &[], &[], "3afe6911dcd833df016f50ae3119e88896dda0c5ba9d9ba3dcbd2dcf1db05883"),
    ("/*/sub", "W", &[], &[], "d3a30d4f3f932d3a5732c3679cd094c5303055c93efb2a3c1461182f1d3f4e15"),
    ("/[ah]*", "FW", &[], &[], "534e2265ceed451fa5b02a3c89c1e61bfe0d0fb0639c3c2d02c82aae72515440"),
    ("/", "", &["a/one"], &[], "920a77dd151bbe4a0114395c8223e649d0c5840667cf4413e3105bd6564a1e3a"),
    ("/", "", &["**/deep"], &[], "d4e9153497e20c399bd513338d0c8952ab2b09201d737eb4272ad69a7162e79a"),
    ("/a", "", &["sub"], &[], "113de140e245a92aaed7d084739a1b132de1c9ea56c259e67dcc0afebda7059b"),
    ("/a/", "", &["sub/deep", "one"], &[], "134323025e8ead769aa55298b3db5cf4b043a26a1a3fac0d99b29eafa5d3cc14"),
    ("/", "", &[], &["a"], "87a4049e4751d73a32bf7e9d75c979f5e8e150c3119c1a3dc974ba73dab45b88"),
    ("/", "", &[], &["*", "!a/sub"], "d4e9153497e20c399bd513338d0c8952ab2b09201d737eb4272ad69a7162e79a"),
    ("/", "", &["a"], &["**/deep", "a/empty"], "23db2687b4a2046fc5b59cf0e8e25f1ce41b7a55811158ac6d4abe2ea689058a"),
    ("/dirlink", "", &["one"], &[], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("/dirlink", "F", &["one"], &[], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("/dirlink/", "", &[], &["one"], "fc5fd0791f6eb02b0a3f1de7961ca737c9ab1fa18469d9ed6491b5649c06bae6"),
    ("/a*", "W", &["sub"], &[], "d4e9153497e20c399bd513338d0c8952ab2b09201d737eb4272ad69a7162e79a"),
    ("/a*", "W", &[], &["sub/deep"], "e2cd38b420cbbefc4f0d700c3021c37480e9ac03912db47504498f4d92b99504"),
    ("/a/one", "", &["**"], &[], "173de3e4e7f73d844d8f35dad187c1839e7fbe41a3f57cb0d7400078074151cd"),
    ("/none", "", &[], &["x"], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
];

/// Fills the tree of the table; its owners need root.
fn fill(b: &mut LayerBuilder<'_>) {
    let of = |mode| FileMeta::new(mode, (1_600_000_000, 0));
    b.set_implicit(of(0o755));
    b.mkdir(b"", &of(0o755)).unwrap();
    b.mkdir(b"sticky", &of(0o1777)).unwrap();
    b.file_from_bytes(b"a/one", &of(0o644), b"first\n").unwrap();
    b.file_from_bytes(b"a/empty", &of(0o644), b"").unwrap();
    b.file_from_bytes(b"a/sub/deep", &FileMeta { uid: 7, gid: 8, ..of(0o640) }, b"deep down").unwrap();
    b.file_from_bytes(b"a-b/f", &of(0o644), b"x").unwrap();
    b.symlink(b"link", b"a/one", &of(0o777)).unwrap();
    b.symlink(b"dirlink", b"a", &of(0o777)).unwrap();
    b.symlink(b"abs", b"/a/sub", &of(0o777)).unwrap();
    b.file_from_bytes(b"setuid", &of(0o4755), b"suid").unwrap();
    b.node(b"pipe", Kind::Fifo, (0, 0), &of(0o600)).unwrap();
    let mut noted = of(0o644);
    noted.xattrs.insert(b"user.note".to_vec(), b"hello".to_vec());
    b.file_from_bytes(b"caps", &noted, b"c").unwrap();
    b.file_from_bytes(b"hard1", &of(0o644), b"same").unwrap();
    b.hard_link(b"hard1", b"hard2").unwrap();
}

fn selector(case: &Case) -> ContentSelector {
    ContentSelector {
        path: case.0.into(),
        follow_links: case.1.contains('F'),
        wildcard: case.1.contains('W'),
        include: case.2.iter().map(ToString::to_string).collect(),
        exclude: case.3.iter().map(ToString::to_string).collect(),
        required: Vec::new(),
    }
}

#[test]
fn digests_are_those_of_buildkit() {
    if !is_root() {
        kiln_testkit::skip!("files of other owners can only be made by root");
    }
    let f = fixture(Duration::from_secs(60));
    let (_, r) = commit(&f.store.scratch(), LayerInfo::default(), fill);
    for case in CASES {
        let got = f.store.content_digest(&r, &selector(case)).unwrap();
        assert_eq!(got.hex(), case.4, "{case:?}");
    }
    let missing = f.store.content_digest(&r, &ContentSelector::path("/none"));
    assert!(matches!(missing, Err(StoreError::NotFound(_))), "{missing:?}");
    let required = ContentSelector { required: vec!["/zzz".into()], wildcard: true, ..ContentSelector::path("/*") };
    assert!(matches!(f.store.content_digest(&r, &required), Err(StoreError::NotFound(_))));
}

#[test]
fn the_same_tree_over_two_layers_has_the_same_digest() {
    let f = fixture(Duration::from_secs(60));
    let build = |r: &ImmutableRef, names: &[&str], gone: &[&str]| {
        commit(r, LayerInfo::default(), |b| {
            for name in names {
                b.file_from_bytes(name.as_bytes(), &meta(0o600), name.as_bytes()).unwrap();
            }
            for name in gone {
                b.remove(name.as_bytes()).unwrap();
            }
        })
        .1
    };
    let one = build(&f.store.scratch(), &["d/a", "d/b"], &[]);
    let two = build(&build(&f.store.scratch(), &["d/a", "d/x"], &[]), &["d/b"], &["d/x"]);
    let path = ContentSelector::path("/d");
    let (x, y) = (f.store.content_digest(&one, &path).unwrap(), f.store.content_digest(&two, &path).unwrap());
    assert_eq!(x, y);
    let sub = build(&one, &["e"], &[]);
    assert_eq!(f.store.content_digest(&sub, &path).unwrap(), x);
    assert_ne!(f.store.content_digest(&sub, &ContentSelector::path("/")).unwrap(), x);
}

#[test]
fn the_empty_ref_and_a_clients_directory() {
    let f = fixture(Duration::from_secs(60));
    let empty = f.store.scratch();
    assert_eq!(f.store.content_digest(&empty, &ContentSelector::path("/")).unwrap(), Digest::of(b""));
    assert!(f.store.content_digest(&empty, &ContentSelector::path("/x")).is_err());
    let make = |record_type| {
        let info = LayerInfo { record_type, ..LayerInfo::default() };
        let (_, r) = commit(&empty, info, |b| b.file_from_bytes(b"f", &meta(0o644), b"1").unwrap());
        (f.store.content_digest(&r, &ContentSelector::path("/")).unwrap(), r)
    };
    let (regular, _) = make(RecordType::Regular);
    let (local, r) = make(RecordType::SourceLocal);
    assert_ne!(regular, local, "the root of a client's directory is hashed as nothing");
    let file = f.store.content_digest(&r, &ContentSelector::path("/f")).unwrap();
    let mut by_hand = DigestHasher::new();
    by_hand.update(&[0]);
    put(&mut by_hand, &Digest::of(b""));
    by_hand.update(b"\0f");
    put(&mut by_hand, &file);
    assert_eq!(local, by_hand.finish());
}

#[test]
fn sums_are_kept_beside_the_layer_and_survive_damage() {
    let f = fixture(Duration::from_secs(60));
    let (layer, r) = one_file(&f.store.scratch(), "f", b"content");
    let path = ContentSelector::path("/f");
    let want = f.store.content_digest(&r, &path).unwrap();
    let sums = f.store.root().join(format!("layers/{}/sums", layer.id()));
    assert!(sums.exists());
    let ids = r.layer_ids();
    drop((layer, r));
    let reopen = |bytes: &[u8]| {
        std::fs::write(&sums, bytes).unwrap();
        f.store.0.sums.clear();
        f.store.0.content.clear();
        let r = f.store.ref_of(&ids).unwrap();
        f.store.content_digest(&r, &path).unwrap()
    };
    let good = std::fs::read(&sums).unwrap();
    assert_eq!(reopen(&good), want);
    let mut bad = good.clone();
    bad[60] ^= 1;
    assert_eq!(reopen(&bad), want, "damaged sums are computed again");
    assert_eq!(std::fs::read(&sums).unwrap(), good);
}

#[test]
fn a_noted_sum_saves_the_reading() {
    let f = fixture(Duration::from_secs(60));
    let (layer, r) = one_file(&f.store.scratch(), "f", b"content");
    let tree = r.tree().unwrap();
    let entry = tree.get(b"f").unwrap().entry;
    let mut sum = FileSum::new(entry);
    sum.update(b"con");
    sum.update(b"tent");
    f.store.note_file_sum(entry, sum.finish());
    // Were it read, the changed bytes would be noticed.
    std::fs::write(f.store.root().join(format!("layers/{}/fs/f", layer.id())), b"CONTENT").unwrap();
    let noted = f.store.content_digest(&r, &ContentSelector::path("/f")).unwrap();
    let (_, other) = one_file(&f.store.scratch(), "f", b"content");
    f.store.0.sums.clear();
    assert_eq!(f.store.content_digest(&other, &ContentSelector::path("/f")).unwrap(), noted);
}

#[test]
fn a_damaged_file_is_never_hashed_as_if_it_were_good() {
    let f = fixture(Duration::from_secs(60));
    let (layer, r) = one_file(&f.store.scratch(), "f", b"content");
    std::fs::write(f.store.root().join(format!("layers/{}/fs/f", layer.id())), b"CONTENT").unwrap();
    let error = f.store.content_digest(&r, &ContentSelector::path("/f")).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Damage);
    assert!(f.store.ref_of(&[layer.id()]).is_none(), "and the layer is dropped");
}

#[test]
fn many_files_on_several_threads() {
    let f = fixture(Duration::from_secs(60));
    let (_, r) = commit(&f.store.scratch(), LayerInfo::default(), |b| {
        for i in 0..300 {
            b.file_from_bytes(format!("d{}/f{i}", i % 7).as_bytes(), &meta(0o644), &vec![7; i]).unwrap();
        }
    });
    let whole = f.store.content_digest(&r, &ContentSelector::path("/")).unwrap();
    f.store.0.content.clear();
    f.store.0.sums.clear();
    assert_eq!(f.store.content_digest(&r, &ContentSelector::path("/")).unwrap(), whole);
}
