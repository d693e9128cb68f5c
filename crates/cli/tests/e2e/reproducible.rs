//! The same input gives the same image, whatever else differs between two builds.

use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_stdx::Digest;
use kiln_testkit::{Disk, Image, TestEnv};

/// What the time of everything that is new is cut to.
const EPOCH: &str = "1700000000";

/// Touches all that may carry a trace of where and when it was made: new files and directories, links, deletions,
/// holes, owners, modes, archives, stages side by side, enough data for several blocks of a compressor.
const DOCKERFILE: &str = r#"FROM base AS one
WORKDIR /work/deep
RUN umask > umask && mkdir -p made/by/step && echo 1 > made/file && ln made/file made/hard && ln -s file made/soft
RUN seq 1 400000 > numbers && dd if=/dev/zero of=hole bs=1 count=1 seek=3000000 2>/dev/null
RUN rm made/file && rm -r made/by && touch again
FROM base AS two
COPY . /all/
COPY --chown=app:extra --chmod=750 src /owned
ADD pack.tar /unpacked/
RUN --mount=type=cache,target=/c echo cached >> /c/log && date > /dev/null
FROM base
COPY --from=one /work /work
COPY --link --from=two /all /all
COPY --from=two /unpacked /unpacked
COPY <<text /text
written here
text
RUN echo last > /last && chown app /last
LABEL from=test
"#;

/// How one build differs from another.
#[derive(Default)]
struct Variation<'a> {
    name: &'a str,
    /// Command line that starts client and engine.
    prefix: &'a [&'a str],
    env: &'a [(&'a str, &'a str)],
    /// Where the state root lies.
    root: Option<&'a Path>,
    /// Makes the files of the context in another order, at another time.
    backwards: bool,
}

fn context(env: &TestEnv, backwards: bool) {
    let big = "all work and no play\n".repeat(20_000);
    let mut files = vec![
        ("Dockerfile", DOCKERFILE),
        ("src/a", "a"),
        ("src/b/c", "c"),
        ("src/run", "#!/bin/sh\n"),
        ("z/first", "1"),
        ("big", &big),
        ("empty/", ""),
        ("link -> src/a", ""),
    ];
    if backwards {
        files.reverse();
    }
    env.context(&files);
    let packed = env.path().join("packed");
    kiln_testkit::write_tree(&packed, &[("p/q", "packed"), ("p/r -> q", "")]);
    std::fs::write(env.ctx().join("pack.tar"), kiln_testkit::base::tar_of(&packed)).unwrap();
    if backwards {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
        for name in ["src/a", "src/b/c", "src/b", "z", "big"] {
            std::fs::File::open(env.ctx().join(name)).unwrap().set_modified(time).unwrap();
        }
    }
}

/// Fails when two images are not the same to the last byte, and says what differs first.
#[track_caller]
fn assert_same(image: &Image, plain: &Image, name: &str) {
    if image.digest == plain.digest {
        return;
    }
    for (number, (ours, theirs)) in image.layers.iter().zip(&plain.layers).enumerate() {
        let paths: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        for path in paths {
            let (a, b) = (ours.get(path), theirs.get(path));
            let shown = String::from_utf8_lossy(path);
            assert!(a == b, "{name}: `{shown}` of layer {number} differs: {:?} {:?}", brief(a), brief(b));
        }
    }
    let ids = |image: &Image| image.config.rootfs.diff_ids.clone();
    assert_eq!(ids(image), ids(plain), "{name}: equal files in unequal archives");
    assert_eq!(image.config, plain.config, "{name}");
    assert_eq!(image.manifest, plain.manifest, "{name}");
    panic!("{name}: {} is not {}", image.digest, plain.digest);
}

/// All of a file but its content, of which the digest stands.
fn brief(file: Option<&kiln_testkit::image::File>) -> Option<(kiln_testkit::image::File, Digest)> {
    let file = file?;
    Some((kiln_testkit::image::File { content: Vec::new(), ..file.clone() }, Digest::of(&file.content)))
}

