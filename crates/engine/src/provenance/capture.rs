//! What a result was made from: sources with the digests they had, secrets, agents, and whether steps had a network.

use std::collections::BTreeMap;

use kiln_llb::op::{ExecOp, MountKind, NetMode, SourceOp};
use kiln_llb::{Graph, Op, attr};
use kiln_oci::{Platform, Reference};
use kiln_stdx::Digest;

use super::request::redacted;
use super::scope::ImageSource;
use crate::build::BuildContext;
use crate::source::blob::BlobSource;
use crate::source::git::GitSource;
use crate::source::http::HttpSource;

/// A commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitMaterial {
    /// The address, with `#` and the reference.
    pub url: String,
    pub commit: String,
    /// The file that the history came from instead of the address.
    pub bundle: Option<ImageSource>,
}

/// A file of the web.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpMaterial {
    pub url: String,
    pub digest: Digest,
}

/// What a result was made from.
#[derive(Debug, Clone, Default)]
pub struct Capture {
    pub images: Vec<ImageSource>,
    /// Single blobs.
    pub blobs: Vec<ImageSource>,
    pub git: Vec<GitMaterial>,
    pub http: Vec<HttpMaterial>,
    /// Names of directories of clients; what was in them cannot be told.
    pub locals: Vec<String>,
    /// Whether each may be missing.
    pub secrets: BTreeMap<String, bool>,
    pub agents: BTreeMap<String, bool>,
    pub network: bool,
    /// Something was used that is not listed.
    pub incomplete: bool,
}

impl Capture {
    /// Returns what a graph is made from, as this build saw it.
    pub fn of(graph: &Graph, build: &BuildContext) -> Self {
        let mut capture = Self::default();
        for vertex in graph.vertices() {
            match &vertex.op {
                Op::Source(source) => capture.source(source, vertex.platform.as_ref(), build),
                Op::Exec(exec) => capture.exec(exec),
                Op::Build(_) => capture.incomplete = true,
                _ => {}
            }
        }
        capture
    }

    fn source(&mut self, source: &SourceOp, platform: Option<&Platform>, build: &BuildContext) {
        let Some((scheme, name)) = source.identifier.split_once("://") else { return };
        match scheme {
            "docker-image" | "oci-layout" => {
                let local = scheme == "oci-layout";
                let digest = pinned(name).or_else(|| looked_up(name, platform, build));
                self.add_image(ImageSource { name: name.to_owned(), platform: platform.cloned(), digest, local });
            }
            "docker-image+blob" | "oci-layout+blob" => {
                if let Ok(blob) = BlobSource::new(&source.identifier, source) {
                    self.add_blob(image_source(&blob));
                }
            }
            "local" => push(&mut self.locals, name.to_owned(), |a, b| a == b),
            "git" => self.git(source, build),
            "http" | "https" => {
                let known = HttpSource::new(source).ok().and_then(|s| build.http.lock().get(&s.key()).cloned());
                match known {
                    Some(known) => self.add_http(&source.identifier, known.digest),
                    None => self.incomplete = true,
                }
            }
            _ => self.incomplete = true,
        }
        for (key, sort) in [
            (attr::GIT_AUTH_TOKEN_SECRET, false),
            (attr::GIT_AUTH_HEADER_SECRET, false),
            (attr::GIT_MOUNT_SSH_SOCK, true),
        ] {
            if let Some(id) = source.attr(key).filter(|id| scheme == "git" && !id.is_empty()) {
                let list = if sort { &mut self.agents } else { &mut self.secrets };
                add(list, id, true);
            }
        }
    }

    fn git(&mut self, source: &SourceOp, build: &BuildContext) {
        let Ok(parsed) = GitSource::new(source) else { return };
        let key = format!("{}#{}", parsed.remote, parsed.git_ref);
        let known = build.git.lock().get(&key).cloned();
        let url = redacted(key.trim_end_matches('#'));
        match known {
            Some(pin) => {
                let commit = pin.commit(false).to_owned();
                let bundle = parsed.bundle.as_ref().map(image_source);
                push(&mut self.git, GitMaterial { url, commit, bundle }, |a, b| a.url == b.url);
            }
            None => self.incomplete = true,
        }
    }

    fn exec(&mut self, exec: &ExecOp) {
        for mount in &exec.mounts {
            match &mount.kind {
                MountKind::Secret(file) => add(&mut self.secrets, &file.id, file.optional),
                MountKind::Ssh(file) => {
                    let id = if file.id.is_empty() { "default" } else { &file.id };
                    add(&mut self.agents, id, file.optional);
                }
                _ => {}
            }
        }
        for secret in &exec.secret_env {
            add(&mut self.secrets, &secret.id, secret.optional);
        }
        self.network |= exec.network != NetMode::None;
    }

