//! Archives and streams of other people's programs.

use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_snapshot::compress::{Format, decompress};
use kiln_snapshot::layer::scan;
use kiln_snapshot::{Kind, tar};

use crate::support::*;

/// Runs a program; `None` when it is not installed.
fn run(program: &str, args: &[&str], dir: &Path) -> Option<Vec<u8>> {
    kiln_testkit::program(program)?;
    let output = Command::new(program).args(args).current_dir(dir).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}");
    Some(output.stdout)
}

/// A tree with most kinds of files, made by plain calls.
fn tree(dir: &Path) {
    let long = "long-name-".repeat(20);
    std::fs::create_dir_all(dir.join("d/e").join(&long)).unwrap();
    std::fs::write(dir.join("d/e").join(&long).join(&long), "deep").unwrap();
    std::fs::write(dir.join("d/f"), "content").unwrap();
    std::fs::hard_link(dir.join("d/f"), dir.join("g")).unwrap();
    std::os::unix::fs::symlink("d/".to_owned() + &long, dir.join("l")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.join("p"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    let sparse = std::fs::File::create(dir.join("sparse")).unwrap();
    for i in 0..20 {
        sparse.write_all_at(format!("part {i}").as_bytes(), (i + 1) * 300_000).unwrap();
    }
    sparse.set_len(9_000_000).unwrap();
    std::fs::write(dir.join(os(b"odd-\xff\xfe")), "not utf-8").unwrap();
}

#[test]
fn archives_of_gnu_tar_are_read_in_all_its_formats() {
    root_only!();
    let source = tempfile::tempdir().unwrap();
    tree(source.path());
    let expected = scan(source.path()).unwrap();
    let sparse = |version: &'static str| vec!["--format=pax", "--sparse", version];
    let forms: Vec<Vec<&str>> = vec![
        vec!["--format=gnu"],
        vec!["--format=gnu", "--sparse"],
        vec!["--format=pax"],
        sparse("--sparse-version=0.0"),
        sparse("--sparse-version=0.1"),
        sparse("--sparse-version=1.0"),
    ];
    for form in forms {
        let args = [&form[..], &["--numeric-owner", "-cf", "-", "."]].concat();
        let Some(archive) = run("tar", &args, source.path()) else { kiln_testkit::skip!("no tar program") };
        assert!(tar::is_tar(&archive));
        let mut chain = Chain::new();
        let applied = chain.unpack(&archive).unwrap();
        assert_eq!(portable(&applied.manifest), portable(&expected), "{form:?}");
        if form[0] == "--format=pax" {
            let fraction = |m: &kiln_snapshot::LayerManifest| m.get(b"d/f").unwrap().mtime.1;
            assert_eq!(fraction(&applied.manifest), fraction(&expected), "{form:?}");
        }
    }
}

#[test]
fn gnu_tar_reads_our_archives() {
    root_only!();
    let source = tempfile::tempdir().unwrap();
    tree(source.path());
    let manifest = scan(source.path()).unwrap();
    let archive = tar_of(&manifest, source.path());
    let dest = tempfile::tempdir().unwrap();
    std::fs::write(dest.path().join("a.tar"), archive).unwrap();
    std::fs::create_dir(dest.path().join("out")).unwrap();
    let args = ["-xpf", "a.tar", "-C", "out"];
    if run("tar", &args, dest.path()).is_none() {
        kiln_testkit::skip!("no tar program");
    }
    let out = scan(&dest.path().join("out")).unwrap();
    let without_root = |m| portable(m).split_off(1);
    assert_eq!(without_root(&out), without_root(&manifest));
    assert_eq!(out.entries().iter().filter(|e| e.kind == Kind::Fifo).count(), 1);
}

#[test]
fn streams_of_the_usual_programs_are_read() {
    let temp = tempfile::tempdir().unwrap();
    let text = "some text that repeats, some text that repeats\n".repeat(20_000);
    std::fs::write(temp.path().join("plain"), &text).unwrap();
    let mut found = 0;
    for (program, format) in
        [("gzip", Format::Gzip), ("zstd", Format::Zstd), ("bzip2", Format::Bzip2), ("xz", Format::Xz)]
    {
        let Some(bytes) = run(program, &["-c", "plain"], temp.path()) else {
            kiln_testkit::report_skip(&format!("no {program} program"));
            continue;
        };
        found += 1;
        // Two streams one after the other, and input that comes byte by byte.
        let twice = [&bytes[..], &bytes].concat();
        let slow = std::io::BufReader::with_capacity(1, &twice[..]);
        let (told, mut reader) = decompress(slow).unwrap();
        assert_eq!(told, format);
        let mut out = String::new();
        reader.read_to_string(&mut out).unwrap();
        assert!(out == text.repeat(2), "{program}");
        let (_, mut reader) = decompress(&bytes[..bytes.len() - 3]).unwrap();
        assert!(reader.read_to_end(&mut Vec::new()).is_err(), "{program}: cut streams are errors");
    }
    assert!(found > 0 || kiln_testkit::program("gzip").is_none());
}
