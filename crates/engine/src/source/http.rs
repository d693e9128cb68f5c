//! Files from the web: requests with the client's credentials, and what earlier answers were, so that a server is
//! asked whether a file changed before it is asked for the file.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kiln_llb::attr;
use kiln_llb::op::SourceOp;
use kiln_session::Session;
use kiln_stdx::{Digest, ErrorClass, Secret, StableHasher};
use kiln_store::Table;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_ENCODING, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_NONE_MATCH, LAST_MODIFIED, USER_AGENT,
};
use reqwest::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::file_attrs::{FileAttrs, safe};
use super::http_date::http_date;
use super::offline::missing;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::session;

/// What servers are told. Some know builders by the name of the one that this takes the place of.
const AGENT: &str = concat!("kiln/", env!("CARGO_PKG_VERSION"), " (as buildkit/v0)");

/// Longest wait for a connection, and for the next byte.
const STALL: Duration = Duration::from_secs(60);
/// Answers that are remembered of one address.
const ANSWERS: usize = 4;
/// Secrets with credentials for any address of a host.
const HOST_HEADER: &str = "HTTP_AUTH_HEADER_";
const HOST_TOKEN: &str = "HTTP_AUTH_TOKEN_";

/// A file of the web, as a source names it.
#[derive(Debug, Clone, Default)]
pub struct HttpSource {
    pub url: String,
    /// The file in the result; its name is by the server or the address when absent.
    pub file: FileAttrs,
    pub checksum: Option<Digest>,
    /// The secret whose value is the `Authorization` header.
    pub auth_secret: Option<String>,
    /// `accept` and `user-agent`, by name.
    pub headers: Vec<(String, String)>,
}

/// A file that a server has, or had. What is remembered of it has the server's name for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Of the content as it is in the store.
    pub digest: Digest,
    pub filename: String,
    /// As the server said it, when it can be understood; seconds since 1970.
    pub last_modified: Option<i64>,
    #[serde(default)]
    etag: Option<String>,
}

impl HttpSource {
    /// Reads identifier and attributes.
    ///
    /// # Errors
    /// A malformed attribute, or one that asks for what this engine cannot check.
    pub fn new(op: &SourceOp) -> Result<Self, EngineError> {
        let bad = |key: &str| EngineError::user(format!("{}: bad value for {key}", op.identifier));
        if op.attr(attr::HTTP_SIG_PUBKEY).is_some() || op.attr(attr::HTTP_SIG_SIGNATURE).is_some() {
            // Building without the check that was asked for would be worse than not building.
            return Err(EngineError::user("signatures of downloads cannot be checked by this engine"));
        }
        let headers = op.attrs.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(attr::HTTP_HEADER_PREFIX)?.to_lowercase();
            matches!(name.as_str(), "accept" | "user-agent").then(|| (name, value.clone()))
        });
        let checksum = op.attr(attr::HTTP_CHECKSUM).map(|v| v.parse().map_err(|_| bad(attr::HTTP_CHECKSUM)));
        Ok(Self {
            url: op.identifier.clone(),
            file: FileAttrs::new(op)?,
            checksum: checksum.transpose()?,
            auth_secret: op.attr(attr::HTTP_AUTH_HEADER_SECRET).map(str::to_owned),
            headers: headers.collect(),
        })
    }

    /// Returns the host, as secrets name it.
    pub fn host(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        authority.rsplit('@').next().unwrap_or(authority)
    }

    /// Returns the file's name when only the address is known.
    pub fn plain_name(&self) -> String {
        file_name(self.file.name.as_deref(), None, &self.url)
    }

    /// Names the file within one build.
    pub fn key(&self) -> Digest {
        StableHasher::new("kiln.http.file.v1")
            .digest("answer", &self.memory_key(None))
            .str("name", self.file.name.as_deref().unwrap_or_default())
            .finish()
    }

    /// Names what answers are remembered for. Answers to other credentials are not for this request.
    fn memory_key(&self, login: Option<&Secret>) -> Digest {
        StableHasher::new("kiln.http.v2")
            .str("url", &self.url)
            .str("login", &login.map(|l| Digest::of(l.expose()).to_string()).unwrap_or_default())
            .strs("headers", self.headers.iter().map(|(name, value)| format!("{name}: {value}")))
            .finish()
    }
}

