//! A file from the web, or the body that a client uploads (`http://buildkit-session/<id>`), as a source.
//!
//! The body is fetched once a build to learn its digest; the key is what came, not where it came from.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use kiln_llb::attr;
use kiln_llb::op::SourceOp;
use kiln_oci::to_ordered_json;
use kiln_snapshot::layer::FileMeta;
use kiln_snapshot::{LayerBuilder, Tree};
use kiln_solver::{CacheMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::{ImmutableRef, RecordType};
use serde::Serialize;
use tokio::sync::OnceCell;

use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::Parts;
use crate::{keys, layers, session};

/// The host name that stands for the client's own uploads.
const UPLOAD_HOST: &str = "buildkit-session";
/// Longest wait for a connection, and for the next byte.
const STALL: Duration = Duration::from_secs(60);
/// Mode of the file when the definition gives none.
const MODE: u32 = 0o600;

/// A file behind a URL.
pub struct Http {
    parts: Arc<Parts>,
    url: String,
    filename: Option<String>,
    mode: u32,
    uid: u32,
    gid: u32,
    checksum: Option<Digest>,
    fetched: OnceCell<Fetched>,
}

#[derive(Clone)]
struct Fetched {
    digest: Digest,
    filename: String,
    /// As the server said it, for the key.
    last_modified: Option<String>,
    mtime: (i64, u32),
}

impl Http {
    /// Returns the operation.
    ///
    /// # Errors
    /// A malformed attribute.
    pub fn new(parts: Arc<Parts>, op: &SourceOp) -> Result<Self, EngineError> {
        let bad = |key: &str| EngineError::user(format!("{}: bad value for {key}", op.identifier));
        let number = |key: &str| op.attr(key).map(|v| v.parse::<u32>().map_err(|_| bad(key))).transpose();
        let mode = match op.attr(attr::HTTP_PERM) {
            Some(text) => u32::from_str_radix(text, 8).map_err(|_| bad(attr::HTTP_PERM))?,
            None => MODE,
        };
        let checksum = op.attr(attr::HTTP_CHECKSUM).map(|v| v.parse().map_err(|_| bad(attr::HTTP_CHECKSUM)));
        Ok(Self {
            parts,
            url: op.identifier.clone(),
            filename: op.attr(attr::HTTP_FILENAME).map(str::to_owned),
            mode,
            uid: number(attr::HTTP_UID)?.unwrap_or(0),
            gid: number(attr::HTTP_GID)?.unwrap_or(0),
            checksum: checksum.transpose()?,
            fetched: OnceCell::new(),
        })
    }

    async fn fetched(&self, cx: &OpContext) -> Result<&Fetched, EngineError> {
        self.fetched.get_or_try_init(|| self.fetch(cx)).await
    }

    async fn fetch(&self, cx: &OpContext) -> Result<Fetched, EngineError> {
        let (host, path) = split(&self.url);
        if host == UPLOAD_HOST {
            let session = session::any_session(&self.parts, cx).await?;
            let body = session.upload(path, host).await?.map(|piece| piece.map_err(EngineError::from));
            let digest = self.store(cx, std::pin::pin!(body), 0).await?;
            let filename = self.filename.clone().unwrap_or_else(|| "context".to_owned());
            return Ok(Fetched { digest, filename, last_modified: None, mtime: (0, 0) });
        }
        let failed = |e: reqwest::Error| {
            EngineError::new(ErrorClass::Remote, format!("{}: {}", self.url, crate::error::chain(&e.without_url())))
        };
        let client = reqwest::Client::builder().connect_timeout(STALL).read_timeout(STALL).build().map_err(failed)?;
        let response = client.get(&self.url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(EngineError::user(format!("invalid response status {} for {}", response.status(), self.url)));
        }
        let header = response.headers().get("last-modified").and_then(|v| v.to_str().ok());
        let date = header.and_then(http_date);
        let last_modified = date.and(header).map(str::to_owned);
        let size = response.content_length().unwrap_or(0);
        let filename = self.filename.clone().unwrap_or_else(|| file_name(path).to_owned());
        let body = response.bytes_stream().map(|piece| piece.map_err(failed));
        let digest = self.store(cx, std::pin::pin!(body), size).await?;
        Ok(Fetched { digest, filename, last_modified, mtime: (date.unwrap_or(0), 0) })
    }

    async fn store(
        &self,
        cx: &OpContext,
        mut body: impl Stream<Item = Result<Bytes, EngineError>> + Unpin,
        size: u64,
    ) -> Result<Digest, EngineError> {
        let progress = Progress::new(cx);
        let started = SystemTime::now();
        let mut ingest = self.parts.store.ingest(None, None)?;
        while let Some(piece) = body.next().await {
            if cx.cancel().is_cancelled() {
                return Err(EngineError::canceled());
            }
            ingest.write_all(&piece?)?;
        }
        progress.status(&format!("fetching {}", self.url), ingest.written(), size, started, true);
        let digest = ingest.commit()?.digest();
        match self.checksum {
            Some(wanted) if wanted != digest => {
                Err(EngineError::user(format!("digest mismatch for {}: {digest} (expected: {wanted})", self.url)))
            }
            _ => Ok(digest),
        }
    }
}

fn split(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split_once('/').unwrap_or((rest, ""))
}

fn file_name(path: &str) -> &str {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => "download",
    }
}

