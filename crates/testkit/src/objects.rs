//! Object stores on loopback: a plain HTTP server, S3, Azure's blobs, the cache service of GitHub Actions. They keep
//! objects in memory, check signatures and tokens, count requests, and misbehave on request.

mod azure;
mod gha;
mod keyed;
mod s3;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::registry::{Answer, Asked, End, FakeRegistry};

/// What a server speaks, and what it lets in.
#[derive(Debug, Clone)]
pub enum Protocol {
    /// GET, HEAD and PUT of paths, with this bearer token if any.
    Http { token: Option<String> },
    /// S3 by path style, one bucket, one key.
    S3 { bucket: String, region: String, id: String, secret: String },
    /// Azure's blobs below `/ACCOUNT`, with the account's key in base64.
    Azure { account: String, key: String },
    /// The cache service, version 2, with this token.
    Gha { token: String },
}

/// What a server holds.
#[derive(Debug, Default)]
pub struct Objects {
    /// By name: a path without the slash before it, a key of the bucket, `container/blob`, or a cache key.
    pub kept: BTreeMap<String, Vec<u8>>,
    /// Names of what was written long ago.
    pub old: BTreeSet<String>,
    /// Parts of uploads that are not complete, by upload and number.
    parts: BTreeMap<(String, String), Vec<u8>>,
    /// Containers, or entries that are being written.
    open: BTreeSet<String>,
    uploads: u32,
}

impl Objects {
    /// Forgets entries of the cache service that were begun and not finished, as that does after a while.
    pub fn expire(&mut self) {
        self.open.clear();
    }
}

type Fault = Box<dyn Fn(&Asked, &Objects) -> Option<Answer> + Send + Sync>;
type Chosen = Box<dyn Fn(&Asked) -> bool + Send + Sync>;

/// A running server. Its threads end with the process.
pub struct ObjectServer {
    /// `http://127.0.0.1:PORT`
    pub address: String,
    inner: FakeRegistry,
    objects: Arc<Mutex<Objects>>,
    fault: Arc<Mutex<Option<Fault>>>,
    lost: Arc<Mutex<Option<Chosen>>>,
}

impl ObjectServer {
    /// Starts a server that behaves.
    ///
    /// # Panics
    /// No port of loopback is free.
    pub fn start(protocol: Protocol) -> Self {
        let objects: Arc<Mutex<Objects>> = Arc::default();
        let fault: Arc<Mutex<Option<Fault>>> = Arc::default();
        let lost: Arc<Mutex<Option<Chosen>>> = Arc::default();
        let (kept, broken, unheard) = (objects.clone(), fault.clone(), lost.clone());
        let inner = FakeRegistry::scripted(move |asked, _| {
            let mut objects = lock(&kept);
            if let Some(answer) = lock(&broken).as_ref().and_then(|fault| fault(asked, &objects)) {
                return Some(answer);
            }
            let answer = match &protocol {
                Protocol::Http { token } => plain(asked, &mut objects, token.as_deref()),
                Protocol::S3 { .. } => s3::answer(asked, &mut objects, &protocol),
                Protocol::Azure { account, key } => azure::answer(asked, &mut objects, account, key),
                Protocol::Gha { token } => gha::answer(asked, &mut objects, token),
            };
            let is_lost = lock(&unheard).as_ref().is_some_and(|chosen| chosen(asked));
            Some(if is_lost { answer.ending(End::Reset) } else { answer })
        });
        Self { address: format!("http://{}", inner.host), inner, objects, fault, lost }
    }

    /// Returns what it holds, to look at or to change.
    pub fn objects(&self) -> MutexGuard<'_, Objects> {
        lock(&self.objects)
    }

    /// Lets `fault` answer first from now on; where it gives no answer the server behaves.
    pub fn misbehave(&self, fault: impl Fn(&Asked, &Objects) -> Option<Answer> + Send + Sync + 'static) {
        *lock(&self.fault) = Some(Box::new(fault));
    }

    /// Loses the answers to the requests of `chosen` from now on; what they ask for is done.
    pub fn lose(&self, chosen: impl Fn(&Asked) -> bool + Send + Sync + 'static) {
        *lock(&self.lost) = Some(Box::new(chosen));
    }

    /// Returns all requests since the last call.
    pub fn take_log(&self) -> Vec<Asked> {
        self.inner.take_log()
    }
}

/// Returns a token of the cache service with these scopes and what they allow.
pub fn gha_token(scopes: &[(&str, u32)]) -> String {
    gha::token(scopes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn plain(asked: &Asked, objects: &mut Objects, token: Option<&str>) -> Answer {
    if let Some(token) = token
        && asked.header("authorization") != format!("Bearer {token}")
    {
        return Answer::new(401);
    }
    let name = unescape(asked.path.trim_start_matches('/'));
    match asked.method.as_str() {
        "PUT" => {
            objects.kept.insert(name, asked.body.clone());
            Answer::new(201)
        }
        "GET" | "HEAD" => read(asked, objects, &name).unwrap_or_else(|| Answer::new(404)),
        _ => Answer::new(405),
    }
}

/// Answers with an object, or the range of it that was asked for.
fn read(asked: &Asked, objects: &Objects, name: &str) -> Option<Answer> {
    let bytes = objects.kept.get(name)?;
    let then = if objects.old.contains(name) { 1_234_567_890 } else { now() };
    let start = asked.header("range").strip_prefix("bytes=").and_then(|r| r.split('-').next()?.parse::<usize>().ok());
    let answer = match start.filter(|start| *start < bytes.len()) {
        None => Answer::new(200).body(bytes.clone()),
        Some(start) => Answer::new(206)
            .with("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
            .body(bytes[start..].to_vec()),
    };
    Some(answer.with("Last-Modified", date(then)).with("ETag", "\"t\""))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Writes a time as HTTP does.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400;
    let week = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][usize::try_from(days % 7).unwrap_or(0)];
    let (mut year, mut rest) = (1970, days);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let months = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut month = 0;
    while rest >= months[month] {
        rest -= months[month];
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{week}, {:02} {} {year} {hour:02}:{minute:02}:{second:02} GMT", rest + 1, names[month])
}

/// Undoes escapes of addresses.
fn unescape(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        let code = more.get(..2).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        match code.filter(|_| *first == b'%') {
            Some(byte) => {
                out.push(byte);
                rest = &more[2..];
            }
            None => {
                out.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Returns a parameter of the query, escapes undone.
fn parameter(asked: &Asked, name: &str) -> Option<String> {
    let pairs = asked.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(n, _)| *n == name).map(|(_, value)| unescape(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(1_234_567_890), crate::file_server::LAST_MODIFIED);
        assert_eq!(date(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(unescape("a%2Fb%3A%"), "a/b:%");
    }
}
