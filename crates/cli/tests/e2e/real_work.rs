//! Real work: packages from three registries, secrets and an agent, in stages that become one image; it is read back by
//! other tools, compared with what the build saw, and run.
//!
//! It takes minutes and needs the registries, so it is skipped where a Debian root cannot be had from packages.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_stdx::Digest;
use kiln_testkit::{Finished, Run, TestEnv};

/// How long a download of many packages may take.
const SLOW: Duration = Duration::from_secs(1500);

/// Lists a root: every name with type, mode, owner and what is in it, as `find` sees it. What the sandbox puts over the
/// root of a step is left out.
const LIST: &str = r#"cd "$1"
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./etc/resolv.conf -o -path ./etc/hosts -o -path ./run \
    -o -path ./context -o -path ./seen \) -prune -o \( -type f -printf '%y %m %U %G %s %TY%Tm%Td%TH%TM %p\n' , ! -type f -printf '%y %m %U %G %l %p\n' \) \
    | LC_ALL=C sort
find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./etc/resolv.conf -o -path ./etc/hosts -o -path ./run \
    -o -path ./context -o -path ./seen \) -prune \
    -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
"#;

const DOCKERFILE: &str = r#"# syntax=docker/dockerfile:1
FROM debian:bookworm AS python
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends python3-pip openssh-client
COPY requirements.txt /
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --break-system-packages --target /deps -r /requirements.txt
RUN --mount=type=secret,id=token sha256sum /run/secrets/token | cut -c 1-64 > /deps/token
RUN --mount=type=ssh ssh-add -l > /deps/keys

FROM debian:bookworm AS node
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends nodejs npm
WORKDIR /web
COPY package.json package-lock.json ./
RUN --mount=type=cache,target=/root/.npm npm ci
COPY web.js ./
RUN node web.js > answer

FROM debian:bookworm
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends python3-minimal
COPY --from=python /deps /app
COPY --from=node /web /app/web
COPY app.py /app/
RUN --mount=type=bind,target=/context sh /context/list.sh / > /seen
CMD ["python3", "/app/app.py"]
"#;

const APP: &str = r#"import six
print("six", six.__version__, "web", open("/app/web/answer").read().strip())
"#;

/// Makes a layout of a small Debian root.
fn debian(env: &TestEnv) -> Result<PathBuf, String> {
    for tool in ["mmdebstrap", "skopeo", "umoci", "runc", "ssh-agent", "ssh-keygen", "ssh-add"] {
        if kiln_testkit::program(tool).is_none() {
            return Err(format!("no {tool} on this host"));
        }
    }
    let dir = env.path().join("debian");
    std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
    let root = dir.join("root.tar");
    let args = ["--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm"].map(std::ffi::OsStr::new);
    let made = Run::new("mmdebstrap").args(args.into_iter().chain([root.as_os_str()])).deadline(SLOW).finish();
    if made.code != Some(0) {
        let why = made.err().lines().last().unwrap_or_default().to_owned();
        return Err(format!("a Debian root cannot be had from packages: {why}"));
    }
    kiln_testkit::write_tree(&dir, &[("Dockerfile", "FROM scratch\nADD root.tar /\nCMD [\"bash\"]\n")]);
    let layout = env.out("debian");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let args = ["build", "-t", "debian:bookworm", "-o", &output].map(std::ffi::OsStr::new);
    let _ = env.kiln(args.into_iter().chain([dir.as_os_str()])).deadline(SLOW).finish().ok();
    std::fs::remove_file(&root).map_err(|e| e.to_string())?;
    Ok(layout)
}

/// An agent of the test's own with one key.
struct Agent {
    socket: PathBuf,
    process: std::process::Child,
}

impl Agent {
    fn start(env: &TestEnv) -> Self {
        let (socket, key) = (env.path().join("agent"), env.path().join("key"));
        let args = ["-q", "-t", "ed25519", "-N", "", "-C", "test key", "-f"].map(std::ffi::OsStr::new);
        let _ = Run::new("ssh-keygen").args(args.into_iter().chain([key.as_os_str()])).finish().ok();
        let process = Run::new("ssh-agent").args([Path::new("-D"), Path::new("-a"), &socket]).spawn();
        let agent = Self { socket, process };
        // The agent makes its socket in its own time; a client that comes too early fails.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while agent.run(&[Path::new("-q"), &key]).code != Some(0) {
            assert!(std::time::Instant::now() < deadline, "the agent does not take the key");
        }
        agent
    }

    fn run(&self, args: &[&Path]) -> Finished {
        Run::new("ssh-add").args(args).env("SSH_AUTH_SOCK", &self.socket).finish()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn context(env: &TestEnv) {
    env.context(&[
        ("Dockerfile", DOCKERFILE),
        ("list.sh", LIST),
        ("requirements.txt", "six==1.16.0\n"),
        ("package.json", r#"{"name":"web","version":"1.0.0","dependencies":{"is-number":"7.0.0"}}"#),
        (
            "package-lock.json",
            r#"{"name":"web","version":"1.0.0","lockfileVersion":3,"requires":true,"packages":{
                "":{"name":"web","version":"1.0.0","dependencies":{"is-number":"7.0.0"}},
                "node_modules/is-number":{"version":"7.0.0"}}}"#,
        ),
        ("web.js", "console.log(require('is-number')('41'));\n"),
        ("app.py", APP),
    ]);
    std::fs::write(env.path().join("token"), "a token of the client").unwrap();
}

