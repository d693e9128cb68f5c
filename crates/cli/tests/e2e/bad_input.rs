//! Bad input: one clear error with the place and a hint, a non-zero exit, and nothing written.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kiln_testkit::{Disk, Finished, TestEnv};

/// Returns all that lies below the environment, without the state root and the home directory.
fn listing(env: &TestEnv) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![env.path().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path == env.root() || path == env.path().join("home") {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Checks that a build with each kind of output fails with all of `texts` in its one error, and leaves nothing.
#[track_caller]
fn refused(env: &TestEnv, args: &[&str], texts: &[&str]) {
    let temporary = env.path().join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let before = listing(env);
    // The directories above a destination are made by a build that succeeds, and only by it.
    for output in ["type=oci,dest=out/new/image.tar", "type=docker,dest=out/image.tar", "type=local,dest=out/new/dir"] {
        let ctx = env.ctx();
        let all = [&["build", "--progress=plain", "-o", output], args].concat();
        let all = all.into_iter().map(std::ffi::OsStr::new);
        let run = env.kiln(all.chain([ctx.as_os_str()])).env("TMPDIR", &temporary);
        let done = run.finish();
        one_error(&done, texts);
        assert_eq!(listing(env), before, "{output} left something\n{}", done.report());
    }
}

#[track_caller]
fn one_error(done: &Finished, texts: &[&str]) {
    assert!(done.code.is_some_and(|code| code != 0) && !done.timed_out, "{}", done.report());
    let text = done.err();
    assert_eq!(text.lines().filter(|line| line.starts_with("ERROR: ")).count(), 1, "{}", done.report());
    for wanted in texts {
        assert!(text.contains(wanted), "no `{wanted}` in\n{}", done.report());
    }
}

#[test]
fn dockerfiles() {
    let env = crate::env();
    refused(&env, &[], &["failed to read dockerfile: open Dockerfile: no such file or directory"]);
    env.context(&[("Dokerfile", "FROM scratch\n")]);
    refused(&env, &[], &["open Dockerfile: no such file or directory", "hint: did you mean `Dokerfile`?"]);
    refused(&env, &["-f", "gone"], &["gone: no such file or directory"]);
    for (text, wanted) in [
        ("", &["the Dockerfile cannot be empty"][..]),
        ("FROM scratch\n\nCOPPY a b\n", &["Dockerfile:3", ">>> COPPY a b", "unknown instruction: COPPY", "COPY"]),
        ("RUN true\n", &["Dockerfile:1", "FROM"]),
        ("FROM scratch\nENV a\n", &["Dockerfile:2", "ENV"]),
        ("FROM scratch\nCOPY --chwon=1 a b\n", &["Dockerfile:2", "unknown flag: --chwon", "did you mean chown?"]),
        ("FROM scratch\nRUN --mount=type=cahce,target=/x a\n", &["Dockerfile:2", "\"cahce\"", "did you mean cache?"]),
        ("FROM scratch\nCOPY <<end /x\ntext\n", &["Dockerfile:2", "unterminated heredoc"]),
        ("FROM scratch\nWORKDIR ${a:?is not set}\n", &["Dockerfile:2", "is not set"]),
    ] {
        env.context(&[("Dockerfile", text)]);
        refused(&env, &[], wanted);
    }
}

#[test]
fn stages_and_flags() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch AS release\nCOPY Dockerfile /\n")]);
    refused(&env, &["--target", "relaese"], &["relaese", "did you mean release?"]);
    refused(&env, &["--buld-arg", "a=b"], &["unknown flag: --buld-arg", "hint: did you mean --build-arg?"]);
    refused(&env, &["--platform", "linux/nothing/at/all"], &["linux/nothing/at/all"]);
    refused(&env, &["--secret", "id=a,src=gone"], &["gone: no such file or directory", "hint: "]);
    env.context(&[(
        "Dockerfile",
        "FROM scratch AS release\nCOPY Dockerfile /\nFROM scratch\nCOPY --from=relaese /a /\n",
    )]);
    refused(&env, &[], &["Dockerfile:4", "relaese", "hint: did you mean the stage `release`?"]);
}

#[test]
fn files_that_are_not_there() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY package.json /\n"), ("packages.json", "{}")]);
    refused(&env, &[], &["Dockerfile:2", "\"/package.json\": not found", "hint: did you mean `packages.json`?"]);
    env.context(&[("Dockerfile", "FROM scratch\nCOPY sub/man.c /\n"), ("sub/main.c", "")]);
    refused(&env, &[], &["Dockerfile:2", "\"/sub/man.c\": not found", "hint: did you mean `sub/main.c`?"]);
    env.context(&[("Dockerfile", "FROM scratch\nCOPY --from=base /etc/paswd /\n")]);
    refused(&env, &["--build-context", &base], &["Dockerfile:2", "/etc/paswd", "hint: did you mean `etc/passwd`?"]);
    env.context(&[(".dockerignore", "packages.json\n"), ("Dockerfile", "FROM scratch\nCOPY packages.json /\n")]);
    refused(&env, &[], &["Dockerfile:2", "packages.json"]);
}

