//! Many builds at once, equal and different ones, of which some are cancelled at random points and one has a client that
//! is frozen: none is stuck, and afterwards the engine holds what it held before.
//!
//! `KILN_SOAK_BUILDS=n` sets how many run at once (40 is the full number) and `KILN_SOAK_WAVES=n` how often; seeds as in
//! the other harnesses.

use std::time::{Duration, Instant};

use kiln_testkit::{Image, Run, TestEnv, write_tree};
use rustix::process::Signal;

use crate::choices::{Choices, number, seed};
use crate::client::Client;
use crate::engine::{Engine, Held};

/// Builds at once without the variable.
const FEW: usize = 12;
/// What any client may take before it counts as stuck.
const STUCK: Duration = Duration::from_secs(300);
/// What the engine may take to let go of everything after the last build.
const QUIET: Duration = Duration::from_secs(30);
/// For how long events of an ended build are kept, and some more.
const LINGER: Duration = Duration::from_secs(11);
/// How long one look at a client takes.
const LOOK: Duration = Duration::from_millis(20);
/// What the engine may keep of memory beside what it had after the first builds, in bytes: heaps of two sizes and
/// caches that have bounds of their own.
const KEPT: u64 = 48 << 20;
/// What steps say that never end by themselves.
const HELD: &str = "it is held";
/// What SIGTERM leaves to calls that run, and some time for a busy machine to notice.
const GRACE: Duration = Duration::from_secs(5 + 10);

/// What a build is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The same as others at this time.
    Equal,
    /// Like no other.
    Own,
    /// Fails in a step.
    Fails,
    /// Is cancelled while it transfers, exports, or runs a step that never ends.
    Cancelled,
    /// Its client stops answering while files come to it.
    Frozen,
}

const FILES: [(&str, &str); 5] = [
    (
        "Dockerfile.Equal",
        "FROM base AS a\nARG WAVE\nCOPY small /a\nRUN echo $WAVE > /wave; seq 1 2000 > /numbers\nFROM base\nARG WAVE\n\
         RUN --mount=type=cache,target=/c,id=shared echo $WAVE >> /c/log\nCOPY --from=a /wave /numbers /\n",
    ),
    ("Dockerfile.Own", "FROM base\nARG OWN\nCOPY small /small\nRUN echo $OWN > /own\nRUN cat /own /small > /both\n"),
    ("Dockerfile.Fails", "FROM base\nARG OWN\nRUN echo $OWN && exit 3\n"),
    (
        "Dockerfile.Cancelled",
        "FROM base AS slow\nARG OWN\nRUN echo $OWN; (setsid sleep 7100 &); echo 'it is held'; trap '' TERM; sleep 7200\n\
         FROM base\nCOPY large /large\nRUN sha256sum /large > /sum\nCOPY --from=slow /etc/passwd /\n",
    ),
    ("Dockerfile.Frozen", "FROM base\nCOPY large /large\nRUN cp /large /again\n"),
];

/// One client and what it is to do.
struct Build {
    kind: Kind,
    number: usize,
    client: Client,
    /// After how many lines of output something happens to it, and what.
    fate: Option<(usize, Signal)>,
    since: Instant,
}

fn run(env: &TestEnv, kind: Kind, number: usize, wave: usize) -> Run {
    let base = env.base().expect("busybox was here before");
    let file = env.ctx().join(format!("Dockerfile.{kind:?}"));
    let out = env.out(&format!("{wave}-{number}"));
    let kind = if kind == Kind::Frozen { "local" } else { "oci" };
    let args = [
        "build".to_owned(),
        "--progress=plain".to_owned(),
        format!("--build-context={base}"),
        format!("--build-arg=WAVE={wave}"),
        format!("--build-arg=OWN={wave}-{number}"),
        format!("--file={}", file.display()),
        format!("--output=type={kind},dest={}", out.display()),
        env.ctx().display().to_string(),
    ];
    env.kiln(args)
}

