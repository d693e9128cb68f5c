//! A scripted registry: an HTTP/1.1 server on loopback that keeps content in memory and misbehaves on request.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use kiln_oci::{Descriptor, Reference, media};
use kiln_registry::{Anonymous, Credential, Credentials, Registry, RegistryConfig, StaticCredentials};
use kiln_stdx::{Digest, Secret};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, Vec<String>>,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// An answer, perhaps a broken one.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Cut the connection after this many bytes of the body.
    pub cut: Option<usize>,
    /// Cut the connection instead of answering.
    pub reset: bool,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn cut(mut self, at: usize) -> Self {
        self.cut = Some(at);
        self
    }

    pub fn reset() -> Self {
        Self { reset: true, ..Self::default() }
    }
}

type Script = Box<dyn Fn(&Seen, &mut Content) -> Option<Reply> + Send + Sync>;

/// What the registry holds.
#[derive(Default)]
pub struct Content {
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// By `repository:tag-or-digest`.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub uploads: u32,
}

struct Shared {
    script: Script,
    content: Mutex<Content>,
    log: Mutex<Vec<Seen>>,
}

/// A running server; it ends with the test's runtime.
#[derive(Clone)]
pub struct Fake {
    pub host: String,
    shared: Arc<Shared>,
}

impl Fake {
    /// Starts a registry that behaves.
    pub async fn new() -> Self {
        Self::scripted(|_, _| None).await
    }

    /// Starts a registry whose `script` answers first; where it gives none the registry behaves.
    pub async fn scripted(script: impl Fn(&Seen, &mut Content) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared { script: Box::new(script), content: Mutex::default(), log: Mutex::default() });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                tokio::spawn(async move { serve(stream, &shared).await });
            }
        });
        Self { host, shared }
    }

    /// Adds a blob and returns its descriptor.
    pub fn add_blob(&self, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media::OCI_LAYER_GZIP, bytes);
        self.shared.content.lock().blobs.insert(descriptor.digest.to_string(), bytes.to_vec());
        descriptor
    }

    /// Adds a manifest under `repository:tag` and returns its descriptor.
    pub fn add_manifest(&self, repository: &str, tag: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media::OCI_MANIFEST, bytes);
        put_manifest(&mut self.shared.content.lock(), repository, tag, media::OCI_MANIFEST, bytes);
        descriptor
    }

    pub fn content<T>(&self, look: impl FnOnce(&mut Content) -> T) -> T {
        look(&mut self.shared.content.lock())
    }

    /// Returns all requests so far.
    pub fn log(&self) -> Vec<Seen> {
        self.shared.log.lock().clone()
    }

    /// Returns method and path of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.log().iter().map(Seen::line).collect()
    }

    pub fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.host)).unwrap()
    }
}

fn put_manifest(content: &mut Content, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
    for name in [tag.to_owned(), Digest::of(bytes).to_string()] {
        content.manifests.insert(format!("{repository}:{name}"), (media_type.to_owned(), bytes.to_vec()));
    }
}

/// A client that does not wait between attempts, and the waits it was asked for.
pub fn client() -> (Registry, Arc<Mutex<Vec<Duration>>>) {
    client_with(RegistryConfig::default())
}

pub fn client_with(mut config: RegistryConfig) -> (Registry, Arc<Mutex<Vec<Duration>>>) {
    let waits = Arc::new(Mutex::new(Vec::new()));
    let noted = waits.clone();
    config.pause = Arc::new(move |wait| {
        noted.lock().push(wait);
        futures::future::ready(()).boxed()
    });
    (Registry::new(config), waits)
}

pub fn anonymous() -> Credentials {
    Arc::new(Anonymous)
}

pub fn login(host: &str, username: &str, secret: &str) -> Credentials {
    let credential = Credential { username: username.to_owned(), secret: Secret::new(secret) };
    Arc::new(StaticCredentials(BTreeMap::from([(host.to_owned(), credential)])))
}

/// A script helper: true for the first `n` calls.
pub fn first(n: u64) -> impl Fn() -> bool {
    let count = AtomicU64::new(0);
    move || count.fetch_add(1, Ordering::SeqCst) < n
}

