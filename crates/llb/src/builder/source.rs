//! Sources: images, local directories, git, HTTP, OCI layouts. The attribute rules are those of features 2.4.

use std::collections::{BTreeMap, BTreeSet};

use kiln_oci::Reference;
use kiln_stdx::Digest;

use super::{Body, Builder, Meta, Output};
use crate::attr;
use crate::caps::id;
use crate::error::LlbError;
use crate::git_url::{GitUrl, GitUrlError, split_fragment};

/// How a tag is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResolveMode {
    #[default]
    Default,
    /// Always ask the registry.
    Pull,
    /// Prefer what is local.
    Local,
}

impl ResolveMode {
    /// Returns the value of the `image.resolvemode` attribute.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Pull => "pull",
            Self::Local => "local",
        }
    }
}

/// Attributes of an image source.
#[derive(Debug, Clone, Default)]
pub struct ImageOptions {
    pub resolve_mode: ResolveMode,
    /// `internal` or `frontend` for images that are no part of the result.
    pub record_type: Option<String>,
    /// Use only this many layers.
    pub layer_limit: Option<u32>,
    /// Fail unless the image has this digest.
    pub checksum: Option<Digest>,
}

/// Attributes of a local directory.
#[derive(Debug, Clone, Default)]
pub struct LocalOptions {
    /// The session whose directory it is; without one, any session of the build.
    pub session: Option<String>,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub follow_paths: Vec<String>,
    pub shared_key_hint: Option<String>,
    /// `none` or `metadata`, and whether the engine must understand it.
    pub differ: Option<(String, bool)>,
    /// Transfer metadata only, except for files that match these patterns.
    pub metadata_only: Option<Vec<String>>,
}

/// Attributes of an HTTP source.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    pub checksum: Option<Digest>,
    pub filename: Option<String>,
    /// Permission bits of the file.
    pub mode: Option<u32>,
    pub uid: u32,
    pub gid: u32,
    pub auth_header_secret: Option<String>,
    pub accept: Option<String>,
    pub user_agent: Option<String>,
}

/// Attributes of a git source.
#[derive(Debug, Clone, Default)]
pub struct GitOptions {
    /// Branch, tag or commit; wins over the fragment's.
    pub git_ref: Option<String>,
    /// Directory; wins over the fragment's.
    pub subdir: Option<String>,
    pub keep_git_dir: bool,
    /// Name of the secret that holds a token; `GIT_AUTH_TOKEN` when none.
    pub auth_token_secret: Option<String>,
    /// Name of the secret that holds a header; `GIT_AUTH_HEADER` when none.
    pub auth_header_secret: Option<String>,
    pub known_ssh_hosts: Option<String>,
    /// Id of the agent socket for ssh remotes; `default` when none.
    pub ssh_socket: Option<String>,
    pub checksum: Option<String>,
    pub skip_submodules: bool,
    /// `checkout` or `commit`.
    pub mtime: Option<String>,
    pub fetch_by_commit: bool,
}

/// Attributes of an image in an OCI layout that a session offers.
#[derive(Debug, Clone, Default)]
pub struct OciLayoutOptions {
    pub session: Option<String>,
    pub store: Option<String>,
    pub layer_limit: Option<u32>,
}

type Attrs = BTreeMap<String, String>;
type Caps = BTreeSet<&'static str>;

fn set(attrs: &mut Attrs, key: &str, value: impl Into<String>) {
    attrs.insert(key.to_owned(), value.into());
}

/// Encodes patterns as JSON in the way of Go's encoder, which escapes `<`, `>`, `&` and two line separators.
fn json_list(patterns: &[String]) -> String {
    let quoted: Vec<String> = patterns
        .iter()
        .map(|p| {
            serde_json::Value::from(p.as_str())
                .to_string()
                .replace('<', "\\u003c")
                .replace('>', "\\u003e")
                .replace('&', "\\u0026")
                .replace('\u{2028}', "\\u2028")
                .replace('\u{2029}', "\\u2029")
        })
        .collect();
    format!("[{}]", quoted.join(","))
}

impl Builder {
    /// Adds an image. The reference is completed (`docker.io/library/x:latest`).
    ///
    /// # Errors
    /// A malformed reference.
    pub fn image(&mut self, reference: &str, options: &ImageOptions, meta: Meta) -> Result<Output, LlbError> {
        let reference = Reference::parse(reference).map_err(|e| LlbError::Argument(e.to_string()))?;
        let (mut attrs, mut caps) = (Attrs::new(), Caps::from([id::SOURCE_IMAGE]));
        if options.resolve_mode != ResolveMode::Default {
            set(&mut attrs, attr::IMAGE_RESOLVE_MODE, options.resolve_mode.as_str());
            if options.resolve_mode == ResolveMode::Pull {
                caps.insert(id::SOURCE_IMAGE_RESOLVE_MODE);
            }
        }
        if let Some(record_type) = options.record_type.as_ref().filter(|t| !t.is_empty()) {
            set(&mut attrs, attr::IMAGE_RECORD_TYPE, record_type);
        }
        if let Some(limit) = options.layer_limit {
            set(&mut attrs, attr::IMAGE_LAYER_LIMIT, limit.to_string());
            caps.insert(id::SOURCE_IMAGE_LAYER_LIMIT);
        }
        if let Some(checksum) = &options.checksum {
            set(&mut attrs, attr::IMAGE_CHECKSUM, checksum.to_string());
            caps.insert(id::SOURCE_IMAGE_CHECKSUM);
        }
        Ok(self.source(format!("{}{reference}", attr::scheme::IMAGE), attrs, caps, meta))
    }

