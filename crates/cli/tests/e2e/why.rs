//! Which steps a change runs again, and what kiln says of it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use kiln_testkit::{Finished, TestEnv};

const DOCKERFILE: &str = "\
FROM base AS build
ARG VERSION=1
ENV LEVEL=1
WORKDIR /src
COPY dep.txt ./
RUN cp dep.txt /dep
COPY app ./app
RUN cat app/a.txt > /out
FROM base AS final
COPY --from=build /out /out
RUN cat /out > /last
";

/// The steps that ran, by the first of these words in their names, with the reasons.
fn reasons(done: &Finished) -> Vec<(String, String)> {
    let text = done.err();
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((number, reason)) = line.split_once(" WHY: ") else { continue };
        let headline = text.lines().find(|line| line.starts_with(&format!("{number} [")));
        let name = headline.and_then(|line| line.split_once("] ")).map_or(line, |(_, name)| name);
        found.push((name.to_owned(), reason.to_owned()));
    }
    found
}

/// A change, and the steps that it runs: the beginning of a name and what the reason has to say.
struct Case {
    name: &'static str,
    change: fn(&Path),
    args: &'static [&'static str],
    ran: &'static [(&'static str, &'static str)],
}

const NOTHING: fn(&Path) = |_| ();

fn edit(ctx: &Path, old: &str, new: &str) {
    let path = ctx.join("Dockerfile");
    let text = fs::read_to_string(&path).unwrap_or_default();
    assert!(text.contains(old), "{old}");
    write(&path, &text.replace(old, new));
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

const fn case(
    name: &'static str,
    change: fn(&Path),
    args: &'static [&'static str],
    ran: &'static [(&'static str, &'static str)],
) -> Case {
    Case { name, change, args, ran }
}

const APP: &str = "COPY app ./app ran: content changed";

