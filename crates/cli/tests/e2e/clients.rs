//! Other clients of the same API: they build the same images on kiln's engine and share its cache with kiln's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_testkit::{Finished, Gate, Image, Run, TestEnv};
use rustix::process::Signal;

const EPOCH: &str = "1700000000";

/// Every kind of step whose key a client could have a part in.
const DOCKERFILE: &str = r#"# syntax=docker/dockerfile:1
ARG GLOBAL=1
FROM base AS one
ARG who=me GLOBAL
ENV WHO=$who
SHELL ["/bin/sh", "-ec"]
WORKDIR /w
COPY . /w/all
COPY --chown=app:app --chmod=u=rwX dir /w/owned
COPY --exclude=*.log dir /w/some
RUN <<EOF
echo $who $GLOBAL > /w/heredoc
EOF
COPY <<text /w/text
$who
text
RUN --mount=type=cache,target=/c,sharing=locked,id=x,uid=5 echo $who >> /c/x; cat all/file > /w/copied
RUN --mount=type=cache,target=/c,from=base,source=/etc cat /c/passwd > /w/passwd
RUN --mount=type=secret,id=s,env=S --mount=type=secret,id=s,target=/s,mode=0444 sha256sum /s > /w/sum
RUN --mount=type=ssh,required=false --network=none true > /w/ssh
RUN --mount=type=bind,target=/ctx,source=dir ls -R /ctx > /w/list
RUN --mount=type=bind,from=base,target=/b,rw --mount=type=tmpfs,target=/t touch /b/x /t/y
USER app
RUN id -u
FROM base
COPY --from=one /w /w
COPY --link dir /linked
ADD pack.tar /packed/
RUN cat /w/text > /last
VOLUME /v
HEALTHCHECK CMD true
CMD ["sh"]
"#;

/// A client of the engine's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Kiln,
    Buildctl,
    Buildx,
}

impl Client {
    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Kiln => Some(PathBuf::new()),
            Self::Buildctl => kiln_testkit::program("buildctl"),
            Self::Buildx => kiln_testkit::program("docker-buildx"),
        }
    }

    /// Prepares a build of the context; `output` is an output in the syntax that all of them share.
    fn build(self, env: &TestEnv, layout: &Path, output: &str) -> Option<Run> {
        let (program, ctx) = (self.program()?, env.ctx());
        let address = format!("unix://{}", env.root().join("engine.sock").display());
        let secret = format!("id=s,src={}", env.path().join("secret").display());
        let base = format!("base=oci-layout://{}", layout.display());
        let context = ctx.display().to_string();
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let args = match self {
            Self::Kiln => {
                let args = ["build", "--progress=plain", "--build-context", &base, "--secret", &secret, "-o", output];
                return Some(env.kiln(args.into_iter().chain([context.as_str()])).env("SOURCE_DATE_EPOCH", EPOCH));
            }
            Self::Buildctl => {
                let (local, file) = (format!("context={context}"), format!("dockerfile={context}"));
                let store = format!("layout={}", layout.display());
                let digest = layout_digest(layout);
                let base = format!("context:base=oci-layout://layout@{digest}");
                [
                    strings(&["--addr", &address, "build", "--progress=plain", "--frontend", "dockerfile.v0"]),
                    strings(&["--local", &local, "--local", &file, "--oci-layout", &store, "--opt", &base]),
                    strings(&["--secret", &secret, "--output", output]),
                ]
                .concat()
            }
            Self::Buildx => {
                let home = env.path().join("home");
                let create = ["create", "--name", "engine", "--driver", "remote", &address];
                if !home.join(".docker/buildx/instances/engine").exists() {
                    let _ = Run::new(&program).args(create).env("HOME", &home).finish().ok();
                }
                [
                    strings(&["build", "--builder", "engine", "--progress=plain", "--provenance=false"]),
                    strings(&["--build-context", &base, "--secret", &secret, "-o", output, &context]),
                ]
                .concat()
            }
        };
        let home = env.path().join("home");
        Some(Run::new(program).args(args).env("HOME", home).env("SOURCE_DATE_EPOCH", EPOCH).dir(env.path()))
    }
}

