//! The two builders: kiln, and a daemon of another kind that is asked through its own client.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_testkit::{Image, Run, Running, TestEnv};

use crate::Stand;
use crate::case::Case;
use crate::context;

/// Something that builds cases.
pub trait Builder: Sync {
    /// Builds a case; an error is the last lines of what was printed.
    fn build(&self, stand: &Stand, case: &Case) -> Result<Image, String>;
}

/// Everything a case brings, written down.
struct Input {
    dir: PathBuf,
    out: PathBuf,
    /// Named directories.
    contexts: Vec<(String, PathBuf)>,
    /// Base images by name: layout and digest.
    images: Vec<(String, PathBuf, String)>,
    options: Vec<(String, String)>,
}

fn input(stand: &Stand, case: &Case, who: &str) -> Input {
    let dir = stand.dir.path().join(who).join(case.name.replace([' ', '/'], "_"));
    let main = dir.join("ctx");
    let mut contexts = Vec::new();
    std::fs::create_dir_all(&main).expect("mkdir");
    for (name, lines) in case.sections("context") {
        let path = if name.is_empty() { main.clone() } else { dir.join(name) };
        context::fill(&path, lines);
        if !name.is_empty() {
            contexts.push((name.to_owned(), path));
        }
    }
    for (path, text) in case.sections("Dockerfile") {
        let path = main.join(if path.is_empty() { "Dockerfile" } else { path });
        let text = stand.fill(text).replace("{CR}", "\r").replace("{BOM}", "\u{feff}");
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(&path, text).expect("write");
    }
    let mut images: Vec<_> = case.sections("image").map(|(name, fields)| (name.to_owned(), fields)).collect();
    if !images.iter().any(|(name, _)| name == "base") {
        images.push(("base".to_owned(), ""));
    }
    let images = images
        .into_iter()
        .map(|(name, fields)| {
            let (layout, digest) = stand.images.layout(&format!("{who}-{}", case.name), &name, fields);
            (name, layout, digest)
        })
        .collect();
    let mut options: Vec<(String, String)> = case.options().map(|(k, v)| (k.to_owned(), stand.fill(v))).collect();
    for (name, value) in &mut options {
        if name == "secret" {
            let (id, text) = value.split_once('=').unwrap_or((value, ""));
            let path = dir.join(format!("secret-{id}"));
            std::fs::write(&path, text).expect("write");
            *value = format!("id={id},src={}", path.display());
        }
    }
    Input { out: dir.join("image.tar"), dir: main, contexts, images, options }
}

fn output(path: &Path, more: &str) -> String {
    format!("type=oci,dest={},compression=uncompressed{more}", path.display())
}

fn finish(run: Run, out: &Path) -> Result<Image, String> {
    let done = run.finish();
    if done.code != Some(0) {
        let text = done.err();
        let line = text.lines().rev().find(|l| l.to_lowercase().starts_with("error")).unwrap_or("no error is told");
        let line = line.trim_start_matches("ERROR: ").trim_start_matches("error: ");
        return Err(if line == "no error is told" { done.report() } else { line.to_owned() });
    }
    Ok(Image::read(out))
}

/// kiln, with an engine of its own.
pub struct Kiln {
    env: TestEnv,
}

impl Kiln {
    pub fn new() -> Self {
        Self { env: TestEnv::new(env!("CARGO_BIN_EXE_kiln")) }
    }
}

impl Builder for Kiln {
    fn build(&self, stand: &Stand, case: &Case) -> Result<Image, String> {
        let input = input(stand, case, "kiln");
        let mut args: Vec<String> = ["build", "--progress=plain", "-o"].map(str::to_owned).to_vec();
        // kiln's client rewrites times once an epoch is given, the other one when it is asked to.
        args.push(output(&input.out, ",rewrite-timestamp=false"));
        let mut main = input.dir.display().to_string();
        for (name, path) in &input.contexts {
            args.extend(["--build-context".to_owned(), format!("{name}={}", path.display())]);
        }
        for (name, layout, _) in &input.images {
            args.extend(["--build-context".to_owned(), format!("{name}=oci-layout://{}", layout.display())]);
        }
        for (key, value) in &input.options {
            let flag = match key.as_str() {
                "no-base" => continue,
                "main" => {
                    main.clone_from(value);
                    continue;
                }
                "filename" => {
                    args.extend(["-f".to_owned(), format!("{main}/{value}")]);
                    continue;
                }
                "arg" => "--build-arg",
                "context" => "--build-context",
                "host" => "--add-host",
                "epoch" => {
                    args.extend(["--build-arg".to_owned(), format!("SOURCE_DATE_EPOCH={value}")]);
                    continue;
                }
                "allow" | "label" | "target" | "platform" | "secret" | "ulimit" | "shm-size" | "network" => {
                    args.extend([format!("--{key}"), value.clone()]);
                    continue;
                }
                "no-cache" => "--no-cache-filter",
                other => panic!("{}: option {other}", case.name),
            };
            args.extend([flag.to_owned(), value.clone()]);
        }
        args.push(main);
        finish(self.env.kiln(args), &input.out)
    }
}

