//! Bearer tokens (distribution's "Token Authentication" and "OAuth2 Token Authentication"): fetched once, kept, dropped when refused.

use std::collections::HashMap;
use std::time::Duration;

use kiln_stdx::{Secret, SingleFlight};
use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use tokio::time::Instant;

use crate::auth::{basic, login, sensitive};
use crate::credentials::{Credential, Credentials, Token, TokenRequest};
use crate::error::ErrorKind;
use crate::host::{Host, Hosts, is_loopback};

/// Lifetime of a token that does not say, by the specification.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Taken off each lifetime, so that a token does not expire between our check and the server's.
const MARGIN: Duration = Duration::from_secs(10);
/// Most tokens kept; beyond it the expired go, then all.
const KEPT: usize = 1000;
/// Largest answer of a token server in bytes.
const ANSWER_MAX: usize = 1 << 20;
/// How long a token server may take for its whole answer.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Name under which token servers list this client.
const CLIENT_ID: &str = "kiln";

type Key = (TokenRequest, String);

#[derive(Clone)]
struct Kept {
    header: HeaderValue,
    until: Instant,
}

/// The tokens got so far, per request and identity.
pub(crate) struct TokenCache {
    kept: Mutex<HashMap<Key, Kept>>,
    flights: SingleFlight<Key, HeaderValue>,
}

impl TokenCache {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::new(HashMap::new()), flights: SingleFlight::new() }
    }

    /// Returns the header for `request` and whether it was made just now. Equal requests at once fetch one token.
    pub(crate) async fn get(
        &self,
        hosts: &Hosts,
        host: &Host,
        request: &TokenRequest,
        identity: &str,
        credentials: &Credentials,
    ) -> Result<(HeaderValue, bool), ErrorKind> {
        let key = (request.clone(), identity.to_owned());
        if let Some(header) = self.valid(&key) {
            return Ok((header, false));
        }
        let mut fresh = false;
        let fetch = async {
            if let Some(header) = self.valid(&key) {
                return Ok(header);
            }
            let token = fetch(hosts, host, request, credentials).await?;
            fresh = true;
            let text = std::str::from_utf8(token.value.expose())
                .map_err(|_| ErrorKind::Protocol("the token is not text".to_owned()))?;
            let header = sensitive(&format!("Bearer {text}"))?;
            self.keep(key.clone(), header.clone(), token.expires_in.unwrap_or(DEFAULT_LIFETIME));
            Ok(header)
        };
        let header = self.flights.run(key.clone(), fetch).await?;
        Ok((header, fresh))
    }

    /// Drops a token that was refused.
    pub(crate) fn forget(&self, request: &TokenRequest, identity: &str) {
        self.kept.lock().remove(&(request.clone(), identity.to_owned()));
    }

    fn valid(&self, key: &Key) -> Option<HeaderValue> {
        let kept = self.kept.lock();
        kept.get(key).filter(|k| k.until > Instant::now()).map(|k| k.header.clone())
    }

    fn keep(&self, key: Key, header: HeaderValue, lifetime: Duration) {
        let mut kept = self.kept.lock();
        let now = Instant::now();
        if kept.len() >= KEPT {
            kept.retain(|_, k| k.until > now);
        }
        if kept.len() >= KEPT {
            kept.clear();
        }
        let until = now + lifetime.saturating_sub(MARGIN).min(Duration::from_secs(24 * 3600));
        kept.insert(key, Kept { header, until });
    }
}

async fn fetch(
    hosts: &Hosts,
    host: &Host,
    request: &TokenRequest,
    credentials: &Credentials,
) -> Result<Token, ErrorKind> {
    if let Some(token) = credentials.token(request).await.map_err(|e| ErrorKind::Credentials(e.to_string()))? {
        return Ok(token);
    }
    let realm = checked_realm(host, &request.realm)?;
    let server = hosts.of_url(&realm)?;
    let ask = async {
        match login(host, credentials).await? {
            Some(login) if login.username.is_empty() => post(&server, realm, request, &login).await,
            Some(login) => match get(&server, realm.clone(), request, Some(&login)).await {
                // Some servers only have the newer form.
                Err(ErrorKind::Status { status: 405, .. }) => post(&server, realm, request, &login).await,
                other => other,
            },
            None => get(&server, realm, request, None).await,
        }
    };
    tokio::time::timeout(ANSWER_WAIT, ask).await.map_err(|_| ErrorKind::Timeout("the token server did not answer"))?
}

