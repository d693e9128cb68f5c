//! Capability ids of the graph language and of the gateway (features 2.6, 2.7).
//!
//! An operation's metadata names the capabilities it needs; a definition that names one not listed here is refused.

/// Ids of graph capabilities, as constants for the builder.
pub mod id {
    pub const SOURCE_IMAGE: &str = "source.image";
    pub const SOURCE_IMAGE_RESOLVE_MODE: &str = "source.image.resolvemode";
    pub const SOURCE_IMAGE_LAYER_LIMIT: &str = "source.image.layerlimit";
    pub const SOURCE_IMAGE_CHECKSUM: &str = "source.image.checksum";
    pub const SOURCE_LOCAL: &str = "source.local";
    pub const SOURCE_LOCAL_UNIQUE: &str = "source.local.unique";
    pub const SOURCE_LOCAL_SESSION: &str = "source.local.sessionid";
    pub const SOURCE_LOCAL_INCLUDE: &str = "source.local.includepatterns";
    pub const SOURCE_LOCAL_FOLLOW: &str = "source.local.followpaths";
    pub const SOURCE_LOCAL_EXCLUDE: &str = "source.local.excludepatterns";
    pub const SOURCE_LOCAL_SHARED_KEY_HINT: &str = "source.local.sharedkeyhint";
    pub const SOURCE_LOCAL_DIFFER: &str = "source.local.differ";
    pub const SOURCE_LOCAL_METADATA_TRANSFER: &str = "source.local.metadatatransfer";
    pub const SOURCE_GIT: &str = "source.git";
    pub const SOURCE_GIT_KEEP_DIR: &str = "source.git.keepgitdir";
    pub const SOURCE_GIT_FULL_URL: &str = "source.git.fullurl";
    pub const SOURCE_GIT_HTTP_AUTH: &str = "source.git.httpauth";
    pub const SOURCE_GIT_KNOWN_SSH_HOSTS: &str = "source.git.knownsshhosts";
    pub const SOURCE_GIT_MOUNT_SSH_SOCK: &str = "source.git.mountsshsock";
    pub const SOURCE_GIT_CHECKSUM: &str = "source.git.checksum";
    pub const SOURCE_GIT_SKIP_SUBMODULES: &str = "source.git.skipsubmodules";
    pub const SOURCE_GIT_SIGNATURE_VERIFY: &str = "source.git.signatureverify";
    pub const SOURCE_GIT_MTIME: &str = "source.git.mtime";
    pub const SOURCE_GIT_FETCH_BY_COMMIT: &str = "source.git.fetchbycommit";
    pub const SOURCE_GIT_BUNDLE: &str = "source.git.bundle";
    pub const SOURCE_GIT_CHECKOUT_BUNDLE: &str = "source.git.checkoutbundle";
    pub const SOURCE_HTTP: &str = "source.http";
    pub const SOURCE_HTTP_AUTH: &str = "source.http.auth";
    pub const SOURCE_HTTP_CHECKSUM: &str = "source.http.checksum";
    pub const SOURCE_HTTP_PERM: &str = "source.http.perm";
    /// Misspelt on the wire, and so for ever.
    pub const SOURCE_HTTP_UID_GID: &str = "soruce.http.uidgid";
    pub const SOURCE_HTTP_HEADER: &str = "source.http.header";
    pub const SOURCE_HTTP_SIGNATURE_VERIFY: &str = "source.http.signatureverify";
    pub const SOURCE_IMAGE_BLOB: &str = "source.imageblob";
    pub const SOURCE_OCI_LAYOUT: &str = "source.ocilayout";
    pub const EXEC_META_BASE: &str = "exec.meta.base";
    pub const EXEC_META_NETWORK: &str = "exec.meta.network";
    pub const EXEC_META_PROXY: &str = "exec.meta.proxyenv";
    pub const EXEC_META_SECURITY: &str = "exec.meta.security";
    pub const EXEC_META_DEFAULT_PATH: &str = "exec.meta.setsdefaultpath";
    pub const EXEC_META_ULIMIT: &str = "exec.meta.ulimit";
    pub const EXEC_META_CDI: &str = "exec.meta.cdi";
    pub const EXEC_META_RESOURCES: &str = "exec.meta.linux.resources";
    pub const EXEC_MOUNT_BIND: &str = "exec.mount.bind";
    pub const EXEC_MOUNT_CACHE: &str = "exec.mount.cache";
    pub const EXEC_MOUNT_CACHE_SHARING: &str = "exec.mount.cache.sharing";
    pub const EXEC_MOUNT_CONTENT_CACHE: &str = "exec.mount.cache.content";
    pub const EXEC_MOUNT_SELECTOR: &str = "exec.mount.selector";
    pub const EXEC_MOUNT_TMPFS: &str = "exec.mount.tmpfs";
    pub const EXEC_MOUNT_TMPFS_SIZE: &str = "exec.mount.tmpfs.size";
    pub const EXEC_MOUNT_SECRET: &str = "exec.mount.secret";
    pub const EXEC_MOUNT_SSH: &str = "exec.mount.ssh";
    pub const EXEC_SECRET_ENV: &str = "exec.secretenv";
    pub const EXEC_VALID_EXIT_CODE: &str = "exec.validexitcode";
    pub const FILE_BASE: &str = "file.base";
    pub const MERGE: &str = "mergeop";
    pub const DIFF: &str = "diffop";
    pub const PASSTHROUGH: &str = "passthroughop";
    pub const CONSTRAINTS: &str = "constraints";
    pub const PLATFORM: &str = "platform";
    pub const META_IGNORE_CACHE: &str = "meta.ignorecache";
    pub const META_DESCRIPTION: &str = "meta.description";
    pub const META_EXPORT_CACHE: &str = "meta.exportcache";
}

