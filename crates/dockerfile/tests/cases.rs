//! Case files: input and expected result in one file. `KILN_UPDATE=1` rewrites the expected part.
//!
//! A case is a description, then sections that begin with `==== `: `options`, `image <reference>` (a config),
//! `ignore-file <local name>`, `Dockerfile`, and last `expected`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kiln_dockerfile::ast::Dockerfile;
use kiln_dockerfile::{
    BuildOptions, Diagnostic, DockerfileError, Lowered, NoCache, Resolved, ResolvedImage, Wanted, lower, parse, plan,
    render,
};
use kiln_llb::Graph;
use kiln_llb::op::{HostIp, NetMode, Ulimit};
use kiln_oci::Platform;
use kiln_stdx::Digest;

struct Case {
    path: PathBuf,
    head: String,
    sections: Vec<(String, String)>,
    expected: String,
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let (head, expected) = text.split_once("==== expected\n").unwrap_or((&text, ""));
        let mut sections: Vec<(String, String)> = Vec::new();
        for line in head.split_inclusive('\n') {
            match line.strip_prefix("==== ") {
                Some(name) => sections.push((name.trim_end().to_owned(), String::new())),
                None => {
                    if let Some((_, body)) = sections.last_mut() {
                        body.push_str(line);
                    }
                }
            }
        }
        Self { path: path.to_owned(), head: head.to_owned(), sections, expected: expected.to_owned() }
    }

    fn section(&self, name: &str) -> &str {
        self.sections.iter().find(|(n, _)| n == name).map_or("", |(_, body)| body)
    }

    fn options(&self) -> BuildOptions {
        let mut options = BuildOptions {
            build_platforms: vec![Platform::new("linux", "amd64", "")],
            target_platform: Some(Platform::new("linux", "amd64", "")),
            local_id: "case".into(),
            ..BuildOptions::default()
        };
        for line in self.section("options").lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            set(&mut options, key, value);
        }
        options
    }

    fn check(&self, actual: &str) -> Result<(), String> {
        if actual == self.expected {
            return Ok(());
        }
        if std::env::var_os("KILN_UPDATE").is_some() {
            std::fs::write(&self.path, format!("{}==== expected\n{actual}", self.head)).unwrap();
            return Ok(());
        }
        let differs = actual.lines().zip(self.expected.lines()).position(|(a, b)| a != b);
        let at = differs.unwrap_or_else(|| actual.lines().count().min(self.expected.lines().count()));
        let line = |text: &str| text.lines().nth(at).unwrap_or("<end>").to_owned();
        Err(format!("{}: expected {:?}, got {:?}", self.path.display(), line(&self.expected), line(actual)))
    }
}

fn set(options: &mut BuildOptions, key: &str, value: &str) {
    let pair = || {
        let (k, v) = value.split_once('=').unwrap();
        (k.to_owned(), v.to_owned())
    };
    match key {
        "arg" => options.build_args.extend([pair()]),
        "label" => options.labels.extend([pair()]),
        "context" => options.contexts.extend([pair()]),
        "target" => options.target = Some(value.into()),
        "platform" => options.target_platform = Some(Platform::parse(value).unwrap()),
        "any-platform" => options.target_platform = None,
        "build-platform" => options.build_platforms = vec![Platform::parse(value).unwrap()],
        "multi-platform" => options.multi_platform = true,
        "no-cache" if value.is_empty() => options.no_cache = NoCache::All,
        "no-cache" => options.no_cache = NoCache::Stages(value.split(',').map(Into::into).collect()),
        "network" => options.network = if value == "host" { NetMode::Host } else { NetMode::None },
        "ignore" => options.ignore_patterns.push(value.into()),
        "hostname" => options.hostname = value.into(),
        "shm-size" => options.shm_size = value.parse().unwrap(),
        "check" => options.check = Some(value.into()),
        "cgroup-parent" => options.cgroup_parent = value.into(),
        "cache-namespace" => options.cache_namespace = value.into(),
        "no-merge" => options.merge_op = false,
        "all-stages" => options.all_stages = true,
        "allow-devices" => options.allow_devices = true,
        "session" => options.session = value.into(),
        "git-context" => {
            options.main_context = kiln_dockerfile::MainContext::detect(value).unwrap().unwrap();
        }
        "add-host" => {
            let (host, ip) = pair();
            options.extra_hosts.push(HostIp { host, ip });
        }
        "ulimit" => {
            let (name, value) = pair();
            let value = value.parse().unwrap();
            options.ulimits.push(Ulimit { name, soft: value, hard: value });
        }
        "time" => {}
        other => panic!("unknown option {other}"),
    }
}

fn compile(case: &Case, file: &Dockerfile) -> Result<Lowered, DockerfileError> {
    let options = case.options();
    let mut resolved = Resolved::default();
    loop {
        let plan = plan(file, &options, &resolved)?;
        if plan.wanted.is_empty() {
            return lower(file, &plan, &options, &resolved);
        }
        for wanted in &plan.wanted {
            match wanted {
                Wanted::Image(image) => {
                    let name = format!("image {}", image.reference);
                    let config = case.section(&name);
                    assert!(!config.is_empty(), "{}: no section `{name}`", case.path.display());
                    let found = ResolvedImage {
                        reference: image.reference.clone(),
                        digest: Some(Digest::of(&image.reference)),
                        config: config.as_bytes().to_vec(),
                    };
                    resolved.add_image(image, found);
                }
                Wanted::IgnoreFile(file) => {
                    let text = case.section(&format!("ignore-file {}", file.local));
                    resolved.add_ignore_file(file, text.as_bytes().to_vec());
                }
                Wanted::Time(time) => {
                    let key = format!("time {}=", time.value);
                    let given = case.section("options").lines().find_map(|l| l.strip_prefix(key.as_str()));
                    resolved.add_time(time, given.map(|s| s.parse().unwrap()));
                }
            }
        }
    }
}

