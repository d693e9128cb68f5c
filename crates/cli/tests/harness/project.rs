//! The build that the harnesses repeat: several stages, every way a layer comes about, and one result whatever has to
//! run again for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use kiln_oci::{Descriptor, History, ImageConfig, Index, Manifest, media};
use kiln_stdx::Digest;
use kiln_testkit::base::{layout_of, tar_of};
use kiln_testkit::image::File;
use kiln_testkit::{Finished, Image, Run, TestEnv, busybox_root, write_tree};

use crate::choices::Choices;
use crate::processes::engines;

/// What any run of kiln may take before it counts as hanging.
pub const DEADLINE: Duration = Duration::from_secs(100);
/// Files whose content makes steps run again and leaves no trace in the result.
const SEEDS: [&str; 3] = ["tools", "data", "last"];
/// A seed that makes its step wait, until it is killed.
pub const HOLD: &str = "hold";
/// What a step that was made to wait says first.
pub const HELD: &str = "it is held";
/// The name that each build gives its image in the engine's image store, and that of a build beside it.
const NAMES: [&str; 2] = ["docker.io/library/harness:1", "docker.io/library/harness:2"];
/// What the context has besides the seeds.
const FILES: [(&str, &str); 5] = [
    ("Dockerfile", DOCKERFILE),
    ("app/one", "one\n"),
    ("app/two", "two\n"),
    ("app/sub/three", "three\n"),
    ("app/sub/run", "#!/bin/sh\n"),
];

/// The steps read their seeds and leave nothing of them; the stage `data` can be made to wait.
const DOCKERFILE: &str = r#"FROM base AS tools
COPY seeds/tools /seed
RUN mkdir -p /opt/tool/deep/er && for i in $(seq 1 30); do echo "tool $i" > /opt/tool/f$i; done \
 && ln /opt/tool/f1 /opt/tool/deep/hard && ln -s ../f2 /opt/tool/deep/soft && mknod /opt/tool/null c 1 3
COPY app /opt/app
RUN rm -r /seed /opt/tool/f3 /opt/app/sub && mkdir /opt/app/sub && chmod 4750 /opt/tool/f4 && chown 7:8 /opt/tool/f5

FROM base AS data
RUN --mount=type=bind,source=seeds/data,target=/seed \
 if grep -q hold /seed; then (setsid sleep 7100 &); echo "it is held"; trap '' TERM; sleep 7200; fi; \
 seq 1 20000 > /data.txt
RUN --mount=type=cache,target=/cache --mount=type=bind,source=seeds/data,target=/seed \
 cat /seed >> /cache/seen; sha256sum /data.txt > /sum

FROM base
ENV A=1
COPY --from=tools /opt /opt
COPY --from=data /data.txt /sum /srv/
COPY --chown=5:6 app /etc/app
RUN --mount=type=bind,source=seeds/last,target=/seed test -s /seed && rm -rf /home/app && mkdir /home/app \
 && cat /srv/sum /etc/app/one /etc/base-release > /all
WORKDIR /work
CMD ["cat", "/all"]
"#;

/// How layers are compressed on the way out; each makes them from their files once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packing {
    Gzip,
    Zstd,
    Plain,
}

impl Packing {
    pub const ALL: [Self; 3] = [Self::Gzip, Self::Zstd, Self::Plain];

    fn attribute(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Plain => "uncompressed",
        }
    }
}

/// What a build gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub digest: Digest,
    config: ImageConfig,
    root: BTreeMap<Vec<u8>, File>,
}

impl Outcome {
    /// Reads an image archive.
    fn read(archive: &Path) -> Self {
        let image = Image::read(archive);
        Self { digest: image.digest, root: image.root(), config: image.config }
    }

    /// Says in which way another outcome differs; none when it does not. Where `packed`, the bytes of compressed layers
    /// count, too.
    fn difference(&self, other: &Self, packed: bool) -> Option<String> {
        if self.config == other.config && self.root == other.root && (!packed || self.digest == other.digest) {
            return None;
        }
        let mut text = format!("image {} is not {}\n", other.digest, self.digest);
        if self.config != other.config {
            text.push_str(&format!("config {:?}\n   not {:?}\n", other.config, self.config));
        }
        let paths: std::collections::BTreeSet<_> = self.root.keys().chain(other.root.keys()).collect();
        let differ = paths.into_iter().filter(|path| self.root.get(*path) != other.root.get(*path));
        for path in differ.take(20) {
            let shown = |file: Option<&File>| match file {
                None => "nothing".to_owned(),
                Some(f) => format!(
                    "type {} mode {:o} owner {}:{} time {} size {} {}",
                    f.kind as char,
                    f.mode,
                    f.uid,
                    f.gid,
                    f.mtime,
                    f.content.len(),
                    Digest::of(&f.content)
                ),
            };
            let (is, was) = (shown(other.root.get(path)), shown(self.root.get(path)));
            text.push_str(&format!("{}: {is}, not {was}\n", String::from_utf8_lossy(path)));
        }
        Some(text)
    }
}