fn build(env: &TestEnv, layout: &Path, agent: &Agent, dest: &Path) -> Finished {
    let base = format!("debian:bookworm=oci-layout://{}", layout.display());
    let secret = format!("id=token,src={}", env.path().join("token").display());
    let (output, ctx) = (format!("type=oci,dest={}", dest.display()), env.ctx());
    let args = ["build", "--progress=plain", "--build-ca=auto", "--build-context", &base, "--secret", &secret];
    let args = args.into_iter().chain(["--ssh", "default", "-t", "app:latest", "-o", &output]);
    let args = args.map(std::ffi::OsStr::new).chain([ctx.as_os_str()]);
    env.kiln(args).env("SSH_AUTH_SOCK", &agent.socket).deadline(SLOW).finish().ok()
}

/// Unpacks an archive with other people's tools and returns the bundle.
fn unpack(env: &TestEnv, archive: &Path, name: &str) -> PathBuf {
    let (layout, bundle) = (env.out(&format!("{name}.layout")), env.out(name));
    let (from, to) = (format!("oci-archive:{}", archive.display()), format!("oci:{}:latest", layout.display()));
    let _ = Run::new("skopeo").args(["copy", "--quiet", &from, &to]).env("HOME", env.path()).finish().ok();
    let image = format!("{}:latest", layout.display());
    let args = ["unpack", "--image", &image].map(std::ffi::OsStr::new);
    let _ = Run::new("umoci").args(args.into_iter().chain([bundle.as_os_str()])).finish().ok();
    bundle
}

/// Runs a bundle and returns what it prints.
fn run(env: &TestEnv, bundle: &Path) -> String {
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["process"]["terminal"] = false.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let state = env.path().join("runc");
    let id = format!("kiln-test-{}", std::process::id());
    let args = [Path::new("--root"), &state, Path::new("run"), Path::new("--bundle"), bundle, Path::new(&id)];
    Run::new("runc").args(args).finish().ok().out()
}

#[test]
fn three_package_managers_a_secret_and_an_agent() {
    let env = crate::env();
    let layout = match debian(&env) {
        Ok(layout) => layout,
        Err(why) => kiln_testkit::skip!("{why}"),
    };
    context(&env);
    let agent = Agent::start(&env);
    let first = env.out("first.tar");
    let done = build(&env, &layout, &agent, &first);
    assert!(!done.err().contains("a token of the client"), "{}", done.report());

    let bundle = unpack(&env, &first, "first");
    let root = bundle.join("rootfs");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let listed = Run::new("sh").args([Path::new("-c"), Path::new(LIST), Path::new("sh"), &root]).finish().ok().out();
    let seen = read("seen");
    assert!(seen.lines().count() > 1000, "{seen}");
    let differs: Vec<_> = seen.lines().zip(listed.lines()).filter(|(a, b)| a != b).take(5).collect();
    assert!(seen == listed, "seen {} lines, unpacked {}: {differs:?}", seen.lines().count(), listed.lines().count());
    assert_eq!(read("app/token").trim(), Digest::of("a token of the client").hex());
    assert_eq!(read("app/keys"), agent.run(&[Path::new("-l")]).ok().out());
    assert_eq!(run(&env, &bundle), "six 1.16.0 web true\n");

    std::fs::write(env.ctx().join("app.py"), format!("{APP}print('edited')\n")).unwrap();
    let second = env.out("second.tar");
    let again = build(&env, &layout, &agent, &second);
    let text = again.err();
    let state = |step: &str| {
        let line = text.lines().find(|line| line.starts_with('#') && line.contains(step)).unwrap();
        let number = line.split(' ').next().unwrap();
        text.lines().any(|line| line == format!("{number} CACHED"))
    };
    for step in ["npm ci", "pip install", "python3-minimal", "ssh-add", "COPY --from=python", "COPY --from=node"] {
        assert!(state(step), "`{step}` ran again\n{text}");
    }
    for step in ["COPY app.py", "list.sh"] {
        assert!(!state(step), "`{step}` did not run again\n{text}");
    }
    let bundle = unpack(&env, &second, "second");
    assert_eq!(run(&env, &bundle), "six 1.16.0 web true\nedited\n");
}
