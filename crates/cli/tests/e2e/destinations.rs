//! What becomes of destinations: whatever is done to an output changes no later build, and one that could not be finished is
//! as it was before.

use std::path::{Path, PathBuf};

use kiln_testkit::{Image, Run, TestEnv};

/// Every kind of output that the client keeps.
const KINDS: [&str; 5] = ["type=local", "type=tar", "type=oci", "type=docker", "type=oci,tar=false"];

/// Returns where an output of this kind goes.
fn place(env: &TestEnv, kind: &str) -> PathBuf {
    env.out(&kind.replace(['=', ','], "-"))
}

fn build(env: &TestEnv, base: &str, dest: &Path, kind: &str) -> Run {
    let output = format!("{kind},dest={}", dest.display());
    let args = ["build", "--progress=plain", "-t", "app:1", "--build-context", base, "-o", &output];
    let ctx = env.ctx();
    env.kiln(args.iter().map(std::ffi::OsStr::new).chain([ctx.as_os_str()]))
}

/// Returns a file of an output.
fn read(dest: &Path, kind: &str, name: &str) -> String {
    match kind {
        "type=local" => std::fs::read_to_string(dest.join(name)).unwrap_or_default(),
        "type=tar" => {
            let files = kiln_testkit::image::read_layer(&std::fs::read(dest).unwrap_or_default());
            files.get(name.as_bytes()).map(|f| String::from_utf8_lossy(&f.content).into_owned()).unwrap_or_default()
        }
        _ => Image::read(dest).text(name),
    }
}

/// Writes into every file below a path, in place.
fn spoil(path: &Path) -> usize {
    let meta = std::fs::symlink_metadata(path).expect("metadata");
    if meta.is_dir() {
        let entries = std::fs::read_dir(path).expect("list").flatten();
        return entries.map(|entry| spoil(&entry.path())).sum();
    }
    if !meta.is_file() {
        return 0;
    }
    let _ = std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600));
    let file = std::fs::File::options().write(true).open(path).expect("open");
    std::os::unix::fs::FileExt::write_at(&file, b"spoilt", 0).expect("write");
    1
}

#[test]
fn writing_into_an_output_changes_no_later_build() {
    let (env, base) = crate::env_with_base!();
    let dockerfile = "FROM base\nCOPY one /one\nRUN cat /one > /two\nCOPY --from=base /bin /again\n";
    env.context(&[("Dockerfile", dockerfile), ("one", "first\n")]);
    for kind in KINDS {
        let dest = place(&env, kind);
        let _ = build(&env, &base, &dest, kind).finish().ok();
        assert!(spoil(&dest) > 0, "{kind}");
        let other = dest.with_extension("other");
        let done = build(&env, &base, &other, kind).finish().ok();
        assert!(done.err().matches("CACHED").count() >= 3, "{kind}: {}", done.err());
        for name in ["one", "two"] {
            assert_eq!(read(&other, kind, name), "first\n", "{kind}");
        }
    }
    // What later steps build on is whole too.
    let more = format!("{dockerfile}RUN cat /one /two > /three && /again/busybox true\n");
    env.context(&[("Dockerfile", &more)]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("three"), "first\nfirst\n");
    let _ = env.kiln(["cache", "verify"]).finish().ok();
}

#[test]
fn a_killed_export_leaves_what_was_there_and_the_next_one_succeeds() {
    let (env, base) = crate::env_with_base!();
    for kind in KINDS {
        let dest = place(&env, kind);
        env.context(&[("Dockerfile", "FROM base\nCOPY one /one\n"), ("one", "before\n")]);
        let _ = build(&env, &base, &dest, kind).finish().ok();
        env.context(&[("one", &format!("after {kind}\n"))]);
        for hook in ["engine.export.start", "engine.export.built", "engine.export.done"] {
            let _ = env.kiln(["daemon", "stop"]).finish().ok();
            let done = build(&env, &base, &dest, kind).env("KILN_FAULT", format!("{hook}:kill")).finish();
            assert!(done.code.is_some_and(|code| code != 0), "{kind} {hook}: {}", done.report());
            let now = read(&dest, kind, "one");
            // Into a directory files are renamed one by one; each is the old one or the new one.
            let finished = hook.ends_with("done") && now == format!("after {kind}\n");
            let keeps = matches!(kind, "type=local" | "type=oci,tar=false") && finished;
            assert!(now == "before\n" || keeps, "{kind} {hook}: {now:?}");
        }
        let _ = build(&env, &base, &dest, kind).finish().ok();
        assert_eq!(read(&dest, kind, "one"), format!("after {kind}\n"), "{kind}");
        let beside: Vec<_> = std::fs::read_dir(env.path().join("out")).expect("list").flatten().collect();
        assert!(beside.iter().all(|e| !e.file_name().to_string_lossy().starts_with('.')), "{beside:?}");
    }
}