fn layout_digest(layout: &Path) -> String {
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

fn context(env: &TestEnv) -> PathBuf {
    env.context(&[
        ("Dockerfile", DOCKERFILE),
        (".dockerignore", "skipped*\ndir/**/*.tmp\n!dir/kept.tmp\n"),
        ("file", "content"),
        ("skipped", "not sent"),
        ("dir/a", "a"),
        ("dir/run", "#!/bin/sh\n"),
        ("dir/x.log", "log"),
        ("dir/x.tmp", "not sent"),
        ("dir/kept.tmp", "sent"),
        ("dir/empty/", ""),
        ("dir/link -> a", ""),
        ("dir/dangling -> /nowhere", ""),
    ]);
    let ctx = env.ctx();
    std::fs::hard_link(ctx.join("dir/a"), ctx.join("dir/hard")).unwrap();
    std::os::unix::fs::chown(ctx.join("dir/run"), Some(1234), Some(1234)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(ctx.join("dir/socket")).unwrap());
    let packed = env.path().join("packed");
    kiln_testkit::write_tree(&packed, &[("p/q", "packed")]);
    std::fs::write(ctx.join("pack.tar"), kiln_testkit::base::tar_of(&packed)).unwrap();
    std::fs::write(env.path().join("secret"), "a secret of the client").unwrap();
    env.path().join("base/layout")
}

/// Returns the steps (not the sources) of a build that were not `CACHED`.
fn executed(done: &Finished) -> Vec<String> {
    let text = done.err();
    let ended = |number: &str| text.lines().any(|line| line == format!("{number} CACHED"));
    let step = |line: &&str| {
        let name = line.split_once(' ').map_or("", |(_, name)| name);
        let instruction = name.split_once("] ").map_or("", |(_, instruction)| instruction);
        line.starts_with('#')
            && name.starts_with('[')
            && ["RUN", "COPY", "ADD", "WORKDIR"].iter().any(|word| instruction.starts_with(word))
    };
    let steps = text.lines().filter(step).filter(|line| !ended(line.split(' ').next().unwrap_or("")));
    steps.map(str::to_owned).collect()
}

#[track_caller]
fn one_image_from(order: &[Client]) {
    let (env, _base) = crate::env_with_base!();
    let layout = context(&env);
    // Somebody has to start it before a client that cannot.
    let _ = env.kiln(["du"]).finish().ok();
    let mut first: Option<Image> = None;
    for client in order {
        let dest = env.out(&format!("{client:?}.tar"));
        let output = format!("type=oci,dest={},rewrite-timestamp=true", dest.display());
        let Some(run) = client.build(&env, &layout, &output) else {
            kiln_testkit::report_skip(&format!("no {client:?} on PATH"));
            continue;
        };
        let done = run.finish().ok();
        let image = Image::read(&dest);
        match &first {
            None => {
                assert!(executed(&done).len() > 10, "{}", done.report());
                first = Some(image);
            }
            Some(first) => {
                assert_eq!(executed(&done), Vec::<String>::new(), "{client:?} after {:?}\n{}", order[0], done.report());
                assert_eq!(image.digest, first.digest, "{client:?} after {:?}", order[0]);
            }
        }
    }
}

#[test]
fn what_kiln_built_others_have() {
    one_image_from(&[Client::Kiln, Client::Buildctl, Client::Buildx]);
}

#[test]
fn what_others_built_kiln_has() {
    one_image_from(&[Client::Buildctl, Client::Kiln]);
    one_image_from(&[Client::Buildx, Client::Kiln]);
}

#[test]
fn every_client_makes_the_same_image_by_itself() {
    let mut digests = Vec::new();
    for client in [Client::Kiln, Client::Buildctl, Client::Buildx] {
        let (env, _base) = crate::env_with_base!();
        let layout = context(&env);
        let _ = env.kiln(["du"]).finish().ok();
        let dest = env.out("image.tar");
        let output = format!("type=oci,dest={},rewrite-timestamp=true", dest.display());
        match client.build(&env, &layout, &output) {
            Some(run) => {
                let _ = run.finish().ok();
                digests.push((client, Image::read(&dest).digest));
            }
            None => kiln_testkit::report_skip(&format!("no {client:?} on PATH")),
        }
    }
    assert!(digests.windows(2).all(|pair| pair[0].1 == pair[1].1), "{digests:?}");
}

#[test]
fn directories_and_failures_reach_every_client() {
    for client in [Client::Kiln, Client::Buildctl, Client::Buildx] {
        let (env, _base) = crate::env_with_base!();
        let layout = context(&env);
        let _ = env.kiln(["du"]).finish().ok();
        let text = "FROM base AS b\nRUN mkdir /d && echo made > /d/made && ln -s made /d/link\n\
                    FROM scratch\nCOPY --from=b /d /\n";
        env.context(&[("Dockerfile", text)]);
        let dest = env.out("dir");
        let output = format!("type=local,dest={}", dest.display());
        let Some(run) = client.build(&env, &layout, &output) else {
            kiln_testkit::report_skip(&format!("no {client:?} on PATH"));
            continue;
        };
        let _ = run.finish().ok();
        assert_eq!(std::fs::read_to_string(dest.join("made")).unwrap(), "made\n", "{client:?}");
        assert_eq!(std::fs::read_link(dest.join("link")).unwrap(), Path::new("made"), "{client:?}");

        env.context(&[("Dockerfile", "FROM base\nRUN true\nRUN echo said before; exit 42\n")]);
        let done = client.build(&env, &layout, &output).unwrap().finish();
        let done = done.fails_with("exit code: 42").fails_with("said before").fails_with("Dockerfile:3");
        let _ = done.fails_with(">>> RUN echo said before; exit 42");
    }
}

#[test]
fn an_interrupt_of_any_client_ends_its_step() {
    for client in [Client::Buildctl, Client::Buildx] {
        let (env, _base) = crate::env_with_base!();
        let layout = context(&env);
        let _ = env.kiln(["du"]).finish().ok();
        let gate = Gate::new();
        env.context(&[("Dockerfile", &format!("FROM base\nRUN {}\n", gate.command()))]);
        let Some(run) = client.build(&env, &layout, "type=tar,dest=/dev/null") else {
            kiln_testkit::report_skip(&format!("no {client:?} on PATH"));
            continue;
        };
        let running = run.start();
        let mut held = gate.wait();
        running.wait_for("RUN wget");
        running.signal(Signal::INT);
        assert!(held.dies_within(Duration::from_secs(1)), "{client:?}: the step goes on");
        let done = running.finish();
        assert!(done.code != Some(0) && done.err().contains("CANCELED"), "{}", done.report());
    }
}