#[test]
fn a_file_that_cannot_be_read() {
    let env = crate::env();
    if kiln_testkit::program("setpriv").is_none() {
        kiln_testkit::skip!("no setpriv on this host");
    }
    env.context(&[("Dockerfile", "FROM scratch\nCOPY . /\n"), ("sub/private", "x")]);
    let private = env.ctx().join("sub/private");
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o000)).unwrap();
    let drop = "-dac_override,-dac_read_search";
    let prefix = ["setpriv", "--bounding-set", drop, "--inh-caps", drop];
    let before = listing(&env);
    let ctx = env.ctx();
    let args = ["build", "--progress=plain", "-o", "type=oci,dest=out/image.tar"].map(std::ffi::OsStr::new);
    let done = env.kiln_through(&prefix, args.into_iter().chain([ctx.as_os_str()])).finish();
    one_error(&done, &["sub/private", "ermission denied", "hint: "]);
    assert_eq!(listing(&env), before, "{}", done.report());
}

/// Returns a tar archive of these entries: name, type, link target, content.
fn archive(entries: &[(&str, tar::EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, link, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // The checked setters refuse what is tested here.
        let raw = header.as_gnu_mut().unwrap();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn archives_that_lead_out_of_the_root() {
    use tar::EntryType::{Link, Regular, Symlink};
    let env = crate::env();
    let outside = env.path().join("escaped");
    let up = format!("../../../../../../../..{}", env.path().display());
    for (what, entries) in [
        ("a name", vec![("../../../escaped", Regular, "", &b"evil"[..])]),
        ("a name that comes back", vec![("a/../../../escaped", Regular, "", b"evil")]),
        ("a symbolic link", vec![("up", Symlink, up.as_str(), b""), ("up/escaped", Regular, "", b"evil")]),
        ("a hard link", vec![("link", Link, "../../../../etc/hostname", b"")]),
        ("a hard link through a link", vec![("up", Symlink, "/etc", b""), ("h", Link, "up/hostname", b"")]),
    ] {
        env.context(&[("Dockerfile", "FROM scratch\nADD evil.tar /safe/\n")]);
        std::fs::write(env.ctx().join("evil.tar"), archive(&entries)).unwrap();
        refused(&env, &[], &["Dockerfile:2", "failed to unpack evil.tar", "hint: "]);
        assert!(!outside.exists(), "{what}");
    }
    // The archive's root is the root of its links, as if it were unpacked there by a process that sees nothing else.
    let absolute = env.path().to_str().unwrap();
    let evil = archive(&[("up", Symlink, absolute, b""), ("up/escaped", Regular, "", b"kept inside")]);
    std::fs::write(env.ctx().join("evil.tar"), evil).unwrap();
    let (image, _) = env.build_image(&[]);
    assert!(!outside.exists());
    assert_eq!(image.text(&format!("safe{}", outside.display())), "kept inside");
    // A link that stays within the root may go up.
    let fine = archive(&[("a/up", Symlink, "../b/c", b""), ("a/up/file", Regular, "", b"fine")]);
    std::fs::write(env.ctx().join("evil.tar"), fine).unwrap();
    assert_eq!(env.build_image(&[]).0.text("safe/b/c/file"), "fine");
}

#[test]
fn archives_that_are_cut_or_damaged() {
    use tar::EntryType::Regular;
    let env = crate::env();
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let noise: Vec<u8> = (0..200_000).map(|_| noise()).collect();
    let whole = archive(&[("a", Regular, "", &noise), ("b", Regular, "", &noise)]);
    let packed = gzip(&whole);
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 1;
    let mut checksum = packed.clone();
    let at = packed.len() - 6;
    checksum[at] ^= 0x10;
    let zstd = zstd::encode_all(&whole[..], 1).unwrap();
    for (name, data) in [
        ("cut.tar", &whole[..300_000]),
        ("header.tar", &whole[..201_728]),
        ("cut.tar.gz", &packed[..packed.len() / 2]),
        ("end.tar.gz", &packed[..packed.len() - 3]),
        ("flipped.tar.gz", &flipped),
        ("checksum.tar.gz", &checksum),
        ("cut.tar.zst", &zstd[..zstd.len() / 2]),
        ("start.tar.zst", &zstd[..100]),
        ("start.tgz", &packed[..20]),
    ] {
        env.context(&[("Dockerfile", &format!("FROM scratch\nADD {name} /\n"))]);
        std::fs::write(env.ctx().join(name), data).unwrap();
        refused(&env, &[], &["Dockerfile:2", &format!("failed to unpack {name}: "), "hint: "]);
    }
    // What follows the end of an archive is nobody's business.
    let padded = [&packed[..], &[0; 512]].concat();
    std::fs::write(env.ctx().join("padded.tar.gz"), padded).unwrap();
    env.context(&[("Dockerfile", "FROM scratch\nADD padded.tar.gz /\n")]);
    assert_eq!(env.build_image(&[]).0.root()[&b"a"[..]].content, noise);
}

#[test]
fn steps_that_fail() {
    let (env, base) = crate::env_with_base!();
    for (step, wanted) in [
        ("RUN frobnicate --now", &["exit code: 127", "hint: `frobnicate` is not in the image"][..]),
        ("RUN [\"/frobnicate\"]", &["exit code: 127", "/frobnicate", "hint: "]),
        ("RUN [\"frobnicate\"]", &["exit code: 127", "frobnicate", "hint: "]),
        ("RUN [\"/etc/passwd\"]", &["exit code: 126", "/etc/passwd", "hint: "]),
        ("RUN echo told before && exit 7", &["exit code: 7", "told before"]),
        ("RUN kill -9 $$; kill -TERM 1; sleep 1; exit 5", &["exit code: 5"]),
        ("RUN --mount=type=secret,id=gone,required true", &["secret gone: not found", "hint: add --secret id=gone"]),
        ("RUN --mount=type=ssh,required true", &["default", "hint: add --ssh default"]),
        ("USER nobody-here\nRUN true", &["nobody-here", "/etc/passwd"]),
    ] {
        env.context(&[("Dockerfile", &format!("FROM base\n{step}\nRUN true\n"))]);
        let last = step.lines().last().unwrap();
        let place = format!("Dockerfile:{}", 1 + step.lines().count());
        refused(&env, &["--build-context", &base], &[&[&place, &format!(">>> {last}")[..]], wanted].concat());
    }
}

#[test]
fn destinations() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    env.context(&[("is-a-file", ""), ("is-a-directory/", "")]);
    let before = listing(&env);
    for (output, wanted) in [
        ("type=oci,dest=ctx/is-a-directory", &["destination file ctx/is-a-directory is a directory"][..]),
        ("type=local,dest=ctx/is-a-file", &["ctx/is-a-file", "is a file"]),
        ("type=oci,dest=ctx/is-a-file/x.tar", &["ctx/is-a-file/x.tar", "not a directory"]),
        ("type=local,dest=ctx/is-a-file/x", &["ctx/is-a-file/x"]),
        ("type=oci,dest=/proc/sys/x.tar", &["/proc/sys/x.tar"]),
        ("type=local,dest=/proc/sys/x", &["/proc/sys/x"]),
    ] {
        let done = env.build(&["-o", output]);
        one_error(&done, wanted);
        assert_eq!(listing(&env), before, "{output} left something\n{}", done.report());
    }
}

/// A Dockerfile whose image needs `megabytes` that do not compress.
fn large(megabytes: u32) -> String {
    format!("FROM base\nRUN dd if=/dev/urandom of=/large bs=1M count={megabytes}\n")
}

#[test]
fn a_full_disk_of_the_engine() {
    let disk = match Disk::tmpfs(24) {
        Ok(disk) => disk,
        Err(why) => kiln_testkit::skip!("{why}"),
    };
    let env = crate::env().with_root(disk.path().join("root"));
    let Some(base) = env.base() else { kiln_testkit::skip!("no static busybox on this host") };
    env.context(&[("Dockerfile", &large(40))]);
    let hint = "hint: ";
    refused(&env, &["--build-context", &base], &["Dockerfile:2", "o space left on device", hint]);
    // A step that does not say what hit it.
    env.context(&[("Dockerfile", &large(40).replace('\n', " 2>/dev/null\n").replacen(" 2>/dev/null", "", 1))]);
    refused(&env, &["--build-context", &base], &["Dockerfile:2", "o space left on device", hint]);
    // The same engine builds what there is room for.
    env.context(&[("Dockerfile", "FROM base\nRUN echo small > /small\n")]);
    assert_eq!(env.build_image(&["--build-context", &base]).0.text("small"), "small\n");
    // A context that does not fit.
    std::fs::remove_file(env.out("image.tar")).unwrap();
    std::fs::write(env.ctx().join("blob"), vec![7; 40 << 20]).unwrap();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY blob /\n")]);
    refused(&env, &[], &["o space left on device", hint]);
    std::fs::remove_file(env.ctx().join("blob")).unwrap();
    env.context(&[("Dockerfile", "FROM base\nRUN echo again > /small\n")]);
    assert_eq!(env.build_image(&["--build-context", &base]).0.text("small"), "again\n");
}

#[test]
fn a_full_disk_of_the_client() {
    let disk = match Disk::tmpfs(4) {
        Ok(disk) => disk,
        Err(why) => kiln_testkit::skip!("{why}"),
    };
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", &large(10))]);
    let at = |name: &str| disk.path().join(name).display().to_string();
    for (kind, name) in [("oci", "image.tar"), ("docker", "image.tar"), ("tar", "root.tar"), ("local", "dir")] {
        let output = format!("type={kind},dest={}", at(name));
        let done = env.build(&["--build-context", &base, "-o", &output]);
        one_error(&done, &["o space left on device", &at("")]);
        assert!(is_empty(disk.path()), "{kind}: {}", done.report());
    }
    // What was there before stays as it was.
    std::fs::write(at("image.tar"), "before").unwrap();
    let output = format!("type=oci,dest={}", at("image.tar"));
    let done = env.build(&["--build-context", &base, "-o", &output]);
    one_error(&done, &["o space left on device"]);
    assert_eq!(std::fs::read_to_string(at("image.tar")).unwrap(), "before");
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}