/// Brings the file into the store, unless the server says that it is what the store has.
///
/// # Errors
/// The server cannot be reached or refuses, or the file is not the one that the checksum names.
pub async fn fetch(
    parts: &Parts,
    sessions: &[Arc<Session>],
    source: &HttpSource,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Fetched, EngineError> {
    let login = login(sessions, source).await?;
    let memory = parts.store.meta().table("http");
    let key = source.memory_key(login.as_ref());
    let mut request = Request::new(source, login.as_ref())?;
    let known = remembered(&memory, &key, parts);
    let tagged: Vec<Fetched> = known.iter().filter(|a| a.etag.is_some()).cloned().collect();
    if let Some(found) = request.unchanged(&tagged).await {
        remember(&memory, &key, known, &found);
        return source.presented(found);
    }
    let response = request.send(Method::GET, &tagged).await?;
    if response.status() == StatusCode::NOT_MODIFIED {
        let found = matching(&tagged, &response).ok_or_else(|| {
            EngineError::new(
                ErrorClass::Remote,
                format!("{}: the server says that an unknown file is unchanged", source.url),
            )
        })?;
        remember(&memory, &key, known, &found);
        return source.presented(found);
    }
    if !response.status().is_success() {
        let code = response.status().as_u16();
        return Err(EngineError::user(format!("invalid response status {code} for {}", source.url)));
    }
    let mut fetched = Fetched {
        digest: Digest::of(""),
        filename: file_name(None, Some(response.headers()), &source.url),
        last_modified: text(response.headers(), LAST_MODIFIED).and_then(|t| http_date(&t)),
        etag: etag(response.headers()),
    };
    fetched.digest = store(parts, source, response, progress).await?;
    // What is not what the checksum names is not worth a place.
    let presented = source.presented(fetched.clone())?;
    remember(&memory, &key, known, &fetched);
    Ok(presented)
}

/// Returns the file that the server gave last, or the one of the checksum, without asking it.
///
/// # Errors
/// There is none, or it is gone.
pub async fn last_fetched(
    parts: &Parts,
    sessions: &[Arc<Session>],
    source: &HttpSource,
) -> Result<Fetched, EngineError> {
    let login = login(sessions, source).await?;
    let known = remembered(&parts.store.meta().table("http"), &source.memory_key(login.as_ref()), parts);
    let found = known.into_iter().find(|answer| source.checksum.is_none_or(|wanted| wanted == answer.digest));
    source.presented(found.ok_or_else(|| missing(&source.url))?)
}

impl Fetched {
    /// Returns what a client uploaded.
    pub fn uploaded(digest: Digest, filename: String) -> Self {
        Self { digest, filename, last_modified: None, etag: None }
    }
}

impl HttpSource {
    /// Returns an answer under the name that the file is to have, if it is what the checksum names.
    fn presented(&self, mut answer: Fetched) -> Result<Fetched, EngineError> {
        if let Some(name) = &self.file.name {
            answer.filename = safe(name);
        }
        self.checked(answer)
    }

    /// Returns what was fetched if it is what the checksum names.
    ///
    /// # Errors
    /// It is not.
    pub fn checked(&self, fetched: Fetched) -> Result<Fetched, EngineError> {
        match self.checksum {
            Some(wanted) if wanted != fetched.digest => Err(EngineError::user(format!(
                "digest mismatch for {}: {} (expected: {wanted})",
                self.url, fetched.digest
            ))),
            _ => Ok(fetched),
        }
    }
}

/// Remembers an answer as the newest one.
fn remember(memory: &Table, key: &Digest, known: Vec<Fetched>, newest: &Fetched) {
    if known.first() == Some(newest) {
        return;
    }
    let mut answers: Vec<Fetched> = known.into_iter().filter(|a| a.etag != newest.etag).collect();
    answers.insert(0, newest.clone());
    answers.truncate(ANSWERS);
    if let Ok(json) = serde_json::to_vec(&answers) {
        memory.put(key.as_bytes(), &json);
    }
}

/// Returns earlier answers whose files are still in the store, the newest first.
fn remembered(memory: &Table, key: &Digest, parts: &Parts) -> Vec<Fetched> {
    let json = memory.get(key.as_bytes()).unwrap_or_default();
    let answers: Vec<Fetched> = serde_json::from_slice(&json).unwrap_or_default();
    answers.into_iter().filter(|a| parts.store.blob(&a.digest).is_some()).collect()
}

struct Request<'a> {
    client: reqwest::Client,
    source: &'a HttpSource,
    headers: HeaderMap,
}

