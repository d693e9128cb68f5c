//! S3 and what speaks like it. Objects are `<prefix><blobs_prefix><digest>` and `<prefix><manifests_prefix><name>`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kiln_registry::{BlobSource, ErrorKind};
use kiln_stdx::{Clock as _, Digest, SystemClock};
use reqwest::header::{ETAG, LAST_MODIFIED};
use reqwest::{Method, Response, Url};

use crate::attrs::{Attrs, Environment, boolean, given, names, positive, timeout};
use crate::blocks::Blocks;
use crate::client::{Body, Call, Client, Opened, element};
use crate::error::{config, protocol};
use crate::limits::Limits;
use crate::sigv4::SigV4;
use crate::{MANIFEST_MAX, ObjectStore, Stored, aws, keys};

/// Objects of more bytes cannot be copied in one piece.
const COPY_MAX: u64 = 5 << 30;
/// Most bytes of an answer that is no object.
const ANSWER: u64 = 1 << 20;

/// Objects of one bucket.
pub(crate) struct S3Store {
    client: Client,
    sign: SigV4,
    /// Address of the bucket, with a slash at its end.
    base: String,
    bucket: String,
    name: String,
    blobs: String,
    manifests: Vec<String>,
    /// Age at which an object that is used again is made young.
    refresh: Duration,
    uploads: usize,
}

impl S3Store {
    pub(crate) fn new(attrs: &Attrs, env: Environment<'_>, mut limits: Limits) -> Result<Self, ErrorKind> {
        let from = |name: &str, variable: &str| {
            let found = given(attrs, name).map(str::to_owned).or_else(|| env(variable).filter(|v| !v.is_empty()));
            found.ok_or_else(|| config(format!("{name} (${variable}) not set for s3 cache")))
        };
        let (bucket, region) = (from("bucket", "AWS_BUCKET")?, from("region", "AWS_REGION")?);
        let attr = |name: &str, fallback: &str| attrs.get(name).map_or(fallback, String::as_str).to_owned();
        let prefix = attr("prefix", "");
        let manifests = format!("{prefix}{}", attr("manifests_prefix", "manifests/"));
        let manifests: Vec<String> = names(attrs, "buildkit").iter().map(|name| format!("{manifests}{name}")).collect();
        let blobs = format!("{prefix}{}", attr("blobs_prefix", "blobs/"));
        for key in manifests.iter().chain([&blobs, &bucket]) {
            keys::check("key", key)?;
        }
        if let Some(mode) = attrs.get("retry_mode").filter(|mode| !matches!(mode.as_str(), "standard" | "adaptive")) {
            return Err(config(format!("retry_mode must be \"standard\" or \"adaptive\", not {mode:?}")));
        }
        if let Some(attempts) = positive(attrs, "retry_max_attempts")? {
            limits.retry.attempts = attempts;
        }
        if let Some(wait) = timeout(attrs)? {
            limits.set_wait(wait);
        }
        let key = aws::of_attrs(attrs).or_else(|| aws::aws_key(env));
        let key = key.ok_or_else(|| config("no keys for s3 cache: set access_key_id and secret_access_key"))?;
        let base = base(given(attrs, "endpoint_url"), boolean(attrs, "use_path_style"), &bucket, &region)?;
        Ok(Self {
            client: Client::new(&base, limits, false)?,
            sign: SigV4 { key, region },
            base: base.into(),
            name: format!("s3://{bucket}/{prefix}"),
            bucket,
            blobs,
            manifests,
            refresh: attrs
                .get("touch_refresh")
                .and_then(|t| kiln_stdx::duration::parse(t))
                .unwrap_or(Duration::from_secs(24 * 3600)),
            uploads: positive(attrs, "upload_parallelism")?.map_or(4, |n| n as usize),
        })
    }

    fn key(&self, digest: &Digest) -> String {
        format!("{}{digest}", self.blobs)
    }

    fn call(&self, method: Method, key: &str, query: &str) -> Result<Call, ErrorKind> {
        Ok(Call::new(method, keys::address(&self.base, key, query)?))
    }

    async fn send(&self, call: Call) -> Result<Response, ErrorKind> {
        self.client.send(&call, &self.sign).await
    }

    /// Sends what S3 may answer with an error under a good status, and returns the answer's text.
    async fn ask(&self, call: Call) -> Result<String, ErrorKind> {
        let body = self.client.ask(&call, &self.sign, ANSWER).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        match element(&text, "Code") {
            Some(code) if text.contains("<Error>") => Err(protocol(code)),
            _ => Ok(text),
        }
    }

    /// Makes an object young by copying it onto itself, which is what rules of expiry look at.
    async fn touch(&self, key: &str, size: u64) -> Result<(), ErrorKind> {
        let source = format!("{}/{}", keys::escape(&self.bucket, false), keys::escape(key, true));
        if size >= COPY_MAX {
            return self.touch_parts(key, size, &source).await;
        }
        let call = self.call(Method::PUT, key, "")?.with("x-amz-copy-source", &source)?;
        let call = call.with("x-amz-metadata-directive", "REPLACE")?;
        self.ask(call.with("x-amz-meta-updated-at", &SystemClock.unix().to_string())?).await.map(drop)
    }

