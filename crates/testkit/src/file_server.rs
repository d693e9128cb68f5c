//! A web server of a directory's files, and a git repository that it can serve.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

/// When everything it serves was last changed, as HTTP says it: 2009-02-13T23:31:30Z.
pub const LAST_MODIFIED: &str = "Fri, 13 Feb 2009 23:31:30 GMT";

/// Serves the files of a directory, with tags that change with them.
#[derive(Debug)]
pub struct FileServer {
    /// `http://127.0.0.1:<port>`
    pub address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl FileServer {
    /// Serves the files below `root` until the process ends.
    ///
    /// # Panics
    /// No port can be had.
    pub fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("bind: {e}"));
        let address = listener.local_addr().unwrap_or_else(|e| panic!("address: {e}"));
        let (log, root) = (Arc::new(Mutex::new(Vec::new())), root.to_owned());
        let kept = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, log) = (root.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &root, &log));
            }
        });
        Self { address: format!("http://{address}"), log: kept }
    }

    /// Returns the requests since the last call: method and path.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve(stream: TcpStream, root: &Path, log: &Mutex<Vec<String>>) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut reader = BufReader::new(reading);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).is_err() {
                return;
            }
            match header.trim().split_once(':') {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        log.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {path}"));
        if stream.write_all(&answer(root, method, path, &headers)).is_err() {
            return;
        }
    }
}

fn answer(root: &Path, method: &str, path: &str, headers: &BTreeMap<String, String>) -> Vec<u8> {
    let path = path.split('?').next().unwrap_or("/");
    let Ok(body) = std::fs::read(root.join(path.trim_start_matches('/'))) else {
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
    };
    let tag = format!("\"{}\"", kiln_stdx::Digest::of(&body).hex());
    let known = headers.get("if-none-match").is_some_and(|tags| tags.contains(&tag));
    let status = if known { "304 Not Modified" } else { "200 OK" };
    let mut head = format!("HTTP/1.1 {status}\r\nETag: {tag}\r\nLast-Modified: {LAST_MODIFIED}\r\n");
    if !known {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut answer = format!("{head}\r\n").into_bytes();
    if method == "GET" && !known {
        answer.extend_from_slice(&body);
    }
    answer
}

/// Makes a repository of two commits below `dir`, the first tagged `v1`, and a bare copy `web/repo.git` that a
/// [`FileServer`] of `web` can serve. Returns `web`, or none where the host has no git.
///
/// # Panics
/// git fails.
pub fn git_repository(dir: &Path) -> Option<PathBuf> {
    crate::program("git")?;
    let (work, web) = (dir.join("work"), dir.join("web"));
    std::fs::create_dir_all(&web).unwrap_or_else(|e| panic!("{}: {e}", web.display()));
    let git = |dir: &Path, args: &[&str]| {
        let done = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=trunk"])
            .args(args)
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "1000000000 +0000")
            .env("GIT_AUTHOR_DATE", "1000000000 +0000")
            .output()
            .unwrap_or_else(|e| panic!("git: {e}"));
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let files = [
        ("file", "one"),
        ("docs/page", "words"),
        ("Dockerfile", "FROM scratch\nCOPY file /copied\n"),
        ("docs/Dockerfile", "FROM scratch\nCOPY page /copied\n"),
    ];
    crate::write_tree(&work, &files);
    git(&work, &["init", "-q"]);
    git(&work, &["add", "."]);
    git(&work, &["commit", "-qm", "first"]);
    git(&work, &["tag", "v1"]);
    crate::write_tree(&work, &[("file", "two")]);
    git(&work, &["commit", "-qam", "second"]);
    git(dir, &["clone", "-q", "--bare", "work", "web/repo.git"]);
    git(&web.join("repo.git"), &["update-server-info"]);
    Some(web)
}
