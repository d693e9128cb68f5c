//! Logging in: what scheme each host wants, and the `Authorization` header of each request.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use parking_lot::Mutex;
use reqwest::header::HeaderValue;

use crate::challenge::Challenge;
use crate::credentials::{Credential, Credentials, TokenRequest};
use crate::error::ErrorKind;
use crate::host::{Host, Hosts};
use crate::token::TokenCache;

/// Most hosts and identities whose scheme is remembered; identities come and go with sessions.
const SCHEMES: usize = 1000;

/// What a host asked for when it last refused a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scheme {
    Basic,
    Bearer { realm: String, service: String },
}

/// The header of one request, and where it came from.
pub(crate) struct Authorization {
    pub(crate) header: HeaderValue,
    scheme: Scheme,
    token: Option<TokenRequest>,
    /// Made for this very request, so that its refusal is final.
    fresh: bool,
}

/// Knows the scheme of every host and the tokens got so far.
pub(crate) struct Authorizer {
    schemes: Mutex<HashMap<(String, String), Scheme>>,
    tokens: TokenCache,
}

impl Authorizer {
    pub(crate) fn new() -> Self {
        Self { schemes: Mutex::new(HashMap::new()), tokens: TokenCache::new() }
    }

    /// Returns the header for a request to `host` that needs `scopes`; none while the host asked for nothing.
    pub(crate) async fn header(
        &self,
        hosts: &Hosts,
        host: &Host,
        scopes: &[String],
        credentials: &Credentials,
    ) -> Result<Option<Authorization>, ErrorKind> {
        let identity = credentials.identity();
        let known = self.schemes.lock().get(&(host.authority.clone(), identity.clone())).cloned();
        match known {
            None => Ok(None),
            Some(Scheme::Basic) => match login(host, credentials).await? {
                None => Ok(None),
                Some(login) => {
                    Ok(Some(Authorization { header: basic(&login)?, scheme: Scheme::Basic, token: None, fresh: true }))
                }
            },
            Some(Scheme::Bearer { realm, service }) => {
                let scheme = Scheme::Bearer { realm: realm.clone(), service: service.clone() };
                let request = TokenRequest { host: host.authority.clone(), realm, service, scopes: scopes.to_vec() };
                let (header, fresh) = self.tokens.get(hosts, host, &request, &identity, credentials).await?;
                Ok(Some(Authorization { header, scheme, token: Some(request), fresh }))
            }
        }
    }

    /// Takes in a refusal; tells whether the request should be sent once more, with `scopes` completed.
    pub(crate) fn rejected(
        &self,
        host: &Host,
        challenges: &[Challenge],
        used: Option<&Authorization>,
        scopes: &mut Vec<String>,
        credentials: &Credentials,
    ) -> Result<bool, ErrorKind> {
        let identity = credentials.identity();
        // A bearer token reveals less than a password, so it is preferred where both are offered.
        let chosen = challenges.iter().find(|c| matches!(c, Challenge::Bearer { .. })).or_else(|| challenges.first());
        let Some(chosen) = chosen else { return Ok(false) };
        let (scheme, asked) = match chosen {
            Challenge::Basic => (Scheme::Basic, &[][..]),
            Challenge::Bearer { realm, service, scope, .. } => {
                (Scheme::Bearer { realm: realm.clone(), service: service.clone() }, scope.as_slice())
            }
        };
        let wanted = merge_scopes(scopes.iter().chain(asked));
        let completed = wanted != *scopes;
        *scopes = wanted;
        if let Some(request) = used.and_then(|u| u.token.as_ref()) {
            self.tokens.forget(request, &identity);
        }
        let changed = used.is_none_or(|u| u.scheme != scheme);
        let mut schemes = self.schemes.lock();
        if schemes.len() >= SCHEMES {
            schemes.clear();
        }
        schemes.insert((host.authority.clone(), identity), scheme);
        drop(schemes);
        let refused = used.is_some_and(|u| u.fresh && !completed && !changed);
        if refused && insufficient(chosen) {
            return Err(ErrorKind::Denied("the token does not cover this operation".to_owned()));
        }
        // Without a login the second request would equal the first, except that a bearer token may be anonymous.
        Ok(!refused)
    }
}

fn insufficient(challenge: &Challenge) -> bool {
    matches!(challenge, Challenge::Bearer { error: Some(error), .. } if error == "insufficient_scope")
}

/// Asks the source for a login.
pub(crate) async fn login(host: &Host, credentials: &Credentials) -> Result<Option<Credential>, ErrorKind> {
    credentials.credentials(&host.authority).await.map_err(|e| ErrorKind::Credentials(e.to_string()))
}

/// Returns the header of HTTP basic authentication.
pub(crate) fn basic(credential: &Credential) -> Result<HeaderValue, ErrorKind> {
    let mut pair = credential.username.clone().into_bytes();
    pair.push(b':');
    pair.extend_from_slice(credential.secret.expose());
    sensitive(&format!("Basic {}", BASE64_STANDARD.encode(pair)))
}

/// Returns a header value that is never printed.
pub(crate) fn sensitive(text: &str) -> Result<HeaderValue, ErrorKind> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| ErrorKind::Credentials("a token holds characters that no header can carry".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Joins scopes of the same resource and sorts them, so that equal wants have equal texts.
pub(crate) fn merge_scopes<'a>(scopes: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut resources: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for scope in scopes {
        let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
        resources.entry(resource).or_default().extend(actions.split(',').filter(|a| !a.is_empty()));
    }
    let join = |actions: BTreeSet<&str>| actions.into_iter().collect::<Vec<_>>().join(",");
    resources
        .into_iter()
        .map(|(resource, actions)| match actions.is_empty() {
            true => resource.to_owned(),
            false => format!("{resource}:{}", join(actions)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_joined_per_resource_and_sorted() {
        let scopes = ["repository:b:push,pull", "repository:a:pull", "aws", "repository:b:pull"].map(String::from);
        assert_eq!(merge_scopes(&scopes), ["aws", "repository:a:pull", "repository:b:pull,push"]);
    }

    #[test]
    fn headers_do_not_show_their_secret() {
        let credential = Credential { username: "me".into(), secret: kiln_stdx::Secret::new("hunter2") };
        let header = basic(&credential).unwrap();
        assert_eq!(header.to_str().unwrap(), "Basic bWU6aHVudGVyMg==");
        assert!(!format!("{header:?}{credential:?}").contains("hunter2"));
        assert!(!format!("{header:?}").contains("bWU6"));
    }
}