/// The other builder's daemon.
pub struct Peer {
    client: PathBuf,
    address: String,
    _daemon: Running,
    _root: tempfile::TempDir,
}

impl Peer {
    /// Starts it where the host has it.
    pub fn start() -> Option<Self> {
        let (daemon, client) = (kiln_testkit::program("buildkitd")?, kiln_testkit::program("buildctl")?);
        kiln_testkit::program("runc")?;
        let root = tempfile::Builder::new().prefix("kiln-peer-").tempdir().expect("tempdir");
        let address = format!("unix://{}", root.path().join("sock").display());
        let state = root.path().join("state").display().to_string();
        let args = [
            "--root",
            &state,
            "--addr",
            &address,
            "--oci-worker=true",
            "--containerd-worker=false",
            "--allow-insecure-entitlement=security.insecure",
            "--allow-insecure-entitlement=network.host",
        ];
        let daemon = Run::new(daemon).args(args).deadline(Duration::from_secs(600)).start();
        let deadline = Instant::now() + Duration::from_secs(30);
        while Run::new(&client).args(["--addr", &address, "debug", "workers"]).finish().code != Some(0) {
            assert!(Instant::now() < deadline, "the other builder does not start");
        }
        Some(Self { client, address, _daemon: daemon, _root: root })
    }
}

impl Builder for Peer {
    fn build(&self, stand: &Stand, case: &Case) -> Result<Image, String> {
        let input = input(stand, case, "peer");
        let dir = input.dir.display();
        let mut args: Vec<String> =
            ["--addr", &self.address, "build", "--progress=plain", "--frontend=dockerfile.v0", "--output"]
                .map(str::to_owned)
                .to_vec();
        args.push(output(&input.out, ""));
        let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        let main = input.options.iter().find(|(k, _)| k == "main");
        match main {
            Some((_, address)) => add("--opt", format!("context={address}")),
            None => {
                add("--local", format!("context={dir}"));
                add("--local", format!("dockerfile={dir}"));
            }
        }
        for (name, path) in &input.contexts {
            add("--local", format!("{name}={}", path.display()));
            add("--opt", format!("context:{name}=local:{name}"));
        }
        for (i, (name, layout, digest)) in input.images.iter().enumerate() {
            add("--oci-layout", format!("store{i}={}", layout.display()));
            add("--opt", format!("context:{name}=oci-layout://store{i}@{digest}"));
        }
        for (key, value) in &input.options {
            match key.as_str() {
                "no-base" | "main" => {}
                "filename" | "target" | "platform" => add("--opt", format!("{key}={value}")),
                "arg" => add("--opt", format!("build-arg:{value}")),
                "epoch" => add("--opt", format!("build-arg:SOURCE_DATE_EPOCH={value}")),
                "label" => add("--opt", format!("label:{value}")),
                "context" => add("--opt", format!("context:{value}")),
                "host" => add("--opt", format!("add-hosts={value}")),
                "ulimit" | "shm-size" => add("--opt", format!("{key}={value}")),
                "network" => add("--opt", format!("force-network-mode={value}")),
                "no-cache" => add("--opt", format!("no-cache={value}")),
                "secret" => add("--secret", value.clone()),
                "allow" => add("--allow", value.clone()),
                other => panic!("{}: option {other}", case.name),
            }
        }
        let run = Run::new(&self.client).args(&args).deadline(Duration::from_secs(120));
        finish(run, &input.out)
    }
}
