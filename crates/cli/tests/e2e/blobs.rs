//! Single blobs of registries and layouts as sources, and git bundles that lie in such blobs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use kiln_llb::builder::{Builder, Meta};
use kiln_oci::Platform;
use kiln_stdx::Digest;
use kiln_testkit::{FakeRegistry, FileServer, Finished, TestEnv, git_repository};

/// Builds one source into a directory, with the client's layout `store` at `layout` if there is one.
fn fetch(env: &TestEnv, identifier: &str, attrs: &[(&str, &str)], layout: Option<&Path>, dest: &Path) -> Finished {
    let mut builder = Builder::new(Platform::host());
    let attrs: BTreeMap<_, _> = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let source = builder.source(identifier.to_owned(), attrs, BTreeSet::new(), Meta::named("fetch"));
    let definition = builder.definition(source).expect("a definition").encode();
    let _ = env.kiln(["du"]).finish().ok();
    let (output, address) =
        (format!("type=local,dest={}", dest.display()), format!("unix://{}", env.root().join("engine.sock").display()));
    let layout = layout.map(|dir| format!("store={}", dir.display()));
    let layout = layout.iter().flat_map(|layout| ["--oci-layout", layout.as_str()]);
    let args = ["--addr", &address, "build", "--output", &output].into_iter().chain(layout);
    let program = env.path().join("buildctl");
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &program).expect("link");
    }
    kiln_testkit::Run::new(&program).args(args).stdin(definition).env("HOME", env.path()).dir(env.path()).finish()
}

fn layout_with(dir: &Path, blob: &[u8]) -> Digest {
    let digest = Digest::of(blob);
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("mkdir");
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
    std::fs::write(dir.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).expect("write");
    std::fs::write(blobs.join(digest.hex()), blob).expect("write");
    digest
}

#[test]
fn a_blob_of_a_registry_is_a_file() {
    let env = crate::env();
    let registry = FakeRegistry::start();
    let digest = Digest::of("content of a blob");
    registry.holdings().blobs.insert(("me/app".into(), digest.to_string()), b"content of a blob".to_vec());
    let dest = env.out("blob");
    let identifier = format!("docker-image+blob://{}/me/app@{digest}", registry.host);
    let attrs = [("http.filename", "../named"), ("http.perm", "0640"), ("http.uid", "12"), ("http.gid", "34")];
    let _ = fetch(&env, &identifier, &attrs, None, &dest).ok();
    let file = dest.join("named");
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "content of a blob");
    let meta = file.metadata().expect("metadata");
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o640, 0));
    // Another name of the file is another step; the blob is asked for, but not sent again.
    registry.take_lines();
    let _ = fetch(&env, &identifier, &[], None, &dest).ok();
    assert!(dest.join(digest.hex()).is_file());
    let head = format!("HEAD /v2/me/app/blobs/{digest}");
    assert_eq!(registry.take_lines().into_iter().filter(|line| line.contains("blobs")).collect::<Vec<_>>(), [head]);

    // A manifest is a blob, too, where the registry keeps them apart.
    registry.holdings().put_manifest("me/app", "1", kiln_oci::media::OCI_MANIFEST, b"{\"schemaVersion\":2}");
    let manifest = Digest::of("{\"schemaVersion\":2}");
    let identifier = format!("docker-image+blob://{}/me/app@{manifest}", registry.host);
    let _ = fetch(&env, &identifier, &[], None, &dest).ok();
    assert!(dest.join(manifest.hex()).is_file());

    let gone = format!("docker-image+blob://{}/me/app@{}", registry.host, Digest::of("gone"));
    let _ = fetch(&env, &gone, &[], None, &dest).fails_with("not found");
    let tagged = format!("docker-image+blob://{}/me/app:1", registry.host);
    let _ = fetch(&env, &tagged, &[], None, &dest).fails_with("object required");
}

#[test]
fn a_blob_of_a_layout_is_a_file() {
    let env = crate::env();
    let (layout, dest) = (env.path().join("layout"), env.out("blob"));
    let digest = layout_with(&layout, b"local bytes");
    let attrs = [("oci.store", "store"), ("http.filename", "f")];
    let _ = fetch(&env, &format!("oci-layout+blob://not/real@{digest}"), &attrs, Some(&layout), &dest).ok();
    assert_eq!(std::fs::read_to_string(dest.join("f")).expect("the file"), "local bytes");
    let gone = format!("oci-layout+blob://not/real@{}", Digest::of("gone"));
    let _ = fetch(&env, &gone, &attrs, Some(&layout), &dest).fails_with("is not in the OCI layout");
    // Bytes that are not what they are called do not come through.
    std::fs::write(layout.join("blobs/sha256").join(Digest::of("true").hex()), "false").expect("write");
    let forged = format!("oci-layout+blob://not/real@{}", Digest::of("true"));
    let done = fetch(&env, &forged, &attrs, Some(&layout), &dest);
    assert_ne!(done.code, Some(0), "{}", done.report());
}

#[test]
fn a_bundle_stands_for_its_repository() {
    let env = crate::env();
    let Some(web) = git_repository(env.path()) else { kiln_testkit::skip!("no git on this host") };
    let commit = std::fs::read_to_string(env.path().join("work/.git/refs/heads/trunk")).expect("the branch");
    let commit = commit.trim();
    let server = FileServer::start(&web);
    let url = format!("{}/repo.git", server.address);
    let identifier = |name: &str| format!("git://{}#{name}", url.trim_start_matches("http://"));
    let dest = env.out("bundle");
    let attrs = [("git.fullurl", url.as_str()), ("git.checkoutbundle", "true"), ("git.checksum", commit)];
    let _ = fetch(&env, &identifier("trunk"), &attrs, None, &dest).ok();
    let bundle = std::fs::read(dest.join("bundle")).expect("the bundle");
    let layout = env.path().join("layout");
    let digest = layout_with(&layout, &bundle);
    // From here on there is no server.
    std::fs::remove_dir_all(web.join("repo.git")).expect("remove");
    let locator = format!("oci-layout+blob://not/real@{digest}");
    let attrs = |checksum| {
        [
            ("git.fullurl", url.as_str()),
            ("git.bundle", locator.as_str()),
            ("oci.store", "store"),
            ("git.checksum", checksum),
        ]
    };
    for name in ["trunk", commit, ""] {
        let dest = env.out("files");
        let _ = fetch(&env, &identifier(name), &attrs(commit), Some(&layout), &dest).ok();
        assert_eq!(std::fs::read_to_string(dest.join("file")).expect("the file"), "two", "{name}");
        std::fs::remove_dir_all(&dest).expect("remove");
    }
    let dest = env.out("again");
    let mut again = attrs(commit).to_vec();
    again.push(("git.checkoutbundle", "true"));
    let _ = fetch(&env, &identifier("trunk"), &again, Some(&layout), &dest).ok();
    assert!(dest.join("bundle").is_file());
    let other = "1".repeat(40);
    let _ = fetch(&env, &identifier("trunk"), &attrs(&other), Some(&layout), &dest).fails_with("not found in bundle");
    let _ = fetch(&env, &identifier("v1"), &attrs(commit), Some(&layout), &dest).fails_with("does not contain ref v1");
}
