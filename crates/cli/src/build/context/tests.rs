//! Contexts and Dockerfiles on disk.

use std::io::Cursor;

use super::*;
use crate::build::flags::BuildFlags;
use crate::progress::ProgressEnv;

fn dir(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        fs::write(path, "FROM scratch\n").expect("write");
    }
    dir
}

fn run(cwd: &Path, context: &str, file: Option<&str>, named: &[&str], stdin: &[u8]) -> Result<Inputs, CliError> {
    let env = Env::of(&[], cwd);
    let flags = BuildFlags {
        context: vec![context.to_owned()],
        file: file.map(str::to_owned),
        build_context: named.iter().map(|n| (*n).to_owned()).collect(),
        ..BuildFlags::default()
    };
    let options = BuildOptions::new(flags, &env, &ProgressEnv::read(|_| None, false))?;
    resolve(&options, &env, Cursor::new(stdin.to_vec()))
}

fn message(result: Result<Inputs, CliError>) -> (String, Vec<String>) {
    match result {
        Ok(_) => ("accepted".to_owned(), Vec::new()),
        Err(e) => (e.message().to_owned(), e.hints().to_vec()),
    }
}

#[test]
fn a_directory() {
    let d = dir(&["Dockerfile", "sub/other.Dockerfile"]);
    let inputs = run(d.path(), ".", None, &[], b"").expect("accepted");
    assert_eq!(inputs.attrs.get("filename").map(String::as_str), Some("Dockerfile"));
    assert_eq!(inputs.dirs.keys().collect::<Vec<_>>(), ["context", "dockerfile"]);
    let inputs = run(d.path(), ".", Some("sub/other.Dockerfile"), &[], b"").expect("accepted");
    assert_eq!(inputs.attrs.get("filename").map(String::as_str), Some("other.Dockerfile"));
    assert_eq!(inputs.dirs.get("dockerfile"), Some(&d.path().join("sub")));
    assert_eq!(inputs.dirs.get("context").and_then(|p| p.canonicalize().ok()), d.path().canonicalize().ok());
}

#[test]
fn the_shared_key_belongs_to_the_directory() {
    let (a, b) = (dir(&["Dockerfile"]), dir(&["Dockerfile"]));
    let key = |d: &TempDir| run(d.path(), ".", None, &[], b"").map(|i| i.shared_key).unwrap_or_default();
    assert_eq!(key(&a), key(&a));
    assert_ne!(key(&a), key(&b));
    assert!(!key(&a).contains('/'));
}

#[test]
fn a_lower_case_dockerfile() {
    let d = dir(&["dockerfile"]);
    let inputs = run(d.path(), ".", None, &[], b"").expect("accepted");
    assert_eq!(inputs.attrs.get("filename").map(String::as_str), Some("dockerfile"));
}

#[test]
fn what_is_missing_is_told() {
    let d = dir(&["Dockerfle", "app/x.txt", "web/Dockerfile.prod"]);
    for (context, file, want, hint) in [
        ("nowhere", None, "unable to prepare context: path \"nowhere\" not found", None),
        (
            "Dockerfle",
            None,
            "unable to prepare context: path \"Dockerfle\" is not a directory",
            Some("to build this Dockerfile: kiln build -f Dockerfle DIRECTORY"),
        ),
        (
            ".",
            None,
            "failed to read dockerfile: open Dockerfile: no such file or directory",
            Some("did you mean `Dockerfle`? Name it with -f Dockerfle"),
        ),
        (
            "app",
            None,
            "failed to read dockerfile: open Dockerfile: no such file or directory",
            Some("name the Dockerfile with -f FILE"),
        ),
        (
            "web",
            Some("web/Dockerfile.prd"),
            "failed to read dockerfile: open web/Dockerfile.prd: no such file or directory",
            Some("did you mean `Dockerfile.prod`?"),
        ),
        (".", Some("app"), "failed to read dockerfile: open app: is a directory", None),
        (
            "https://example.com/x.git?branch=a&tag=b",
            None,
            "unable to prepare context: branch conflicts with tag",
            None,
        ),
    ] {
        let (got, hints) = message(run(d.path(), context, file, &[], b""));
        assert_eq!(got, want);
        assert_eq!(hints.first().map(String::as_str), hint, "{got}");
    }
}

