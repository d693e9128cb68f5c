//! `kiln cache verify --repair` while builds run: it repairs what is damaged, and no build notices.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kiln_testkit::{Image, TestEnv, write_tree};

use crate::choices::{Choices, seed};

/// Damaged this often, with two builds at once each time.
const ROUNDS: usize = 4;
const FILES: usize = 3;

const DOCKERFILE: &str = "FROM base AS old
RUN mkdir /old && for i in $(seq 1 40); do echo old $i > /old/$i; done
FROM base
ARG N
COPY --from=old /old /old
RUN echo $N > /n; sleep 0.5; cat /old/* | wc -l > /count
RUN cat /n /count > /both
";

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => files(&entry.path(), found),
            Ok(meta) if meta.is_file() && meta.len() > 0 => found.push(entry.path()),
            _ => {}
        }
    }
}

/// Flips a bit in a few files of blobs and of layers whose files builds read.
fn damage(root: &Path, choices: &mut Choices) {
    let mut found = Vec::new();
    files(&root.join("blobs"), &mut found);
    files(&root.join("layers"), &mut found);
    found
        .retain(|path| path.starts_with(root.join("blobs")) || path.components().any(|part| part.as_os_str() == "old"));
    found.sort();
    for _ in 0..FILES {
        let Some(path) = choices.pick(&found) else { return };
        let Ok(mut bytes) = fs::read(path) else { continue };
        let at = choices.below(bytes.len());
        bytes[at] ^= 1;
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o644));
        let _ = fs::write(path, bytes);
    }
}

#[test]
fn repairing_while_builds_run_fails_none_of_them() {
    let env = TestEnv::new(env!("CARGO_BIN_EXE_kiln"));
    let Some(base) = env.base() else { kiln_testkit::skip!("no static busybox on this host") };
    write_tree(&env.ctx(), &[("Dockerfile", DOCKERFILE)]);
    let base = format!("--build-context={base}");
    let build = |n: usize| {
        let out = env.out(&format!("{n}.tar"));
        let (arg, output) = (format!("--build-arg=N={n}"), format!("--output=type=oci,dest={}", out.display()));
        let ctx = env.ctx().display().to_string();
        let args = ["build", "--progress=plain", &base, &arg, &output, &ctx];
        // Every use looks at the files, so that damage done after a check is found before the next.
        let _ = env.kiln(args).env("KILN_RECHECK", "0").finish().ok();
        assert_eq!(Image::read(&out).text("both"), format!("{n}\n40\n"));
    };
    build(0);
    let mut choices = Choices::new(seed(), 10_000);
    let mut repaired = 0;
    for round in 1..=ROUNDS {
        damage(env.root(), &mut choices);
        std::thread::scope(|scope| {
            let build = &build;
            let builds = [2 * round, 2 * round + 1].map(|n| scope.spawn(move || build(n)));
            let verified = env.kiln(["cache", "verify", "--repair"]).finish();
            let told = format!("{}{}", verified.out(), verified.err());
            repaired += told.matches("repaired").count() + told.matches("dropped").count();
            for build in builds {
                assert!(build.join().is_ok(), "a build fails while {told}");
            }
        });
    }
    let log = fs::read(env.root().join("engine.log")).unwrap_or_default();
    repaired += String::from_utf8_lossy(&log).matches("store damage").count();
    assert!(repaired > 0, "no damage was found");
    let _ = env.kiln(["cache", "verify"]).finish().ok();
    build(1000);
}
