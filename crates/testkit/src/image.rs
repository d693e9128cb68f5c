//! Reads an image that kiln wrote, archive or directory, with other people's tar reader, and checks every digest.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;

use kiln_oci::{Descriptor, ImageConfig, Index, Manifest, media};
use kiln_stdx::Digest;

/// One file of a merged root, or of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// tar's type byte: `0` file, `5` directory, `2` symbolic link, `1` hard link, …
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub link: Vec<u8>,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// An image with its layers unpacked in memory.
#[derive(Debug)]
pub struct Image {
    /// Digest of the manifest.
    pub digest: Digest,
    pub manifest: Manifest,
    pub config: ImageConfig,
    pub config_digest: Digest,
    /// By layer, bottom first: the entries as they lie in the archive.
    pub layers: Vec<BTreeMap<Vec<u8>, File>>,
    /// The blobs of the archive by digest.
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub index: Index,
}

impl Image {
    /// Reads an OCI archive (a tar file) or layout directory and its only image.
    ///
    /// # Panics
    /// Anything that is not as the OCI image spec has it.
    pub fn read(path: &Path) -> Self {
        let mut files = BTreeMap::new();
        if path.is_dir() {
            read_dir(path, path, &mut files);
        } else {
            let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            for entry in tar::Archive::new(file).entries().unwrap_or_else(|e| panic!("{e}")) {
                let mut entry = entry.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
                if entry.header().entry_type().is_dir() {
                    continue;
                }
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap_or_else(|e| panic!("{name}: {e}"));
                files.insert(name, data);
            }
        }
        Self::from_files(&files)
    }

    fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let blobs: BTreeMap<Digest, Vec<u8>> = files
            .iter()
            .filter_map(|(name, data)| Some((name.strip_prefix("blobs/sha256/")?, data)))
            .map(|(hex, data)| {
                assert_eq!(Digest::of(data).hex(), hex, "a blob is not what its name says");
                (Digest::of(data), data.clone())
            })
            .collect();
        let blob = |descriptor: &Descriptor| {
            let data = blobs.get(&descriptor.digest).unwrap_or_else(|| panic!("no blob {}", descriptor.digest));
            assert_eq!(data.len() as u64, descriptor.size, "size of {}", descriptor.digest);
            data.clone()
        };
        let index_json = files.get("index.json").unwrap_or_else(|| panic!("no index.json in {:?}", files.keys()));
        let index = Index::from_json(index_json).unwrap_or_else(|e| panic!("{e}"));
        let mut descriptor = index.manifests.first().unwrap_or_else(|| panic!("empty index")).clone();
        while media::is_index(&descriptor.media_type) {
            let inner = Index::from_json(&blob(&descriptor)).unwrap_or_else(|e| panic!("{e}"));
            descriptor = inner.manifests.first().unwrap_or_else(|| panic!("empty index")).clone();
        }
        let manifest = Manifest::from_json(&blob(&descriptor)).unwrap_or_else(|e| panic!("{e}"));
        let config = ImageConfig::from_json(&blob(&manifest.config)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(manifest.layers.len(), config.rootfs.diff_ids.len(), "layers and diff ids");
        let layers = manifest
            .layers
            .iter()
            .zip(&config.rootfs.diff_ids)
            .map(|(layer, diff_id)| {
                let tar = decompress(&blob(layer));
                assert_eq!(Digest::of(&tar), diff_id.0, "diff id of {}", layer.digest);
                read_layer(&tar)
            })
            .collect();
        let config_digest = manifest.config.digest;
        Self { digest: descriptor.digest, manifest, config, config_digest, layers, blobs, index }
    }

    /// Returns the merged root: whiteouts applied, as a container would see it.
    pub fn root(&self) -> BTreeMap<Vec<u8>, File> {
        let mut root = BTreeMap::<Vec<u8>, File>::new();
        for layer in &self.layers {
            for path in layer.keys() {
                let (dir, name) = split(path);
                if name == b".wh..wh..opq" {
                    root.retain(|p, _| !(p.starts_with(dir) && p.len() > dir.len()));
                } else if let Some(name) = name.strip_prefix(b".wh.") {
                    let gone = [dir, name].concat();
                    let below = [&gone[..], b"/"].concat();
                    root.retain(|p, _| *p != gone && !p.starts_with(&below));
                }
            }
            for (path, file) in layer {
                if !split(path).1.starts_with(b".wh.") {
                    root.insert(path.clone(), file.clone());
                }
            }
        }
        root
    }

    /// Returns a file's content in the merged root as text.
    ///
    /// # Panics
    /// There is no such file.
    #[track_caller]
    pub fn text(&self, path: &str) -> String {
        let root = self.root();
        let file = root.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path} in the image"));
        String::from_utf8_lossy(&file.content).into_owned()
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (&[], path),
    }
}

fn read_dir(root: &Path, dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_dir(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.insert(name, std::fs::read(&path).unwrap_or_default());
        }
    }
}

fn decompress(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let result = match data {
        [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(data).read_to_end(&mut out),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::new(data).and_then(|mut d| d.read_to_end(&mut out)),
        _ => return data.to_vec(),
    };
    result.unwrap_or_else(|e| panic!("layer: {e}"));
    out
}

/// Returns the entries of an uncompressed tar archive by path without leading `./` and trailing `/`.
///
/// # Panics
/// The archive is broken.
pub fn read_layer(tar: &[u8]) -> BTreeMap<Vec<u8>, File> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(Cursor::new(tar)).entries().unwrap_or_else(|e| panic!("{e}")) {
        let mut entry = entry.unwrap_or_else(|e| panic!("layer: {e}"));
        let raw = entry.path_bytes().into_owned();
        let path = raw.strip_prefix(b"./").unwrap_or(&raw);
        let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        let mut xattrs = BTreeMap::new();
        if let Ok(Some(extensions)) = entry.pax_extensions() {
            for extension in extensions.flatten() {
                if let Ok(key) = extension.key()
                    && let Some(name) = key.strip_prefix("SCHILY.xattr.")
                {
                    xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
                }
            }
        }
        let header = entry.header().clone();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap_or_else(|e| panic!("layer: {e}"));
        let file = File {
            kind: header.entry_type().as_byte(),
            mode: header.mode().unwrap_or_default() & 0o7777,
            uid: header.uid().unwrap_or_default(),
            gid: header.gid().unwrap_or_default(),
            mtime: header.mtime().unwrap_or_default(),
            link: entry.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default(),
            content,
            xattrs,
        };
        files.insert(path, file);
    }
    files
}