#[test]
fn remote_contexts_are_left_to_the_engine() {
    let d = dir(&["local.Dockerfile"]);
    for (address, file, name) in [
        ("https://example.com/x.git#main:sub", None, Some("Dockerfile")),
        ("https://example.com/x.git?ref=main&subdir=sub", Some("app/Dockerfile"), Some("app/Dockerfile")),
        ("git@example.com:me/x.git", None, Some("Dockerfile")),
        ("http://example.com/x.tar.gz", None, Some("Dockerfile")),
        ("http://example.com/x.tar.gz", Some("local.Dockerfile"), Some("Dockerfile")),
    ] {
        let inputs = run(d.path(), address, file, &[], b"").expect("accepted");
        assert_eq!(inputs.attrs.get("context").map(String::as_str), Some(address));
        assert_eq!(inputs.attrs.get("filename").map(String::as_str), name, "{address}");
        // Only a Dockerfile that is here is offered.
        assert_eq!(inputs.dirs.contains_key("dockerfile"), file == Some("local.Dockerfile"), "{address}");
    }
}

#[test]
fn a_dockerfile_on_standard_input() {
    let d = dir(&["a.txt"]);
    let text = b"FROM scratch\nCOPY a.txt /\n";
    for (context, file) in [("-", None), (".", Some("-"))] {
        let inputs = run(d.path(), context, file, &[], text).expect("accepted");
        let place = inputs.dirs.get("dockerfile").expect("dockerfile");
        assert_eq!(fs::read(place.join("Dockerfile")).expect("read"), text);
        assert_eq!(inputs.attrs.get("dockerfilekey").map(String::as_str), Some("dockerfile"));
        assert!(inputs.upload.is_none());
    }
}

#[test]
fn an_archive_on_standard_input() {
    let d = dir(&[]);
    let mut data = b"\x1f\x8b\x08\x00".to_vec();
    data.resize(5000, 7);
    let mut inputs = run(d.path(), "-", Some("sub/Dockerfile"), &[], &data).expect("accepted");
    let mut got = Vec::new();
    inputs.upload.as_mut().expect("upload").read_to_end(&mut got).expect("read");
    assert_eq!(got, data);
    assert_eq!(inputs.attrs.get("filename").map(String::as_str), Some("sub/Dockerfile"));
    assert!(inputs.dirs.is_empty());
}

#[test]
fn standard_input_has_one_use() {
    let d = dir(&["Dockerfile"]);
    let text = b"FROM scratch\n";
    for (context, file, stdin, want) in [
        ("-", Some("-"), text.as_slice(), "invalid argument: can't use stdin for both build context and dockerfile"),
        ("-", Some("Dockerfile"), text, "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles"),
        ("-", None, b"", "failed to read context from standard input: it is empty"),
        (".", Some("-"), b"", "failed to read dockerfile: standard input is empty"),
    ] {
        assert_eq!(message(run(d.path(), context, file, &[], stdin)).0, want);
    }
}

#[test]
fn named_contexts() {
    let d = dir(&["Dockerfile", "lib/x"]);
    let named = ["lib=lib", "context=lib", "base=docker-image://alpine"];
    let inputs = run(d.path(), ".", None, &named, b"").expect("accepted");
    let attr = |n: &str| inputs.attrs.get(n).map(String::as_str);
    assert_eq!(attr("context:lib"), Some("local:lib"));
    assert_eq!(attr("context:context"), Some("local:_context"));
    assert_eq!(attr("context:base"), Some("docker-image://alpine"));
    assert!(attr("sharedkey:localdir:lib").is_some());
    assert_eq!(inputs.dirs.get("lib"), Some(&d.path().join("lib")));
    for (value, want) in [
        ("x=none", "failed to get build context x: stat none: no such file or directory"),
        ("x=Dockerfile", "failed to get build context x: Dockerfile is not a directory"),
        ("x=target:y", "build context x: \"target:y\" can only be used in a bake file"),
        (
            "x=oci-layout://lib",
            "oci-layout reference \"oci-layout://lib\" could not be resolved: lib is not a directory in OCI layout",
        ),
    ] {
        assert_eq!(message(run(d.path(), ".", None, &[value], b"")).0, want);
    }
}

#[test]
fn a_dockerfile_that_links_elsewhere_is_found() {
    let (d, other) = (dir(&["x"]), dir(&["real/Some.file"]));
    std::os::unix::fs::symlink(other.path().join("real/Some.file"), d.path().join("Dockerfile")).expect("link");
    let inputs = run(d.path(), ".", None, &[], b"").expect("accepted");
    assert_eq!(inputs.attrs.get("filename").map(String::as_str), Some("Some.file"));
    assert_eq!(inputs.dirs.get("dockerfile"), other.path().join("real").canonicalize().ok().as_ref());
}
