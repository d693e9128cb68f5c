//! One request from start to end: signature, deadlines, retries, and what a refusal says.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use kiln_registry::transfer::{Retries, Upload, guarded, retry_after};
use kiln_registry::{BlobSource, ErrorKind};
use kiln_stdx::{Clock as _, Digest, SystemClock};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url, redirect};

use crate::error::{config, protocol};
use crate::limits::Limits;

/// Most bytes of a refusal that are read.
const REFUSAL: u64 = 64 << 10;
/// Longest part of a server's own message that is shown, in characters.
const MESSAGE_MAX: usize = 300;
/// Most redirects followed for one request.
const REDIRECTS: usize = 5;

/// What a request carries; every form can be sent again.
pub(crate) enum Body {
    Empty,
    Bytes(Bytes),
    Upload { source: Arc<dyn BlobSource>, digest: Digest, size: u64 },
}

/// One request.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

impl Call {
    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Body::Empty }
    }

    /// Adds a header whose value is of kiln's own making.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Result<Self, ErrorKind> {
        let value = HeaderValue::from_str(value).map_err(|_| config(format!("bad value of the header {name}")))?;
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(self)
    }

    pub(crate) fn carrying(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Asks for what is left from `offset` on.
    pub(crate) fn at_offset(self, offset: u64) -> Result<Self, ErrorKind> {
        if offset == 0 { Ok(self) } else { self.with("range", &format!("bytes={offset}-")) }
    }

    /// Returns the length of what it carries, in bytes.
    pub(crate) fn length(&self) -> u64 {
        match &self.body {
            Body::Empty => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Upload { size, .. } => *size,
        }
    }

    /// Returns the digest of what it carries.
    pub(crate) fn digest(&self) -> Digest {
        match &self.body {
            Body::Empty => Digest::of(b""),
            Body::Bytes(bytes) => Digest::of(bytes),
            Body::Upload { digest, .. } => *digest,
        }
    }
}

/// Adds to a request what says who asks.
pub(crate) trait Sign: Send + Sync {
    /// Signs a request that is sent at `now`.
    fn sign(&self, call: &Call, now: Timestamp, headers: &mut HeaderMap) -> Result<(), ErrorKind>;
}

/// Nobody in particular asks, or the address says who.
pub(crate) struct Unsigned;

impl Sign for Unsigned {
    fn sign(&self, _: &Call, _: Timestamp, _: &mut HeaderMap) -> Result<(), ErrorKind> {
        Ok(())
    }
}

/// Sends requests to one server.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    pub(crate) limits: Limits,
}

/// A blob that is being read.
pub struct Opened(pub(crate) Response);

impl Client {
    /// Returns a client for the server of `url`. Redirects are followed only where `redirects` says so: a signature is
    /// good for one address.
    pub(crate) fn new(url: &Url, limits: Limits, redirects: bool) -> Result<Self, ErrorKind> {
        let policy = redirect::Policy::custom(move |attempt| {
            let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
            let leaves_tls = from_tls && attempt.url().scheme() != "https";
            if !redirects || leaves_tls || attempt.previous().len() > REDIRECTS {
                attempt.stop()
            } else {
                attempt.follow()
            }
        });
        let agent = concat!("kiln/", env!("CARGO_PKG_VERSION"));
        let mut builder = reqwest::Client::builder()
            .user_agent(agent)
            .redirect(policy)
            .connect_timeout(limits.timeouts.connect)
            .http1_only();
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        if host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        {
            builder = builder.no_proxy();
        }
        if url.scheme() == "http" {
            // Without TLS the system's certificates are not needed, so their absence must not be an error.
            builder = builder.tls_certs_only([]);
        }
        Ok(Self { http: builder.build().map_err(ErrorKind::from_http)?, limits })
    }

    /// Sends a request until it succeeds (2xx), fails for good, or attempts run out.
    pub(crate) async fn send(&self, call: &Call, sign: &dyn Sign) -> Result<Response, ErrorKind> {
        let mut retries = Retries::new(&self.limits.retry);
        loop {
            let kind = match self.once(call, sign).await {
                Ok(response) => return Ok(response),
                Err(kind) => kind,
            };
            match retries.after(&kind) {
                Some(wait) => (self.limits.pause)(wait).await,
                None => return Err(kind),
            }
        }
    }

    /// As [`Self::send`], and reads an answer of at most `limit` bytes; one that breaks off is asked for again.
    pub(crate) async fn ask(&self, call: &Call, sign: &dyn Sign, limit: u64) -> Result<Bytes, ErrorKind> {
        let mut retries = Retries::new(&self.limits.retry);
        loop {
            let kind = match self.read_all(self.send(call, sign).await?, limit).await {
                Ok(bytes) => return Ok(bytes),
                Err(kind) => kind,
            };
            match retries.after(&kind) {
                Some(wait) => (self.limits.pause)(wait).await,
                None => return Err(kind),
            }
        }
    }

