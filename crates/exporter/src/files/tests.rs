//! Which files leave, in which order, and that damaged ones do not.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use kiln_stdx::ErrorClass;

use super::*;
use crate::attest::Attestation;
use crate::testing::{Fixture, NOW, exporter, meta};
use crate::{Built, Output};

fn files(fixture: &Fixture, source: &ExportSource, attributes: &[(&str, &str)]) -> Result<std::sync::Arc<FileSet>> {
    match exporter("local", attributes).build(&fixture.context(), source)?.output {
        Output::Directory { files, .. } => Ok(files),
        _ => panic!("no directory"),
    }
}

fn tarball(fixture: &Fixture, source: &ExportSource, attributes: &[(&str, &str)]) -> Built {
    exporter("tar", attributes).build(&fixture.context(), source).unwrap()
}

fn paths(files: &FileSet) -> Vec<String> {
    files.entries().iter().map(|e| text(&e.stat.path)).collect()
}

fn read(files: &FileSet, path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    files.open_entry(files.get(path.as_bytes()).unwrap()).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn the_merged_tree_is_listed_with_links_behind_their_files() {
    let fixture = Fixture::new();
    let files = files(&fixture, &fixture.source(), &[]).unwrap();
    assert_eq!(paths(&files), ["bin", "bin/hello", "bin/hi", "data", "data/big", "hello"]);
    let hi = files.get(b"bin/hi").unwrap();
    assert_eq!((hi.link.as_deref(), hi.is_content()), (Some(&b"bin/hello"[..]), false));
    assert_eq!(files.get(b"bin/hello").unwrap().stat.mode, 0o4755);
    assert_eq!(files.get(b"hello").unwrap().stat.target, b"bin/hello");
    assert_eq!(read(&files, "bin/hello").unwrap(), b"#!hello");
    assert_eq!(read(&files, "data/big").unwrap().len(), 300_000);
    assert_eq!(files.total_size(), 300_007);
    assert_eq!(files.get(b"data").unwrap().stat.mtime, (NOW as i64, 0));
}

#[test]
fn several_platforms_get_directories_unless_told_otherwise() {
    let fixture = Fixture::new();
    let source = fixture.two_platforms();
    let split = files(&fixture, &source, &[("source-date-epoch", "77")]).unwrap();
    let tops: Vec<_> = paths(&split).into_iter().filter(|p| !p.contains('/')).collect();
    assert_eq!(tops, ["linux_amd64", "linux_arm64"]);
    assert!(split.entries().iter().all(|e| e.stat.mtime == (77, 0)));
    assert_eq!(split.get(b"linux_arm64/bin/hi").unwrap().link.as_deref(), Some(&b"linux_arm64/bin/hello"[..]));
    assert_eq!(read(&split, "linux_amd64/bin/hello").unwrap(), b"#!hello");

    let error = files(&fixture, &source, &[("platform-split", "false")]).err().unwrap().to_string();
    assert!(error.contains("cannot overwrite bin/hello from linux/amd64 with linux/arm64"), "{error}");
    let mut one = source.clone();
    one.entries.pop();
    one.keyed = false;
    assert!(files(&fixture, &one, &[]).unwrap().get(b"bin").is_some(), "one platform stays flat");
    let forced = files(&fixture, &one, &[("platform-split", "true")]).unwrap();
    assert_eq!(forced.label(), "copying files linux/amd64");
}

#[test]
fn damage_shows_before_the_last_byte() {
    for change in ["flip", "cut", "grow", "gone"] {
        let fixture = Fixture::new();
        let source = fixture.source();
        let reference = source.entries[0].reference.clone().unwrap();
        let files = files(&fixture, &source, &[]).unwrap();
        let file = reference.dirs()[1].join("data/big");
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        match change {
            "flip" => fs::write(&file, [&[8][..], &bytes[1..]].concat()).unwrap(),
            "cut" => fs::write(&file, &bytes[1..]).unwrap(),
            "grow" => fs::write(&file, [&bytes[..], b"x"].concat()).unwrap(),
            _ => {}
        }
        assert!(read(&files, "data/big").is_err(), "{change}");
        let built = tarball(&fixture, &fixture.source(), &[]);
        assert!(built.write_to(&mut Vec::new()).is_ok(), "a fresh copy of the result is whole");
        let mut reader = files.open_entry(files.get(b"data/big").unwrap());
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert_eq!(reader.explain(error).class(), ErrorClass::Damage, "{change}");
    }
}

#[test]
fn a_link_in_the_place_of_a_file_is_not_followed() {
    let fixture = Fixture::new();
    let source = fixture.source();
    let files = files(&fixture, &source, &[]).unwrap();
    let file = source.entries[0].reference.as_ref().unwrap().dirs()[1].join("data/big");
    let secret = fixture.path().join("secret");
    fs::write(&secret, vec![7; 300_000]).unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&secret, &file).unwrap();
    assert!(read(&files, "data/big").is_err());
}