/// Refuses realms that would carry a password over plain HTTP when the registry itself is not spoken to so.
fn checked_realm(host: &Host, realm: &str) -> Result<Url, ErrorKind> {
    let url = Url::parse(realm).map_err(|_| ErrorKind::Protocol("the token server's address is no URL".to_owned()))?;
    let name = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" => Ok(url),
        "http" if host.allows_http() || (is_loopback(name) && is_loopback(&host.authority)) => Ok(url),
        _ => Err(ErrorKind::Protocol(format!("the token server at `{name}` is not asked over plain HTTP"))),
    }
}

async fn get(
    server: &Host,
    mut url: Url,
    request: &TokenRequest,
    login: Option<&Credential>,
) -> Result<Token, ErrorKind> {
    {
        let mut query = url.query_pairs_mut();
        if !request.service.is_empty() {
            query.append_pair("service", &request.service);
        }
        for scope in &request.scopes {
            query.append_pair("scope", scope);
        }
        if let Some(login) = login {
            query.append_pair("account", &login.username);
        }
    }
    let mut call = server.client.request(Method::GET, url);
    if let Some(login) = login {
        call = call.header(AUTHORIZATION, basic(login)?);
    }
    answer(call.send().await.map_err(ErrorKind::from_http)?).await
}

async fn post(server: &Host, url: Url, request: &TokenRequest, login: &Credential) -> Result<Token, ErrorKind> {
    let secret = std::str::from_utf8(login.secret.expose())
        .map_err(|_| ErrorKind::Credentials("the password is not UTF-8 text".to_owned()))?;
    let form = {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("client_id", CLIENT_ID).append_pair("service", &request.service);
        if !request.scopes.is_empty() {
            form.append_pair("scope", &request.scopes.join(" "));
        }
        if login.username.is_empty() {
            form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", secret);
        } else {
            form.append_pair("grant_type", "password").append_pair("username", &login.username);
            form.append_pair("password", secret).append_pair("access_type", "online");
        }
        form.finish()
    };
    let call = server.client.request(Method::POST, url);
    let call = call.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
    answer(call.send().await.map_err(ErrorKind::from_http)?).await
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

async fn answer(mut response: reqwest::Response) -> Result<Token, ErrorKind> {
    let status = response.status();
    let retry_after = after(response.headers());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(ErrorKind::from_http)? {
        if body.len() + chunk.len() > ANSWER_MAX {
            return Err(ErrorKind::Protocol("the token server's answer is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        // OAuth servers say 400 to a bad login.
        return Err(match ErrorKind::from_status(status, &body, retry_after) {
            ErrorKind::Status { status: 400, .. } => {
                ErrorKind::Unauthorized("the token server refused the login".to_owned())
            }
            ErrorKind::NotFound => ErrorKind::Protocol("the token server does not know its own address".to_owned()),
            other => other,
        });
    }
    // The parser's error could quote the answer, so it is dropped.
    let answer: Answer = serde_json::from_slice(&body)
        .map_err(|_| ErrorKind::Protocol("the token server's answer is not understood".to_owned()))?;
    let value = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if value.is_empty() {
        return Err(ErrorKind::Protocol("the token server gave no token".to_owned()));
    }
    Ok(Token { value: Secret::new(value), expires_in: answer.expires_in.filter(|s| *s > 0).map(Duration::from_secs) })
}

fn after(headers: &HeaderMap) -> Option<Duration> {
    crate::retry::retry_after(headers, kiln_stdx::Clock::unix(&kiln_stdx::SystemClock))
}