    async fn touch_parts(&self, key: &str, size: u64, source: &str) -> Result<(), ErrorKind> {
        let upload = self.begin(key).await?;
        let copies = async {
            let (mut tags, mut start) = (Vec::new(), 0);
            while start < size {
                let end = (start + COPY_MAX).min(size);
                let query = format!("partNumber={}&uploadId={upload}", tags.len() + 1);
                let call = self.call(Method::PUT, key, &query)?.with("x-amz-copy-source", source)?;
                let answer =
                    self.ask(call.with("x-amz-copy-source-range", &format!("bytes={start}-{}", end - 1))?).await?;
                tags.push(element(&answer, "ETag").ok_or_else(|| protocol("a copy without a tag"))?);
                start = end;
            }
            self.complete(key, &upload, &tags).await
        };
        self.ended(key, &upload, copies.await).await
    }

    async fn put_parts(
        &self,
        key: &str,
        digest: &Digest,
        size: u64,
        source: &Arc<dyn BlobSource>,
    ) -> Result<(), ErrorKind> {
        let upload = self.begin(key).await?;
        let parts = async {
            let mut tags = Vec::new();
            let mut blocks = Blocks::open(source, digest, size, self.client.limits.part_of(size)).await?;
            while let Some(part) = blocks.next().await? {
                let call = self.call(Method::PUT, key, &format!("partNumber={}&uploadId={upload}", tags.len() + 1))?;
                let (digest, size) = (Digest::of(&part), part.len() as u64);
                let response = self.send(call.carrying(Body::Upload { source: Arc::new(part), digest, size })).await?;
                let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
                tags.push(tag.ok_or_else(|| protocol("a part without a tag"))?.to_owned());
            }
            self.complete(key, &upload, &tags).await
        };
        self.ended(key, &upload, parts.await).await
    }

    /// Begins an upload in parts and returns its id, as queries have it.
    async fn begin(&self, key: &str) -> Result<String, ErrorKind> {
        let answer = self.ask(self.call(Method::POST, key, "uploads=")?).await?;
        let id = element(&answer, "UploadId").ok_or_else(|| protocol("an upload without an id"))?;
        Ok(keys::escape(&id, false))
    }

    async fn complete(&self, key: &str, upload: &str, tags: &[String]) -> Result<(), ErrorKind> {
        let mut text = "<CompleteMultipartUpload>".to_owned();
        for (index, tag) in tags.iter().enumerate() {
            let tag = tag.replace('"', "&quot;");
            let _ = write!(text, "<Part><PartNumber>{}</PartNumber><ETag>{tag}</ETag></Part>", index + 1);
        }
        text.push_str("</CompleteMultipartUpload>");
        let call = self.call(Method::POST, key, &format!("uploadId={upload}"))?;
        self.ask(call.carrying(Body::Bytes(text.into()))).await.map(drop)
    }

    /// Takes an upload back that has failed: its parts would stay, and cost.
    async fn ended(&self, key: &str, upload: &str, outcome: Result<(), ErrorKind>) -> Result<(), ErrorKind> {
        if outcome.is_err() {
            let call = self.call(Method::DELETE, key, &format!("uploadId={upload}"))?;
            let _ = self.send(call).await;
        }
        outcome
    }
}

/// Returns the address of a bucket.
fn base(endpoint: Option<&str>, path_style: bool, bucket: &str, region: &str) -> Result<Url, ErrorKind> {
    let (endpoint, path_style) = match endpoint {
        Some(endpoint) => (keys::base("endpoint_url", endpoint)?, path_style),
        None => {
            let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            let endpoint = keys::base("region", &format!("https://s3.{region}.{domain}/"))?;
            // A certificate for `*.s3…` does not cover names with dots before it.
            (endpoint, bucket.contains('.'))
        }
    };
    let mut text = endpoint.as_str().trim_end_matches('/').to_owned() + "/";
    if path_style {
        text.push_str(&keys::escape(bucket, false));
        text.push('/');
    } else {
        text = text.replacen("://", &format!("://{bucket}."), 1);
    }
    Url::parse(&text)
        .map_err(|_| config(format!("bucket {bucket:?} cannot be part of a host name; set use_path_style")))
}

/// Returns how long ago an object was written, if its store tells.
fn age(response: &Response) -> Option<Duration> {
    let text = response.headers().get(LAST_MODIFIED)?.to_str().ok()?;
    let then = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second();
    Some(Duration::from_secs(SystemClock.unix().saturating_sub(u64::try_from(then).ok()?)))
}

#[async_trait]
impl ObjectStore for S3Store {
    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> &Limits {
        &self.client.limits
    }

    fn uploads(&self) -> usize {
        self.uploads
    }