async fn serve(stream: TcpStream, shared: &Shared) {
    let mut stream = BufReader::new(stream);
    while let Some(seen) = read_request(&mut stream).await {
        shared.log.lock().push(seen.clone());
        let reply = {
            let mut content = shared.content.lock();
            (shared.script)(&seen, &mut content).unwrap_or_else(|| behave(&seen, &mut content))
        };
        if reply.reset || !write_reply(&mut stream, &seen, &reply).await {
            return;
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let url = url::Url::parse(&format!("http://x{target}")).ok()?;
    let mut query = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in url.query_pairs() {
        query.entry(name.into_owned()).or_default().push(value.into_owned());
    }
    Some(Seen { method, path: url.path().to_owned(), query, headers, body })
}

/// Writes the answer; tells whether the connection still lives.
async fn write_reply(stream: &mut BufReader<TcpStream>, seen: &Seen, reply: &Reply) -> bool {
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    // An empty value leaves the header out: without a length the body ends with the connection.
    for (name, value) in reply.headers.iter().filter(|(_, value)| !value.is_empty()) {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    head += "\r\n";
    let mut bytes = head.into_bytes();
    if seen.method != "HEAD" {
        bytes.extend_from_slice(&reply.body[..reply.cut.unwrap_or(reply.body.len())]);
    }
    stream.write_all(&bytes).await.is_ok() && stream.flush().await.is_ok() && reply.cut.is_none()
}

/// The distribution protocol, as far as the client uses it.
fn behave(seen: &Seen, content: &mut Content) -> Reply {
    let Some(path) = seen.path.strip_prefix("/v2/") else { return Reply::new(404) };
    if let Some((repository, name)) = path.split_once("/manifests/") {
        return manifests(seen, content, repository, name);
    }
    let Some((repository, name)) = path.split_once("/blobs/") else { return Reply::new(404) };
    let Some(upload) = name.strip_prefix("uploads/") else { return blob(seen, content, name) };
    match seen.method.as_str() {
        "POST" => {
            if let Some(mount) = seen.query.get("mount")
                && content.blobs.contains_key(&mount[0])
            {
                return Reply::new(201);
            }
            content.uploads += 1;
            Reply::new(202).with("Location", format!("/v2/{repository}/blobs/uploads/{}?state=a%2Bb", content.uploads))
        }
        "PUT" if upload.parse().is_ok_and(|n: u32| n <= content.uploads) => {
            let digest = &seen.query["digest"][0];
            if Digest::of(&seen.body).to_string() != *digest || seen.query["state"] != ["a+b"] {
                return Reply::new(400).body(r#"{"errors":[{"code":"DIGEST_INVALID","message":"bad"}]}"#);
            }
            content.blobs.insert(digest.clone(), seen.body.clone());
            Reply::new(201)
        }
        _ => Reply::new(404),
    }
}

fn manifests(seen: &Seen, content: &mut Content, repository: &str, name: &str) -> Reply {
    if seen.method == "PUT" {
        put_manifest(content, repository, name, seen.header("content-type"), &seen.body);
        return Reply::new(201).with("Docker-Content-Digest", Digest::of(&seen.body));
    }
    match content.manifests.get(&format!("{repository}:{name}")) {
        None => Reply::new(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
        Some((media_type, bytes)) => Reply::new(200)
            .with("Content-Type", media_type)
            .with("Docker-Content-Digest", Digest::of(bytes))
            .body(bytes.clone()),
    }
}

fn blob(seen: &Seen, content: &Content, digest: &str) -> Reply {
    let Some(bytes) = content.blobs.get(digest) else { return Reply::new(404) };
    let start = seen.header("range").strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse::<usize>().ok());
    match start {
        None => Reply::new(200).body(bytes.clone()),
        Some(start) => Reply::new(206)
            .with("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(bytes[start..].to_vec()),
    }
}

/// Says why a test checks nothing on this host.
#[expect(clippy::print_stderr, reason = "a skip is reported to whoever runs the tests")]
pub fn skip(why: &str) {
    eprintln!("skip: {why}");
}