/// Every graph capability this engine announces, in the order BuildKit lists its own.
pub const LLB: &[&str] = &[
    id::SOURCE_IMAGE,
    id::SOURCE_IMAGE_RESOLVE_MODE,
    id::SOURCE_IMAGE_LAYER_LIMIT,
    id::SOURCE_IMAGE_CHECKSUM,
    id::SOURCE_LOCAL,
    id::SOURCE_LOCAL_UNIQUE,
    id::SOURCE_LOCAL_SESSION,
    id::SOURCE_LOCAL_INCLUDE,
    id::SOURCE_LOCAL_FOLLOW,
    id::SOURCE_LOCAL_EXCLUDE,
    id::SOURCE_LOCAL_SHARED_KEY_HINT,
    id::SOURCE_LOCAL_DIFFER,
    id::SOURCE_LOCAL_METADATA_TRANSFER,
    id::SOURCE_GIT,
    id::SOURCE_GIT_KEEP_DIR,
    id::SOURCE_GIT_FULL_URL,
    id::SOURCE_GIT_HTTP_AUTH,
    id::SOURCE_GIT_KNOWN_SSH_HOSTS,
    id::SOURCE_GIT_MOUNT_SSH_SOCK,
    "source.git.subdir",
    id::SOURCE_GIT_CHECKSUM,
    id::SOURCE_GIT_SKIP_SUBMODULES,
    id::SOURCE_GIT_SIGNATURE_VERIFY,
    id::SOURCE_GIT_MTIME,
    id::SOURCE_GIT_FETCH_BY_COMMIT,
    id::SOURCE_GIT_BUNDLE,
    id::SOURCE_GIT_CHECKOUT_BUNDLE,
    id::SOURCE_HTTP,
    id::SOURCE_HTTP_AUTH,
    id::SOURCE_HTTP_CHECKSUM,
    id::SOURCE_HTTP_PERM,
    id::SOURCE_HTTP_UID_GID,
    id::SOURCE_HTTP_HEADER,
    id::SOURCE_HTTP_SIGNATURE_VERIFY,
    id::SOURCE_IMAGE_BLOB,
    id::SOURCE_OCI_LAYOUT,
    "source.buildop.llbfilename",
    "source.policy",
    "source.policy.session",
    id::EXEC_META_BASE,
    "exec.meta.cgroup.parent",
    id::EXEC_META_NETWORK,
    "exec.meta.network.proxy",
    id::EXEC_META_PROXY,
    id::EXEC_META_SECURITY,
    "exec.meta.security.devices.v1",
    id::EXEC_META_DEFAULT_PATH,
    id::EXEC_META_ULIMIT,
    id::EXEC_META_CDI,
    id::EXEC_META_RESOURCES,
    id::EXEC_MOUNT_BIND,
    "exec.mount.bind.readwrite-nooutput",
    id::EXEC_MOUNT_CACHE,
    id::EXEC_MOUNT_CACHE_SHARING,
    id::EXEC_MOUNT_SELECTOR,
    id::EXEC_MOUNT_TMPFS,
    id::EXEC_MOUNT_TMPFS_SIZE,
    id::EXEC_MOUNT_SECRET,
    id::EXEC_MOUNT_SSH,
    id::EXEC_MOUNT_CONTENT_CACHE,
    "exec.cgroup",
    id::EXEC_SECRET_ENV,
    id::EXEC_VALID_EXIT_CODE,
    id::FILE_BASE,
    "file.rm.wildcard",
    "file.copy.includeexcludepatterns",
    "file.copy.requiredpaths",
    "file.rm.nofollowsymlink",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.symlink.create",
    id::CONSTRAINTS,
    id::PLATFORM,
    id::META_IGNORE_CACHE,
    id::META_DESCRIPTION,
    id::META_EXPORT_CACHE,
    id::MERGE,
    id::DIFF,
    id::PASSTHROUGH,
    "cache.gha",
    "cache.s3",
    "cache.azblob",
    "exporter.image.annotations",
    "exporter.image.attestations",
    "exporter.sourcedateepoch",
    "exporter.multiple",
    "exporter.session",
    "gc.freespacefilter",
    "history.filter",
];