fn show_error(out: &mut String, file: &[u8], error: &DockerfileError) {
    let source = kiln_dockerfile::source::SourceFile { name: "Dockerfile".into(), data: file.to_vec() };
    for diagnostic in &error.diagnostics {
        out.push_str(&render::diagnostic(&source, diagnostic));
    }
}

fn show_warnings(out: &mut String, warnings: &[Diagnostic]) {
    for w in warnings {
        let _ = writeln!(out, "{} (line {}): {}", w.rule, w.line(), w.message);
    }
}

fn show_lowered(lowered: &Lowered) -> String {
    let mut out = String::new();
    if lowered.definition.is_empty() {
        out.push_str("empty definition\n");
    } else {
        let graph = Graph::load(&lowered.definition, &kiln_llb::LoadOptions::default()).unwrap();
        for (i, vertex) in graph.vertices().iter().enumerate() {
            let lines: Vec<String> = graph
                .locations(&vertex.digest)
                .iter()
                .flat_map(|(_, ranges)| ranges.iter())
                .filter_map(|r| r.start.as_ref().map(|s| s.line.to_string()))
                .collect();
            let _ = writeln!(out, "#{i} {} [{}] {}", &vertex.digest.hex()[..12], lines.join(","), vertex.name);
        }
        out.push('\n');
        out.push_str(&kiln_llb::print(&graph));
    }
    let config: serde_json::Value = serde_json::from_slice(&lowered.config_json).unwrap();
    let _ = writeln!(out, "\nconfig {}", serde_json::to_string_pretty(&config).unwrap());
    let _ = writeln!(out, "context paths: {:?}", lowered.context_paths);
    if !lowered.scans.is_empty() {
        let _ = writeln!(out, "scans: {:?}", lowered.scans.keys().collect::<Vec<_>>());
    }
    if let Some(epoch) = lowered.epoch {
        let _ = writeln!(out, "epoch: {epoch}");
    }
    show_warnings(&mut out, &lowered.warnings);
    out
}

fn run(dir: &str, show: impl Fn(&Case) -> String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(dir);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no cases in {}", root.display());
    let mut failures = Vec::new();
    for path in paths {
        let case = Case::read(&path);
        failures.extend(case.check(&show(&case)).err());
    }
    assert!(failures.is_empty(), "\n{}\n(KILN_UPDATE=1 rewrites expected results)", failures.join("\n"));
}

/// Compiles and shows what comes of it: result or errors.
fn full(case: &Case) -> String {
    let text = case.section("Dockerfile");
    let result = parse("Dockerfile", text.as_bytes()).and_then(|file| compile(case, &file));
    match result {
        Ok(lowered) => show_lowered(&lowered),
        Err(error) => {
            let mut out = String::new();
            show_error(&mut out, text.as_bytes(), &error);
            out
        }
    }
}

#[test]
fn lower_cases() {
    run("lower", full);
}

#[test]
fn parse_cases() {
    run("parse", |case| {
        let text = case.section("Dockerfile");
        let mut out = String::new();
        match parse("Dockerfile", text.as_bytes()) {
            Ok(file) => {
                let _ = writeln!(out, "{:?}", file.directives);
                for arg in &file.global_args {
                    let _ = writeln!(out, "{}-{} {:?}", arg.lines.first, arg.lines.last, arg.kind);
                }
                for stage in &file.stages {
                    let lines = stage.lines;
                    let _ = writeln!(
                        out,
                        "{}-{} {} {:?} as {:?} platform {:?} {:?}",
                        lines.first, lines.last, stage.keyword, stage.base, stage.name, stage.platform, stage.comments
                    );
                    for i in &stage.instructions {
                        let _ = writeln!(out, "  {}-{} {:?} {:?}", i.lines.first, i.lines.last, i.kind, i.comments);
                    }
                }
            }
            Err(error) => show_error(&mut out, text.as_bytes(), &error),
        }
        out
    });
}

/// Several Dockerfiles a file, each with its errors.
#[test]
fn error_cases() {
    run("errors", |case| {
        let mut out = String::new();
        let mut seen = BTreeMap::new();
        for (name, text) in &case.sections {
            let Some(title) = name.strip_prefix("Dockerfile ") else { continue };
            assert!(seen.insert(title, ()).is_none(), "two sections {title}");
            let _ = writeln!(out, "## {title}");
            let text = text.strip_suffix('\n').unwrap_or(text);
            match parse("Dockerfile", text.as_bytes()).and_then(|file| compile(case, &file)) {
                Ok(_) => out.push_str("no error\n"),
                Err(error) => show_error(&mut out, text.as_bytes(), &error),
            }
        }
        out
    });
}

/// Several Dockerfiles a file, each with its warnings.
#[test]
fn lint_cases() {
    run("lint", |case| {
        let mut out = String::new();
        for (name, text) in &case.sections {
            let Some(title) = name.strip_prefix("Dockerfile ") else { continue };
            let _ = writeln!(out, "## {title}");
            match parse("Dockerfile", text.as_bytes()).and_then(|file| compile(case, &file)) {
                Ok(lowered) => show_warnings(&mut out, &lowered.warnings),
                Err(error) => show_error(&mut out, text.as_bytes(), &error),
            }
        }
        out
    });
}