#[test]
fn tarballs_are_read_by_tar_and_do_not_vary() {
    let make = || {
        let fixture = Fixture::new();
        let base = fixture.image();
        let odd = fixture.layer(&base, "odd", |b| {
            let long = format!("data/{}", "n".repeat(180));
            b.file_from_bytes(long.as_bytes(), &meta(0o644), b"long").unwrap();
            b.file_from_bytes(b"data/\xff\xfe", &meta(0o644), b"bytes").unwrap();
        });
        let mut source = fixture.source();
        source.entries[0].reference = Some(odd);
        let mut out = Vec::new();
        tarball(&fixture, &source, &[]).write_to(&mut out).unwrap();
        (fixture, out)
    };
    let (fixture, archive) = make();
    assert!(archive == make().1);
    let file = fixture.path().join("out.tar");
    fs::write(&file, &archive).unwrap();
    let listing = Command::new("tar").arg("--numeric-owner").arg("-tvf").arg(&file).output().unwrap();
    assert!(listing.status.success(), "{}", String::from_utf8_lossy(&listing.stderr));
    let text = String::from_utf8_lossy(&listing.stdout).into_owned();
    for part in ["bin/hi link to bin/hello", "hello -> bin/hello", "-rwsr-xr-x 0/0", &"n".repeat(180), "\\377\\376"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("gone"));
    let dir = fixture.path().join("out");
    fs::create_dir(&dir).unwrap();
    assert!(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&dir).status().unwrap().success());
    assert_eq!(fs::read(dir.join("data/big")).unwrap().len(), 300_000);
}

#[test]
fn attestations_become_files_about_the_files() {
    let fixture = Fixture::new();
    let mut source = fixture.two_platforms();
    for entry in &mut source.entries {
        entry.attestations = vec![Attestation {
            path: "sub/provenance.json".into(),
            predicate_type: "https://example.org/p".into(),
            predicate: Bytes::from_static(b"{\"x\":1}"),
            subjects: vec![],
            inline_only: false,
            sbom_core: false,
        }];
    }
    let split = files(&fixture, &source, &[("attestation-prefix", "at-")]).unwrap();
    let text = read(&split, "linux_amd64/at-provenance.json").unwrap();
    let statement: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let subjects: BTreeMap<_, _> = statement["subject"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap(), s["digest"]["sha256"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(subjects["bin/hello"], Digest::of("#!hello").hex());
    assert!(subjects.contains_key("data/big") && !subjects.contains_key("bin"));

    source.entries[1].reference = None;
    let flat = files(&fixture, &source, &[("platform-split", "false")]).unwrap();
    let names = paths(&flat);
    for name in ["provenance.linux_amd64.json", "provenance.linux_arm64.json"] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
}

#[test]
fn scratch_is_an_empty_output() {
    let fixture = Fixture::new();
    let files = files(&fixture, &ExportSource::default(), &[]).unwrap();
    assert!(files.entries().is_empty());
    let mut out = Vec::new();
    tarball(&fixture, &ExportSource::default(), &[]).write_to(&mut out).unwrap();
    assert_eq!(out, [0; 1024]);
}
