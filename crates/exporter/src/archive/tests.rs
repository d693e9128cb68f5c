//! Archives, read back by the layer format's own reader and by other people's programs where there are any.

use std::collections::BTreeMap;
use std::process::Command;

use kiln_stdx::Digest;
use serde_json::Value;

use super::*;
use crate::testing::{Fixture, exporter};
use crate::{ExportSource, Output};

fn archive(fixture: &Fixture, source: &ExportSource, kind: &str, attributes: &[(&str, &str)]) -> Archive {
    match exporter(kind, attributes).build(&fixture.context(), source).unwrap().output {
        Output::Archive(archive) => archive,
        _ => panic!("no archive"),
    }
}

fn bytes(archive: &Archive) -> Vec<u8> {
    let mut out = Vec::new();
    archive.write_to(&mut out).unwrap();
    out
}

/// Unpacks with the system's tar.
fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    fs::write(&file, archive).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let status = Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&out).status().unwrap();
    assert!(status.success());
    let mut files = BTreeMap::new();
    let mut work = vec![out.clone()];
    while let Some(dir) = work.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                work.push(path);
            } else {
                let name = path.strip_prefix(&out).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

fn json(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&files[name]).unwrap()
}

#[test]
fn an_oci_archive_is_a_layout_whose_blobs_match_their_names() {
    let fixture = Fixture::new();
    let files = unpack(&bytes(&archive(&fixture, &fixture.source(), "oci", &[("name", "me/app:v1,me/app:v2")])));
    assert_eq!(json(&files, "oci-layout")["imageLayoutVersion"], "1.0.0");
    assert!(!files.contains_key("manifest.json"));
    let blobs: Vec<_> = files.iter().filter_map(|(n, b)| Some((n.strip_prefix("blobs/sha256/")?, b))).collect();
    assert_eq!(blobs.len(), 4);
    assert!(blobs.iter().all(|(name, bytes)| Digest::of(bytes).hex() == **name));
    let index = json(&files, "index.json");
    let entries = index["manifests"].as_array().unwrap();
    let names: Vec<_> = entries.iter().map(|m| m["annotations"][IMAGE_NAME].as_str().unwrap()).collect();
    assert_eq!(names, ["docker.io/me/app:v1", "docker.io/me/app:v2"]);
    assert_eq!(entries[1]["annotations"][REF_NAME], "v2");
    assert_eq!(entries[0]["digest"], entries[1]["digest"]);
}

#[test]
fn a_docker_archive_lists_its_images_for_docker_load() {
    let fixture = Fixture::new();
    let files = unpack(&bytes(&archive(&fixture, &fixture.source(), "docker", &[("name", "app:1")])));
    let list = json(&files, "manifest.json");
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["RepoTags"][0], "app:1");
    for path in list[0]["Layers"].as_array().unwrap().iter().chain([&list[0]["Config"]]) {
        assert!(files.contains_key(path.as_str().unwrap()), "{path}");
    }
    let unnamed = unpack(&bytes(&archive(&fixture, &fixture.source(), "docker", &[])));
    assert_eq!(json(&unnamed, "manifest.json")[0]["RepoTags"], Value::Null);
}

#[test]
fn equal_images_give_equal_archives() {
    let make = || {
        let fixture = Fixture::new();
        bytes(&archive(&fixture, &fixture.two_platforms(), "oci", &[("name", "a")]))
    };
    assert!(make() == make());
}

#[test]
fn a_damaged_blob_breaks_the_archive_off() {
    let fixture = Fixture::new();
    let archive = archive(&fixture, &fixture.source(), "oci", &[("compression", "uncompressed")]);
    let (path, _) = archive.list().filter(|(p, _)| p.starts_with("blobs/")).max_by_key(|(_, size)| *size).unwrap();
    let hex = path.trim_start_matches("blobs/sha256/");
    let blob = fixture.store.blob(&format!("sha256:{hex}").parse().unwrap()).unwrap();
    let mut damaged = fs::read(blob.path()).unwrap();
    damaged[1000] ^= 1;
    fs::remove_file(blob.path()).unwrap();
    fs::write(blob.path(), damaged).unwrap();
    let error = archive.write_to(&mut Vec::new()).unwrap_err();
    assert_eq!(error.class(), kiln_stdx::ErrorClass::Damage, "{error}");
    let target = fixture.path().join("layout");
    assert!(archive.write_directory(&target).is_err());
    assert!(!target.join("index.json").exists() && !target.join(path).exists());
    assert!(
        fs::read_dir(target.join("blobs/sha256")).unwrap().all(|e| !e
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with('.'))
    );
}

#[test]
fn a_directory_is_written_once_and_completed() {
    let fixture = Fixture::new();
    let archive = archive(&fixture, &fixture.source(), "oci", &[]);
    let target = fixture.path().join("layout");
    archive.write_directory(&target).unwrap();
    for (path, size) in archive.list() {
        assert_eq!(fs::metadata(target.join(path)).unwrap().len(), size);
    }
    fs::remove_file(target.join("oci-layout")).unwrap();
    archive.write_directory(&target).unwrap();
    assert!(target.join("oci-layout").exists());
}

#[test]
fn a_full_disk_is_told_with_a_hint() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(28))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let fixture = Fixture::new();
    let error = archive(&fixture, &fixture.source(), "oci", &[]).write_to(&mut Full).unwrap_err();
    assert!(error.hint().unwrap().contains("disk"), "{error}");
}