    /// Adds a directory of the client.
    pub fn local(&mut self, name: &str, options: &LocalOptions, meta: Meta) -> Output {
        let (attrs, caps) = local_attrs(options);
        self.source(format!("{}{name}", attr::scheme::LOCAL), attrs, caps, meta)
    }

    /// Replaces the attributes of a local source that was added before, once its patterns are known.
    pub fn set_local(&mut self, output: Output, options: &LocalOptions) {
        let Some(node) = output.node().and_then(|i| self.nodes.get_mut(i)) else { return };
        if let Body::Source { identifier, attrs } = &mut node.body
            && identifier.starts_with(attr::scheme::LOCAL)
        {
            (*attrs, node.caps) = local_attrs(options);
        }
    }

    /// Adds a download. `url` begins with `http://` or `https://`.
    pub fn http(&mut self, url: &str, options: &HttpOptions, meta: Meta) -> Output {
        let (mut attrs, mut caps) = (Attrs::new(), Caps::from([id::SOURCE_HTTP]));
        if let Some(checksum) = &options.checksum {
            set(&mut attrs, attr::HTTP_CHECKSUM, checksum.to_string());
            caps.insert(id::SOURCE_HTTP_CHECKSUM);
        }
        if let Some(filename) = options.filename.as_ref().filter(|f| !f.is_empty()) {
            set(&mut attrs, attr::HTTP_FILENAME, filename);
        }
        if let Some(mode) = options.mode.map(|m| m & 0o777).filter(|&m| m != 0) {
            set(&mut attrs, attr::HTTP_PERM, format!("0{mode:o}"));
            caps.insert(id::SOURCE_HTTP_PERM);
        }
        for (key, owner) in [(attr::HTTP_UID, options.uid), (attr::HTTP_GID, options.gid)] {
            if owner != 0 {
                set(&mut attrs, key, owner.to_string());
                caps.insert(id::SOURCE_HTTP_UID_GID);
            }
        }
        if let Some(secret) = options.auth_header_secret.as_ref().filter(|s| !s.is_empty()) {
            set(&mut attrs, attr::HTTP_AUTH_HEADER_SECRET, secret);
            caps.insert(id::SOURCE_HTTP_AUTH);
        }
        for (name, value) in [("accept", &options.accept), ("user-agent", &options.user_agent)] {
            if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
                set(&mut attrs, &format!("{}{name}", attr::HTTP_HEADER_PREFIX), value);
                caps.insert(id::SOURCE_HTTP_HEADER);
            }
        }
        self.source(url.to_owned(), attrs, caps, meta)
    }

    /// Adds a git repository. `fragment` is `ref:subdir` or empty.
    ///
    /// # Errors
    /// An address with a scheme git is not used with, or a malformed one.
    pub fn git(&mut self, url: &str, fragment: &str, options: &GitOptions, meta: Meta) -> Result<Output, LlbError> {
        let url = match GitUrl::parse(url) {
            Err(GitUrlError::UnknownProtocol) => GitUrl::parse(&format!("https://{url}")),
            other => other,
        }
        .map_err(|e| LlbError::Argument(format!("{url}: {e}")))?;
        let (fragment_ref, fragment_dir) = split_fragment(fragment);
        let git_ref = options.git_ref.clone().unwrap_or(fragment_ref);
        let subdir = options.subdir.clone().unwrap_or(fragment_dir);
        let mut identifier = format!("{}{}", attr::scheme::GIT, url.host_and_path());
        if !git_ref.is_empty() || !subdir.is_empty() {
            identifier = format!("{identifier}#{git_ref}");
            if !subdir.is_empty() {
                identifier = format!("{identifier}:{subdir}");
            }
        }
        let (attrs, caps) = git_attrs(&url, options);
        Ok(self.source(identifier, attrs, caps, meta))
    }

    /// Adds an image of an OCI layout; `reference` is `name@digest` or `name:tag`.
    pub fn oci_layout(&mut self, reference: &str, options: &OciLayoutOptions, meta: Meta) -> Output {
        let mut attrs = Attrs::new();
        if let Some(session) = options.session.as_ref().filter(|s| !s.is_empty()) {
            set(&mut attrs, attr::OCI_SESSION, session);
        }
        if let Some(store) = options.store.as_ref().filter(|s| !s.is_empty()) {
            set(&mut attrs, attr::OCI_STORE, store);
        }
        if let Some(limit) = options.layer_limit {
            set(&mut attrs, attr::OCI_LAYER_LIMIT, limit.to_string());
        }
        let identifier = format!("{}{reference}", attr::scheme::OCI_LAYOUT);
        self.source(identifier, attrs, [id::SOURCE_OCI_LAYOUT].into(), meta)
    }

    /// Adds a source by its raw identifier and attributes.
    pub fn source(
        &mut self,
        identifier: String,
        attrs: BTreeMap<String, String>,
        caps: BTreeSet<&'static str>,
        meta: Meta,
    ) -> Output {
        self.push(Body::Source { identifier, attrs }, meta, caps)
    }
}

