//! One request from start to end: scheme, login, redirects, deadlines, retries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln_stdx::{Clock as _, SystemClock};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};

use crate::auth::Authorizer;
use crate::challenge::challenges;
use crate::config::RegistryConfig;
use crate::credentials::Credentials;
use crate::error::{ErrorKind, RegistryError};
use crate::host::{Host, Hosts};
use crate::push::{Upload, UploadState};
use crate::retry::{Retries, retry_after};

/// Most redirects followed for one request.
const REDIRECTS: usize = 10;
/// Most logins tried for one request: learn the scheme, then replace a token that expired meanwhile.
const LOGINS: usize = 3;
/// Most bytes of an error's body that are read.
const ERROR_BODY: u64 = 64 << 10;
/// How many stall times a registry may take to take over an upload whose last byte has been sent.
const COMMIT_STALLS: u32 = 5;

/// What all requests of one client share.
pub(crate) struct Transport {
    pub(crate) config: Arc<RegistryConfig>,
    pub(crate) hosts: Hosts,
    auth: Authorizer,
}

/// Where a request goes.
#[derive(Clone)]
pub(crate) enum Target {
    /// A path with query on the call's host, whatever its scheme turns out to be.
    Path(String),
    /// An address that the registry gave.
    Url(Url),
}

/// What a request carries; every form can be sent again.
pub(crate) enum Body {
    Empty,
    Bytes(Bytes),
    Upload(Upload),
}

/// One request.
pub(crate) struct Call<'a> {
    pub(crate) operation: &'static str,
    /// What the request is about, for errors.
    pub(crate) subject: String,
    pub(crate) host: Arc<Host>,
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    pub(crate) scopes: Vec<String>,
    pub(crate) credentials: &'a Credentials,
}

impl Call<'_> {
    /// Returns this call's failure.
    pub(crate) fn error(&self, kind: ErrorKind) -> RegistryError {
        RegistryError {
            operation: self.operation,
            target: self.subject.as_str().into(),
            host: self.host.authority.as_str().into(),
            kind,
        }
    }

    fn url(&self) -> Result<Url, ErrorKind> {
        match &self.target {
            Target::Url(url) => Ok(url.clone()),
            Target::Path(path) => self.base().join(path).map_err(|_| bad_host(&self.host.authority)),
        }
    }

    /// Returns the root of the host under its current scheme.
    fn base(&self) -> BaseUrl {
        BaseUrl(format!("{}://{}/", self.host.scheme(), self.host.authority))
    }
}

struct BaseUrl(String);

impl BaseUrl {
    fn join(&self, path: &str) -> Result<Url, url::ParseError> {
        Url::parse(&self.0)?.join(path)
    }
}

fn bad_host(authority: &str) -> ErrorKind {
    ErrorKind::Config(format!("`{authority}` is no registry host"))
}

impl Transport {
    pub(crate) fn new(config: RegistryConfig) -> Self {
        let config = Arc::new(config);
        Self { hosts: Hosts::new(config.clone()), config, auth: Authorizer::new() }
    }