impl Build {
    fn start(env: &TestEnv, number: usize, wave: usize, choices: &mut Choices) -> Self {
        let kind = match number {
            0 => Kind::Frozen,
            n => [Kind::Equal, Kind::Own, Kind::Cancelled, Kind::Equal, Kind::Cancelled, Kind::Fails][n % 6],
        };
        let signal = *choices.pick(&[Signal::INT, Signal::TERM, Signal::KILL]).unwrap_or(&Signal::KILL);
        let fate = match kind {
            Kind::Cancelled => Some((choices.below(30), signal)),
            // Files come to a client from here on.
            Kind::Frozen => Some((usize::MAX, Signal::STOP)),
            _ => None,
        };
        let client = Client::start(run(env, kind, number, wave));
        Self { kind, number, client, fate, since: Instant::now() }
    }

    /// Goes on a little; tells whether there is nothing more to come.
    fn step(&mut self) -> bool {
        self.client.read(LOOK);
        let reached = |lines: usize| match self.kind {
            Kind::Frozen => self.client.said.iter().any(|line| line.contains("exporting to client")),
            _ => self.client.said.len() >= lines || self.client.said(HELD),
        };
        if let Some((_, signal)) = self.fate.filter(|(lines, _)| reached(*lines)) {
            self.client.signal(signal);
            self.fate = None;
        }
        let stuck = self.since.elapsed() > STUCK;
        assert!(!stuck, "build {} ({:?}) is stuck\n{}", self.number, self.kind, self.client.text());
        match self.kind {
            Kind::Frozen => self.fate.is_none(),
            _ => self.client.ended(),
        }
    }

    /// Checks how it ended.
    fn check(&mut self, env: &TestEnv, wave: usize) {
        let code = self.client.code.flatten();
        let text = || format!("build {} ({:?}) ends with {code:?}\n{}", self.number, self.kind, self.client.text());
        let out = env.out(&format!("{wave}-{}", self.number));
        match self.kind {
            Kind::Equal => {
                assert_eq!(code, Some(0), "{}", text());
                assert_eq!(Image::read(&out).text("wave"), format!("{wave}\n"));
            }
            Kind::Own => {
                assert_eq!(code, Some(0), "{}", text());
                assert_eq!(Image::read(&out).text("both"), format!("{wave}-{}\nsmall\n", self.number));
            }
            Kind::Fails => {
                assert!(code.is_some_and(|code| code != 0), "{}", text());
                assert!(self.client.said.iter().any(|line| line.contains("exit code: 3")), "{}", text());
            }
            Kind::Cancelled | Kind::Frozen => {
                assert_ne!(code, Some(0), "{}", text());
                assert!(!out.exists(), "part of an output is left\n{}", text());
            }
        }
        let _ = std::fs::remove_file(out);
    }
}

/// Runs `count` builds at once to their ends.
fn wave(env: &TestEnv, wave: usize, count: usize, choices: &mut Choices) {
    let mut builds: Vec<Build> = (0..count).map(|number| Build::start(env, number, wave, choices)).collect();
    let mut open: Vec<usize> = (0..count).collect();
    while !open.is_empty() {
        open.retain(|at| !builds[*at].step());
    }
    for build in &mut builds {
        if build.kind == Kind::Frozen {
            // Everybody else is through, and it has not moved since; only its death ends it.
            assert!(!build.client.ended(), "{}", build.client.text());
            build.client.signal(Signal::KILL);
            while !build.client.ended() {
                build.client.read(LOOK);
            }
        }
        build.check(env, wave);
    }
}

/// Waits until the engine holds no more than `before`.
#[track_caller]
fn settles(engine: &Engine, before: &Held) {
    engine.wait("end of builds", QUIET, |engine| engine.metric("kiln_builds_running") == Some(0.0));
    let start = Instant::now();
    while let Some(more) = engine.held().more_than(before) {
        assert!(start.elapsed() < QUIET, "the engine still holds\n{more}");
        std::thread::sleep(LOOK);
    }
}

/// Returns what the engine holds once that has not changed for a while: events of builds stay for late readers.
fn rest(engine: &Engine) -> Held {
    let (mut held, mut since, start) = (engine.held(), Instant::now(), Instant::now());
    while since.elapsed() < LINGER {
        assert!(start.elapsed() < QUIET, "the engine does not come to rest: {held:?}");
        std::thread::sleep(LOOK);
        let now = engine.held();
        if now != held {
            (held, since) = (now, Instant::now());
        }
    }
    held
}