/// One build of the project.
#[derive(Debug, Clone)]
pub struct Job {
    pub packing: Packing,
    pub archive: PathBuf,
    pub context: PathBuf,
    name: &'static str,
    /// Further arguments.
    pub extra: Vec<String>,
}

/// The project in an environment of its own.
pub struct Project {
    pub env: TestEnv,
    driver: &'static str,
    /// Variables of every run.
    pub variables: Vec<(&'static str, String)>,
    /// Layers may have come from a remote cache: those of the base image are then compressed as they are there, and by
    /// another program than the base image's when they are compressed once more.
    pub imported: bool,
}

impl Project {
    /// Lays out the project; none when the host has no busybox for the base image.
    pub fn new(env: TestEnv, driver: &'static str) -> Option<Self> {
        let project = Self { env, driver, variables: Vec::new(), imported: false };
        project.base()?;
        project.env.context(&FILES);
        for name in SEEDS {
            project.set_seed(name, "first");
        }
        Some(project)
    }

    /// As [`Project::new`], in a fresh environment.
    pub fn fresh(driver: &'static str) -> Option<Self> {
        Self::new(TestEnv::new(env!("CARGO_BIN_EXE_kiln")), driver)
    }

    /// Makes the base image, of two layers, where the project has none yet.
    fn base(&self) -> Option<PathBuf> {
        let dir = self.env.path().join("base");
        let layout = dir.join("layout");
        if !layout.is_dir() {
            let (lower, upper) = (dir.join("lower"), dir.join("upper"));
            if !busybox_root(&lower) {
                return None;
            }
            write_tree(&upper, &[("etc/base-release", "base 1\n"), ("etc/base.d/a", "a\n"), ("tmp/", "")]);
            let mut config = ImageConfig::default();
            config.config.env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
            let history = |by: &str| History { created_by: by.to_owned(), ..History::default() };
            config.history = vec![history("lower"), history("upper")];
            layout_of(&layout, &[tar_of(&lower), tar_of(&upper)], config);
        }
        Some(layout)
    }

    /// Returns the digests of all blobs of the base image.
    pub fn base_blobs(&self) -> Vec<String> {
        let blobs = self.env.path().join("base/layout/blobs/sha256");
        let entries = std::fs::read_dir(blobs).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Changes a seed, so that its step and what depends on it runs again.
    pub fn set_seed(&self, name: &str, value: &str) {
        write_tree(&self.env.ctx(), &[(&format!("seeds/{name}"), &format!("{value}\n"))]);
    }

    /// Changes none, some or all of the seeds.
    pub fn reseed(&self, choices: &mut Choices) {
        for name in SEEDS {
            if choices.below(2) == 0 {
                self.set_seed(name, &choices.next().to_string());
            }
        }
    }

    /// Returns what the seeds are.
    pub fn seeds(&self) -> Vec<String> {
        let read = |name| std::fs::read_to_string(self.env.ctx().join("seeds").join(name)).unwrap_or_default();
        SEEDS.iter().map(|name| read(name).trim().to_owned()).collect()
    }

    /// Puts seeds back to what they were.
    pub fn restore(&self, seeds: &[String]) {
        for (name, value) in SEEDS.iter().zip(seeds) {
            self.set_seed(name, value);
        }
    }

    /// Makes a context with all seeds as given, and returns its place.
    pub fn other_context(&self, seed: &str) -> PathBuf {
        let context = self.env.path().join("other");
        write_tree(&context, &FILES);
        for name in SEEDS {
            write_tree(&context, &[(&format!("seeds/{name}"), &format!("{seed}\n"))]);
        }
        context
    }

    /// Prepares a run of kiln.
    pub fn kiln<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        let run = self.env.kiln(args).env("KILN_SNAPSHOTTER", self.driver).deadline(DEADLINE);
        self.variables.iter().fold(run, |run, (name, value)| run.env(name, value))
    }

    /// Where the archive goes.
    pub fn archive(&self) -> PathBuf {
        self.env.out("image.tar")
    }

    /// Returns the build of the context.
    pub fn job(&self, packing: Packing) -> Job {
        Job { packing, archive: self.archive(), context: self.env.ctx(), name: NAMES[0], extra: Vec::new() }
    }

    /// Returns a build that may run beside that.
    pub fn second(&self, packing: Packing) -> Job {
        Job { archive: self.env.out("second.tar"), name: NAMES[1], ..self.job(packing) }
    }

    /// Prepares the build, into an archive and into the engine's image store.
    pub fn build(&self, packing: Packing) -> Run {
        self.run(&self.job(packing))
    }

