//! The build context, the Dockerfile and the named contexts: found and checked before the build begins.
//!
//! A local directory is offered to the engine as the session directories `context` and `dockerfile`. What comes on standard
//! input is an archive (uploaded as it is) or a Dockerfile (kept in a temporary directory of its own).

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::archive;
use super::layout;
use super::options::BuildOptions;
use crate::env::Env;
use crate::error::{CliError, io_text};

/// Largest Dockerfile taken from standard input, in bytes.
const DOCKERFILE_LIMIT: u64 = kiln_stdx::limits::FRONTEND_FILE;

/// What the session offers and what the frontend is told about it.
#[derive(Default)]
pub struct Inputs {
    /// Directories by session name.
    pub dirs: BTreeMap<String, PathBuf>,
    /// Image directories in OCI layout, by store name.
    pub layouts: BTreeMap<String, PathBuf>,
    /// Frontend attributes.
    pub attrs: BTreeMap<String, String>,
    /// Shared key of the session: equal for builds of one directory.
    pub shared_key: String,
    /// The stream that is uploaded as the context.
    pub upload: Option<Box<dyn Read + Send>>,
    /// Name of the Dockerfile for messages.
    pub dockerfile: String,
    temporary: Vec<TempDir>,
}

/// Finds the inputs of a build. `stdin` is read only when the options ask for it.
pub fn resolve(options: &BuildOptions, env: &Env, stdin: impl Read + Send + 'static) -> Result<Inputs, CliError> {
    let mut inputs = Inputs::default();
    let file = options.file.as_deref();
    match (options.context.as_str(), file) {
        ("-", Some("-")) => {
            return Err(CliError::user("invalid argument: can't use stdin for both build context and dockerfile"));
        }
        ("-", _) => from_stdin(&mut inputs, file, stdin)?,
        (path, _) if is_remote(path) && !env.cwd().join(path).is_dir() => {
            from_remote(&mut inputs, path, file, env, stdin)?
        }
        (path, _) => from_directory(&mut inputs, path, file, env, stdin)?,
    }
    for (name, place) in &options.contexts {
        named(&mut inputs, name, place, env)?;
    }
    Ok(inputs)
}

fn is_remote(path: &str) -> bool {
    ["http://", "https://"].iter().any(|p| path.starts_with(p)) || is_git(path)
}

fn is_git(path: &str) -> bool {
    kiln_dockerfile::git_ref::parse(path).map_or(true, |found| found.is_some())
}

/// Leaves a git repository or a download to the engine. `--file` names a file of it, unless it is `-` or there is a file
/// of that name here and the context is an archive.
fn from_remote(
    inputs: &mut Inputs,
    address: &str,
    file: Option<&str>,
    env: &Env,
    stdin: impl Read,
) -> Result<(), CliError> {
    // What is wrong with an address is known before an engine is asked.
    kiln_dockerfile::MainContext::detect(address)
        .map_err(|e| CliError::user(format!("unable to prepare context: {e}")))?;
    inputs.attrs.insert("context".to_owned(), address.to_owned());
    match file {
        Some("-") => return dockerfile_of(inputs, stdin),
        Some(file) if !is_git(address) && env.cwd().join(file).is_file() => {
            let text = fs::File::open(env.cwd().join(file))
                .map_err(|e| CliError::user(format!("failed to read dockerfile: open {file}: {}", io_text(&e))))?;
            dockerfile_of(inputs, text)?;
            file.clone_into(&mut inputs.dockerfile);
        }
        _ => {
            file.unwrap_or("Dockerfile").clone_into(&mut inputs.dockerfile);
            inputs.attrs.insert("filename".to_owned(), inputs.dockerfile.clone());
        }
    }
    Ok(())
}

/// Reads enough of standard input to tell an archive from a Dockerfile.
fn from_stdin(inputs: &mut Inputs, file: Option<&str>, mut stdin: impl Read + Send + 'static) -> Result<(), CliError> {
    let mut head = Vec::new();
    let read_error = |e| CliError::environment(format!("failed to read context from standard input: {}", io_text(&e)));
    stdin.by_ref().take(archive::HEAD as u64).read_to_end(&mut head).map_err(read_error)?;
    if head.is_empty() {
        return Err(CliError::user("failed to read context from standard input: it is empty")
            .hint("pipe in a Dockerfile or an archive, or name a directory"));
    }
    if archive::is_archive(&head) {
        file.unwrap_or("Dockerfile").clone_into(&mut inputs.dockerfile);
        inputs.attrs.insert("filename".to_owned(), inputs.dockerfile.clone());
        inputs.upload = Some(Box::new(Cursor::new(head).chain(stdin)));
        return Ok(());
    }
    if file.is_some() {
        return Err(CliError::user("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles"));
    }
    let empty = temporary()?;
    inputs.dirs.insert("context".to_owned(), empty.path().to_owned());
    inputs.temporary.push(empty);
    dockerfile_of(inputs, Cursor::new(head).chain(stdin))
}