    /// Sends `call` until it succeeds (2xx), fails for good, or attempts run out.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Response, RegistryError> {
        let mut retries = Retries::new(&self.config.retry);
        loop {
            let scheme = call.host.scheme();
            let kind = match self.attempt(call).await {
                Ok(response) => return Ok(response),
                Err(kind) => kind,
            };
            let no_tls = matches!(kind, ErrorKind::Tls(_) | ErrorKind::Connect(_));
            if no_tls && matches!(call.target, Target::Path(_)) && call.host.fall_back(scheme) {
                continue;
            }
            match retries.after(&kind) {
                Some(wait) => (self.config.pause)(wait).await,
                None => return Err(call.error(kind)),
            }
        }
    }

    /// Sends an upload once: what it has to do over, its caller knows best.
    pub(crate) async fn send_upload(&self, call: &Call<'_>) -> Result<(), RegistryError> {
        self.attempt(call).await.map(drop).map_err(|kind| call.error(kind))
    }

    async fn attempt(&self, call: &Call<'_>) -> Result<Response, ErrorKind> {
        let mut scopes = crate::auth::merge_scopes(&call.scopes);
        for round in 1.. {
            let authorization = self.auth.header(&self.hosts, &call.host, &scopes, call.credentials).await?;
            let header = authorization.as_ref().map(|a| &a.header);
            let (response, own_host) = self.follow(call, header).await?;
            let refused = response.status() == StatusCode::UNAUTHORIZED && own_host;
            if refused && round < LOGINS {
                let offers = challenges(response.headers());
                if self.auth.rejected(&call.host, &offers, authorization.as_ref(), &mut scopes, call.credentials)? {
                    continue;
                }
            }
            return self.checked(response).await;
        }
        Err(ErrorKind::Unauthorized("too many challenges".to_owned()))
    }

    /// Sends once and follows redirects. The login goes to the call's own origin only; tells whether that answered.
    async fn follow(&self, call: &Call<'_>, login: Option<&HeaderValue>) -> Result<(Response, bool), ErrorKind> {
        let origin = call.base().join("/").map_err(|_| bad_host(&call.host.authority))?.origin();
        let mut url = call.url()?;
        let mut method = call.method.clone();
        for _ in 0..=REDIRECTS {
            let own = url.origin() == origin;
            let host = if own { call.host.clone() } else { self.hosts.of_url(&url)? };
            let login = login.filter(|_| own);
            let response = self.send_once(call, &host, method.clone(), url.clone(), login).await?;
            let status = response.status();
            let repeats = matches!(status.as_u16(), 307 | 308);
            let moves = matches!(status.as_u16(), 301..=303) && matches!(method, Method::GET | Method::HEAD);
            if !repeats && !moves {
                return Ok((response, own));
            }
            let next = location(&response).ok_or_else(|| ErrorKind::Protocol("redirect without a location".into()))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(ErrorKind::Protocol("redirect from HTTPS to plain HTTP refused".to_owned()));
            }
            if status == StatusCode::SEE_OTHER && method != Method::HEAD {
                method = Method::GET;
            }
            url = next;
        }
        Err(ErrorKind::Protocol("too many redirects".to_owned()))
    }

    async fn send_once(
        &self,
        call: &Call<'_>,
        host: &Host,
        method: Method,
        url: Url,
        login: Option<&HeaderValue>,
    ) -> Result<Response, ErrorKind> {
        let mut request = host.client.request(method.clone(), url).headers(call.headers.clone());
        request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, login.clone());
        }
        match &call.body {
            Body::Upload(upload) => {
                let sending = upload.open().await?;
                let request = request.header(CONTENT_LENGTH, upload.size()).body(sending.body);
                let answer = guarded(request.send(), &sending.state, self.config.timeouts.stall).await;
                // The source's own fault explains a broken request better than what HTTP made of it.
                answer.map_err(|kind| sending.state.take_fault().unwrap_or(kind))
            }
            body => {
                if let Body::Bytes(bytes) = body {
                    request = request.body(bytes.clone());
                } else if method == Method::POST || method == Method::PUT {
                    request = request.header(CONTENT_LENGTH, 0);
                }
                let wait = self.config.timeouts.response;
                let answer = tokio::time::timeout(wait, request.send()).await;
                answer.map_err(|_| ErrorKind::Timeout("the registry did not answer"))?.map_err(ErrorKind::from_http)
            }
        }
    }

    async fn checked(&self, response: Response) -> Result<Response, ErrorKind> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = retry_after(response.headers(), SystemClock.unix());
        // A body that breaks off still leaves the status to tell.
        let body = self.read_all(response, ERROR_BODY).await.unwrap_or_default();
        Err(ErrorKind::from_status(status, &body, wait))
    }

    /// Reads a whole body of at most `limit` bytes.
    pub(crate) async fn read_all(&self, mut response: Response, limit: u64) -> Result<Bytes, ErrorKind> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(ErrorKind::Protocol(format!("the answer is longer than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }

    /// Reads a piece of a body; none at its end.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, ErrorKind> {
        match tokio::time::timeout(self.config.timeouts.stall, response.chunk()).await {
            Err(_) => Err(ErrorKind::Timeout("no data came")),
            Ok(result) => result.map_err(ErrorKind::from_http),
        }
    }
}

/// Waits for the answer to an upload as long as bytes move.
///
/// # Errors
/// The request fails, or no byte has moved for `stall`; once all are sent the answer may take five times as long.
pub async fn guarded(
    answer: impl Future<Output = Result<Response, reqwest::Error>>,
    state: &UploadState,
    stall: Duration,
) -> Result<Response, ErrorKind> {
    tokio::pin!(answer);
    let mut seen = 0;
    let mut idle = 0;
    loop {
        tokio::select! {
            answer = &mut answer => return answer.map_err(ErrorKind::from_http),
            () = tokio::time::sleep(stall) => {}
        }
        let sent = state.sent();
        idle = if sent == seen { idle + 1 } else { 0 };
        seen = sent;
        if idle >= if state.is_complete() { COMMIT_STALLS } else { 1 } {
            return Err(ErrorKind::Timeout("the upload stalled"));
        }
    }
}

/// Returns the address in `Location`, relative ones resolved.
pub(crate) fn location(response: &Response) -> Option<Url> {
    let text = response.headers().get(LOCATION)?.to_str().ok()?;
    let url = response.url().join(text).ok()?;
    matches!(url.scheme(), "http" | "https").then_some(url)
}
