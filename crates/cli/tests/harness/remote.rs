//! Remote caches of a series: a directory, a registry and a server of objects, which can be damaged like what lies below
//! a root and whose servers misbehave on request.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kiln_testkit::objects::Protocol;
use kiln_testkit::registry::{Answer, End};
use kiln_testkit::{FakeRegistry, ObjectServer};

use crate::choices::Choices;
use crate::damage::damage;

/// Where a cache is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Local,
    Registry,
    Http,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Local, Self::Registry, Self::Http];
}

/// What the servers answer instead of what they should, and to how many requests.
#[derive(Debug, Clone, Copy)]
struct Illness {
    answer: Wrong,
    times: usize,
}

/// A wrong answer.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    Status(u16),
    End(End),
    /// Success, and other bytes than were asked for.
    Bytes,
}

/// The servers of this run, used by one series at a time.
struct Servers {
    registry: FakeRegistry,
    objects: ObjectServer,
    illness: Arc<Mutex<Option<Illness>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the wrong answer that is due.
fn wrong(illness: &Mutex<Option<Illness>>) -> Option<Answer> {
    let mut illness = lock(illness);
    let due = illness.as_mut().filter(|illness| illness.times > 0)?;
    due.times = due.times.saturating_sub(1);
    let bytes = || Answer::new(200).body(vec![b'?'; 64]);
    Some(match due.answer {
        Wrong::Status(status) => Answer::new(status),
        Wrong::End(end) => bytes().ending(end),
        Wrong::Bytes => bytes(),
    })
}

fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let illness: Arc<Mutex<Option<Illness>>> = Arc::default();
        let (one, other) = (illness.clone(), illness.clone());
        let registry = FakeRegistry::scripted(move |_, _| wrong(&one));
        let objects = ObjectServer::start(Protocol::Http { token: None });
        objects.misbehave(move |_, _| wrong(&other));
        Servers { registry, objects, illness }
    })
}

/// One cache of each kind.
pub struct Remotes {
    dir: PathBuf,
    name: String,
    /// What the seeds were when the cache of a kind was last written.
    pub seeds: [Vec<String>; 3],
    /// Whether the cache of a kind may have lost something.
    pub hurt: [bool; 3],
}

impl Remotes {
    /// Returns empty caches; what other series left on the servers goes.
    pub fn new(dir: PathBuf, place: usize) -> Self {
        let remotes = Self { dir, name: format!("s{place}"), seeds: Default::default(), hurt: [false; 3] };
        remotes.heal();
        let servers = servers();
        let mut holdings = servers.registry.holdings();
        holdings.blobs.clear();
        holdings.manifests.clear();
        drop(holdings);
        servers.objects.objects().kept.clear();
        servers.registry.take_log();
        servers.objects.take_log();
        remotes
    }

    /// Returns the attributes that name the cache to an import.
    pub fn from(&self, kind: Kind) -> String {
        self.attributes(kind, "src")
    }

    /// Returns the attributes that name the cache to an export.
    pub fn to(&self, kind: Kind, choices: &mut Choices) -> String {
        let mode = if choices.below(4) == 0 { "min" } else { "max" };
        let compression = ["gzip", "zstd", "uncompressed"][choices.below(3)];
        // What is broken may refuse what is sent to it.
        let ignore = if self.hurt[kind as usize] { ",ignore-error=true" } else { "" };
        format!("{},mode={mode},compression={compression}{ignore}", self.attributes(kind, "dest"))
    }

    fn attributes(&self, kind: Kind, direction: &str) -> String {
        match kind {
            Kind::Local => format!("type=local,{direction}={}", self.dir.display()),
            Kind::Registry => format!("type=registry,ref={}/cache/{}:latest", servers().registry.host, self.name),
            Kind::Http => format!("type=http,url={}/{},timeout=1s", servers().objects.address, self.name),
        }
    }

    /// Empties a cache, so that the next export makes it whole again.
    pub fn empty(&mut self, kind: Kind) {
        match kind {
            Kind::Local => {
                let _ = std::fs::remove_dir_all(&self.dir);
            }
            Kind::Registry => {
                let mut holdings = servers().registry.holdings();
                holdings.blobs.clear();
                holdings.manifests.clear();
            }
            Kind::Http => servers().objects.objects().kept.clear(),
        }
        self.hurt[kind as usize] = false;
    }