/// Parses the usual form of an HTTP date (RFC 9110 section 5.6.7) to seconds since 1970.
fn http_date(text: &str) -> Option<i64> {
    let mut words = text.split([' ', ',', ':']).filter(|w| !w.is_empty()).skip(1);
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = i64::try_from(months.iter().position(|m| *m == month)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = [0i64; 3];
    for part in &mut clock {
        *part = words.next()?.parse().ok()?;
    }
    // Days from the civil calendar, counting years from March.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + clock[0] * 3600 + clock[1] * 60 + clock[2])
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    filename: &'a str,
    perm: u32,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
    checksum: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_mod_time: Option<&'a str>,
}

#[async_trait]
impl Op<ImmutableRef> for Http {
    async fn cache_map(&self, cx: &OpContext) -> Result<CacheMap, OpError> {
        let fetched = self.fetched(cx).await?;
        let key = Key {
            filename: &fetched.filename,
            perm: self.mode,
            uid: self.uid,
            gid: self.gid,
            checksum: fetched.digest,
            last_mod_time: fetched.last_modified.as_deref(),
        };
        let digest = Digest::of(to_ordered_json("http key", &key).map_err(EngineError::from)?);
        let record = KeyRecord::new().with("url", self.url.clone()).with("checksum", fetched.digest.to_string());
        Ok(CacheMap { digest: keys::source(&digest.to_string()), record, deps: Vec::new(), life: KeyLife::Stored })
    }

    async fn execute(&self, cx: &OpContext, _: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let fetched = self.fetched(cx).await?.clone();
        let store = self.parts.store.clone();
        let (mode, uid, gid, url) = (self.mode, self.uid, self.gid, self.url.clone());
        let reference = self
            .parts
            .blocking(move || {
                let blob = store
                    .blob(&fetched.digest)
                    .ok_or_else(|| EngineError::new(ErrorClass::Damage, "a downloaded file is gone"))?;
                let draft = store.draft()?;
                let (tree, dirs) = (Tree::default(), Vec::new());
                let mut builder = LayerBuilder::new(&draft.fs(), &tree, &dirs)?;
                let meta = FileMeta { uid, gid, ..FileMeta::new(mode, fetched.mtime) };
                builder.file_from_reader(fetched.filename.as_bytes(), &meta, blob.open_verified()?)?;
                let info = layers::info(&store.scratch(), format!("http url {url}"), RecordType::Regular);
                Ok(store.scratch().with_layer(store.commit(draft, builder.finish()?, info)?))
            })
            .await?;
        Ok(vec![reference])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_names() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:10 GMT"), Some(10));
        assert_eq!(http_date("Tue, 29 Feb 2000 12:00:00 GMT"), Some(951_825_600));
        assert_eq!(http_date("yesterday"), None);
        assert_eq!(file_name("a/b.txt?x=1"), "b.txt");
        assert_eq!(file_name("a/"), "download");
        assert_eq!(split("https://host/a/b"), ("host", "a/b"));
    }
}