    fn add_http(&mut self, url: &str, digest: Digest) {
        push(&mut self.http, HttpMaterial { url: redacted(url), digest }, |a, b| a.url == b.url);
    }

    /// Adds an image, once for each platform.
    pub fn add_image(&mut self, image: ImageSource) {
        push(&mut self.images, image, |a, b| a.name == b.name && a.local == b.local && a.platform == b.platform);
    }

    fn add_blob(&mut self, blob: ImageSource) {
        push(&mut self.blobs, blob, |a, b| a.name == b.name && a.local == b.local);
    }

    /// Adds what another result was made from.
    pub fn merge(&mut self, other: Self) {
        other.images.into_iter().for_each(|image| self.add_image(image));
        other.blobs.into_iter().for_each(|blob| self.add_blob(blob));
        other.git.into_iter().for_each(|git| push(&mut self.git, git, |a, b| a.url == b.url));
        other.http.into_iter().for_each(|http| push(&mut self.http, http, |a, b| a.url == b.url));
        other.locals.into_iter().for_each(|name| push(&mut self.locals, name, |a, b| a == b));
        other.secrets.iter().for_each(|(id, optional)| add(&mut self.secrets, id, *optional));
        other.agents.iter().for_each(|(id, optional)| add(&mut self.agents, id, *optional));
        self.network |= other.network;
        self.incomplete |= other.incomplete;
    }

    /// Puts everything in order, and leaves out images by digest that are there by name too.
    pub fn tidy(&mut self) {
        let named: Vec<String> =
            self.images.iter().filter(|image| pinned(&image.name).is_none()).map(|image| plain(&image.name)).collect();
        self.images.retain(|image| pinned(&image.name).is_none() || !named.contains(&plain(&image.name)));
        self.images.sort_by(|a, b| a.name.cmp(&b.name));
        self.blobs.sort_by(|a, b| a.name.cmp(&b.name));
        self.git.sort_by(|a, b| a.url.cmp(&b.url));
        self.http.sort_by(|a, b| a.url.cmp(&b.url));
        self.locals.sort();
    }
}

fn image_source(blob: &BlobSource) -> ImageSource {
    ImageSource { name: blob.name.clone(), platform: None, digest: Some(blob.digest), local: blob.is_local() }
}

fn push<T>(list: &mut Vec<T>, item: T, same: impl Fn(&T, &T) -> bool) {
    if !list.iter().any(|known| same(known, &item)) {
        list.push(item);
    }
}

/// What is needed once is needed.
fn add(list: &mut BTreeMap<String, bool>, id: &str, optional: bool) {
    list.entry(id.to_owned()).and_modify(|known| *known &= optional).or_insert(optional);
}

/// Returns the digest in a name.
fn pinned(name: &str) -> Option<Digest> {
    name.rsplit_once('@')?.1.parse().ok()
}

/// Returns name and tag without a digest.
fn plain(name: &str) -> String {
    let plain = name.split('@').next().unwrap_or(name);
    Reference::parse(plain).map_or_else(|_| plain.to_owned(), |reference| reference.to_string())
}

fn looked_up(name: &str, platform: Option<&Platform>, build: &BuildContext) -> Option<Digest> {
    let images = build.images.lock();
    let fits = |wanted: &Platform| platform.is_none_or(|p| p == wanted);
    images.iter().find(|((known, at), _)| known == name && fits(at)).map(|(_, image)| image.root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> ImageSource {
        ImageSource { name: name.to_owned(), platform: None, digest: None, local: false }
    }

    #[test]
    fn an_image_by_name_stands_for_the_same_by_digest() {
        let pinned = format!("docker.io/library/a:1@{}", Digest::of("a"));
        let other = format!("docker.io/library/b:1@{}", Digest::of("b"));
        let mut capture = Capture::default();
        for name in [pinned.as_str(), other.as_str(), "docker.io/library/a:1", "docker.io/library/a:1"] {
            capture.add_image(image(name));
        }
        capture.tidy();
        let names: Vec<&str> = capture.images.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["docker.io/library/a:1", other.as_str()]);
    }

    #[test]
    fn a_secret_is_optional_only_if_every_use_is() {
        let mut capture = Capture::default();
        add(&mut capture.secrets, "a", true);
        let mut other = Capture::default();
        add(&mut other.secrets, "a", false);
        add(&mut other.secrets, "b", true);
        capture.merge(other);
        assert_eq!(capture.secrets, BTreeMap::from([("a".to_owned(), false), ("b".to_owned(), true)]));
    }
}
