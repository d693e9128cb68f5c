//! Directories from lines: `file PATH MODE TEXT`, `dir PATH MODE`, `link PATH TARGET`, `hard PATH OTHER`,
//! `fifo PATH`, `tar PATH NAME=TEXT …`.
//!
//! In a text `\n` is a line feed and `\s` a blank. Everything is dated [`MTIME`].

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// 2011-02-03T04:05:06Z.
pub const MTIME: u64 = 1_296_705_906;

fn text(written: &str) -> String {
    written.replace("\\n", "\n").replace("\\s", " ").replace("\\t", "\t").replace("\\r", "\r")
}

/// Fills a directory.
pub fn fill(dir: &Path, lines: &str) {
    fs::create_dir_all(dir).expect("mkdir");
    let mut dirs = Vec::new();
    for line in lines.lines().filter(|l| !l.is_empty()) {
        let mut words = line.splitn(3, ' ');
        let (kind, name, rest) = (words.next().unwrap(), words.next().unwrap_or(""), words.next().unwrap_or(""));
        let name = text(name);
        let path = dir.join(name.trim_end_matches('/'));
        for parent in path.ancestors().skip(1).take_while(|p| p.starts_with(dir)) {
            fs::create_dir_all(parent).expect("mkdir");
            dirs.push(parent.to_owned());
        }
        let (mode, body) = rest.split_once(' ').unwrap_or((rest, ""));
        match kind {
            "file" => {
                fs::write(&path, text(body)).expect("write");
                set_mode(&path, mode);
            }
            "dir" => {
                fs::create_dir_all(&path).expect("mkdir");
                set_mode(&path, mode);
                dirs.push(path.clone());
            }
            "link" => std::os::unix::fs::symlink(text(rest), &path).expect("symlink"),
            "hard" => fs::hard_link(dir.join(text(rest)), &path).expect("link"),
            "fifo" => {
                let mode = rustix::fs::Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("fifo");
            }
            "tar" => fs::write(&path, archive(&name, rest)).expect("write"),
            other => panic!("{other}: no such entry"),
        }
        touch(&path);
    }
    // From below, since making entries changes the directory's time.
    dirs.sort();
    for dir in dirs.iter().rev() {
        touch(dir);
    }
}

fn set_mode(path: &Path, mode: &str) {
    let mode = u32::from_str_radix(mode, 8).unwrap_or_else(|e| panic!("mode {mode}: {e}"));
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn touch(path: &Path) {
    let stamp = rustix::fs::Timespec { tv_sec: i64::try_from(MTIME).unwrap(), tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
    let path = CString::new(path.to_str().unwrap()).unwrap();
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimes");
}

/// Returns an archive of `NAME=TEXT` words, compressed as its name says. `NAME/` is a directory, `NAME>TARGET` a link.
fn archive(name: &str, entries: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries.split(' ').filter(|e| !e.is_empty()) {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o640);
        let result = if let Some((path, target)) = entry.split_once('>') {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, path, target)
        } else if entry.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o750);
            header.set_size(0);
            tar.append_data(&mut header, entry, std::io::empty())
        } else {
            let (path, body) = entry.split_once('=').unwrap_or((entry, ""));
            // `NAME@UID=TEXT` has an owner.
            let (path, owner) = path.split_once('@').unwrap_or((path, "0"));
            header.set_uid(owner.parse().unwrap());
            header.set_gid(owner.parse().unwrap());
            let body = text(body);
            header.set_size(body.len() as u64);
            tar.append_data(&mut header, path, body.as_bytes())
        };
        result.expect("tar");
    }
    let plain = tar.into_inner().expect("tar");
    if name.ends_with(".gz") || name.ends_with(".tgz") {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).expect("gzip");
        return gzip.finish().expect("gzip");
    }
    if name.ends_with(".zst") {
        return zstd::encode_all(&plain[..], 1).expect("zstd");
    }
    plain
}

/// Adds what cases fetch by HTTP to the web server's directory.
pub fn web_files(web: &Path) {
    fill(
        web,
        "file hello.txt 0644 hello\\n\nfile dir/page.html 0644 <p>\ntar pack.tar.gz inner/ inner/a=one b=two\ntar plain.tar x=1\n",
    );
}