    async fn once(&self, call: &Call, sign: &dyn Sign) -> Result<Response, ErrorKind> {
        let mut headers = call.headers.clone();
        let now = Timestamp::from_second(i64::try_from(SystemClock.unix()).unwrap_or(0)).unwrap_or_default();
        sign.sign(call, now, &mut headers)?;
        let mut request = self.http.request(call.method.clone(), call.url.clone()).headers(headers);
        request = request.header(ACCEPT_ENCODING, "identity");
        let response = match &call.body {
            Body::Upload { source, digest, size } => {
                let upload = Upload::new(source.clone(), *digest, *size);
                let sending = upload.open().await?;
                let request = request.header(CONTENT_LENGTH, *size).body(sending.body);
                let answer = guarded(request.send(), &sending.state, self.limits.timeouts.stall).await;
                // The source's own fault explains a broken request better than what HTTP made of it.
                answer.map_err(|kind| sending.state.take_fault().unwrap_or(kind))?
            }
            body => {
                if let Body::Bytes(bytes) = body {
                    request = request.body(bytes.clone());
                } else if matches!(call.method, Method::PUT | Method::POST) {
                    request = request.header(CONTENT_LENGTH, 0);
                }
                let answer = tokio::time::timeout(self.limits.timeouts.response, request.send()).await;
                answer.map_err(|_| ErrorKind::Timeout("no answer"))?.map_err(ErrorKind::from_http)?
            }
        };
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    async fn refusal(&self, response: Response) -> ErrorKind {
        let status = response.status();
        let wait = retry_after(response.headers(), SystemClock.unix());
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let code = header("x-ms-error-code");
        // A body that breaks off still leaves the status to tell.
        let body = self.read_all(response, REFUSAL).await.unwrap_or_default();
        refused(status, code.as_deref(), &body, wait)
    }

    /// Reads a whole body of at most `limit` bytes.
    pub(crate) async fn read_all(&self, response: Response, limit: u64) -> Result<Bytes, ErrorKind> {
        let announced = response.content_length();
        let mut body = Vec::new();
        let mut opened = Opened(response);
        while let Some(piece) = self.piece(&mut opened).await? {
            if body.len() as u64 + piece.len() as u64 > limit {
                return Err(protocol(format!("the answer is longer than {limit} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        match announced {
            Some(length) if length > body.len() as u64 => {
                Err(ErrorKind::Interrupted("the body ended early".to_owned()))
            }
            _ => Ok(body.into()),
        }
    }

    /// Reads a piece of a body; none at its end.
    async fn piece(&self, opened: &mut Opened) -> Result<Option<Bytes>, ErrorKind> {
        opened.piece(&self.limits).await
    }
}

impl Opened {
    /// Reads a piece; none at the end.
    pub(crate) async fn piece(&mut self, limits: &Limits) -> Result<Option<Bytes>, ErrorKind> {
        match tokio::time::timeout(limits.timeouts.stall, self.0.chunk()).await {
            Err(_) => Err(ErrorKind::Timeout("no data came")),
            Ok(result) => result.map_err(ErrorKind::from_http),
        }
    }
}

/// Makes an error of an unsuccessful status; `code` is what a header calls it, for answers that have no body.
fn refused(status: StatusCode, code: Option<&str>, body: &[u8], retry_after: Option<std::time::Duration>) -> ErrorKind {
    let text = message(body).or_else(|| code.map(str::to_owned));
    let plain = || status.to_string();
    match status {
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::UNAUTHORIZED => ErrorKind::Unauthorized(text.unwrap_or_else(plain)),
        StatusCode::FORBIDDEN => ErrorKind::Denied(text.unwrap_or_else(plain)),
        StatusCode::TOO_MANY_REQUESTS => ErrorKind::RateLimited { retry_after },
        other => ErrorKind::Status {
            status: other.as_u16(),
            message: text.map(|text| format!(": {text}")).unwrap_or_default(),
            retry_after,
        },
    }
}

/// Returns code and message of a refusal, in XML or JSON, without control characters.
fn message(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let field = |names: &[&str]| match &json {
        Some(json) => names.iter().find_map(|name| Some(json.get(*name)?.as_str()?.to_owned())),
        None => names.iter().find_map(|name| element(&text, name)),
    };
    let told = match (field(&["code", "Code"]), field(&["msg", "message", "Message"])) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (code, message) => code.or(message)?,
    };
    let line = told.lines().next().unwrap_or_default();
    Some(line.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect())
}

/// Returns the text of the first element of this name in an XML answer.
pub(crate) fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    let mut plain = inner.to_owned();
    for (entity, character) in [("&quot;", "\""), ("&#34;", "\""), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")] {
        plain = plain.replace(entity, character);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_their_own_words() {
        let xml = b"<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>Wrong &amp; bad</Message>\
                    <StringToSign>secret</StringToSign></Error>";
        let kind = refused(StatusCode::FORBIDDEN, None, xml, None);
        assert_eq!(kind.to_string(), "access denied: SignatureDoesNotMatch: Wrong & bad");
        let json = br#"{"code":"unauthenticated","msg":"bad\u001b[1m token"}"#;
        let kind = refused(StatusCode::UNAUTHORIZED, None, json, None);
        assert_eq!(kind.to_string(), "authorization failed: unauthenticated: bad[1m token");
        let kind = refused(StatusCode::FORBIDDEN, Some("AuthenticationFailed"), b"", None);
        assert_eq!(kind.to_string(), "access denied: AuthenticationFailed");
        assert!(matches!(refused(StatusCode::NOT_FOUND, None, xml, None), ErrorKind::NotFound));
        assert_eq!(message(b"<html>busy</html>"), None);
    }
}
