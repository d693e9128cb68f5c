//! Registry hosts: their HTTP clients, schemes, mirrors and transfer permits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use reqwest::{Client, Url, redirect};
use tokio::sync::Semaphore;

use crate::config::{HostConfig, RegistryConfig};
use crate::error::ErrorKind;
use crate::repository::Repository;
use crate::tls;

/// Docker Hub's name in references, and the host that serves its API.
const HUB: &str = "docker.io";
const HUB_API: &str = "registry-1.docker.io";

/// One host that is talked to.
pub(crate) struct Host {
    /// `host[:port]` as it is dialled.
    pub(crate) authority: String,
    pub(crate) client: Client,
    /// Schemes to try, in order; later ones only when no TLS connection comes about.
    schemes: &'static [&'static str],
    scheme: AtomicUsize,
    /// Bounds blob transfers.
    pub(crate) permits: Arc<Semaphore>,
}

impl Host {
    /// Returns the scheme in use.
    pub(crate) fn scheme(&self) -> &'static str {
        self.schemes[self.scheme.load(Ordering::Relaxed).min(self.schemes.len() - 1)]
    }

    /// Goes over to the next scheme after `failed` got no connection; tells whether there is another to try.
    pub(crate) fn fall_back(&self, failed: &str) -> bool {
        let at = self.schemes.iter().position(|s| *s == failed).unwrap_or(0);
        if at + 1 >= self.schemes.len() {
            return false;
        }
        self.scheme.fetch_max(at + 1, Ordering::Relaxed);
        true
    }

    /// Tells whether talking plain HTTP to this host is intended, so that credentials may go that way.
    pub(crate) fn allows_http(&self) -> bool {
        self.schemes.contains(&"http")
    }
}

/// A host in the role of serving one repository.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) host: Arc<Host>,
    /// Path of the repository on this host; a mirror may put its own path before it.
    pub(crate) path: String,
    /// For mirrors: the host that the repository is from.
    pub(crate) namespace: Option<String>,
}

impl Endpoint {
    /// Returns the path and query of `rest` below the repository, `/v2/library/alpine/manifests/3`.
    pub(crate) fn path(&self, rest: &str) -> String {
        let mut path = format!("/v2/{}/{rest}", self.path);
        if let Some(namespace) = &self.namespace {
            path.push_str(if rest.contains('?') { "&ns=" } else { "?ns=" });
            path.extend(url::form_urlencoded::byte_serialize(namespace.as_bytes()));
        }
        path
    }
}

/// All hosts of one client.
pub(crate) struct Hosts {
    config: Arc<RegistryConfig>,
    known: Mutex<HashMap<String, Arc<Host>>>,
}

impl Hosts {
    pub(crate) fn new(config: Arc<RegistryConfig>) -> Self {
        Self { config, known: Mutex::new(HashMap::new()) }
    }

    /// Returns the host `name`, `docker.io` being Docker Hub's API host.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Host>, ErrorKind> {
        let authority = api_host(name);
        if let Some(host) = self.known.lock().get(authority) {
            return Ok(host.clone());
        }
        let host = Arc::new(self.build(authority)?);
        Ok(self.known.lock().entry(authority.to_owned()).or_insert(host).clone())
    }

    /// Returns the host that serves `url`.
    pub(crate) fn of_url(&self, url: &Url) -> Result<Arc<Host>, ErrorKind> {
        self.get(&authority(url))
    }

    /// Returns where `repository` can be read, mirrors first.
    pub(crate) fn pull(&self, repository: &Repository) -> Result<Vec<Endpoint>, ErrorKind> {
        let mut endpoints = Vec::new();
        for mirror in self.settings(&repository.host).map(|s| s.mirrors.as_slice()).unwrap_or_default() {
            let mirror = mirror.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
            let (name, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
            let prefix = prefix.strip_prefix("v2/").unwrap_or(prefix);
            let path = match prefix {
                "" | "v2" => repository.path.clone(),
                prefix => format!("{prefix}/{}", repository.path),
            };
            endpoints.push(Endpoint { host: self.get(name)?, path, namespace: Some(repository.host.clone()) });
        }
        endpoints.push(self.push(repository)?);
        Ok(endpoints)
    }

    /// Returns where `repository` is written: its own host.
    pub(crate) fn push(&self, repository: &Repository) -> Result<Endpoint, ErrorKind> {
        Ok(Endpoint { host: self.get(&repository.host)?, path: repository.path.clone(), namespace: None })
    }

    fn settings(&self, name: &str) -> Option<&HostConfig> {
        self.config.hosts.get(name).or_else(|| (api_host(name) == HUB_API).then(|| self.config.hosts.get(HUB))?)
    }

    fn build(&self, authority: &str) -> Result<Host, ErrorKind> {
        let fallback = HostConfig::default();
        let settings = self.settings(authority).unwrap_or(&fallback);
        let loopback = is_loopback(authority);
        let has_tls = settings.insecure || !settings.ca.is_empty() || !settings.keypairs.is_empty();
        let schemes: &[&str] = match settings.http {
            Some(true) if settings.insecure => &["https", "http"],
            Some(true) => &["http"],
            None if loopback && !has_tls => &["http"],
            None if loopback && settings.insecure => &["https", "http"],
            _ => &["https"],
        };
        // HTTP/1.1: with one HTTP/2 connection, flow control and head-of-line blocking bound large transfers.
        let mut builder = Client::builder()
            .user_agent(&self.config.user_agent)
            .redirect(redirect::Policy::none())
            .connect_timeout(self.config.timeouts.connect)
            .http1_only();
        if loopback {
            builder = builder.no_proxy();
        }
        if schemes == ["http"] {
            // Without TLS the system's certificates are not needed, so their absence must not be an error.
            builder = builder.tls_certs_only([]);
        } else {
            builder = builder.tls_backend_preconfigured(tls::client_config(settings)?);
        }
        let client = builder.build().map_err(ErrorKind::from_http)?;
        Ok(Host {
            authority: authority.to_owned(),
            client,
            schemes,
            scheme: AtomicUsize::new(0),
            permits: Arc::new(Semaphore::new(self.config.max_concurrency.max(1))),
        })
    }
}

