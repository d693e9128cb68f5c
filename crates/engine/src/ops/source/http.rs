//! A file from the web, or the body that a client uploads (`http://buildkit-session/<id>`), as a source.
//!
//! The key is what came, not where it came from. A file whose digest is given is fetched only when it is needed.

use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use futures::StreamExt;
use kiln_llb::op::SourceOp;
use kiln_oci::to_ordered_json;
use kiln_solver::{CacheMap, KeyLife, KeyRecord, Op, OpContext, OpError};
use kiln_stdx::{Digest, ErrorClass};
use kiln_store::ImmutableRef;
use serde::Serialize;
use tokio::sync::OnceCell;

use super::one_file::{FileKey, one_file};
use crate::build::Progress;
use crate::error::EngineError;
use crate::parts::{Parts, builds};
use crate::source::http::{Fetched, HttpSource, fetch, last_fetched};
use crate::source::http_date::format_http_date;
use crate::{keys, session};

/// The host name that stands for the client's own uploads.
const UPLOAD_HOST: &str = "buildkit-session";

/// A file behind a URL.
pub struct Http {
    parts: Arc<Parts>,
    source: HttpSource,
    fetched: OnceCell<Fetched>,
}

impl Http {
    /// Returns the operation.
    ///
    /// # Errors
    /// A malformed attribute.
    pub fn new(parts: Arc<Parts>, op: &SourceOp) -> Result<Self, EngineError> {
        Ok(Self { parts, source: HttpSource::new(op)?, fetched: OnceCell::new() })
    }

    async fn fetched(&self, cx: &OpContext) -> Result<&Fetched, EngineError> {
        let work = async {
            if self.source.host() == UPLOAD_HOST {
                return self.upload(cx).await;
            }
            let key = self.source.key();
            // What the build was told once holds to its end.
            let known = builds(cx).iter().find_map(|build| build.http.lock().get(&key).cloned());
            if let Some(known) = known.filter(|known| self.parts.store.blob(&known.digest).is_some()) {
                return self.source.checked(known);
            }
            let sessions = session::sessions(&self.parts, cx).await;
            let progress = Progress::new(cx);
            let (started, id) = (SystemTime::now(), format!("fetching {}", self.source.url));
            let report = |done, total| progress.status(&id, done, total, started, done == total);
            let work = async {
                match progress.offline() {
                    true => last_fetched(&self.parts, &sessions, &self.source).await,
                    false => fetch(&self.parts, &sessions, &self.source, &report).await,
                }
            };
            let fetched = tokio::select! {
                fetched = work => fetched?,
                () = cx.cancel().cancelled() => return Err(EngineError::canceled()),
            };
            for build in builds(cx) {
                build.http.lock().insert(key, fetched.clone());
            }
            Ok(fetched)
        };
        self.fetched.get_or_try_init(|| work).await
    }

    async fn upload(&self, cx: &OpContext) -> Result<Fetched, EngineError> {
        let path = self.source.url.rsplit('/').next().unwrap_or_default();
        let session = session::any_session(&self.parts, cx).await?;
        let mut body = session.upload(path, UPLOAD_HOST).await?;
        let mut ingest = self.parts.store.ingest(None, None)?;
        while let Some(piece) = body.next().await {
            if cx.cancel().is_cancelled() {
                return Err(EngineError::canceled());
            }
            ingest.write_all(&piece?)?;
        }
        let filename = self.source.file.name.clone().unwrap_or_else(|| "context".to_owned());
        Ok(Fetched::uploaded(ingest.commit()?.digest(), filename))
    }

    /// Returns digest, name and time, of the server only where they are not given.
    async fn known(&self, cx: &OpContext) -> Result<(Digest, String, Option<i64>), EngineError> {
        if let Some(digest) = self.source.checksum {
            return Ok((digest, self.source.plain_name(), None));
        }
        let fetched = self.fetched(cx).await?;
        Ok((fetched.digest, fetched.filename.clone(), fetched.last_modified))
    }
}

/// The key, in the form that BuildKit's caches have it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Key<'a> {
    #[serde(flatten)]
    file: FileKey<'a>,
    checksum: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_mod_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_header_secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    header: Vec<Header<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Header<'a> {
    name: String,
    value: &'a str,
}

/// `user-agent` as `User-Agent`.
fn canonical(name: &str) -> String {
    let word = |word: &str| word[..1.min(word.len())].to_uppercase() + word.get(1..).unwrap_or_default();
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

#[async_trait]
impl Op<ImmutableRef> for Http {
    async fn cache_map(&self, cx: &OpContext) -> Result<CacheMap, OpError> {
        let (checksum, filename, last_modified) = self.known(cx).await?;
        let source = &self.source;
        let key = Key {
            file: FileKey::new(&filename, &source.file),
            checksum,
            last_mod_time: last_modified.map(format_http_date),
            auth_header_secret: source.auth_secret.as_deref(),
            header: source.headers.iter().map(|(n, value)| Header { name: canonical(n), value }).collect(),
        };
        let digest = Digest::of(to_ordered_json("http key", &key).map_err(EngineError::from)?);
        let record = KeyRecord::new().with("url", source.url.clone()).with("checksum", checksum.to_string());
        Ok(CacheMap {
            digest: keys::source(&digest.to_string()),
            also: Vec::new(),
            record,
            deps: Vec::new(),
            life: KeyLife::Stored,
        })
    }

    async fn execute(&self, cx: &OpContext, _: &[ImmutableRef]) -> Result<Vec<ImmutableRef>, OpError> {
        let fetched = self.fetched(cx).await?;
        // With a digest given, the name in the key is the one that the address ends with.
        let filename = match self.source.checksum {
            Some(_) => self.source.plain_name(),
            None => fetched.filename.clone(),
        };
        let gone = || EngineError::new(ErrorClass::Damage, "a downloaded file is gone");
        let blob = self.parts.store.blob(&fetched.digest).ok_or_else(gone)?;
        let meta = self.source.file.meta(fetched.last_modified.unwrap_or(0));
        let description = format!("http url {}", self.source.url);
        Ok(vec![one_file(&self.parts, blob, filename, meta, description).await?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::file_attrs::FileAttrs;

    #[test]
    fn the_key_is_the_one_that_other_builders_have() {
        let file = FileAttrs { name: None, mode: Some(0o644), uid: 1, gid: 2 };
        let key = Key {
            file: FileKey::new("f", &file),
            checksum: Digest::of(""),
            last_mod_time: None,
            auth_header_secret: Some("s"),
            header: vec![Header { name: canonical("accept"), value: "x" }],
        };
        let wanted = format!(
            r#"{{"Filename":"f","Perm":420,"UID":1,"GID":2,"Checksum":"{}","AuthHeaderSecret":"s","Header":[{{"Name":"Accept","Value":"x"}}]}}"#,
            Digest::of("")
        );
        assert_eq!(String::from_utf8_lossy(&to_ordered_json("key", &key).unwrap()), wanted);
    }

    #[test]
    fn header_names_are_in_the_usual_case() {
        assert_eq!(canonical("user-agent"), "User-Agent");
        assert_eq!(canonical("accept"), "Accept");
        assert_eq!(canonical(""), "");
    }
}
