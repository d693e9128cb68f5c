//! Named contexts: what `--build-context name=…` puts in the place of an image or a stage.

use kiln_llb::builder::{
    Builder, EnvList, HttpOptions, ImageOptions, LocalOptions, Meta, OciLayoutOptions, Output, ResolveMode,
};
use kiln_oci::{ImageConfig, Platform, Reference};

use crate::context::{self, GitContext};
use crate::diag::{Fault, Outcome};
use crate::git_ref;
use crate::names::format_platform;
use crate::options::BuildOptions;
use crate::resolve::{Resolved, ResolvedImage, Wanted, WantedIgnoreFile, WantedImage};
use crate::source::Lines;

/// A named context that is in use.
#[derive(Debug, Clone)]
pub(crate) struct NamedContext {
    /// The name as the option has it, with the platform if that is given there.
    pub key: String,
    pub platform: Option<Platform>,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Scratch,
    Image(WantedImage),
    Layout(WantedImage),
    Git(GitContext),
    Http(String),
    Local(String),
    Input(String),
}

/// A named context in a graph.
pub(crate) struct Loaded {
    pub output: Output,
    pub config: Option<ImageConfig>,
    /// Variables that steps on top of it see.
    pub env: EnvList,
    /// A directory of the client, whose paths are set last.
    pub local: Option<(String, LocalOptions)>,
}

/// Finds the context that replaces `name`; none when there is none.
pub(crate) fn find(
    options: &BuildOptions,
    name: &str,
    platform: Option<&Platform>,
    lines: Lines,
) -> Outcome<Option<NamedContext>> {
    if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
        return Ok(None);
    }
    let reference = Reference::parse(name).map_err(|e| Fault::new(format!("invalid context name {name}: {e}")))?;
    let familiar = reference.familiar();
    let short = familiar.strip_suffix(":latest").unwrap_or(&familiar);
    let platform = platform.cloned().or_else(|| options.target_platform.clone());
    let suffix = format_platform(&platform.clone().unwrap_or_else(Platform::host).normalize());
    for key in [format!("{short}::{suffix}"), short.to_owned()] {
        if let Some(value) = options.contexts.get(&key) {
            let source = source(options, short, &key, value, platform.as_ref(), lines)?;
            return Ok(Some(NamedContext { key, platform, source }));
        }
    }
    Ok(None)
}

fn source(
    options: &BuildOptions,
    name: &str,
    key: &str,
    value: &str,
    platform: Option<&Platform>,
    lines: Lines,
) -> Outcome<Source> {
    let Some((scheme, rest)) = value.split_once(':') else {
        return Err(Fault::new(format!("invalid context specifier {value} for {key}")));
    };
    let scheme = if scheme.starts_with("git@") { "git" } else { scheme };
    let path = rest.strip_prefix("//").unwrap_or(rest);
    let wanted = |reference: String, shown: String, layout: Option<(String, String)>| WantedImage {
        reference,
        platform: platform.cloned().unwrap_or_else(|| options.platform()),
        resolve_mode: options.resolve_mode,
        name: format!("[context {key}] load metadata for {shown}"),
        layout,
        written: value.to_owned(),
        lines,
        alternatives: Vec::new(),
    };
    match scheme {
        "docker-image" if path == "scratch" => Ok(Source::Scratch),
        "docker-image" => {
            let reference = Reference::parse(path).map_err(|e| Fault::new(e.to_string()))?;
            Ok(Source::Image(wanted(reference.to_string(), path.to_owned(), None)))
        }
        "oci-layout" => {
            let bad = |what: &str| Fault::new(format!("oci-layout reference {path:?} has no {what}"));
            let (store, digest) = path.split_once('@').ok_or_else(|| bad("digest"))?;
            let digest = digest.parse().map_err(|_| bad("digest"))?;
            // The store's key means nothing to people: shown is the name of the context.
            let reference = Reference::parse(name)
                .map_err(|e| Fault::new(format!("could not parse oci-layout reference {name:?}: {e}")))?;
            let reference = match name.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
                true => reference.with_digest(digest).to_string(),
                false => format!("{}@{digest}", reference.repository()),
            };
            let layout = Some((options.session.clone(), store.split(':').next().unwrap_or(store).to_owned()));
            Ok(Source::Layout(wanted(reference.clone(), reference, layout)))
        }
        "git" | "ssh" | "http" | "https" => match git_ref::parse(value).map_err(Fault::new)? {
            Some(git) => Ok(Source::Git(GitContext {
                written: value.to_owned(),
                git,
                keep_git_dir: false,
                commit_mtime: false,
                scope: None,
            })),
            None if scheme.starts_with("http") => Ok(Source::Http(value.to_owned())),
            None => Err(Fault::new(format!("invalid git context {value}"))),
        },
        "local" => Ok(Source::Local(rest.to_owned())),
        "input" if options.inputs.contains_key(rest) => Ok(Source::Input(rest.to_owned())),
        "input" => Err(Fault::new(format!("invalid input {rest} for {key}"))),
        _ => Err(Fault::new(format!("unsupported context source {scheme} for {key}"))),
    }
}