fn local_attrs(options: &LocalOptions) -> (Attrs, Caps) {
    let (mut attrs, mut caps) = (Attrs::new(), Caps::from([id::SOURCE_LOCAL]));
    if let Some(session) = options.session.as_ref().filter(|s| !s.is_empty()) {
        set(&mut attrs, attr::LOCAL_SESSION, session);
        caps.insert(id::SOURCE_LOCAL_SESSION);
    }
    for (key, patterns, cap) in [
        (attr::LOCAL_INCLUDE_PATTERNS, &options.include_patterns, id::SOURCE_LOCAL_INCLUDE),
        (attr::LOCAL_FOLLOW_PATHS, &options.follow_paths, id::SOURCE_LOCAL_FOLLOW),
        (attr::LOCAL_EXCLUDE_PATTERNS, &options.exclude_patterns, id::SOURCE_LOCAL_EXCLUDE),
    ] {
        if !patterns.is_empty() {
            set(&mut attrs, key, json_list(patterns));
            caps.insert(cap);
        }
    }
    if let Some(hint) = options.shared_key_hint.as_ref().filter(|h| !h.is_empty()) {
        set(&mut attrs, attr::LOCAL_SHARED_KEY_HINT, hint);
        caps.insert(id::SOURCE_LOCAL_SHARED_KEY_HINT);
    }
    if let Some((differ, required)) = &options.differ {
        set(&mut attrs, attr::LOCAL_DIFFER, differ);
        if *required {
            caps.insert(id::SOURCE_LOCAL_DIFFER);
        }
    }
    if let Some(exceptions) = &options.metadata_only {
        set(&mut attrs, attr::LOCAL_METADATA_TRANSFER, "true");
        if !exceptions.is_empty() {
            set(&mut attrs, attr::LOCAL_METADATA_TRANSFER_EXCLUDE, json_list(exceptions));
        }
        caps.insert(id::SOURCE_LOCAL_METADATA_TRANSFER);
    }
    (attrs, caps)
}

fn git_attrs(url: &GitUrl, options: &GitOptions) -> (Attrs, Caps) {
    let (mut attrs, mut caps) = (Attrs::new(), Caps::from([id::SOURCE_GIT, id::SOURCE_GIT_FULL_URL]));
    set(&mut attrs, attr::GIT_FULL_URL, &url.remote);
    for (key, secret, default) in [
        (attr::GIT_AUTH_TOKEN_SECRET, &options.auth_token_secret, "GIT_AUTH_TOKEN"),
        (attr::GIT_AUTH_HEADER_SECRET, &options.auth_header_secret, "GIT_AUTH_HEADER"),
    ] {
        set(&mut attrs, key, secret.as_deref().unwrap_or(default));
        if secret.is_some() {
            caps.insert(id::SOURCE_GIT_HTTP_AUTH);
        }
    }
    if url.scheme == "ssh" {
        if let Some(hosts) = &options.known_ssh_hosts {
            set(&mut attrs, attr::GIT_KNOWN_SSH_HOSTS, format!("{}\n", hosts.trim_end_matches('\n')));
        }
        caps.insert(id::SOURCE_GIT_KNOWN_SSH_HOSTS);
        set(&mut attrs, attr::GIT_MOUNT_SSH_SOCK, options.ssh_socket.as_deref().unwrap_or("default"));
        caps.insert(id::SOURCE_GIT_MOUNT_SSH_SOCK);
    }
    if let Some(checksum) = options.checksum.as_ref().filter(|c| !c.is_empty()) {
        set(&mut attrs, attr::GIT_CHECKSUM, checksum);
        caps.insert(id::SOURCE_GIT_CHECKSUM);
    }
    if let Some(mtime) = options.mtime.as_ref().filter(|m| !m.is_empty()) {
        set(&mut attrs, attr::GIT_MTIME, mtime);
        caps.insert(id::SOURCE_GIT_MTIME);
    }
    for (key, wanted, cap) in [
        (attr::GIT_KEEP_DIR, options.keep_git_dir, id::SOURCE_GIT_KEEP_DIR),
        (attr::GIT_SKIP_SUBMODULES, options.skip_submodules, id::SOURCE_GIT_SKIP_SUBMODULES),
        (attr::GIT_FETCH_BY_COMMIT, options.fetch_by_commit, id::SOURCE_GIT_FETCH_BY_COMMIT),
    ] {
        if wanted {
            set(&mut attrs, key, "true");
            caps.insert(cap);
        }
    }
    (attrs, caps)
}
