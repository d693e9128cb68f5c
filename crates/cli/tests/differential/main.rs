//! Dockerfiles of all kinds, built by kiln and by another builder of the same language: the same files, the same config.
//!
//! The cases lie in `cases/`, many a file, each with what kiln makes of it (`KILN_UPDATE=1` rewrites that). One test
//! compares kiln with the record, one the other builder with kiln, where `buildkitd` and `buildctl` are on `PATH`.
//! `KILN_CASE=<part of a name>` picks cases.

mod builders;
mod case;
mod context;
mod images;
mod summary;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use builders::{Builder, Kiln, Peer};
use case::{Case, CaseFile};
use kiln_testkit::FileServer;
use summary::summary;

/// Builds at the same time: each waits more than it computes.
const THREADS: usize = 4;

/// What all cases share: a scratch directory, base images and a web server.
pub struct Stand {
    pub dir: tempfile::TempDir,
    pub images: images::Images,
    pub web: FileServer,
}

impl Stand {
    /// Returns none where the host lacks busybox or git.
    fn new() -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("kiln-diff-").tempdir().expect("tempdir");
        let images = images::Images::new(dir.path())?;
        let web = kiln_testkit::git_repository(&dir.path().join("git"))?;
        context::web_files(&web);
        Some(Self { web: FileServer::start(&web), images, dir })
    }

    /// Puts addresses and the like into a text of a case.
    pub fn fill(&self, text: &str) -> String {
        text.replace("{http}", &self.web.address)
    }

    /// Takes them out again, so that runs can be compared.
    pub fn clear(&self, text: &str) -> String {
        // What follows is random in errors.
        let (text, rest) = text.split_once("checksum of ref ").map_or((text, ""), |(a, b)| (a, b));
        let rest = rest.split_once(": ").map_or(String::new(), |(_, rest)| format!("checksum of ref …: {rest}"));
        let text = format!("{text}{rest}").replace(&self.web.address, "{http}");
        // Digests of base images depend on the host's busybox.
        let mut parts = text.split("@sha256:");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |out, part| format!("{out}@sha256:…{}", part.get(64..).unwrap_or_default()))
    }
}

fn cases_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/differential/cases")
}

/// Returns the case files, with the chosen cases.
fn case_files() -> Vec<CaseFile> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(cases_dir()).expect("cases").map(|e| e.expect("entry").path()).collect();
    paths.sort();
    paths.retain(|p| p.extension().is_some_and(|e| e == "case"));
    paths.iter().map(|p| CaseFile::read(p)).collect()
}

fn chosen(case: &Case) -> bool {
    std::env::var("KILN_CASE").map_or(true, |part| case.name.contains(&part))
}

/// Builds cases, several at a time; what comes of each by its name: a summary, or the error.
fn build_all(stand: &Stand, builder: &dyn Builder, cases: &[&Case]) -> BTreeMap<String, Result<String, String>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = builder.build(stand, case).map(|image| stand.clear(&summary(stand, case, &image)));
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(case.name.clone(), result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Where two texts differ first, for people.
fn difference(want: &str, got: &str) -> String {
    let only = |a: &str, b: &str, mark: &str| {
        let lines: std::collections::BTreeSet<&str> = b.lines().collect();
        a.lines().filter(|l| !lines.contains(l)).map(|l| format!("  {mark} {l}\n")).collect::<String>()
    };
    format!("{}{}", only(want, got, "-"), only(got, want, "+"))
}

#[test]
fn kiln_builds_what_is_recorded() {
    let Some(stand) = Stand::new() else { kiln_testkit::skip!("no static busybox or no git on this host") };
    let mut files = case_files();
    let kiln = Kiln::new();
    let all: Vec<&Case> = files.iter().flat_map(|f| &f.cases).filter(|c| chosen(c)).collect();
    let built = build_all(&stand, &kiln, &all);
    let (count, mut wrong) = (all.len(), Vec::new());
    for file in &mut files {
        let mut changed = false;
        for case in file.cases.iter_mut().filter(|c| chosen(c)) {
            let got = match &built[&case.name] {
                Ok(text) => text.clone(),
                Err(error) => format!("error: {}\n", stand.clear(error)),
            };
            if got != case.expected {
                wrong.push(format!("{} ({}):\n{}", case.name, file.path.display(), difference(&case.expected, &got)));
                case.expected = got;
                changed = true;
            }
        }
        if changed && std::env::var_os("KILN_UPDATE").is_some() {
            std::fs::write(&file.path, file.text()).expect("write");
        }
    }
    assert!(
        wrong.is_empty() || std::env::var_os("KILN_UPDATE").is_some(),
        "{} of {} cases are not as recorded (KILN_UPDATE=1 records them):\n{}",
        wrong.len(),
        count,
        wrong.join("\n")
    );
}

/// Cases in which the other builder may differ, with the reason.
fn exceptions() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(cases_dir().join("exceptions.txt")).expect("exceptions");
    let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.filter_map(|l| l.split_once(": ")).map(|(name, why)| (name.to_owned(), why.to_owned())).collect()
}

#[test]
fn the_other_builder_makes_the_same() {
    let Some(stand) = Stand::new() else { kiln_testkit::skip!("no static busybox or no git on this host") };
    let Some(peer) = Peer::start() else { kiln_testkit::skip!("no buildkitd, buildctl and runc on PATH") };
    let files = case_files();
    let all: Vec<&Case> = files.iter().flat_map(|f| &f.cases).filter(|c| chosen(c)).collect();
    let built = build_all(&stand, &peer, &all);
    let exceptions = exceptions();
    assert!(exceptions.len() <= 10, "{} exceptions", exceptions.len());
    let (mut wrong, mut excepted) = (Vec::new(), 0);
    for case in &all {
        let failed = case.expected.starts_with("error: ");
        let differs = match &built[&case.name] {
            Ok(_) if failed => Some("  the other builder builds it\n".to_owned()),
            Ok(text) => (*text != case.expected).then(|| difference(&case.expected, text)),
            // The words are each builder's own.
            Err(_) if failed => None,
            Err(error) => Some(format!("  the other builder: {error}\n")),
        };
        match (differs, exceptions.get(&case.name)) {
            (None, None) => {}
            (None, Some(_)) => wrong.push(format!("{}: no longer an exception", case.name)),
            (Some(_), Some(_)) => excepted += 1,
            (Some(text), None) => wrong.push(format!("{}: - is kiln, + is the other\n{text}", case.name)),
        }
    }
    let errors = all.iter().filter(|c| c.expected.starts_with("error: ")).count();
    kiln_testkit::report(&format!(
        "{} cases build, {errors} are refused; {excepted} exceptions, {} differences",
        all.len() - errors,
        wrong.len()
    ));
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}
