//! `--output`: where a result goes, checked before the build begins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::csv;
use super::load::Docker;
use crate::env::{Env, parse_bool};
use crate::error::{CliError, io_text};

/// Types accepted by `--output`.
const TYPES: [&str; 7] = ["cacheonly", "docker", "image", "local", "oci", "registry", "tar"];

/// One output as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exporter type on the wire: `image`, `oci`, `docker`, `local`, `tar`.
    pub kind: String,
    /// Attributes for the engine.
    pub attrs: BTreeMap<String, String>,
    /// What the client does with what it receives.
    pub dest: Dest,
}

/// Where the client puts what an exporter sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dest {
    /// Nothing is sent to the client.
    Engine,
    /// The stream goes to standard output.
    Stdout,
    /// The stream becomes a file.
    File(PathBuf),
    /// The tree goes into a directory.
    Dir(PathBuf),
    /// The image goes into a directory in OCI layout, by way of the content store service.
    Layout(PathBuf),
    /// The image goes to a docker engine; which one is settled shortly before the build.
    Load(Option<Docker>),
}

/// What other flags say of outputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// `--push`.
    pub push: bool,
    /// `--load`.
    pub load: bool,
}

/// Parses all `--output` values; an empty list without other wishes means the image store of the engine.
pub fn parse(values: &[String], wishes: Wishes, env: &Env) -> Result<Vec<Output>, CliError> {
    let mut outputs = Vec::new();
    let mut only_cache = false;
    for value in values.iter().filter(|v| !v.is_empty()) {
        match parse_one(value, env)? {
            Some(output) => outputs.push(output),
            None => only_cache = true,
        }
    }
    wish(&mut outputs, wishes);
    if outputs.is_empty() && !only_cache {
        outputs.push(Output { kind: "image".to_owned(), attrs: BTreeMap::new(), dest: Dest::Engine });
    }
    if outputs.iter().filter(|o| o.dest == Dest::Stdout).count() > 1 {
        return Err(CliError::user("multiple outputs configured to write to stdout"));
    }
    let layouts = outputs.iter().filter(|o| matches!(o.dest, Dest::Layout(_))).count();
    if layouts > 1 {
        return Err(CliError::user("only one output can be an OCI directory (tar=false)"));
    }
    Ok(outputs)
}

/// Adds what is pushed or loaded, to an output that is of the kind where there is one.
fn wish(outputs: &mut Vec<Output>, wishes: Wishes) {
    if wishes.push {
        let mut images = outputs.iter_mut().filter(|o| o.kind == "image").peekable();
        if images.peek().is_none() {
            drop(images);
            let attrs = [("push", "true"), ("unpack", "false")].map(|(k, v)| (k.to_owned(), v.to_owned()));
            outputs.push(Output { kind: "image".to_owned(), attrs: attrs.into(), dest: Dest::Engine });
        } else {
            images.for_each(|o| drop(o.attrs.insert("push".to_owned(), "true".to_owned())));
        }
    }
    if wishes.load && !outputs.iter().any(|o| matches!(o.dest, Dest::Load(_))) {
        outputs.push(Output { kind: "docker".to_owned(), attrs: BTreeMap::new(), dest: Dest::Load(None) });
    }
}

/// Parses one value; `cacheonly` gives none.
fn parse_one(value: &str, env: &Env) -> Result<Option<Output>, CliError> {
    let fields = csv::fields(value).map_err(|e| CliError::user(format!("invalid output: {e}")))?;
    let mut kind = String::new();
    let mut dest = String::new();
    let mut attrs = BTreeMap::new();
    if let [only] = fields.as_slice()
        && only == value
        && !["type=", "dest="].iter().any(|key| only.to_lowercase().starts_with(key))
    {
        kind = if only == "-" { "tar" } else { "local" }.to_owned();
        dest.clone_from(only);
    } else {
        for field in &fields {
            let Some((key, value)) = field.split_once('=') else {
                return Err(CliError::user(format!("invalid value {field}"))
                    .hint("write an output as type=TYPE[,dest=PATH][,NAME=VALUE]"));
            };
            match key.trim().to_lowercase().as_str() {
                "type" => kind = value.to_owned(),
                "dest" => dest = value.to_owned(),
                key => drop(attrs.insert(key.to_owned(), value.to_owned())),
            }
        }
    }
    if kind.is_empty() {
        return Err(CliError::user("type is required for output")
            .hint("write an output as type=TYPE[,dest=PATH], for example type=oci,dest=image.tar"));
    }
    finish(kind, dest, attrs, env)
}