/// Nothing that a build held on to may keep a record from being pruned.
fn prunes(env: &TestEnv) {
    let _ = env.kiln(["prune", "--all", "--force"]).finish().ok();
    let done = env.kiln(["du", "--verbose"]).finish().ok();
    let held = done.out().lines().filter(|line| line.starts_with("Mutable:")).count();
    assert_eq!(held, 0, "records that nothing uses are left\n{}", done.out());
}

fn context(env: &TestEnv) {
    write_tree(&env.ctx(), &FILES);
    let mut choices = Choices::new(seed(), 99);
    let large: Vec<u8> = (0..3 << 20).flat_map(|_| choices.next().to_le_bytes()).collect();
    write_tree(&env.ctx(), &[("small", "small\n")]);
    std::fs::write(env.ctx().join("large"), large).expect("the context");
}

#[test]
#[expect(clippy::print_stderr, reason = "a test's own words")]
fn many_builds_at_once_leave_nothing() {
    let env = TestEnv::new(env!("CARGO_BIN_EXE_kiln"));
    if env.base().is_none() {
        kiln_testkit::skip!("no static busybox on this host");
    }
    let count = number("KILN_SOAK_BUILDS").unwrap_or(FEW);
    let waves = number("KILN_SOAK_WAVES").unwrap_or(2);
    let mut choices = Choices::new(seed(), 40);
    context(&env);
    let engine = Engine::start(&env);
    // What is set up once, and stays: thread pools, the first layers' floor, the tables' pages.
    wave(&env, 0, count.min(FEW), &mut choices);
    engine.wait("end of builds", QUIET, |engine| engine.metric("kiln_builds_running") == Some(0.0));
    prunes(&env);
    let before = rest(&engine);
    let memory = engine.memory();
    for number in 1..=waves {
        wave(&env, number, count, &mut choices);
        settles(&engine, &before);
        let now = engine.memory();
        eprintln!("wave {number}: {count} builds, {} KiB before, {} KiB after", memory >> 10, now >> 10);
        engine.wait("memory given back", QUIET, |engine| engine.memory() < memory + KEPT);
    }
    prunes(&env);
    settles(&engine, &before);
    ends_in_time(&env, engine);
}

/// SIGTERM ends the engine although a step runs that never does, and the next engine knows what this one knew.
fn ends_in_time(env: &TestEnv, engine: Engine) {
    let equal = |n| run(env, Kind::Equal, n, 7).finish().ok();
    let _ = buildctl(env, &["prune-histories"]);
    let _ = equal(1);
    let mut client = Client::start(run(env, Kind::Cancelled, 2, 7));
    let start = Instant::now();
    while !client.said(HELD) {
        assert!(start.elapsed() < STUCK && !client.ended(), "no step runs\n{}", client.text());
        client.read(LOOK);
    }
    let mut family = crate::processes::Family::default();
    family.look(engine.id());
    assert!(family.len() > 0);
    let process = engine.process();
    engine.signal(Signal::TERM);
    assert!(process.gone_within(GRACE), "the engine outlives its grace time");
    let start = Instant::now();
    while !client.ended() {
        assert!(start.elapsed() < GRACE, "the client outlives the engine\n{}", client.text());
        client.read(LOOK);
    }
    assert_ne!(client.code.flatten(), Some(0), "{}", client.text());
    assert!(family.left().is_empty(), "{:?}", family.left());
    drop(engine);
    let _engine = Engine::start(env);
    let done = equal(3);
    assert!(done.err().matches(" CACHED").count() >= 4, "{}", done.report());
    let rows = buildctl(env, &["debug", "histories"]);
    assert_eq!(rows.lines().count(), 4, "a heading, the builds before and after, and the one that was cut off\n{rows}");
}

/// Runs the program as `buildctl`; returns what it prints.
fn buildctl(env: &TestEnv, args: &[&str]) -> String {
    let path = env.path().join("buildctl");
    if !path.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &path).expect("a link");
    }
    let address = format!("unix://{}", env.root().join("engine.sock").display());
    Run::new(&path).args(["--addr", &address]).args(args).finish().ok().out()
}