impl<'a> Request<'a> {
    fn new(source: &'a HttpSource, login: Option<&Secret>) -> Result<Self, EngineError> {
        let client = reqwest::Client::builder().connect_timeout(STALL).read_timeout(STALL).build();
        let client = client.map_err(|e| failed(source, e))?;
        let bad = |name: &str| EngineError::user(format!("{}: bad value of the header {name}", source.url));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        for (name, value) in &source.headers {
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(name))?;
            headers.insert(key, HeaderValue::from_str(value).map_err(|_| bad(name))?);
        }
        if let Some(login) = login {
            let mut value = HeaderValue::from_bytes(login.expose()).map_err(|_| bad("Authorization"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Self { client, source, headers })
    }

    async fn send(&mut self, method: Method, known: &[Fetched]) -> Result<Response, EngineError> {
        let mut request = self.client.request(method, &self.source.url).headers(self.headers.clone());
        let tags: Vec<&str> = known.iter().filter_map(|a| a.etag.as_deref()).collect();
        if !tags.is_empty() {
            request = request.header(IF_NONE_MATCH, tags.join(", "));
        }
        request.send().await.map_err(|e| failed(self.source, e))
    }

    /// Asks by HEAD whether one of the known files is what the server has: some servers say by GET that they are
    /// not, and send them again.
    async fn unchanged(&mut self, known: &[Fetched]) -> Option<Fetched> {
        if known.is_empty() {
            return None;
        }
        let response = self.send(Method::HEAD, known).await.ok()?;
        match response.status() {
            StatusCode::OK | StatusCode::NOT_MODIFIED => matching(known, &response),
            _ => None,
        }
    }
}

/// Returns the known file that an answer means. A server that was asked of one need not repeat its name.
fn matching(known: &[Fetched], response: &Response) -> Option<Fetched> {
    match (etag(response.headers()), known) {
        (Some(tag), _) => known.iter().find(|a| a.etag.as_deref() == Some(tag.as_str())).cloned(),
        (None, [only]) if response.status() == StatusCode::NOT_MODIFIED => Some(only.clone()),
        _ => None,
    }
}

async fn login(sessions: &[Arc<Session>], source: &HttpSource) -> Result<Option<Secret>, EngineError> {
    if let Some(id) = &source.auth_secret
        && let Some(value) = session::secret_of(sessions, id).await?
    {
        return Ok(Some(trimmed(&value, "")));
    }
    // The port does not matter to whoever named the secret.
    let host = source.host();
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if let Some(value) = session::secret_of(sessions, &format!("{HOST_HEADER}{host}")).await? {
        return Ok(Some(trimmed(&value, "")));
    }
    let token = session::secret_of(sessions, &format!("{HOST_TOKEN}{host}")).await?;
    Ok(token.map(|token| trimmed(&token, "Bearer ")))
}

fn trimmed(value: &Secret, scheme: &str) -> Secret {
    let mut bytes = scheme.as_bytes().to_vec();
    bytes.extend_from_slice(value.expose().trim_ascii());
    Secret::new(bytes)
}

async fn store(
    parts: &Parts,
    source: &HttpSource,
    response: Response,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Digest, EngineError> {
    let gzip = text(response.headers(), CONTENT_ENCODING).is_some_and(|e| e.eq_ignore_ascii_case("gzip"));
    let total = response.content_length().unwrap_or(0);
    let mut body = response.bytes_stream();
    let mut ingest = parts.store.ingest(None, None)?;
    // What is compressed for the way only is kept aside until it is whole.
    let mut aside = gzip.then(|| tempfile::tempfile_in(parts.store.temp_dir())).transpose()?;
    let mut done = 0u64;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|e| failed(source, e))?;
        done += piece.len() as u64;
        match &mut aside {
            Some(file) => file.write_all(&piece)?,
            None => ingest.write_all(&piece)?,
        }
        progress(done, total);
    }
    let work = move || {
        if let Some(mut file) = aside {
            std::io::Seek::rewind(&mut file)?;
            let (_, mut plain) = kiln_snapshot::compress::decompress(std::io::BufReader::new(file))?;
            std::io::copy(&mut plain, &mut ingest)?;
        }
        Ok(ingest.commit()?.digest())
    };
    parts.blocking(work).await
}

