//! Values of `--output` and what they mean.

use std::path::Path;

use super::{Dest, Output, Wishes, parse};
use crate::env::Env;

fn run(dir: &Path, values: &[&str]) -> Result<Vec<Output>, String> {
    let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
    parse(&values, Wishes::default(), &Env::of(&[], dir)).map_err(|e| e.message().to_owned())
}

fn line(output: &Output) -> String {
    let attrs: Vec<String> = output.attrs.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let dest = match &output.dest {
        Dest::Engine => "engine".to_owned(),
        Dest::Stdout => "stdout".to_owned(),
        Dest::File(p) => format!("file {}", p.file_name().unwrap_or_default().to_string_lossy()),
        Dest::Dir(p) => format!("dir {}", p.file_name().unwrap_or_default().to_string_lossy()),
        Dest::Load(_) => "load".to_owned(),
        Dest::Layout(p) => format!("layout {}", p.file_name().unwrap_or_default().to_string_lossy()),
    };
    format!("{} [{}] {dest}", output.kind, attrs.join(","))
}

#[test]
fn accepted() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for (value, want) in [
        ("out", "local [] dir out"),
        ("type=local,dest=a/b", "local [] dir b"),
        ("type=oci,dest=x.tar", "oci [] file x.tar"),
        ("type=oci,tar=false,dest=layout", "oci [tar=false] layout layout"),
        ("type=docker,dest=x.tar,compression=zstd", "docker [compression=zstd] file x.tar"),
        ("TYPE=tar,DEST=y.tar", "tar [] file y.tar"),
        ("type=image,name=a,push=true", "image [name=a,push=true] engine"),
        ("type=registry", "image [push=true,unpack=false] engine"),
        ("type=docker", "docker [] load"),
    ] {
        let got = run(dir.path(), &[value]).map(|o| o.iter().map(line).collect::<Vec<_>>());
        assert_eq!(got, Ok(vec![want.to_owned()]), "{value}");
    }
}

#[test]
fn the_image_store_is_the_default() {
    let dir = tempfile::tempdir().expect("temporary directory");
    assert_eq!(run(dir.path(), &[]).map(|o| line(&o[0])), Ok("image [] engine".to_owned()));
    assert_eq!(run(dir.path(), &["type=cacheonly"]), Ok(Vec::new()));
}

#[test]
fn pushing_and_loading_are_outputs_too() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for (values, push, load, want) in [
        (&[][..], true, false, vec!["image [push=true,unpack=false] engine"]),
        (&[], true, true, vec!["image [push=true,unpack=false] engine", "docker [] load"]),
        (&["type=image,name=a"], true, false, vec!["image [name=a,push=true] engine"]),
        (&["type=local,dest=d"], true, false, vec!["local [] dir d", "image [push=true,unpack=false] engine"]),
        (&["type=docker"], false, true, vec!["docker [] load"]),
        (&["type=cacheonly"], false, true, vec!["docker [] load"]),
    ] {
        let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        let outputs = parse(&values, Wishes { push, load }, &Env::of(&[], dir.path())).expect("accepted");
        assert_eq!(outputs.iter().map(line).collect::<Vec<_>>(), want);
    }
}

#[test]
fn refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("plain"), b"x").expect("write");
    std::fs::create_dir(dir.path().join("folder")).expect("mkdir");
    for (value, want) in [
        ("dest=x", "type is required for output"),
        ("type=local", "dest is required for local exporter"),
        ("type=local,dest=-", "dest cannot be stdout for local exporter"),
        ("plain", "destination directory plain is a file"),
        ("type=oci,dest=folder", "destination file folder is a directory"),
        ("type=oic,dest=x", "unknown output type `oic`"),
        ("type=oci,noise", "invalid value noise"),
        ("type=oci,dest=plain/x.tar", "invalid destination file: plain/x.tar: not a directory"),
    ] {
        assert_eq!(run(dir.path(), &[value]), Err(want.to_owned()), "{value}");
    }
    // Nobody makes files there, root neither; the kernel has several words for it.
    let nowhere = run(dir.path(), &["type=local,dest=/proc/nowhere/x"]);
    assert!(nowhere.is_err_and(|e| e.starts_with("cannot write /proc/nowhere/x: ")));
    let twice = run(dir.path(), &["type=oci,tar=false,dest=a", "type=oci,tar=false,dest=b"]);
    assert_eq!(twice, Err("only one output can be an OCI directory (tar=false)".to_owned()));
}

#[test]
fn a_near_type_is_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let error = parse(&["type=dcoker,dest=x".to_owned()], Wishes::default(), &Env::of(&[], dir.path()))
        .expect_err("unknown type");
    assert_eq!(error.hints(), ["did you mean `docker`?"]);
}