    async fn has(&self, digest: &Digest) -> Result<bool, ErrorKind> {
        let key = self.key(digest);
        match self.send(self.call(Method::HEAD, &key, "")?).await {
            Ok(response) => {
                if age(&response).is_some_and(|age| age > self.refresh) {
                    let length = response.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse().ok());
                    self.touch(&key, length.unwrap_or(0)).await?;
                }
                Ok(true)
            }
            Err(ErrorKind::NotFound) => Ok(false),
            Err(kind) => Err(kind),
        }
    }

    async fn put(&self, digest: &Digest, size: u64, source: Arc<dyn BlobSource>) -> Result<Stored, ErrorKind> {
        let key = self.key(digest);
        if size > self.client.limits.whole {
            return self.put_parts(&key, digest, size, &source).await.map(|()| Stored::There);
        }
        let call = self.call(Method::PUT, &key, "")?.carrying(Body::Upload { source, digest: *digest, size });
        self.send(call).await.map(|_| Stored::There)
    }

    async fn open(&self, digest: &Digest, offset: u64) -> Result<Opened, ErrorKind> {
        self.send(self.call(Method::GET, &self.key(digest), "")?.at_offset(offset)?).await.map(Opened)
    }

    async fn manifests(&self) -> Result<Vec<Bytes>, ErrorKind> {
        // Of several names, which an export writes all, an import reads the first.
        let Some(key) = self.manifests.first() else { return Err(ErrorKind::NotFound) };
        Ok(vec![self.client.ask(&self.call(Method::GET, key, "")?, &self.sign, MANIFEST_MAX).await?])
    }

    async fn put_manifest(&self, manifest: Bytes) -> Result<(), ErrorKind> {
        for key in &self.manifests {
            self.send(self.call(Method::PUT, key, "")?.carrying(Body::Bytes(manifest.clone()))).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(attrs: &[(&str, &str)], env: &[(&str, &str)]) -> Result<S3Store, String> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        S3Store::new(&attrs, &env, Limits::default()).map_err(|e| e.to_string())
    }

    const KEYS: [(&str, &str); 2] = [("access_key_id", "a"), ("secret_access_key", "b")];

    #[test]
    fn addresses() {
        let at = |attrs: &[(&str, &str)]| {
            let all = [&KEYS[..], &[("bucket", "b.c"), ("region", "eu-west-1")], attrs].concat();
            store(&all, &[]).map(|store| store.base)
        };
        assert_eq!(at(&[]).unwrap(), "https://s3.eu-west-1.amazonaws.com/b.c/");
        assert_eq!(at(&[("bucket", "b")]).unwrap(), "https://b.s3.eu-west-1.amazonaws.com/");
        assert_eq!(
            at(&[("region", "cn-north-1"), ("bucket", "b")]).unwrap(),
            "https://b.s3.cn-north-1.amazonaws.com.cn/"
        );
        let own = ("endpoint_url", "http://127.0.0.1:9000");
        assert_eq!(at(&[own, ("use_path_style", "true")]).unwrap(), "http://127.0.0.1:9000/b.c/");
        assert_eq!(at(&[("endpoint_url", "https://s3.test"), ("bucket", "b")]).unwrap(), "https://b.s3.test/");
    }

    #[test]
    fn keys_and_defaults() {
        let env =
            [("AWS_BUCKET", "b"), ("AWS_REGION", "r"), ("AWS_ACCESS_KEY_ID", "i"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let plain = store(&[], &env).unwrap();
        let digest = Digest::of("x");
        assert_eq!((plain.key(&digest), plain.uploads), (format!("blobs/{digest}"), 4));
        assert_eq!(
            (plain.manifests, plain.refresh),
            (vec!["manifests/buildkit".to_owned()], Duration::from_secs(86_400))
        );
        let other = [
            ("prefix", "p/"),
            ("manifests_prefix", "m-"),
            ("blobs_prefix", ""),
            ("name", "x;y"),
            ("touch_refresh", "1h"),
        ];
        let other = store(&other, &env).unwrap();
        assert_eq!((other.key(&digest), other.refresh), (format!("p/{digest}"), Duration::from_secs(3600)));
        assert_eq!(
            (other.manifests, other.name),
            (vec!["p/m-x".to_owned(), "p/m-y".to_owned()], "s3://b/p/".to_owned())
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let place = [("bucket", "b"), ("region", "r")];
        for (attrs, want) in [
            (vec![], "bucket ($AWS_BUCKET) not set"),
            (place[..1].to_vec(), "region ($AWS_REGION) not set"),
            (place.to_vec(), "no keys"),
            ([&place[..], &KEYS, &[("upload_parallelism", "0")]].concat(), "upload_parallelism must be a positive"),
            ([&place[..], &KEYS, &[("retry_mode", "never")]].concat(), "retry_mode must be"),
            ([&place[..], &KEYS, &[("prefix", "../x/")]].concat(), "cannot be part of a name"),
        ] {
            let error = store(&attrs, &[]).map(drop).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
