//! COPY and ADD: what ends up in the image, and with which owner, mode and time.

use crate::env;

#[test]
fn scratch_and_copy_become_an_image() {
    let env = env();
    env.context(&[
        ("Dockerfile", "FROM scratch\nCOPY hello.txt /greetings/\nLABEL a=b\nCMD [\"/x\"]\n"),
        ("hello.txt", "hi\n"),
    ]);
    let (image, _) = env.build_image(&[]);
    assert_eq!(image.text("greetings/hello.txt"), "hi\n");
    assert_eq!(image.config.config.cmd, Some(vec!["/x".to_owned()]));
    assert_eq!(image.config.config.labels.get("a").map(String::as_str), Some("b"));
    let file = &image.root()[b"greetings/hello.txt".as_slice()];
    assert_eq!((file.kind, file.mode, file.uid, file.gid), (b'0', 0o644, 0, 0));
    assert_eq!(image.layers.len(), 1);
    let history: Vec<_> = image.config.history.iter().map(|h| (h.created_by.as_str(), h.empty_layer)).collect();
    assert_eq!(
        history,
        [("COPY hello.txt /greetings/ # buildkit", false), ("LABEL a=b", true), ("CMD [\"/x\"]", true)]
    );
}

#[test]
fn directories_globs_and_ignored_files() {
    let env = env();
    env.context(&[
        ("Dockerfile", "FROM scratch\nCOPY . /all/\nCOPY src/*.txt /txt/\nCOPY src /dir\n"),
        (".dockerignore", "# comment\nDockerfile\n.dockerignore\n**/*.log\n!src/keep.log\n"),
        ("src/a.txt", "a"),
        ("src/b.txt", "b"),
        ("src/c.md", "c"),
        ("src/x.log", "x"),
        ("src/keep.log", "k"),
        ("src/link -> a.txt", ""),
    ]);
    let (image, _) = env.build_image(&[]);
    let root = image.root();
    let mut names: Vec<String> =
        root.iter().filter(|(_, f)| f.kind != b'5').map(|(p, _)| String::from_utf8_lossy(p).into_owned()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "all/src/a.txt",
            "all/src/b.txt",
            "all/src/c.md",
            "all/src/keep.log",
            "all/src/link",
            "dir/a.txt",
            "dir/b.txt",
            "dir/c.md",
            "dir/keep.log",
            "dir/link",
            "txt/a.txt",
            "txt/b.txt"
        ]
    );
    assert_eq!(root[b"all/src/link".as_slice()].link, b"a.txt");
}

#[test]
fn owner_and_mode_flags() {
    let (env, base) = crate::env_with_base!();
    env.context(&[
        (
            "Dockerfile",
            "FROM base\nCOPY --chown=app:extra --chmod=640 f /named\nCOPY --chown=12:34 f /numbered\n\
             COPY --chmod=u+x,go-r f /symbolic\nCOPY --link --chown=5 f /linked/\n",
        ),
        ("f", "x"),
    ]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    let root = image.root();
    let of = |path: &str| {
        let file = &root[path.as_bytes()];
        (file.uid, file.gid, file.mode)
    };
    assert_eq!(of("named"), (1000, 1001, 0o640));
    assert_eq!(of("numbered"), (12, 34, 0o644));
    assert_eq!(of("symbolic"), (0, 0, 0o700));
    assert_eq!((of("linked/f").0, of("linked/f").1), (5, 5));
}

#[test]
fn add_unpacks_local_archives_only() {
    let env = env();
    env.context(&[
        ("Dockerfile", "FROM scratch\nADD a.tar /un/\nCOPY a.tar /as-is/\nADD plain /un/\n"),
        ("plain", "p"),
    ]);
    let inner = env.path().join("inner");
    kiln_testkit::write_tree(&inner, &[("deep/file", "content"), ("deep/link -> file", "")]);
    std::fs::write(env.ctx().join("a.tar"), kiln_testkit::base::tar_of(&inner)).unwrap();
    let (image, _) = env.build_image(&[]);
    assert_eq!(image.text("un/deep/file"), "content");
    assert_eq!(image.root()[b"un/deep/link".as_slice()].link, b"file");
    assert_eq!(image.text("un/plain"), "p");
    assert!(image.root().contains_key(b"as-is/a.tar".as_slice()));
}

#[test]
fn copy_follows_links_in_the_destination() {
    let (env, base) = crate::env_with_base!();
    env.context(&[
        ("Dockerfile", "FROM base\nRUN mkdir -p /real && ln -s /real /alias\nCOPY f /alias/f\nRUN test -f /real/f\n"),
        ("f", "x"),
    ]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    let root = image.root();
    assert_eq!(root[b"alias".as_slice()].kind, b'2', "the link stays a link");
    assert_eq!(root[b"real/f".as_slice()].content, b"x");
}

#[test]
fn directories_on_the_way_are_new_ones() {
    let env = env();
    env.context(&[
        (
            "Dockerfile",
            "FROM scratch AS from\nCOPY --chown=7:8 --chmod=751 d/f /d/f\nCOPY --chown=9:9 d /d\n\
             FROM scratch\nCOPY --from=from /d /copied\nCOPY --chmod=711 d/f /a/b/f\n\
             COPY --exclude=* d /none\n",
        ),
        ("d/f", "x"),
    ]);
    let (image, _) = env.build_image(&[]);
    let root = image.root();
    let of = |path: &str| {
        let entry = &root[path.as_bytes()];
        (entry.kind, entry.mode, entry.uid, entry.gid)
    };
    assert_eq!(of("copied"), (b'5', 0o755, 0, 0), "what takes the contents is not what they were in");
    assert_eq!(of("copied/f"), (b'0', 0o644, 9, 9));
    assert_eq!((of("a"), of("a/b"), of("a/b/f").1), ((b'5', 0o711, 0, 0), (b'5', 0o711, 0, 0), 0o711));
    assert_eq!(of("none"), (b'5', 0o755, 0, 0), "nothing of the directory is wanted, and yet there is one");
}

#[test]
fn stages_copy_from_each_other() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "FROM base AS one\nRUN echo 1 > /one\nFROM base AS two\nRUN echo 2 > /two\nFROM scratch\n\
         COPY --from=one /one /a\nCOPY --from=1 /two /b\nCOPY --from=base /etc/passwd /c\n",
    )]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!((image.text("a").as_str(), image.text("b").as_str()), ("1\n", "2\n"));
    assert!(image.text("c").starts_with("root:"));
}

#[test]
fn heredocs_make_files_and_scripts() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "FROM base\nARG who=world\nCOPY <<one <<'two' /etc/\nhello $who\none\nraw $who\ntwo\n\
         RUN <<EOF\necho first > /out\necho second >> /out\nEOF\n\
         RUN <<EOF\n#!/bin/busybox sh\necho $0 > /script\nEOF\n",
    )]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("etc/one"), "hello world\n");
    assert_eq!(image.text("etc/two"), "raw $who\n");
    assert_eq!(image.text("out"), "first\nsecond\n");
    assert!(image.text("script").starts_with("/dev/pipes/"));
}
