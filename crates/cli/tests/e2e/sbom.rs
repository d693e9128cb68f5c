//! Bills of materials: kiln's own scanner, and scanners in images.

use kiln_oci::{Descriptor, Index, Manifest};
use kiln_testkit::{DebianRegistry, Image};
use serde_json::Value;

const STATUS: &str = "Package: libthing\nStatus: install ok installed\nArchitecture: all\nVersion: 1:2.0-3\n";

#[test]
fn the_built_in_scanner_finds_what_is_installed() {
    let env = crate::env();
    env.context(&[
        ("Dockerfile", "FROM scratch\nCOPY root /\n"),
        ("root/etc/os-release", "ID=debian\nVERSION_ID=12\n"),
        ("root/var/lib/dpkg/status", STATUS),
        ("root/app/node_modules/left/package.json", r#"{"name":"left","version":"1.3.0","license":"MIT"}"#),
        ("root/app/node_modules/broken/package.json", "{"),
    ]);
    let build = |name: &str| {
        let dest = env.out(name);
        let output = format!("type=local,dest={}", dest.display());
        let args = ["--sbom=generator=builtin", "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=86400", "-o", &output];
        let _ = env.build(&args).ok();
        std::fs::read(dest.join("sbom.spdx.json")).expect("an SBOM")
    };
    let first = build("first");
    let statement: Value = serde_json::from_slice(&first).expect("JSON");
    assert_eq!(statement["predicateType"], "https://spdx.dev/Document");
    let names: Vec<&str> =
        statement["subject"].as_array().expect("subjects").iter().filter_map(|s| s["name"].as_str()).collect();
    assert!(names.contains(&"app/node_modules/left/package.json"), "{names:?}");
    let document = &statement["predicate"];
    assert_eq!(document["spdxVersion"], "SPDX-2.3");
    assert_eq!(document["creationInfo"]["created"], "1970-01-02T00:00:00Z");
    let urls: Vec<&str> = document["packages"].as_array().expect("packages")[1..]
        .iter()
        .filter_map(|p| p["externalRefs"][0]["referenceLocator"].as_str())
        .collect();
    assert_eq!(urls, ["pkg:deb/debian/libthing@1:2.0-3?arch=all&distro=debian-12", "pkg:npm/left@1.3.0"]);
    assert_eq!(String::from_utf8_lossy(&build("second")), String::from_utf8_lossy(&first), "an epoch fixes every byte");
}

/// Returns the statements beside an image, with the layers of the image.
fn statements(image: &Image) -> (Vec<Value>, Vec<String>) {
    let json = |descriptor: &Descriptor| image.blobs[&descriptor.digest].clone();
    let index = Index::from_json(&json(&image.index.manifests[0])).expect("an index");
    let beside = index.manifests.iter().find(|d| d.annotations.contains_key("vnd.docker.reference.type"));
    let manifest = Manifest::from_json(&json(beside.expect("attestations"))).expect("a manifest");
    let statement = |layer: &Descriptor| serde_json::from_slice(&json(layer)).expect("a statement");
    let layers = image.manifest.layers.iter().map(|layer| layer.digest.to_string()).collect();
    (manifest.layers.iter().map(statement).collect(), layers)
}

#[test]
fn a_scanner_image_is_run_over_result_and_stages() {
    let (env, base) = crate::env_with_base!();
    let Some(registry) = DebianRegistry::start(env.path()) else { kiln_testkit::skip!("no docker-registry") };
    let script = r#"set -e
emit() {
  printf '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"spdxVersion":"SPDX-2.3","name":"%s","files":[{"fileName":"/%s"},{"fileName":"/low"}],"comment":"%s"}}' "$1" "$(ls "$2" | head -n 1)" "$BUILDKIT_SCAN_LEVEL" > "$BUILDKIT_SCAN_DESTINATION/$1.spdx.json"
}
emit "$(basename "$BUILDKIT_SCAN_SOURCE")" "$BUILDKIT_SCAN_SOURCE"
for extra in "$BUILDKIT_SCAN_SOURCE_EXTRAS"/*; do emit "$(basename "$extra")" "$extra"; done
if touch "$BUILDKIT_SCAN_SOURCE/x"; then exit 7; fi
"#;
    env.context(&[("Dockerfile", "FROM base\nCOPY scan.sh /\nCMD [\"sh\", \"/scan.sh\"]\n"), ("scan.sh", script)]);
    let scanner = format!("{}/me/scan:1", registry.host);
    let output = format!("type=image,name={scanner},push=true");
    let _ = env.build(&["--build-context", &base, "-o", &output]).ok();
    env.context(&[
        (
            "Dockerfile",
            "ARG BUILDKIT_SBOM_SCAN_CONTEXT=true\nFROM scratch AS made\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY tool /\n\
             FROM scratch\nARG BUILDKIT_SBOM_SCAN_CONTEXT\nCOPY low /\nCOPY --from=made tool /high\n",
        ),
        ("low", "1"),
        ("tool", "2"),
    ]);
    let sbom = format!("--sbom=generator={scanner},LEVEL=deep");
    let dest = env.out("image.tar");
    let output = format!("type=oci,dest={}", dest.display());
    let _ = env.build(&[&sbom, "-o", &output]).ok();
    let (statements, layers) = statements(&Image::read(&dest));
    let told: Vec<String> = statements
        .iter()
        .map(|s| format!("{} {}", s["predicate"]["name"], s["predicate"]["files"][0]["fileName"]).replace('"', ""))
        .collect();
    assert_eq!(told, ["sbom /high", "sbom-context /low", "sbom-made /tool"]);
    let core = &statements[0]["predicate"];
    assert_eq!(core["comment"], "deep");
    let of = |file: usize| core["files"][file]["comment"].as_str().expect("a layer").to_owned();
    assert_eq!(of(0), format!("layerID: {}", layers[1]));
    assert_eq!(of(1), format!("layerID: {}", layers[0]));
    assert_eq!(statements[1]["predicate"]["files"][0].get("comment"), None, "only the result has layers");
}

#[test]
fn a_scanner_that_cannot_be_had_is_an_error() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let dest = env.out("never");
    let output = format!("type=local,dest={}", dest.display());
    let _ = env.build(&["--sbom=generator=127.0.0.1:1/no/scan", "-o", &output]).fails_with("no/scan");
    assert!(!dest.exists(), "nothing is put out");
}