fn temporary() -> Result<TempDir, CliError> {
    tempfile::Builder::new()
        .prefix("kiln-context-")
        .tempdir()
        .map_err(|e| CliError::environment(format!("cannot make a temporary directory: {}", io_text(&e))))
}

/// Keeps a Dockerfile that is no file of the context in a directory of its own.
fn dockerfile_of(inputs: &mut Inputs, reader: impl Read) -> Result<(), CliError> {
    let mut text = Vec::new();
    reader.take(DOCKERFILE_LIMIT + 1).read_to_end(&mut text).map_err(|e| {
        CliError::environment(format!("failed to read dockerfile from standard input: {}", io_text(&e)))
    })?;
    if text.is_empty() {
        return Err(CliError::user("failed to read dockerfile: standard input is empty"));
    }
    if text.len() as u64 > DOCKERFILE_LIMIT {
        return Err(CliError::user(format!("failed to read dockerfile: it is larger than {DOCKERFILE_LIMIT} bytes")));
    }
    let dir = temporary()?;
    fs::write(dir.path().join("Dockerfile"), text)
        .map_err(|e| CliError::environment(format!("cannot write a temporary file: {}", io_text(&e))))?;
    inputs.dirs.insert("dockerfile".to_owned(), dir.path().to_owned());
    inputs.temporary.push(dir);
    inputs.attrs.insert("filename".to_owned(), "Dockerfile".to_owned());
    inputs.attrs.insert("dockerfilekey".to_owned(), "dockerfile".to_owned());
    "stdin".clone_into(&mut inputs.dockerfile);
    Ok(())
}

fn from_directory(
    inputs: &mut Inputs,
    shown: &str,
    file: Option<&str>,
    env: &Env,
    stdin: impl Read,
) -> Result<(), CliError> {
    let path = env.cwd().join(shown);
    match fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return Err(CliError::user(format!("unable to prepare context: path \"{shown}\" is not a directory"))
                .hint(format!("to build this Dockerfile: kiln build -f {shown} DIRECTORY")));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(CliError::user(format!("unable to prepare context: path \"{shown}\" not found")));
        }
        Err(e) => {
            return Err(CliError::user(format!("unable to prepare context: path \"{shown}\": {}", io_text(&e))));
        }
    }
    if let Err(e) = fs::read_dir(&path) {
        return Err(CliError::user(format!("unable to prepare context: path \"{shown}\": {}", io_text(&e))));
    }
    inputs.shared_key = shared_key(&path, env);
    inputs.dirs.insert("context".to_owned(), path.clone());
    if file == Some("-") {
        return dockerfile_of(inputs, stdin);
    }
    let (dir, name) = match file {
        None => (path, "Dockerfile".to_owned()),
        Some(file) => split_file(&env.cwd().join(file), file)?,
    };
    let given = shown;
    let shown = file.map_or_else(|| name.clone(), str::to_owned);
    let name = existing(&dir, &name, file.is_none(), &shown, given)?;
    let (dir, name) = resolve_link(dir, name);
    inputs.dockerfile = if file.is_none() { name.clone() } else { shown };
    inputs.dirs.insert("dockerfile".to_owned(), dir);
    inputs.attrs.insert("filename".to_owned(), name);
    Ok(())
}

fn split_file(path: &Path, shown: &str) -> Result<(PathBuf, String), CliError> {
    let name = path.file_name().and_then(|n| n.to_str());
    match (path.parent(), name) {
        (Some(dir), Some(name)) if !shown.ends_with('/') => Ok((dir.to_owned(), name.to_owned())),
        _ => Err(CliError::user(format!("failed to read dockerfile: \"{shown}\" names no file"))),
    }
}