fn failed(source: &HttpSource, error: reqwest::Error) -> EngineError {
    let text = crate::error::chain(&error.without_url());
    EngineError::new(ErrorClass::Remote, format!("{}: {text}", source.url))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Returns the tag of an answer. Whether it is a weak one does not matter: content is compared by digest later.
fn etag(headers: &HeaderMap) -> Option<String> {
    text(headers, ETAG).map(|tag| tag.trim_start_matches("W/").to_owned()).filter(|tag| !tag.is_empty())
}

/// Chooses the name of the file: as asked for, as the server says, as the address ends.
fn file_name(wanted: Option<&str>, headers: Option<&HeaderMap>, url: &str) -> String {
    if let Some(name) = wanted {
        return safe(name);
    }
    let said = headers.and_then(|headers| text(headers, CONTENT_DISPOSITION));
    let said = said.as_deref().and_then(|value| {
        let name = value.split(';').skip(1).find_map(|part| part.trim().strip_prefix("filename="))?;
        let name = name.trim_matches('"');
        (!name.is_empty() && !name.ends_with('/')).then(|| name.rsplit('/').next().unwrap_or(name).to_owned())
    });
    if let Some(name) = said {
        return safe(&name);
    }
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let path = path.split(['?', '#']).next().unwrap_or(path).trim_end_matches('/');
    safe(path.rsplit('/').next().unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let said = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static(value));
            file_name(None, Some(&headers), "https://h/x/y.bin")
        };
        assert_eq!(said("attachment; filename=\"a.txt\""), "a.txt");
        assert_eq!(said("attachment; filename=\"../../etc/passwd\""), "passwd");
        assert_eq!(said("attachment"), "y.bin");
        assert_eq!(file_name(None, None, "https://h/a/b.txt?x=1"), "b.txt");
        assert_eq!(file_name(None, None, "https://h/"), "download");
        assert_eq!(file_name(None, None, "https://h"), "download");
        assert_eq!(file_name(Some("../n"), None, "https://h/b"), "n");
    }

    #[test]
    fn answers_are_kept_apart_by_what_was_asked() {
        let source = HttpSource { url: "https://u@h:1/p?q".into(), ..HttpSource::default() };
        assert_eq!(source.host(), "h:1");
        let other = HttpSource { headers: vec![("accept".into(), "x".into())], ..source.clone() };
        let login = Secret::new("t");
        assert_ne!(source.memory_key(None), other.memory_key(None));
        assert_ne!(source.memory_key(None), source.memory_key(Some(&login)));
    }
}
