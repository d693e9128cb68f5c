//! A scripted registry on loopback: it keeps content in memory, notes every request, and misbehaves on request.
//!
//! Threads and blocking sockets, so that tests of whole programs need no runtime.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_oci::{Descriptor, Manifest, media};
use kiln_stdx::Digest;

/// How long a server that drips waits before each byte.
const DRIP: Duration = Duration::from_millis(20);

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// Path without the query.
    pub path: String,
    pub query: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    /// Returns a header; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Returns a parameter of the query, escapes of `/`, `:` and `,` undone.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(n, _)| *n == name)?.1;
        Some(value.replace("%2F", "/").replace("%3A", ":").replace("%2C", ","))
    }

    /// Returns `METHOD path`.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// An answer, perhaps a broken one.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What happens after the body, or instead of all of it.
    pub end: End,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum End {
    /// Well.
    #[default]
    Whole,
    /// The connection is cut after this many bytes of the body.
    Cut(usize),
    /// After this many bytes of the body nothing more comes, and the connection stays open.
    Stall(usize),
    /// After this many bytes of the body the others come one at a time, with pauses, for as long as the client listens.
    Drip(usize),
    /// The connection is cut without an answer.
    Reset,
    /// No answer comes, and the connection stays open.
    Silent,
}

impl Answer {
    /// Returns an answer without a body.
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets how it ends.
    #[must_use]
    pub fn ending(mut self, end: End) -> Self {
        self.end = end;
        self
    }
}

/// What the registry holds.
#[derive(Debug, Default)]
pub struct Holdings {
    /// By repository and digest.
    pub blobs: BTreeMap<(String, String), Vec<u8>>,
    /// Media type and bytes, by repository and tag or digest.
    pub manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
    uploads: u32,
}

type Script = Box<dyn Fn(&Asked, &mut Holdings) -> Option<Answer> + Send + Sync>;

struct Shared {
    script: Script,
    holdings: Mutex<Holdings>,
    log: Mutex<Vec<Asked>>,
}

/// A running server. Its threads end with the process.
#[derive(Clone)]
pub struct FakeRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    shared: Arc<Shared>,
}

impl FakeRegistry {
    /// Starts a registry that behaves.
    pub fn start() -> Self {
        Self::scripted(|_, _| None)
    }

    /// Starts a registry whose `script` answers first; where it gives none the registry behaves.
    ///
    /// # Panics
    /// No port of loopback is free.
    pub fn scripted(script: impl Fn(&Asked, &mut Holdings) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("{e}"));
        let host = listener.local_addr().map(|a| a.to_string()).unwrap_or_else(|e| panic!("{e}"));
        let shared = Arc::new(Shared { script: Box::new(script), holdings: Mutex::default(), log: Mutex::default() });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Self { host, shared }
    }

    /// Returns what it holds, to look at or to change.
    pub fn holdings(&self) -> MutexGuard<'_, Holdings> {
        lock(&self.shared.holdings)
    }

    /// Returns all requests since the last call.
    pub fn take_log(&self) -> Vec<Asked> {
        std::mem::take(&mut *lock(&self.shared.log))
    }

    /// Returns `METHOD path` of all requests since the last call.
    pub fn take_lines(&self) -> Vec<String> {
        self.take_log().iter().map(Asked::line).collect()
    }

    /// Puts an image of these compressed layers under `repository:tag`; `config` is the image's config document.
    ///
    /// # Panics
    /// Never for a config that is JSON.
    pub fn put_image(&self, repository: &str, tag: &str, config: &[u8], layers: &[Vec<u8>]) -> Descriptor {
        let mut holdings = self.holdings();
        let mut put = |media_type: &str, bytes: &[u8]| {
            let descriptor = Descriptor::of(media_type, bytes);
            holdings.blobs.insert((repository.to_owned(), descriptor.digest.to_string()), bytes.to_vec());
            descriptor
        };
        let layers = layers.iter().map(|layer| put(media::OCI_LAYER_GZIP, layer)).collect();
        let manifest = Manifest::new(media::OCI_MANIFEST, put(media::OCI_CONFIG, config), layers);
        let bytes = manifest.to_manifest_json().unwrap_or_else(|e| panic!("{e}"));
        holdings.put_manifest(repository, tag, media::OCI_MANIFEST, &bytes);
        Descriptor::of(media::OCI_MANIFEST, &bytes)
    }
}