/// Checks that the Dockerfile is there; the default name may also be written in lower case. `given` is the context as the
/// user wrote it.
fn existing(dir: &Path, name: &str, default: bool, shown: &str, given: &str) -> Result<String, CliError> {
    let failed = |why: &str| CliError::user(format!("failed to read dockerfile: open {shown}: {why}"));
    match fs::metadata(dir.join(name)) {
        Ok(meta) if meta.is_dir() => Err(failed("is a directory")),
        Ok(_) => match fs::File::open(dir.join(name)) {
            Ok(_) => Ok(name.to_owned()),
            Err(e) => Err(failed(&io_text(&e))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if name == "Dockerfile" && dir.join("dockerfile").is_file() {
                return Ok("dockerfile".to_owned());
            }
            let error = failed("no such file or directory");
            Err(match similar(dir, name) {
                Some(near) if default => {
                    let path =
                        if given == "." { near.clone() } else { Path::new(given).join(&near).display().to_string() };
                    error.hint(format!("did you mean `{near}`? Name it with -f {path}"))
                }
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None if default => error.hint("name the Dockerfile with -f FILE"),
                None => error,
            })
        }
        Err(e) => Err(failed(&io_text(&e))),
    }
}

/// Returns a file of the directory whose name is near, or that looks like a Dockerfile.
fn similar(dir: &Path, name: &str) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .ok()?
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| !t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| !n.ends_with(".dockerignore"))
        .collect();
    names.sort();
    let near = kiln_stdx::suggest::nearest(name, names.iter().map(String::as_str)).map(str::to_owned);
    near.or_else(|| {
        names.into_iter().find(|n| {
            let lower = n.to_lowercase();
            lower.starts_with("dockerfile.") || lower.ends_with(".dockerfile") || lower == "containerfile"
        })
    })
}

/// Follows a Dockerfile that is a symbolic link out of its directory, since only the directory is offered to the engine.
fn resolve_link(dir: PathBuf, name: String) -> (PathBuf, String) {
    let path = dir.join(&name);
    if !path.is_symlink() {
        return (dir, name);
    }
    let (Ok(target), Ok(home)) = (path.canonicalize(), dir.canonicalize()) else { return (dir, name) };
    match (target.parent(), target.file_name().and_then(|n| n.to_str())) {
        (Some(parent), Some(file)) if !target.starts_with(&home) => (parent.to_owned(), file.to_owned()),
        _ => (dir, name),
    }
}

/// Returns a key that is equal for builds of the same directory by the same user, and says nothing else about it.
fn shared_key(path: &Path, env: &Env) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let base = full.file_name().map_or_else(|| "root".to_owned(), |n| n.to_string_lossy().into_owned());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let text = format!("{host}\0{}\0{}", env.uid(), full.display());
    format!("{base}:{}", &kiln_stdx::Digest::of(text.as_bytes()).hex()[..16])
}

/// Resolves one `--build-context`.
fn named(inputs: &mut Inputs, name: &str, place: &str, env: &Env) -> Result<(), CliError> {
    let key = format!("context:{name}");
    inputs.attrs.insert("frontend.caps".to_owned(), "moby.buildkit.frontend.contexts+forward".to_owned());
    let local = env.cwd().join(place);
    if place.starts_with("docker-image://") || is_remote(place) && !local.is_dir() {
        inputs.attrs.insert(key, place.to_owned());
        return Ok(());
    }
    if place.starts_with("target:") {
        return Err(CliError::user(format!("build context {name}: \"{place}\" can only be used in a bake file")));
    }
    if let Some(rest) = place.strip_prefix("oci-layout://") {
        let (dir, digest) = layout::resolve(rest, env)
            .map_err(|e| CliError::user(format!("oci-layout reference \"{place}\" could not be resolved: {e}")))?;
        let store = kiln_stdx::rand_id();
        inputs.attrs.insert(key, format!("oci-layout://{store}@{digest}"));
        inputs.layouts.insert(store, dir);
        return Ok(());
    }
    let path = local;
    let meta = fs::metadata(&path).map_err(|e| {
        CliError::user(format!("failed to get build context {name}: stat {place}: {}", io_text(&e)))
            .hint("a context is a directory, docker-image://REF, or oci-layout://DIR[:TAG]")
    })?;
    if !meta.is_dir() {
        return Err(CliError::user(format!("failed to get build context {name}: {place} is not a directory")));
    }
    let local = if matches!(name, "context" | "dockerfile") { format!("_{name}") } else { name.to_owned() };
    inputs.attrs.insert(key, format!("local:{local}"));
    inputs.attrs.insert(format!("sharedkey:localdir:{name}"), shared_key(&path, env));
    inputs.dirs.insert(local, path);
    Ok(())
}

#[cfg(test)]
mod tests;