/// Builds in an environment of its own and returns the image.
#[track_caller]
fn build(variation: &Variation<'_>) -> Image {
    let mut env = crate::env();
    if let Some(root) = variation.root {
        env = env.with_root(root.join("some/where/else/root"));
    }
    context(&env, variation.backwards);
    let base = env.base().unwrap();
    let dest = env.out("image.tar");
    let (output, ctx) = (format!("type=oci,dest={}", dest.display()), env.ctx());
    let args = ["build", "--progress=plain", "--build-context", &base, "-o", &output];
    let args = args.map(std::ffi::OsStr::new).into_iter().chain([ctx.as_os_str()]);
    let mut run = env.kiln_through(variation.prefix, args).env("SOURCE_DATE_EPOCH", EPOCH);
    for (name, value) in variation.env {
        run = run.env(name, value);
    }
    let _ = run.finish().ok();
    let image = Image::read(&dest);
    assert_eq!(image.text("work/deep/umask"), "0022\n", "{}", variation.name);
    assert_eq!(image.config.created.as_deref(), Some("2023-11-14T22:13:20Z"));
    for (path, file) in image.layers.iter().flatten() {
        assert!(file.mtime <= 1_700_000_000, "{} {}", variation.name, String::from_utf8_lossy(path));
    }
    image
}

#[test]
fn where_and_when_it_is_built_does_not_show() {
    if kiln_testkit::base::busybox().is_none() {
        kiln_testkit::skip!("no static busybox on this host");
    }
    let plain = build(&Variation::default());
    let umask = ["sh", "-c", "umask 077; exec \"$@\"", "sh"];
    let hostname = ["unshare", "--uts", "sh", "-c", "hostname somewhere-else; exec \"$@\"", "sh"];
    let mut variations = vec![
        Variation { name: "time zone", env: &[("TZ", "Asia/Kathmandu")], ..Variation::default() },
        Variation { name: "locale", env: &[("LC_ALL", "tr_TR.UTF-8"), ("LANG", "de_DE")], ..Variation::default() },
        Variation { name: "umask", prefix: &umask, ..Variation::default() },
        Variation { name: "context order and times", backwards: true, ..Variation::default() },
    ];
    if kiln_testkit::program("unshare").is_some() {
        variations.push(Variation { name: "host name", prefix: &hostname, ..Variation::default() });
    }
    if kiln_testkit::program("taskset").is_some() {
        variations.push(Variation { name: "one processor", prefix: &["taskset", "-c", "0"], ..Variation::default() });
    }
    for variation in &variations {
        assert_same(&build(variation), &plain, variation.name);
    }
}

#[test]
fn the_file_system_of_the_state_root_does_not_show() {
    if kiln_testkit::base::busybox().is_none() {
        kiln_testkit::skip!("no static busybox on this host");
    }
    let plain = build(&Variation::default());
    for kind in ["ext4", "xfs"] {
        match Disk::new(kind, 512) {
            Ok(disk) => {
                let root = Some(disk.path());
                assert_same(&build(&Variation { name: kind, root, ..Variation::default() }), &plain, kind);
            }
            Err(why) => kiln_testkit::report_skip(&format!("{kind}: {why}")),
        }
    }
    match Disk::tmpfs(512) {
        Ok(disk) => {
            let root = Some(disk.path());
            assert_same(&build(&Variation { name: "tmpfs", root, ..Variation::default() }), &plain, "tmpfs");
        }
        Err(why) => kiln_testkit::report_skip(&why),
    }
}

#[test]
fn an_engine_in_the_foreground_has_no_umask_either() {
    if kiln_testkit::base::busybox().is_none() {
        kiln_testkit::skip!("no static busybox on this host");
    }
    let plain = build(&Variation::default());
    let env = crate::env();
    context(&env, false);
    let base = env.base().unwrap();
    let umask = ["sh", "-c", "umask 077; exec \"$@\"", "sh"];
    let engine = env.kiln_through(&umask, ["daemon", "run"]).start();
    crate::wait_for_engine(&env);
    let (image, _) = env.build_image(&["--build-context", &base, "--build-arg", &format!("SOURCE_DATE_EPOCH={EPOCH}")]);
    assert_same(&image, &plain, "an umask of the engine");
    let _ = env.kiln(["daemon", "stop"]).finish().ok();
    let _ = engine.finish().ok();
}