impl Holdings {
    /// Puts a manifest under a tag or digest, and under its own digest.
    pub fn put_manifest(&mut self, repository: &str, name: &str, media_type: &str, bytes: &[u8]) {
        for name in [name.to_owned(), Digest::of(bytes).to_string()] {
            self.manifests.insert((repository.to_owned(), name), (media_type.to_owned(), bytes.to_vec()));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: &TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read_request(&mut reader) {
        lock(&shared.log).push(asked.clone());
        let answer = {
            let mut holdings = lock(&shared.holdings);
            (shared.script)(&asked, &mut holdings).unwrap_or_else(|| behave(&asked, &mut holdings))
        };
        if answer.end == End::Silent {
            let _ = reader.read(&mut [0; 1]);
            return;
        }
        if answer.end == End::Reset || !write_answer(stream, &asked, &answer) {
            return;
        }
        if let End::Drip(from) = answer.end {
            for byte in answer.body.iter().skip(from) {
                std::thread::sleep(DRIP);
                if (&mut &*stream).write_all(&[*byte]).is_err() {
                    return;
                }
            }
        }
        if let End::Stall(_) = answer.end {
            // Until the client has had enough of waiting.
            let _ = reader.read(&mut [0; 1]);
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Asked { method, path: path.to_owned(), query: query.to_owned(), headers, body })
}

/// Writes the answer; tells whether the connection still lives.
fn write_answer(mut stream: &TcpStream, asked: &Asked, answer: &Answer) -> bool {
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !answer.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
        head += &format!("content-length: {}\r\n", answer.body.len());
    }
    let mut bytes = (head + "\r\n").into_bytes();
    let shown = match answer.end {
        End::Cut(n) | End::Stall(n) | End::Drip(n) => n.min(answer.body.len()),
        _ => answer.body.len(),
    };
    if asked.method != "HEAD" {
        bytes.extend_from_slice(&answer.body[..shown]);
    }
    stream.write_all(&bytes).is_ok() && stream.flush().is_ok() && !matches!(answer.end, End::Cut(_))
}

/// The distribution protocol, as far as clients under test use it.
fn behave(asked: &Asked, holdings: &mut Holdings) -> Answer {
    let Some(path) = asked.path.strip_prefix("/v2/") else { return Answer::new(404) };
    if path.is_empty() {
        return Answer::new(200).body("{}");
    }
    if let Some((repository, name)) = path.split_once("/manifests/") {
        return manifest(asked, holdings, repository, name);
    }
    let Some((repository, name)) = path.split_once("/blobs/") else { return Answer::new(404) };
    match name.strip_prefix("uploads/") {
        Some(id) => upload(asked, holdings, repository, id),
        None => blob(asked, holdings, repository, name),
    }
}

fn manifest(asked: &Asked, holdings: &mut Holdings, repository: &str, name: &str) -> Answer {
    if asked.method == "PUT" {
        holdings.put_manifest(repository, name, asked.header("content-type"), &asked.body);
        return Answer::new(201).with("Docker-Content-Digest", Digest::of(&asked.body));
    }
    match holdings.manifests.get(&(repository.to_owned(), name.to_owned())) {
        None => Answer::new(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
        Some((media_type, bytes)) => Answer::new(200)
            .with("Content-Type", media_type)
            .with("Docker-Content-Digest", Digest::of(bytes))
            .body(bytes.clone()),
    }
}

fn blob(asked: &Asked, holdings: &Holdings, repository: &str, digest: &str) -> Answer {
    let Some(bytes) = holdings.blobs.get(&(repository.to_owned(), digest.to_owned())) else {
        return Answer::new(404).body(r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#);
    };
    let range = asked.header("range").strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse::<usize>().ok());
    match range.filter(|start| *start < bytes.len()) {
        None => Answer::new(200).body(bytes.clone()),
        Some(start) => Answer::new(206)
            .with("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(bytes[start..].to_vec()),
    }
}

fn upload(asked: &Asked, holdings: &mut Holdings, repository: &str, id: &str) -> Answer {
    match asked.method.as_str() {
        "POST" => {
            if let (Some(digest), Some(from)) = (asked.parameter("mount"), asked.parameter("from"))
                && let Some(bytes) = holdings.blobs.get(&(from, digest.clone())).cloned()
            {
                holdings.blobs.insert((repository.to_owned(), digest), bytes);
                return Answer::new(201);
            }
            holdings.uploads += 1;
            Answer::new(202).with("Location", format!("/v2/{repository}/blobs/uploads/{}", holdings.uploads))
        }
        "PUT" if id.parse().is_ok_and(|n: u32| n <= holdings.uploads) => {
            let digest = asked.parameter("digest").unwrap_or_default();
            if Digest::of(&asked.body).to_string() != digest {
                return Answer::new(400).body(r#"{"errors":[{"code":"DIGEST_INVALID","message":"bad"}]}"#);
            }
            holdings.blobs.insert((repository.to_owned(), digest), asked.body.clone());
            Answer::new(201)
        }
        _ => Answer::new(404),
    }
}

/// Returns `data` compressed as layers are.
///
/// # Panics
/// Never: memory takes everything.
pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).and_then(|()| encoder.finish()).unwrap_or_else(|e| panic!("{e}"))
}

impl FakeRegistry {
    /// Puts a busybox image of two layers under `repository:tag` and returns the digests of its layers; none when the host
    /// has no busybox. The second layer is a megabyte of noise at `/noise`.
    ///
    /// # Panics
    /// The temporary directory cannot be written.
    pub fn put_busybox(&self, repository: &str, tag: &str) -> Option<Vec<Digest>> {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        if !crate::busybox_root(dir.path()) {
            return None;
        }
        let base = crate::base::tar_of(dir.path());
        let mut seed = 7u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(1 << 20)
        .collect();
        let mut second = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(noise.len() as u64);
        header.set_mode(0o644);
        let appended = second.append_data(&mut header, "noise", noise.as_slice());
        let second = appended.and_then(|()| second.into_inner()).unwrap_or_else(|e| panic!("{e}"));
        let platform = kiln_oci::Platform::host();
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
            platform.architecture,
            Digest::of(&base),
            Digest::of(&second)
        );
        let layers = [gzip(&base), gzip(&second)];
        self.put_image(repository, tag, config.as_bytes(), &layers);
        Some(layers.iter().map(Digest::of).collect())
    }
}