fn finish(
    mut kind: String,
    dest: String,
    mut attrs: BTreeMap<String, String>,
    env: &Env,
) -> Result<Option<Output>, CliError> {
    let dest = match kind.as_str() {
        "cacheonly" => return Ok(None),
        "local" => Dest::Dir(directory("local", &dest, env)?),
        "tar" => file("tar", &dest, env)?,
        "oci" | "docker" if attrs.get("tar").and_then(|v| parse_bool(v)) == Some(false) => {
            Dest::Layout(directory(&kind, &dest, env)?)
        }
        "docker" if dest.is_empty() => Dest::Load(None),
        "oci" | "docker" => file(&kind, &dest, env)?,
        "image" | "registry" => {
            if kind == "registry" {
                kind = "image".to_owned();
                attrs.insert("push".to_owned(), "true".to_owned());
                attrs.entry("unpack".to_owned()).or_insert_with(|| "false".to_owned());
            }
            Dest::Engine
        }
        other => {
            return Err(CliError::user(format!("unknown output type `{other}`")).nearest(
                "output type",
                other,
                TYPES.iter().copied(),
            ));
        }
    };
    Ok(Some(Output { kind, attrs, dest }))
}

/// Checks a destination directory; it may not exist yet.
fn directory(kind: &str, dest: &str, env: &Env) -> Result<PathBuf, CliError> {
    match dest {
        "" => return Err(CliError::user(format!("dest is required for {kind} exporter"))),
        "-" => return Err(CliError::user(format!("dest cannot be stdout for {kind} exporter"))),
        _ => {}
    }
    let path = env.cwd().join(dest);
    match std::fs::metadata(&path) {
        Ok(meta) if !meta.is_dir() => Err(CliError::user(format!("destination directory {dest} is a file"))),
        Ok(_) => writable(&path, dest).map(|()| path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => new_entry(&path, dest).map(|()| path),
        Err(e) => Err(CliError::user(format!("invalid destination directory: {dest}: {}", io_text(&e)))),
    }
}

/// Checks a destination file, or standard output.
fn file(kind: &str, dest: &str, env: &Env) -> Result<Dest, CliError> {
    if dest.is_empty() || dest == "-" {
        if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            let text = format!("dest file is required for {kind} exporter. refusing to write to console");
            return Err(
                CliError::user(text).hint(format!("write -o type={kind},dest=FILE, or redirect standard output"))
            );
        }
        return Ok(Dest::Stdout);
    }
    let path = env.cwd().join(dest);
    writable_file(&path, dest, "destination file")?;
    Ok(Dest::File(path))
}

/// Checks that a file can be written at `path`: it is no directory, and its directory exists or can be made and written.
pub fn writable_file(path: &Path, shown: &str, what: &str) -> Result<(), CliError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(CliError::user(format!("{what} {shown} is a directory"))),
        // A device or a pipe is written in place.
        Ok(meta) if !meta.is_file() => writable(path, shown),
        Ok(_) => new_entry(path, shown),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => new_entry(path, shown),
        Err(e) => Err(CliError::user(format!("invalid {what}: {shown}: {}", io_text(&e)))),
    }
}

/// Checks that an entry can be made at `path`: the nearest directory above that exists can be written.
fn new_entry(path: &Path, shown: &str) -> Result<(), CliError> {
    for above in path.ancestors().skip(1) {
        match std::fs::metadata(above) {
            Ok(meta) if meta.is_dir() => return writable(above, shown),
            Ok(_) => {
                return Err(CliError::user(format!("cannot write {shown}: {} is not a directory", above.display())));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(CliError::user(format!("cannot write {shown}: {}", io_text(&e)))),
        }
    }
    Err(CliError::user(format!("cannot write {shown}: no such file or directory")))
}

/// Checks that the user may write to what exists. In a directory a file is made for a moment: permission bits say nothing
/// about root, read-only mounts, and file systems like /proc.
fn writable(path: &Path, shown: &str) -> Result<(), CliError> {
    let tried = if path.is_dir() {
        tempfile::Builder::new().prefix(".kiln-probe-").tempfile_in(path).and_then(|probe| probe.close())
    } else {
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(Into::into)
    };
    // The error of a temporary file names it, which would only confuse.
    tried.map_err(|e| {
        let plain = e.raw_os_error().map_or(e, std::io::Error::from_raw_os_error);
        CliError::environment(format!("cannot write {shown}: {}", io_text(&plain)))
    })
}

#[cfg(test)]
mod tests;
