//! Base images from what Debian packages give: a static busybox, as an OCI layout that needs no registry.

use std::path::{Path, PathBuf};

use kiln_oci::{Descriptor, DiffId, ImageConfig, Index, Manifest, Platform, media};
use kiln_stdx::Digest;

/// Commands that get a link to busybox in the test root.
const APPLETS: &[&str] = &[
    "sh",
    "ash",
    "cat",
    "ls",
    "echo",
    "true",
    "false",
    "sleep",
    "mkdir",
    "rm",
    "rmdir",
    "cp",
    "mv",
    "ln",
    "chmod",
    "chown",
    "touch",
    "env",
    "id",
    "stat",
    "test",
    "[",
    "sha256sum",
    "base64",
    "od",
    "dd",
    "head",
    "tail",
    "grep",
    "sed",
    "awk",
    "find",
    "sort",
    "wc",
    "tr",
    "cut",
    "printf",
    "hostname",
    "mount",
    "df",
    "du",
    "ps",
    "kill",
    "date",
    "seq",
    "yes",
    "tee",
    "tar",
    "gzip",
    "mknod",
    "mkfifo",
    "readlink",
    "realpath",
    "basename",
    "dirname",
    "uname",
    "whoami",
    "expr",
    "xargs",
    "sync",
    "ip",
    "nc",
    "wget",
    "ulimit",
    "nproc",
    "cmp",
    "diff",
    "setsid",
    "trap",
];

/// Returns the host's static busybox.
pub fn busybox() -> Option<PathBuf> {
    crate::program("busybox")
}

/// Writes a root file system with busybox, `/etc/passwd` and `/etc/group` into `dir`.
///
/// Returns false when the host has no busybox.
///
/// # Panics
/// The directory cannot be written.
pub fn busybox_root(dir: &Path) -> bool {
    let Some(busybox) = busybox() else { return false };
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap_or_else(|e| panic!("{}: {e}", bin.display()));
    std::fs::copy(busybox, bin.join("busybox")).unwrap_or_else(|e| panic!("busybox: {e}"));
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap_or_else(|e| panic!("{applet}: {e}"));
    }
    crate::write_tree(
        dir,
        &[
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"),
            ("etc/group", "root:x:0:\napp:x:1000:\nextra:x:1001:app\n"),
            ("root/", ""),
            ("home/app/", ""),
            ("tmp/", ""),
        ],
    );
    true
}

/// Makes an OCI layout with one image, `latest`, of a busybox root, and returns its directory.
///
/// Returns none when the host has no busybox.
///
/// # Panics
/// The directory cannot be written.
pub fn busybox_layout(dir: &Path) -> Option<PathBuf> {
    let root = dir.join("root");
    if !busybox_root(&root) {
        return None;
    }
    let mut config = ImageConfig::default();
    config.config.env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    config.config.cmd = Some(vec!["sh".to_owned()]);
    let layout = dir.join("layout");
    layout_of(&layout, &[tar_of(&root)], config);
    Some(layout)
}

/// Returns a deterministic tar archive of what lies below `root`, owned by root, dated 2020-01-01.
///
/// # Panics
/// The tree cannot be read.
pub fn tar_of(root: &Path) -> Vec<u8> {
    let mut paths = Vec::new();
    collect(root, root, &mut paths);
    paths.sort();
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    for path in paths {
        let full = root.join(&path);
        let meta = std::fs::symlink_metadata(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
        let mut header = tar::Header::new_gnu();
        header.set_metadata_in_mode(&meta, tar::HeaderMode::Complete);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_577_836_800);
        let result = if meta.is_symlink() {
            let target = std::fs::read_link(&full).unwrap_or_default();
            header.set_size(0);
            tar.append_link(&mut header, &path, target)
        } else if meta.is_dir() {
            header.set_size(0);
            tar.append_data(&mut header, &path, std::io::empty())
        } else {
            let file = std::fs::File::open(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
            tar.append_data(&mut header, &path, file)
        };
        result.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    tar.into_inner().unwrap_or_else(|e| panic!("tar: {e}"))
}

fn collect(root: &Path, dir: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
        let path = entry.path();
        paths.push(path.strip_prefix(root).map(Path::to_path_buf).unwrap_or_default());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(root, &path, paths);
        }
    }
}

/// Writes an OCI layout at `dir` with one image, `latest`, of these uncompressed layers: for the host's platform, unless
/// the config names one.
///
/// # Panics
/// The directory cannot be written.
pub fn layout_of(dir: &Path, layers: &[Vec<u8>], mut config: ImageConfig) -> Descriptor {
    let mut platform = Platform::host();
    if config.architecture.is_empty() {
        config.os.clone_from(&platform.os);
        config.architecture.clone_from(&platform.architecture);
    } else {
        platform = config.platform();
    }
    config.rootfs.diff_ids = layers.iter().map(|layer| DiffId(Digest::of(layer))).collect();
    let put = |media_type: &str, content: &[u8]| {
        let descriptor = Descriptor::of(media_type, content);
        let path = dir.join("blobs/sha256").join(descriptor.digest.hex());
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        std::fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        descriptor
    };
    let layers = layers.iter().map(|layer| put(media::OCI_LAYER, layer)).collect();
    let json = |bytes: Result<Vec<u8>, kiln_oci::JsonError>| bytes.unwrap_or_else(|e| panic!("{e}"));
    let config = put(media::OCI_CONFIG, &json(config.to_config_json()));
    let manifest = Manifest::new(media::OCI_MANIFEST, config, layers);
    let mut descriptor = put(media::OCI_MANIFEST, &json(manifest.to_manifest_json()));
    descriptor.platform = Some(platform);
    descriptor.annotations.insert("org.opencontainers.image.ref.name".to_owned(), "latest".to_owned());
    let index = Index::new(media::OCI_INDEX, vec![descriptor.clone()]);
    std::fs::write(dir.join("index.json"), json(index.to_manifest_json())).unwrap_or_else(|e| panic!("index: {e}"));
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap_or_else(|e| panic!("{e}"));
    descriptor
}