const CASES: &[Case] = &[
    case("nothing", NOTHING, &[], &[]),
    case(
        "touch",
        |ctx| {
            let file = fs::File::options().write(true).open(ctx.join("app/a.txt")).expect("open");
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("touch");
        },
        &[],
        &[],
    ),
    case(
        "content",
        |ctx| write(&ctx.join("app/a.txt"), "other"),
        &[],
        &[
            ("COPY app", "content changed: app/a.txt (content)"),
            ("RUN cat app", APP),
            ("COPY --from", "content changed: /out (content); [build 4/6] COPY app ./app ran: content changed"),
            ("RUN cat /out", "COPY app ./app ran: content changed: app/a.txt (content)"),
        ],
    ),
    case(
        "mode",
        |ctx| fs::set_permissions(ctx.join("app/b.txt"), Permissions::from_mode(0o600)).expect("chmod"),
        &[],
        &[("COPY app", "content changed: app/b.txt (mode)"), ("RUN cat app", APP)],
    ),
    case("owner", |ctx| chown(ctx.join("app/b.txt"), Some(7), Some(7)).expect("chown"), &[], &[]),
    case(
        "rename",
        |ctx| fs::rename(ctx.join("app/b.txt"), ctx.join("app/c.txt")).expect("rename"),
        &[],
        &[("COPY app", "content changed: app/b.txt (removed), app/c.txt (added)"), ("RUN cat app", APP)],
    ),
    case(
        "a new directory",
        |ctx| {
            fs::create_dir(ctx.join("app/d")).expect("mkdir");
            write(&ctx.join("app/d/e.txt"), "e");
        },
        &[],
        &[("COPY app", "content changed: app/d/e.txt (added)"), ("RUN cat app", APP)],
    ),
    case(
        "a removed file",
        |ctx| fs::remove_file(ctx.join("app/b.txt")).expect("rm"),
        &[],
        &[("COPY app", "content changed: app/b.txt (removed)"), ("RUN cat app", APP)],
    ),
    case(
        "a link that leads elsewhere",
        |ctx| {
            fs::remove_file(ctx.join("app/link")).expect("rm");
            symlink("b.txt", ctx.join("app/link")).expect("link");
        },
        &[],
        &[("COPY app", "content changed: app/link (link target)"), ("RUN cat app", APP)],
    ),
    case("a file that nobody copies", |ctx| write(&ctx.join("other.txt"), "new"), &[], &[]),
    case(
        "an ignore file that takes a copied file away",
        |ctx| write(&ctx.join(".dockerignore"), "app/link\n"),
        &[],
        &[("COPY app", "content changed: app/link (removed)"), ("RUN cat app", APP)],
    ),
    case("an ignore file for what nobody copies", |ctx| write(&ctx.join(".dockerignore"), "other.txt\n"), &[], &[]),
    case("a comment", |ctx| edit(ctx, "COPY app", "# the application\nCOPY app"), &[], &[]),
    case("white space", |ctx| edit(ctx, "RUN cat app", "RUN   cat app"), &[], &[]),
    case("lower case", |ctx| edit(ctx, "COPY dep.txt", "copy dep.txt"), &[], &[]),
    case(
        "the text of a step",
        |ctx| edit(ctx, "cat app/a.txt > /out", "cat app/a.txt app/b.txt > /out"),
        &[],
        &[
            ("RUN cat app", "instruction changed: RUN cat app/a.txt > /out -> RUN cat app/a.txt app/b"),
            ("COPY --from", "[build 5/6] RUN cat app/a.txt app/b.txt > /out ran: instruction changed"),
            ("RUN cat /out", "ran: instruction changed"),
        ],
    ),
    case(
        "another destination",
        |ctx| edit(ctx, "COPY app ./app", "COPY app ./app/"),
        &[],
        &[
            ("COPY app", "instruction changed: COPY app ./app -> COPY app ./app/"),
            ("RUN cat app", "COPY app ./app/ ran: instruction changed"),
        ],
    ),
    case(
        "an argument of the file",
        |ctx| edit(ctx, "VERSION=1", "VERSION=2"),
        &[],
        &[
            ("RUN cp dep", "variable VERSION changed: 1 -> 2"),
            ("COPY app", "RUN cp dep.txt /dep ran: variable VERSION changed: 1 -> 2"),
            ("RUN cat app", "variable VERSION changed: 1 -> 2"),
        ],
    ),
    case(
        "an argument of the command",
        NOTHING,
        &["--build-arg", "VERSION=3"],
        &[
            ("RUN cp dep", "variable VERSION changed: 1 -> 3"),
            ("COPY app", "ran: variable VERSION changed: 1 -> 3"),
            ("RUN cat app", "variable VERSION changed: 1 -> 3"),
        ],
    ),
    case("an argument that nothing declares", NOTHING, &["--build-arg", "ELSE=3"], &[]),
    case(
        "the environment",
        |ctx| edit(ctx, "LEVEL=1", "LEVEL=2"),
        &[],
        &[
            ("RUN cp dep", "variable LEVEL changed: 1 -> 2"),
            ("COPY app", "ran: variable LEVEL changed"),
            ("RUN cat app", "variable LEVEL changed: 1 -> 2"),
        ],
    ),
    case(
        "the user of the last step",
        |ctx| edit(ctx, "RUN cat /out > /last", "USER 0:5\nRUN cat /out > /last"),
        &[],
        &[("RUN cat /out", "user changed:  -> 0:5")],
    ),
    case(
        "a mount",
        |ctx| edit(ctx, "RUN cat /out", "RUN --mount=type=tmpfs,target=/t cat /out"),
        &[],
        &[("RUN --mount", "instruction changed: RUN cat /out > /last -> RUN --mount=type=tmpfs")],
    ),
    case(
        "the network",
        NOTHING,
        &["--network", "none"],
        &[
            ("RUN cp dep", "network changed: "),
            ("COPY app", "ran: network changed: "),
            ("RUN cat app", "network changed: "),
            ("RUN cat /out", "network changed: "),
        ],
    ),
    case(
        "a host",
        |ctx| edit(ctx, "ENV LEVEL", "ENV LEVEL"),
        &["--add-host", "h:10.0.0.1"],
        &[
            ("RUN cp dep", "host h added"),
            ("COPY app", "ran: host h added"),
            ("RUN cat app", "host h added"),
            ("RUN cat /out", "host h added"),
        ],
    ),
    case(
        "the size of /dev/shm",
        NOTHING,
        &["--shm-size", "32m"],
        &[
            ("RUN cp dep", "mount /dev/shm added: tmpfs"),
            ("COPY app", "ran: mount /dev/shm added"),
            ("RUN cat app", "mount /dev/shm added: tmpfs"),
            ("RUN cat /out", "mount /dev/shm added: tmpfs"),
        ],
    ),
    case(
        "a step that was put in",
        |ctx| edit(ctx, "RUN cat app", "RUN true\nRUN cat app"),
        &[],
        &[
            ("RUN true", "instruction changed: RUN cat app/a.txt > /out -> RUN true"),
            ("RUN cat app", "[build 5/7] RUN true ran: instruction changed"),
        ],
    ),
    case(
        "a step that was taken out",
        |ctx| edit(ctx, "RUN cp dep.txt /dep\n", ""),
        &[],
        &[
            ("COPY app", "it follows `COPY dep.txt ./` now, not `RUN cp dep.txt /dep`"),
            ("RUN cat app", "COPY app ./app ran: "),
        ],
    ),
    case(
        "a stage in front",
        |ctx| edit(ctx, "FROM base AS build", "FROM base AS idle\nRUN false\nFROM base AS build"),
        &[],
        &[],
    ),
    case(
        "a stage by another name",
        |ctx| {
            edit(ctx, "AS build", "AS maker");
            edit(ctx, "--from=build", "--from=maker");
        },
        &[],
        &[],
    ),
    case(
        "no cache for a stage",
        NOTHING,
        &["--no-cache-filter", "final"],
        &[
            ("COPY --from", "asked for by --no-cache-filter=final"),
            ("RUN cat /out", "asked for by --no-cache-filter=final"),
        ],
    ),
];

