//! Caches in directories of the client: found before the build, entered into their index after it.
//!
//! The engine reads and writes the blobs through the session's content store `local:DIR`, where `DIR` is the text of the
//! attribute; only the client touches the index.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_session::client::LayoutStore;
use kiln_stdx::Digest;

use super::cache::CacheEntry;
use super::layout;
use super::request::CacheOption;
use crate::env::{Env, parse_bool};
use crate::error::{CliError, io_text};

/// The caches of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    /// Imports for the request.
    pub imports: Vec<CacheOption>,
    /// Exports for the request.
    pub exports: Vec<CacheOption>,
    /// Content stores for the session, by name.
    pub stores: BTreeMap<String, PathBuf>,
    /// Directories whose index names the exported cache afterwards.
    pub update: Vec<Update>,
    /// Imports that cannot be used, told as warnings.
    pub warnings: Vec<String>,
}

/// An index to be updated after the build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The directory.
    pub dir: PathBuf,
    /// The tag.
    pub tag: String,
    /// Whether blobs that nothing names are removed afterwards.
    pub reset: bool,
    /// What the engine calls the cache mounts that were written there; none without any.
    pub mounts: Option<String>,
}

/// What the tags of cache mounts have that those of caches do not.
pub const MOUNTS: &str = "-mounts";

/// Looks at the directories of local caches; other backends pass through.
pub fn resolve(from: &[CacheEntry], to: &[CacheEntry], env: &Env) -> Result<Caches, CliError> {
    let mut caches = Caches::default();
    for entry in to {
        let mut option = option(entry);
        match entry.kind.as_str() {
            "local" => export(&mut caches, &mut option.attrs, entry, env)?,
            "registry" if attr(entry, "ref").is_empty() => {
                return Err(CliError::user("registry cache exporter requires ref"));
            }
            _ => {}
        }
        if caches.exports.contains(&option) {
            return Err(CliError::user("duplicate cache exports").hint("give each --cache-to once"));
        }
        caches.exports.push(option);
    }
    for entry in from {
        match entry.kind.as_str() {
            "local" => import(&mut caches, entry, env)?,
            "registry" if attr(entry, "ref").is_empty() => {
                return Err(CliError::user("registry cache importer requires ref"));
            }
            _ => caches.imports.push(option(entry)),
        }
    }
    Ok(caches)
}

fn option(entry: &CacheEntry) -> CacheOption {
    CacheOption { kind: entry.kind.clone(), attrs: entry.attrs.clone() }
}

fn attr<'a>(entry: &'a CacheEntry, name: &str) -> &'a str {
    entry.attrs.get(name).map_or("", String::as_str)
}

/// Tells whether cache mounts are wished for.
fn has_mounts(attrs: &BTreeMap<String, String>) -> bool {
    !matches!(attrs.get("mounts").map_or("", String::as_str).trim(), "" | "none" | "false" | "0")
}

impl Caches {
    /// Tells whether cache mounts are to travel, of which only kiln's engine knows.
    pub fn carry_mounts(&self) -> bool {
        self.imports.iter().chain(&self.exports).any(|option| has_mounts(&option.attrs))
    }
}

/// Names the cache mounts that are in a directory, if they are wished for and there.
fn name_mounts(attrs: &mut BTreeMap<String, String>, entry: &CacheEntry, dir: &std::path::Path) {
    if !has_mounts(&entry.attrs) {
        return;
    }
    let tag = entry.attrs.get("tag").map_or("latest", String::as_str);
    if let Ok(Some(found)) = layout::find_tag(dir, &format!("{tag}{MOUNTS}")) {
        attrs.insert("mounts-digest".to_owned(), found.to_string());
    }
}

fn export(
    caches: &mut Caches,
    attrs: &mut BTreeMap<String, String>,
    entry: &CacheEntry,
    env: &Env,
) -> Result<(), CliError> {
    let dest = attr(entry, "dest");
    if dest.is_empty() {
        return Err(CliError::user("local cache exporter requires dest"));
    }
    let reset = match entry.attrs.get("reset") {
        Some(text) => parse_bool(text).ok_or_else(|| {
            CliError::user(format!("failed to parse reset attribute: \"{text}\" is not true or false"))
        })?,
        None => false,
    };
    let dir = env.cwd().join(dest);
    std::fs::create_dir_all(&dir)
        .map_err(|e| CliError::environment(format!("cannot write cache {dest}: {}", io_text(&e))))?;
    rustix::fs::access(&dir, rustix::fs::Access::WRITE_OK)
        .map_err(|e| CliError::environment(format!("cannot write cache {dest}: {}", io_text(&e.into()))))?;
    let tag = entry.attrs.get("tag").map_or("latest", String::as_str).to_owned();
    caches.stores.insert(format!("local:{dest}"), dir.clone());
    name_mounts(attrs, entry, &dir);
    let mounts = has_mounts(&entry.attrs).then(|| format!("kiln.mounts:{dest}"));
    caches.update.push(Update { dir, tag, reset, mounts });
    Ok(())
}

