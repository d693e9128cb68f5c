//! The main build context, and graphs that read a Dockerfile or an ignore file from it.

use kiln_llb::Definition;
use kiln_llb::builder::{Builder, CopyOptions, FileActions, HttpOptions, LocalOptions, Meta, Output};
use kiln_oci::Platform;

use crate::diag::{Diagnostic, DockerfileError, Fault, Outcome};
use crate::git_ref::{self, GitRef};

/// Where the main context comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum MainContext {
    /// A directory of the client, by its session-local name.
    Local { name: String },
    /// A git repository.
    Git(GitContext),
    /// A download: an archive to unpack when `archive`, else a file named `context`.
    Http { url: String, archive: bool, subdir: Option<String> },
    /// A graph.
    Graph { definition: Definition, subdir: Option<String> },
}

/// A git repository as context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitContext {
    /// The address as the user wrote it.
    pub written: String,
    pub git: GitRef,
    /// `BUILDKIT_CONTEXT_KEEP_GIT_DIR`.
    pub keep_git_dir: bool,
    /// Files get the commit's time: a source epoch is asked for.
    pub commit_mtime: bool,
    /// The `contextsubdir` option.
    pub scope: Option<String>,
}

impl Default for MainContext {
    fn default() -> Self {
        Self::Local { name: "context".into() }
    }
}

impl MainContext {
    /// Recognises a git or HTTP address; none for anything else.
    ///
    /// Whether a download is an archive is for the caller to find out from its first bytes ([`is_archive`]).
    ///
    /// # Errors
    /// An address that is meant for git but has bad parameters.
    pub fn detect(text: &str) -> Result<Option<Self>, DockerfileError> {
        if let Some(git) = git_ref::parse(text).map_err(Fault::new)? {
            return Ok(Some(Self::Git(GitContext {
                written: text.to_owned(),
                git,
                keep_git_dir: false,
                commit_mtime: false,
                scope: None,
            })));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Some(Self::Http { url: text.to_owned(), archive: false, subdir: None }));
        }
        Ok(None)
    }

    /// Returns a graph with the whole context, to read a Dockerfile from; none for a local directory. The folder that a
    /// context is cut to does not matter to its Dockerfile.
    ///
    /// # Errors
    /// An address that makes no source.
    pub fn definition(&self, platform: &Platform) -> Result<Option<Definition>, DockerfileError> {
        let mut builder = Builder::new(platform.clone());
        let mut whole = self.clone();
        match &mut whole {
            Self::Git(git) => git.scope = None,
            Self::Http { subdir, .. } | Self::Graph { subdir, .. } => *subdir = None,
            Self::Local { .. } => {}
        }
        let Some(output) = whole.lower(&mut builder)? else { return Ok(None) };
        Ok(Some(builder.definition(output).map_err(|e| Diagnostic::error(e.to_string()))?))
    }

    /// Adds the context to a graph; none for a local directory.
    pub(crate) fn lower(&self, builder: &mut Builder) -> Outcome<Option<Output>> {
        match self {
            Self::Local { .. } => Ok(None),
            Self::Git(git) => {
                let output = git.lower(builder)?;
                Ok(Some(scope(builder, output, git.scope.as_deref())))
            }
            Self::Http { url, archive, subdir } => {
                let output = http_source(builder, url);
                if !archive {
                    return Ok(Some(scope(builder, output, subdir.as_deref())));
                }
                let options = CopyOptions { unpack: true, ..CopyOptions::default() };
                let actions = FileActions::new().copy(output, "/context", "/", options);
                let output = builder.file(Output::SCRATCH, actions, Meta::default());
                Ok(Some(scope(builder, output, subdir.as_deref())))
            }
            Self::Graph { definition, subdir } => {
                let output = builder.import(definition).map_err(|e| Fault::new(e.to_string()))?;
                Ok(Some(scope(builder, output, subdir.as_deref())))
            }
        }
    }
}

fn http_source(builder: &mut Builder, url: &str) -> Output {
    let options = HttpOptions { filename: Some("context".into()), ..HttpOptions::default() };
    builder.http(url, &options, Meta::named("[internal] load remote build context"))
}