impl NamedContext {
    /// Returns what has to be fetched before it can be used.
    pub fn wanted(&self, options: &BuildOptions, resolved: &Resolved) -> Outcome<Option<Wanted>> {
        Ok(match &self.source {
            Source::Image(wanted) | Source::Layout(wanted) => {
                resolved.image(wanted).is_none().then(|| Wanted::Image(wanted.clone()))
            }
            Source::Local(local) if resolved.ignore_file(local).is_none() => {
                let definition = context::read_ignore_file(
                    local,
                    options.session_of(local),
                    format!("context:{}-.dockerignore", self.key),
                    format!("[context {}] load .dockerignore", self.key),
                    &options.platform(),
                )
                .map_err(|e| Fault::new(e.to_string()))?;
                Some(Wanted::IgnoreFile(WantedIgnoreFile { local: local.clone(), definition }))
            }
            _ => None,
        })
    }

    /// Returns the image config that comes with it, if it has one.
    pub fn config(&self, options: &BuildOptions, resolved: &Resolved) -> Outcome<Option<ImageConfig>> {
        match &self.source {
            Source::Image(wanted) | Source::Layout(wanted) => match resolved.image(wanted) {
                Some(image) => parse_config(&image.config).map(Some),
                None => Ok(None),
            },
            Source::Input(name) => Ok(options.inputs.get(name).and_then(|i| i.config.clone())),
            _ => Ok(None),
        }
    }

    /// Adds it to a graph.
    pub fn load(&self, options: &BuildOptions, resolved: &Resolved, builder: &mut Builder) -> Outcome<Loaded> {
        let config = self.config(options, resolved)?;
        let mut local = None;
        let shown = |rest: &str| format!("[context {}] {rest}", self.key);
        let output = match &self.source {
            Source::Scratch => Output::SCRATCH,
            Source::Image(wanted) => {
                let reference = found(resolved, wanted)?.reference.clone();
                let written = wanted.written.trim_start_matches("docker-image:").trim_start_matches("//");
                let meta = self.meta(shown(written));
                let options = ImageOptions { resolve_mode: ResolveMode::Default, ..ImageOptions::default() };
                builder.image(&reference, &options, meta).map_err(|e| Fault::new(e.to_string()))?
            }
            Source::Layout(wanted) => {
                let (session, store) = wanted.layout.clone().unwrap_or_default();
                let options =
                    OciLayoutOptions { session: Some(session), store: Some(store), ..OciLayoutOptions::default() };
                builder.oci_layout(&wanted.reference, &options, self.meta(shown("OCI load from client")))
            }
            Source::Git(git) => git.lower(builder)?,
            Source::Http(url) => {
                let options = HttpOptions { filename: Some("context".into()), ..HttpOptions::default() };
                builder.http(url, &options, Meta::named(shown(url)))
            }
            Source::Local(name) => {
                let settings = LocalOptions {
                    session: Some(options.session_of(name).to_owned()),
                    shared_key_hint: Some(self.shared_key(options)),
                    exclude_patterns: crate::ignore::parse(resolved.ignore_file(name).unwrap_or_default()),
                    ..LocalOptions::default()
                };
                let output = builder.local(name, &settings, Meta::named(shown("load from client")));
                local = Some((name.clone(), settings));
                output
            }
            Source::Input(name) => match options.inputs.get(name) {
                Some(input) => builder.import(&input.definition).map_err(|e| Fault::new(e.to_string()))?,
                None => Output::SCRATCH,
            },
        };
        let env = config.iter().flat_map(|c| c.config.env.iter()).map(|e| split_env(e)).collect();
        Ok(Loaded { output, config, env, local })
    }

    fn meta(&self, name: String) -> Meta {
        let meta = Meta::named(name);
        match &self.platform {
            Some(platform) => meta.platform(platform.clone()),
            None => meta,
        }
    }

    fn shared_key(&self, options: &BuildOptions) -> String {
        let key = options.shared_keys.get(&self.key).map_or("", String::as_str);
        format!("context:{}-{key}", self.key)
    }
}

fn found<'a>(resolved: &'a Resolved, wanted: &WantedImage) -> Outcome<&'a ResolvedImage> {
    resolved.image(wanted).ok_or_else(|| Fault::new(format!("{}: not resolved", wanted.reference)))
}

/// Reads an image config; its creation time means nothing to what is built on it.
pub(crate) fn parse_config(json: &[u8]) -> Outcome<ImageConfig> {
    let mut config =
        ImageConfig::from_json(json).map_err(|e| Fault::new(format!("failed to parse image config: {e}")))?;
    config.created = None;
    Ok(config)
}

/// Splits `NAME=value`.
pub(crate) fn split_env(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}
