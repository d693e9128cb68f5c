//! Sources that come over HTTP: files, and git repositories as plain files of a web server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::env_with_base;

/// Serves the files of a directory, with tags that change with them.
struct FileServer {
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl FileServer {
    fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = format!("http://{}", listener.local_addr().expect("address"));
        let (log, root) = (Arc::new(Mutex::new(Vec::new())), root.to_owned());
        let kept = log.clone();
        // The thread ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, log) = (root.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &root, &log));
            }
        });
        Self { address, log: kept }
    }

    /// Returns the requests since the last call: method and path.
    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().expect("log"))
    }
}

fn serve(stream: TcpStream, root: &Path, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
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
            reader.read_line(&mut header).expect("header");
            match header.trim().split_once(':') {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        log.lock().expect("log").push(format!("{method} {path}"));
        let path = path.split('?').next().unwrap_or("/");
        let answer = match std::fs::read(root.join(path.trim_start_matches('/'))) {
            Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            Ok(body) => {
                let tag = format!("\"{}\"", kiln_stdx::Digest::of(&body).hex());
                let known = headers.get("if-none-match").is_some_and(|tags| tags.contains(&tag));
                let status = if known { "304 Not Modified" } else { "200 OK" };
                let mut head = format!("HTTP/1.1 {status}\r\nETag: {tag}\r\n");
                if !known {
                    head.push_str(&format!("Content-Length: {}\r\n", body.len()));
                }
                let mut answer = format!("{head}\r\n").into_bytes();
                if method == "GET" && !known {
                    answer.extend_from_slice(&body);
                }
                answer
            }
        };
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// Makes a repository with two commits and serves it as `repo.git`; skips where the host has no git.
fn repository(dir: &Path) -> Option<PathBuf> {
    kiln_testkit::program("git")?;
    let (work, web) = (dir.join("work"), dir.join("web"));
    std::fs::create_dir_all(work.join("docs")).expect("mkdir");
    std::fs::create_dir_all(&web).expect("mkdir");
    let git = |dir: &Path, args: &[&str]| {
        let done = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=trunk"])
            .args(args)
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "1000000000 +0000")
            .output()
            .expect("git");
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    git(&work, &["init", "-q"]);
    std::fs::write(work.join("file"), "one").expect("write");
    std::fs::write(work.join("docs/page"), "words").expect("write");
    std::fs::write(work.join("Dockerfile"), "FROM scratch\nCOPY file /copied\n").expect("write");
    std::fs::write(work.join("docs/Dockerfile"), "FROM scratch\nCOPY page /copied\n").expect("write");
    git(&work, &["add", "."]);
    git(&work, &["commit", "-qm", "first"]);
    git(&work, &["tag", "v1"]);
    std::fs::write(work.join("file"), "two").expect("write");
    git(&work, &["commit", "-qam", "second"]);
    git(dir, &["clone", "-q", "--bare", "work", "web/repo.git"]);
    git(&web.join("repo.git"), &["update-server-info"]);
    Some(web)
}

#[test]
fn repositories_are_checked_out_at_what_they_name() {
    let (env, base) = env_with_base!();
    let Some(web) = repository(env.path()) else { kiln_testkit::skip!("no git on this host") };
    let server = FileServer::start(&web);
    let url = format!("{}/repo.git", server.address);
    let text = format!(
        "FROM base\nADD {url} /head\nADD {url}#v1 /tag\nADD {url}#trunk:docs /docs\nADD --keep-git-dir=true {url} /kept\n"
    );
    env.context(&[("Dockerfile", &text)]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!((image.text("head/file"), image.text("tag/file")), ("two".to_owned(), "one".to_owned()));
    assert_eq!(image.text("docs/page"), "words");
    let root = image.root();
    assert!(root.contains_key(b"kept/.git/HEAD".as_slice()), "{:?}", root.keys());
    assert!(!root.contains_key(b"head/.git".as_slice()) && !root.contains_key(b"docs/file".as_slice()));
}

#[test]
fn a_reference_that_is_not_there_is_named() {
    let (env, base) = env_with_base!();
    let Some(web) = repository(env.path()) else { kiln_testkit::skip!("no git on this host") };
    let server = FileServer::start(&web);
    env.context(&[("Dockerfile", &format!("FROM base\nADD {}/repo.git#nowhere /x\n", server.address))]);
    let done = env.build(&["--build-context", &base, "-o", "type=cacheonly"]);
    done.fails_with("repository does not contain ref nowhere");
}

#[test]
fn a_file_that_has_not_changed_is_not_sent_again() {
    let (env, base) = env_with_base!();
    let web = env.path().join("web");
    std::fs::create_dir(&web).expect("mkdir");
    std::fs::write(web.join("data"), "first").expect("write");
    let server = FileServer::start(&web);
    env.context(&[("Dockerfile", &format!("FROM base\nADD {}/data /data\n", server.address))]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("data"), "first");
    assert_eq!(server.take_log(), ["GET /data"]);
    env.build_image(&["--build-context", &base]);
    assert_eq!(server.take_log(), ["HEAD /data"]);
    std::fs::write(web.join("data"), "second").expect("write");
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("data"), "second");
    assert_eq!(server.take_log(), ["HEAD /data", "GET /data"]);
}

#[test]
fn contexts_may_lie_elsewhere() {
    let env = crate::env();
    let Some(web) = repository(env.path()) else { kiln_testkit::skip!("no git on this host") };
    let packed = kiln_testkit::base::tar_of(&env.path().join("work"));
    std::fs::write(web.join("context.tar"), packed).expect("write");
    std::fs::write(web.join("plain"), "FROM scratch\nLABEL from=web\n").expect("write");
    std::fs::write(env.path().join("own.Dockerfile"), "FROM scratch\nCOPY file /renamed\n").expect("write");
    let server = FileServer::start(&web);
    let built = |context: &str, args: &[&str]| {
        let (place, out) = (format!("{}/{context}", server.address), env.out("tree"));
        let output = format!("type=local,dest={}", out.display());
        let all = ["build", "-o", &output].into_iter().chain(args.iter().copied()).chain([place.as_str()]);
        let _ = env.kiln(all).dir(env.path()).finish().ok();
        let names = std::fs::read_dir(&out).map(|dir| dir.flatten().map(|e| e.path()).collect::<Vec<_>>());
        let text = names.unwrap_or_default().first().map(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{name}={}", std::fs::read_to_string(file).expect("read"))
        });
        let _ = std::fs::remove_dir_all(&out);
        text.unwrap_or_default()
    };
    assert_eq!(built("repo.git", &[]), "copied=two");
    assert_eq!(built("repo.git#v1", &[]), "copied=one");
    assert_eq!(built("repo.git#trunk:docs", &[]), "copied=words");
    assert_eq!(built("repo.git?branch=trunk&subdir=docs", &[]), "copied=words");
    assert_eq!(built("repo.git?tag=v1", &["-f", "Dockerfile"]), "copied=one");
    assert_eq!(built("context.tar", &[]), "copied=two");
    assert_eq!(built("context.tar", &["-f", "own.Dockerfile"]), "renamed=two");
    assert_eq!(built("plain", &[]), "");
    let asked = env.kiln(["build", "--call=targets", &format!("{}/repo.git", server.address)]).finish().ok();
    assert_eq!(asked.out(), "TARGET    DESCRIPTION\n(default) \n");
}