fn import(caches: &mut Caches, entry: &CacheEntry, env: &Env) -> Result<(), CliError> {
    let src = attr(entry, "src");
    if src.is_empty() {
        return Err(CliError::user("local cache importer requires src"));
    }
    let dir = env.cwd().join(src);
    let mut entry = entry.clone();
    // A cache that cannot be read makes the build slower, not wrong.
    let mut skip = |why: String| caches.warnings.push(format!("local cache import at {src} skipped: {why}"));
    if attr(&entry, "digest").is_empty() {
        let tag = entry.attrs.get("tag").map_or("latest", String::as_str).to_owned();
        match layout::find_tag(&dir, &tag) {
            Err(why) => {
                skip(why);
                return Ok(());
            }
            Ok(None) => {
                skip(format!("no digest found for tag {tag}"));
                return Ok(());
            }
            Ok(Some(found)) => entry.attrs.insert("digest".to_owned(), found.to_string()),
        };
    }
    let digest = attr(&entry, "digest").to_owned();
    match digest.parse::<Digest>() {
        Ok(digest) if LayoutStore::open(&dir).is_ok_and(|s| s.blob_path(&digest).is_file()) => {}
        Ok(_) => {
            skip(format!("digest {digest} is not there"));
            return Ok(());
        }
        Err(_) => return Err(CliError::user(format!("invalid digest {digest} of cache {src}"))),
    }
    let mut option = option(&entry);
    name_mounts(&mut option.attrs, &entry, &dir);
    caches.stores.insert(format!("local:{src}"), dir);
    caches.imports.push(option);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kiln_session::client::IndexName;

    use super::*;

    fn parsed(values: &[&str]) -> Vec<CacheEntry> {
        let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        super::super::cache::parse(&values).expect("cache values")
    }

    fn run(cwd: &Path, from: &[&str], to: &[&str]) -> Result<Caches, String> {
        resolve(&parsed(from), &parsed(to), &Env::of(&[], cwd)).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn a_directory_is_found_by_its_tag() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let home = dir.path().join("c");
        let digest = Digest::of(b"{}");
        let store = LayoutStore::create(&home).expect("create");
        let descriptor = serde_json::json!({"mediaType": "x", "digest": digest.to_string(), "size": 2});
        store.put(&descriptor, &[IndexName::Tag("latest".into())]).expect("put");
        assert_eq!(run(dir.path(), &["type=local,src=c"], &[]).map(|c| c.imports.len()), Ok(0));
        let blob = store.blob_path(&digest);
        std::fs::create_dir_all(blob.parent().expect("parent")).expect("mkdir");
        std::fs::write(blob, b"{}").expect("write");
        let caches = run(dir.path(), &["type=local,src=c"], &[]).expect("accepted");
        assert_eq!(caches.imports[0].attrs.get("digest"), Some(&digest.to_string()));
        assert_eq!(caches.stores.keys().collect::<Vec<_>>(), ["local:c"]);
    }

    #[test]
    fn mounts_are_found_by_their_tag() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = LayoutStore::create(&dir.path().join("c")).expect("create");
        let digest = Digest::of(b"mounts");
        let descriptor = serde_json::json!({"mediaType": "x", "digest": digest.to_string(), "size": 2});
        store.put(&descriptor, &[IndexName::Tag("t-mounts".into())]).expect("put");
        let digest_of = |to: &str| {
            let caches = run(dir.path(), &[], &[to]).expect("accepted");
            let mounts = caches.update[0].mounts.clone();
            (caches.exports[0].attrs.get("mounts-digest").cloned(), mounts)
        };
        let name = Some("kiln.mounts:c".to_owned());
        assert_eq!(digest_of("type=local,dest=c,tag=t,mounts=all"), (Some(digest.to_string()), name.clone()));
        assert_eq!(digest_of("type=local,dest=c,mounts=npm"), (None, name));
        assert_eq!(digest_of("type=local,dest=c,tag=t,mounts=none"), (None, None));
    }

    #[test]
    fn what_is_missing_is_a_warning() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let caches = run(dir.path(), &["type=local,src=none", "user/app:cache"], &[]).expect("accepted");
        assert_eq!(caches.warnings, ["local cache import at none skipped: none is not a directory in OCI layout"]);
        assert_eq!(caches.imports.len(), 1);
    }

    #[test]
    fn exports() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let caches = run(dir.path(), &[], &["type=local,dest=out,tag=t,reset=true", "type=inline"]).expect("accepted");
        let want = Update { dir: dir.path().join("out"), tag: "t".into(), reset: true, mounts: None };
        assert_eq!(caches.update, [want]);
        assert!(dir.path().join("out").is_dir());
        for (to, want) in [
            (vec!["type=local"], "local cache exporter requires dest"),
            (vec!["type=registry"], "registry cache exporter requires ref"),
            (vec!["type=inline", "type=inline"], "duplicate cache exports"),
            (
                vec!["type=local,dest=x,reset=perhaps"],
                "failed to parse reset attribute: \"perhaps\" is not true or false",
            ),
        ] {
            assert_eq!(run(dir.path(), &[], &to).map(|_| ()), Err(want.to_owned()), "{to:?}");
        }
    }
}