fn fresh_context(env: &TestEnv) {
    let _ = fs::remove_dir_all(env.ctx());
    env.context(&[
        ("Dockerfile", DOCKERFILE),
        ("dep.txt", "dep"),
        ("app/a.txt", "a"),
        ("app/b.txt", "b"),
        ("other.txt", "o"),
    ]);
    symlink("a.txt", env.ctx().join("app/link")).expect("link");
}

#[test]
fn each_change_runs_just_its_steps_and_says_why() {
    let (env, base) = crate::env_with_base!();
    let build = |args: &[&str]| {
        let fixed = ["--why", "--build-context", &base, "-o", "type=cacheonly"];
        env.build(&[&fixed[..], args].concat()).ok()
    };
    fresh_context(&env);
    let first = reasons(&build(&[]));
    assert!(first.iter().all(|(_, why)| why == "first build of this step" || why.contains("ran: ")), "{first:?}");
    let mut wrong = Vec::new();
    for Case { name, change, args, ran } in CASES {
        fresh_context(&env);
        let before = reasons(&build(&[]));
        assert!(before.is_empty(), "{name}: before: {before:?}");
        change(&env.ctx());
        let done = build(args);
        let told = reasons(&done);
        // Steps that end within one redraw are shown in any order.
        let is_told = |(step, reason): &(&str, &str)| {
            told.iter().any(|(name, why)| name.starts_with(step) && why.contains(reason))
        };
        if told.len() != ran.len() || !ran.iter().all(is_told) {
            wrong.push(format!("{name}:\n  {told:#?}\n{}", done.err()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_base_that_changed_is_named_by_its_digests() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo mine > /mine\n")]);
    let dest = env.out("other");
    let output = format!("type=oci,tar=false,dest={}", dest.display());
    let _ = env.build(&["--build-context", &base, "-o", &output]).ok();
    env.context(&[("Dockerfile", "FROM base\nRUN true\n")]);
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).ok();
    let other = format!("base=oci-layout://{}", dest.display());
    let done = env.build(&["--why", "--build-context", &other, "-o", "type=cacheonly"]).ok();
    let told = reasons(&done);
    let run = told.iter().find(|(step, _)| step.starts_with("RUN true")).map(|(_, why)| why.as_str());
    let named =
        |why: &str| why.contains("base image ") && why.contains(" changed: sha256:") && why.contains(" -> sha256:");
    assert!(run.is_some_and(named), "{}", done.report());
}

#[test]
fn what_was_pruned_is_told_with_rule_and_time() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo x > /x\n")]);
    let args = ["--why", "--build-context", &base, "-o", "type=cacheonly"];
    let _ = env.build(&args).ok();
    let _ = env.kiln(["prune", "--all", "--force"]).finish().ok();
    let told = reasons(&env.build(&args).ok());
    let run = told.iter().find(|(step, _)| step.starts_with("RUN echo")).map(|(_, why)| why.as_str());
    assert!(run.is_some_and(|why| why.contains("was removed: prune, asked for, at 20")), "{told:?}");
}

#[test]
fn reasons_are_kept_with_the_build() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nCOPY f /\nRUN cat /f\n"), ("f", "1")]);
    let args = ["--build-context", &base, "-o", "type=cacheonly"];
    let _ = env.build(&args).ok();
    write(&env.ctx().join("f"), "2");
    let _ = env.build(&args).ok();
    let why = env.kiln(["why"]).finish().ok().out();
    assert!(why.contains("[1/3] COPY f /\n    content changed: f (content)\n"), "{why}");
    assert!(why.contains("[2/3] RUN cat /f\n    [1/3] COPY f / ran: content changed"), "{why}");
    let one = env.kiln(["why", "RUN cat", "--format", "json"]).finish().ok().out();
    let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    assert_eq!(one[0]["root"]["name"], "[1/3] COPY f /");
    assert_eq!(one[0]["reason"]["kind"], "input_changed");
    let _ = env.build(&args).ok();
    assert!(env.kiln(["why"]).finish().ok().out().contains("No step ran: all were cached."));
    let _ = env.kiln(["why", "no-such-build"]).finish().fails_with("is not recorded");
    let raw = env.kiln(["build", "--why", "--progress=rawjson", "--no-cache"]).finish();
    assert_ne!(raw.code, Some(0), "a context is needed");
    let ctx = env.ctx();
    let raw = env.kiln(
        ["build", "--why", "--progress=rawjson", "--no-cache", args[0], args[1], "-o", "type=cacheonly"]
            .map(Path::new)
            .into_iter()
            .chain([ctx.as_path()]),
    );
    let lines = raw.finish().ok().err();
    assert!(lines.contains(r#""text":"asked for by --no-cache""#), "{lines}");
}