/// Returns `host[:port]` of a URL.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn api_host(name: &str) -> &str {
    if matches!(name, HUB | "index.docker.io") { HUB_API } else { name }
}

/// Tells whether `authority` (host with or without port) is this machine by name or address.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let name = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split_once(':').map_or(authority, |(name, _)| name),
    };
    name == "localhost" || name.ends_with(".localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn loopback_hosts_are_known() {
        for (name, want) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.3.2.1", true),
            ("[::1]:5000", true),
            ("localhost.example.com", false),
            ("127.example.com", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(name), want, "{name}");
        }
    }

    #[test]
    fn mirrors_come_first_and_may_have_a_path() {
        let mut config = RegistryConfig::default();
        let http = HostConfig { http: Some(true), ..HostConfig::default() };
        config.hosts.insert("docker.io".into(), HostConfig { mirrors: vec!["localhost:1/hub".into()], ..http.clone() });
        let hosts = Hosts::new(Arc::new(config));
        let endpoints = hosts.pull(&Repository::new("docker.io", "library/a")).unwrap();
        let paths: Vec<_> = endpoints.iter().map(|e| (e.host.authority.as_str(), e.path("blobs/x?y=1"))).collect();
        assert_eq!(
            paths,
            [
                ("localhost:1", "/v2/hub/library/a/blobs/x?y=1&ns=docker.io".to_owned()),
                ("registry-1.docker.io", "/v2/library/a/blobs/x?y=1".to_owned())
            ]
        );
        assert_eq!(endpoints[1].host.scheme(), "http");
    }

    #[test]
    fn schemes_follow_the_settings() {
        let mut config = RegistryConfig::default();
        let add = |config: &mut RegistryConfig, name: &str, http, insecure| {
            config.hosts.insert(name.into(), HostConfig { http, insecure, ..HostConfig::default() });
        };
        add(&mut config, "both.example", Some(true), true);
        add(&mut config, "plain.example", Some(true), false);
        add(&mut config, "localhost:2", Some(true), false);
        let hosts = Hosts::new(Arc::new(config));
        assert_eq!(hosts.get("plain.example").unwrap().scheme(), "http");
        assert_eq!(hosts.get("localhost:1").unwrap().scheme(), "http");
        let both = hosts.get("both.example").unwrap();
        assert_eq!(both.scheme(), "https");
        assert!(both.fall_back("https") && !both.fall_back("http"));
        assert_eq!(both.scheme(), "http");
    }

    #[test]
    fn bad_certificate_files_are_named() {
        let mut config = RegistryConfig::default();
        let ca = vec![PathBuf::from("/nonexistent/ca.pem")];
        config.hosts.insert("r.example".into(), HostConfig { ca, ..HostConfig::default() });
        let Err(kind) = Hosts::new(Arc::new(config)).get("r.example") else { panic!("built") };
        assert!(kind.to_string().contains("/nonexistent/ca.pem"), "{kind}");
    }
}