    /// Damages one thing in a cache and says how.
    pub fn damage(&mut self, kind: Kind, choices: &mut Choices) -> String {
        self.hurt[kind as usize] = true;
        match kind {
            Kind::Local => {
                let mut files = Vec::new();
                let mut dirs = vec![self.dir.clone()];
                while let Some(dir) = dirs.pop() {
                    for path in std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
                        if path.is_dir() { dirs.push(path) } else { files.push(path) }
                    }
                }
                files.sort();
                let Some(path) = choices.pick(&files) else { return "there is nothing".to_owned() };
                let name = path.strip_prefix(&self.dir).unwrap_or(path).display().to_string();
                format!("{name}: {}", damage(path, choices))
            }
            Kind::Registry => {
                let mut holdings = servers().registry.holdings();
                let mut all: Vec<(String, &mut Vec<u8>)> = Vec::new();
                let holdings = &mut *holdings;
                all.extend(holdings.blobs.iter_mut().map(|((_, digest), bytes)| (format!("blob {digest}"), bytes)));
                let manifests = holdings.manifests.iter_mut();
                all.extend(manifests.map(|((_, name), (_, bytes))| (format!("manifest {name}"), bytes)));
                let (text, gone) = spoil(&mut all, choices);
                if let Some(name) = gone {
                    holdings.blobs.retain(|(_, digest), _| format!("blob {digest}") != name);
                    holdings.manifests.retain(|(_, other), _| format!("manifest {other}") != name);
                }
                text
            }
            Kind::Http => {
                let mut objects = servers().objects.objects();
                let mut all: Vec<_> = objects.kept.iter_mut().map(|(name, bytes)| (name.clone(), bytes)).collect();
                let (text, gone) = spoil(&mut all, choices);
                if let Some(name) = gone {
                    objects.kept.remove(&name);
                }
                text
            }
        }
    }

    /// Lets the servers misbehave, and says how.
    pub fn sicken(&mut self, kind: Kind, choices: &mut Choices) -> String {
        self.hurt[kind as usize] = true;
        let few = 1 + choices.below(2);
        let mut all = vec![
            (Wrong::Status(503), few),
            (Wrong::Status(500), few),
            (Wrong::Status(403), usize::MAX),
            (Wrong::Status(404), usize::MAX),
            (Wrong::Status(404), few),
            (Wrong::End(End::Reset), few),
            (Wrong::End(End::Cut(10)), few),
            (Wrong::Bytes, few),
            (Wrong::Bytes, usize::MAX),
        ];
        // A registry's patience is not ours to shorten.
        if kind == Kind::Http {
            all.extend([(Wrong::End(End::Stall(10)), few), (Wrong::End(End::Silent), few)]);
        }
        let Some(&(answer, times)) = choices.pick(&all) else { return String::new() };
        *lock(&servers().illness) = Some(Illness { answer, times });
        let often = if times > few { "always".to_owned() } else { format!("{times} times") };
        format!("the server answers {often} with {answer:?}")
    }

    /// Lets the servers behave again.
    pub fn heal(&self) {
        *lock(&servers().illness) = None;
    }
}

/// Cuts, changes or exchanges one of these, or names one that is to go.
fn spoil(all: &mut [(String, &mut Vec<u8>)], choices: &mut Choices) -> (String, Option<String>) {
    // What lists the others is but one of many, and the worst to lose a bit of.
    let lists: Vec<usize> = (0..all.len()).filter(|at| all[*at].0.contains("manifest")).collect();
    let (other, any) = (choices.below(all.len()), choices.below(all.len()));
    let chosen = if choices.below(2) == 0 { choices.pick(&lists).copied().unwrap_or(any) } else { any };
    let Some((name, bytes)) = all.get_mut(chosen) else { return ("there is nothing".to_owned(), None) };
    let name = name.clone();
    let how = match choices.below(4) {
        0 => return (format!("{name}: delete"), Some(name)),
        1 => {
            let (size, keep) = (bytes.len(), choices.below(bytes.len()));
            bytes.truncate(keep);
            format!("truncate from {size} to {keep}")
        }
        2 if !bytes.is_empty() => {
            let place = choices.below(bytes.len());
            bytes[place] ^= 1 << choices.below(8);
            format!("flip a bit of byte {place}")
        }
        _ => {
            let (from, other) = (all[other].0.clone(), all[other].1.clone());
            if let Some((_, bytes)) = all.iter_mut().find(|(known, _)| *known == name) {
                **bytes = other;
            }
            format!("the bytes of {from} in its place")
        }
    };
    (format!("{name}: {how}"), None)
}
