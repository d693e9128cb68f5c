//! What mutations begin with: the Dockerfiles of all case files.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::random::{Random, mutate_bytes, mutate_lines};

/// Folders with case files, below the crate.
const FOLDERS: [&str; 2] = ["tests/cases", "../cli/tests/differential/cases"];

fn case_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            case_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "case") {
            out.push(path);
        }
    }
}

/// Returns the sections of all case files whose name begins with `kind`, in a fixed order.
pub fn sections(kind: &str) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        case_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    }
    files.sort();
    let mut out = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for section in text.split("==== ").filter(|s| s.starts_with(kind)) {
            out.push(section.split_once('\n').map_or("", |(_, body)| body).as_bytes().to_vec());
        }
    }
    out
}

/// Returns the Dockerfiles, read once.
pub fn dockerfiles() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let found = sections("Dockerfile");
        assert!(found.len() > 50, "only {} Dockerfiles in the case files", found.len());
        found
    })
}

/// Returns a Dockerfile that is not quite one of the case files'.
pub fn mutated(random: &mut Random) -> Vec<u8> {
    let files = dockerfiles();
    let base = &files[random.below(files.len())];
    let other = &files[random.below(files.len())];
    let mut data = base.clone();
    if !random.chance(4) {
        data = mutate_lines(random, &data, other);
    }
    if random.chance(2) {
        data = mutate_bytes(random, &data);
    }
    data
}