/// Every gateway capability; the flag tells whether it is deprecated.
pub const GATEWAY: &[(&str, bool)] = &[
    ("solve.base", false),
    ("solve.inlinereturn", true),
    ("resolveimage", false),
    ("resolveimage.resolvemode", false),
    ("readfile", false),
    ("return", false),
    ("returnmap", false),
    ("readdir", false),
    ("statfile", false),
    ("importcaches", false),
    ("proto.refarray", false),
    ("reference.output", false),
    ("frontend.inputs", false),
    ("gateway.solve.metadata", false),
    ("gateway.exec", false),
    ("gateway.exec.extrahosts", false),
    ("gateway.exec.secretenv", false),
    ("gateway.exec.signals", false),
    ("gateway.exec.filesystem", false),
    ("frontend.caps", false),
    ("gateway.solve.evaluate", false),
    ("gateway.evaluate", false),
    ("gateway.warnings", false),
    ("reference.attestations", false),
    ("source.metaresolver", false),
    ("source.metaresolver.image.attestations", false),
    ("source.metaresolver.http.checksumrequest", false),
];

/// Tells whether a definition may ask for this capability.
pub fn is_known(capability: &str) -> bool {
    LLB.contains(&capability)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn lists_have_the_registered_number_of_distinct_ids() {
        assert_eq!(LLB.iter().collect::<BTreeSet<_>>().len(), 88);
        assert_eq!(LLB.len(), 88);
        assert_eq!(GATEWAY.iter().map(|c| c.0).collect::<BTreeSet<_>>().len(), 27);
        assert!(!is_known("file.copy.modestring"));
        assert!(is_known("soruce.http.uidgid"));
    }
}