impl GitContext {
    pub(crate) fn lower(&self, builder: &mut Builder) -> Outcome<Output> {
        let mut options = self.git.options();
        options.keep_git_dir = self.keep_git_dir || self.git.keep_git_dir == Some(true);
        options.mtime = match &self.git.mtime {
            Some(mtime) => Some(mtime.clone()),
            None => self.commit_mtime.then(|| "commit".to_owned()),
        };
        let meta = Meta::named(format!("[internal] load git source {}", self.written));
        builder.git(&self.git.remote, "", &options, meta).map_err(|e| Fault::new(e.to_string()))
    }
}

/// Copies one directory of a context to the root of a new one.
fn scope(builder: &mut Builder, output: Output, subdir: Option<&str>) -> Output {
    let Some(subdir) = subdir.filter(|s| !s.is_empty()) else { return output };
    let options = CopyOptions { dir_contents_only: true, ..CopyOptions::default() };
    let actions = FileActions::new().copy(output, subdir, "/", options);
    builder.file(Output::SCRATCH, actions, Meta::default())
}

/// Tells whether a download's first bytes are those of an archive: bzip2, gzip, xz, or a tar header.
pub fn is_archive(header: &[u8]) -> bool {
    const MAGIC: [&[u8]; 3] = [b"BZh", &[0x1f, 0x8b, 0x08], &[0xfd, b'7', b'z', b'X', b'Z', 0]];
    if MAGIC.iter().any(|magic| header.starts_with(magic)) {
        return true;
    }
    let Some(block) = header.get(..512) else { return false };
    let field = String::from_utf8_lossy(&block[148..156]).replace('\0', " ");
    let Ok(stored) = u64::from_str_radix(field.trim(), 8) else { return false };
    // The checksum counts its own field as blanks.
    let sum = |range: &[u8]| range.iter().map(|&b| u64::from(b)).sum::<u64>();
    sum(&block[..148]) + sum(&block[156..]) + 8 * u64::from(b' ') == stored
}

/// Returns a graph that reads a Dockerfile, and the ignore file beside it, from a local directory.
///
/// `local` and `session` name the directory; `path` is the Dockerfile's path in it.
///
/// # Errors
/// Never for a valid platform.
pub fn dockerfile_definition(
    local: &str,
    session: &str,
    path: &str,
    platform: &Platform,
) -> Result<Definition, DockerfileError> {
    let mut follow_paths = vec![path.to_owned(), format!("{path}.dockerignore")];
    let (dir, base) = path.rsplit_once('/').map_or(("", path), |(dir, base)| (dir, base));
    if base == "Dockerfile" {
        follow_paths.push(if dir.is_empty() { "dockerfile".to_owned() } else { format!("{dir}/dockerfile") });
    }
    let options = LocalOptions {
        session: Some(session.to_owned()),
        follow_paths,
        shared_key_hint: Some(local.to_owned()),
        differ: Some(("none".into(), false)),
        ..LocalOptions::default()
    };
    read_local(local, &options, format!("[internal] load build definition from {path}"), platform)
}

/// Returns a graph that reads `.dockerignore` from the main context's directory.
///
/// # Errors
/// Never for a valid platform.
pub fn ignore_file_definition(local: &str, session: &str, platform: &Platform) -> Result<Definition, DockerfileError> {
    let hint = format!("{local}-.dockerignore");
    read_ignore_file(local, session, hint, "[internal] load .dockerignore".into(), platform)
}

pub(crate) fn read_ignore_file(
    local: &str,
    session: &str,
    hint: String,
    name: String,
    platform: &Platform,
) -> Result<Definition, DockerfileError> {
    let options = LocalOptions {
        session: Some(session.to_owned()),
        follow_paths: vec![".dockerignore".into()],
        shared_key_hint: Some(hint),
        differ: Some(("none".into(), false)),
        ..LocalOptions::default()
    };
    read_local(local, &options, name, platform)
}

fn read_local(
    local: &str,
    options: &LocalOptions,
    name: String,
    platform: &Platform,
) -> Result<Definition, DockerfileError> {
    let mut builder = Builder::new(platform.clone());
    let output = builder.local(local, options, Meta::named(name));
    Ok(builder.definition(output).map_err(|e| Diagnostic::error(e.to_string()))?)
}
