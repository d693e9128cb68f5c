//! An executor, a root made of a static busybox, and a run that collects everything.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use kiln_executor::{
    ExecError, Executor, Exit, MountSource, Output, ProcessIo, ProcessSpec, RuncConfig, RuncExecutor, SandboxConfig,
    SandboxExecutor, SandboxMount,
};
use kiln_snapshot::Mount;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The helper and probe of these tests.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_kiln-sandbox-test");

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1001:\nextra:x:2000:app\n";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One executor with a root of its own.
pub struct Fixture {
    pub executor: Box<dyn Executor>,
    pub dir: tempfile::TempDir,
}

/// What a run left behind.
#[derive(Debug)]
pub struct Ran {
    pub exit: Exit,
    pub out: String,
    pub err: String,
}

impl Fixture {
    pub fn sandbox() -> Option<Self> {
        let dir = prepare()?;
        let executor = SandboxExecutor::new(config()).expect("start the helper");
        Some(Self { executor: Box::new(executor), dir })
    }

    pub fn runtime(program: &str) -> Option<Self> {
        let dir = prepare()?;
        let state = dir.path().join("state");
        match RuncExecutor::new(RuncConfig { program: program.into(), state, sandbox: config() }) {
            Ok(executor) => Some(Self { executor: Box::new(executor), dir }),
            Err(error) => skip(&error.to_string()),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the overlay root: one layer with busybox, one above it, and an upper directory.
    pub fn root(&self) -> Mount {
        Mount::Overlay {
            lowers: vec![self.path("second"), self.path("base")],
            upper: Some(self.path("upper")),
            work: Some(self.path("work")),
        }
    }

    pub fn spec(&self, args: &[&str]) -> ProcessSpec {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut spec = ProcessSpec::new(format!("t{}-{number}", std::process::id()), self.root(), args.iter().copied());
        spec.env.push(("PATH".to_owned(), "/usr/bin:/bin".to_owned()));
        spec
    }

    pub fn shell(&self, script: &str) -> ProcessSpec {
        self.spec(&["sh", "-c", script])
    }

    pub async fn run(&self, spec: ProcessSpec) -> Result<Ran, ExecError> {
        self.run_with(spec, ProcessIo::default(), CancellationToken::new()).await
    }

    pub async fn run_with(
        &self,
        spec: ProcessSpec,
        io: ProcessIo,
        cancel: CancellationToken,
    ) -> Result<Ran, ExecError> {
        let (out, read_out) = mpsc::channel(4);
        let (err, read_err) = mpsc::channel(4);
        let io = ProcessIo { stdout: Output::Channel(out), stderr: Output::Channel(err), ..io };
        let (exit, out, err) = tokio::join!(self.executor.run(spec, io, cancel), collect(read_out), collect(read_err));
        Ok(Ran { exit: exit?, out, err })
    }

    /// Runs a further process in the sandbox of a run.
    pub async fn exec(&self, inside: &str, spec: ProcessSpec) -> Result<Ran, ExecError> {
        let (out, read_out) = mpsc::channel(4);
        let (err, read_err) = mpsc::channel(4);
        let io = ProcessIo { stdout: Output::Channel(out), stderr: Output::Channel(err), ..ProcessIo::default() };
        let ran = self.executor.exec(inside, spec, io, CancellationToken::new());
        let (exit, out, err) = tokio::join!(ran, collect(read_out), collect(read_err));
        Ok(Ran { exit: exit?, out, err })
    }

    /// Runs a script and returns what it printed; it must succeed.
    pub async fn output(&self, script: &str) -> String {
        self.output_of(self.shell(script)).await
    }

    pub async fn output_of(&self, spec: ProcessSpec) -> String {
        let ran = self.run(spec).await.expect("run");
        assert_eq!(ran.exit.code, 0, "{ran:?}");
        ran.out.trim_end().to_owned()
    }

    /// Returns a spec that runs the probe, with the host's libraries in its root.
    pub fn probe(&self, args: &[&str]) -> ProcessSpec {
        let mut spec = self.spec(&[&["/probe"], args].concat());
        spec.mounts.push(bind(Path::new(PROGRAM), "/probe", true));
        for dir in ["/lib", "/lib64", "/usr/lib"] {
            if Path::new(dir).exists() {
                spec.mounts.push(bind(&Path::new(dir).canonicalize().expect("library"), dir, true));
            }
        }
        spec
    }

    /// Runs a single system call in the sandbox and returns its error number.
    pub async fn errno(&self, args: &[&str]) -> i32 {
        self.run(self.probe(args)).await.expect("probe").exit.code
    }
}

/// Collects a channel to its end.
pub async fn collect(mut from: mpsc::Receiver<Bytes>) -> String {
    let mut all = Vec::new();
    while let Some(piece) = from.recv().await {
        all.extend_from_slice(&piece);
    }
    String::from_utf8_lossy(&all).into_owned()
}

pub fn bind(source: &Path, dest: &str, readonly: bool) -> SandboxMount {
    let source = MountSource::Mount(Mount::Bind { source: source.to_owned(), readonly: false });
    SandboxMount { dest: dest.to_owned(), source, subpath: String::new(), readonly }
}

#[allow(clippy::print_stderr, reason = "a skipped test says why")]
pub fn skip<T>(reason: &str) -> Option<T> {
    eprintln!("skip: {reason}");
    None
}

fn config() -> SandboxConfig {
    SandboxConfig { helper: PROGRAM.into(), cgroup_parent: "kiln-test".to_owned(), ..SandboxConfig::default() }
}

fn prepare() -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        return skip("sandboxes without a user namespace need root");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let Some(busybox) = busybox else { return skip("no static busybox is installed") };
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["base/bin", "base/usr/bin", "base/etc", "base/tmp", "base/root", "second/data", "upper", "work"] {
        std::fs::create_dir_all(dir.path().join(name)).expect("a directory");
    }
    let base = dir.path().join("base");
    std::fs::copy(busybox, base.join("bin/busybox")).expect("copy busybox");
    for applet in [
        "sh", "cat", "ls", "id", "stat", "sleep", "mount", "unshare", "mknod", "touch", "rm", "ip", "hostname", "df",
        "env", "grep", "head", "dd", "true", "false", "kill", "pwd", "mkdir", "wc", "readlink", "echo", "ps", "chmod",
        "test", "stty", "tty", "tr",
    ] {
        symlink("busybox", base.join("bin").join(applet)).expect("an applet");
    }
    std::fs::write(base.join("etc/passwd"), PASSWD).expect("passwd");
    std::fs::write(base.join("etc/group"), GROUP).expect("group");
    std::fs::write(dir.path().join("second/data/file"), "from the second layer\n").expect("a file");
    Some(dir)
}