    /// Prepares a build.
    pub fn run(&self, job: &Job) -> Run {
        let _ = std::fs::remove_file(&job.archive);
        let packing = format!("rewrite-timestamp=true,compression={},force-compression=true", job.packing.attribute());
        let base = self.env.path().join("base/layout");
        let args = [
            "build".to_owned(),
            "--progress=plain".to_owned(),
            "--build-arg=SOURCE_DATE_EPOCH=1600000000".to_owned(),
            format!("--build-context=base=oci-layout://{}", base.display()),
            format!("--output=type=image,name={},{packing}", job.name),
            format!("--output=type=oci,dest={},{packing}", job.archive.display()),
            job.context.display().to_string(),
        ];
        self.kiln(args.iter().chain(&job.extra))
    }

    /// Builds and compares with a cold build.
    ///
    /// # Errors
    /// The build fails or hangs, or its result is another, in the archive or in the image store.
    pub fn check(&self, packing: Packing) -> Result<Finished, String> {
        self.check_job(&self.job(packing))
    }

    /// As [`Project::check`], of any build.
    ///
    /// # Errors
    /// As there.
    pub fn check_job(&self, job: &Job) -> Result<Finished, String> {
        let done = self.run(job).finish();
        self.judge(job, done.code, &done.report())?;
        Ok(done)
    }

    /// Compares what a build that has ended with `code` left behind with a cold build.
    ///
    /// # Errors
    /// It failed, or its result is another, in the archive or in the image store.
    pub fn judge(&self, job: &Job, code: Option<i32>, report: &str) -> Result<(), String> {
        if code != Some(0) {
            return Err(format!("the build fails: {code:?}\n{report}\n--- engine\n{}", self.engine_log()));
        }
        let outcome = Outcome::read(&job.archive);
        match cold(self.driver, job.packing).difference(&outcome, !self.imported) {
            None => self.check_store(job.name, outcome.digest),
            Some(text) => Err(text),
        }
        .map_err(|text| format!("{text}\n{report}\n--- engine\n{}", self.engine_log()))
    }

    /// Checks that the image store has the image under its name, whole.
    fn check_store(&self, name: &str, wanted: Digest) -> Result<(), String> {
        let dir = self.env.root().join("images");
        let blob = |d: &Descriptor| {
            let data = std::fs::read(dir.join("blobs/sha256").join(d.digest.hex())).unwrap_or_default();
            let good = Digest::of(&data) == d.digest;
            if good { Ok(data) } else { Err(format!("blob {} of the image store is damaged", d.digest)) }
        };
        let index = std::fs::read(dir.join("index.json")).map_err(|e| format!("index of the image store: {e}"))?;
        let index = Index::from_json(&index).map_err(|e| format!("index of the image store: {e}"))?;
        let ours = |d: &&Descriptor| d.annotations.get("io.containerd.image.name").is_some_and(|known| known == name);
        let found = index.manifests.iter().find(ours).ok_or("the image store has lost the image")?;
        if found.digest != wanted || media::is_index(&found.media_type) {
            return Err(format!("the image store has {}", found.digest));
        }
        let manifest = Manifest::from_json(&blob(found)?).map_err(|e| e.to_string())?;
        manifest.layers.iter().chain([&manifest.config]).try_for_each(|d| blob(d).map(drop))
    }

    /// Returns the end of what the engines of this root had to say.
    pub fn engine_log(&self) -> String {
        let log = std::fs::read(self.env.root().join("engine.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Ends the engine in an orderly way.
    pub fn stop(&self) {
        let running = engines(self.env.root());
        let done = self.kiln(["daemon", "stop"]).finish();
        assert!(done.code == Some(0), "{}", done.report());
        for engine in running {
            assert!(engine.gone_within(DEADLINE), "the engine does not stop");
        }
    }

    /// Ends the engine by SIGKILL.
    pub fn kill(&self) {
        for engine in engines(self.env.root()) {
            engine.kill();
            assert!(engine.gone_within(DEADLINE), "the killed engine does not end");
        }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // However its sockets and files have been treated, the engine must not outlive the test.
        self.kill();
    }
}

/// Returns the outcome of the build on an empty root, built once a run.
///
/// Drivers may describe one change in different words (an opaque directory, or what went from it), so each has its own
/// digest; the files have to be the same.
pub fn cold(driver: &'static str, packing: Packing) -> Outcome {
    static COLD: OnceLock<Mutex<BTreeMap<(&str, Packing), Outcome>>> = OnceLock::new();
    let mut cold = COLD.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = cold.values().next().map(|outcome| outcome.root.clone());
    let make = || {
        let project = Project::fresh(driver).expect("busybox was here before");
        let done = project.build(packing).finish().ok();
        assert!(!done.err().contains("CACHED"), "a cold build finds something: {}", done.err());
        let outcome = Outcome::read(&project.archive());
        assert!(known.is_none_or(|root| root == outcome.root), "the files depend on driver or packing");
        outcome
    };
    cold.entry((driver, packing)).or_insert_with(make).clone()
}
