//! Addresses of git repositories: `https://…`, `ssh://…`, `git://…` and `user@host:path`, with `#ref:subdir`.

/// A parsed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitUrl {
    /// `http`, `https`, `ssh` or `git`.
    pub scheme: String,
    /// User and password as written, empty when there are none.
    pub user: String,
    /// Host with its port.
    pub host: String,
    /// Path on the host, percent escapes resolved.
    pub path: String,
    /// Query parameters in the order written.
    pub query: Vec<(String, String)>,
    /// Branch, tag or commit of the fragment.
    pub git_ref: String,
    /// Directory inside the repository, cleaned, without a leading slash.
    pub subdir: String,
    /// What to hand to git: the address without query and fragment.
    pub remote: String,
}

/// Why an address names no git repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitUrlError {
    /// Neither a URL nor of the form `user@host:path`.
    #[error("unknown protocol")]
    UnknownProtocol,
    /// A scheme git is not used with.
    #[error("{0}: invalid protocol")]
    InvalidProtocol(String),
    /// A malformed URL.
    #[error("invalid git address {0:?}")]
    Malformed(String),
}

const SCHEMES: [&str; 4] = ["http", "https", "ssh", "git"];

fn scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    (!scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric())).then_some((scheme, rest))
}

/// Splits `user@host:path`.
fn scp_style(text: &str) -> Option<(&str, &str, &str)> {
    let (user, rest) = text.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let word = |extra: &'static [u8]| move |b: u8| b.is_ascii_alphanumeric() || b == b'-' || extra.contains(&b);
    let valid = !user.is_empty() && user.bytes().all(word(b"_")) && !host.is_empty() && host.bytes().all(word(b"."));
    valid.then_some((user, host, path))
}

/// Tells whether git can be asked for this address, by its form alone.
pub fn is_git_transport(text: &str) -> bool {
    match scheme(text) {
        Some((scheme, _)) => SCHEMES.contains(&scheme.to_ascii_lowercase().as_str()),
        None => scp_style(text).is_some(),
    }
}

impl GitUrl {
    /// Parses an address.
    ///
    /// # Errors
    /// See [`GitUrlError`].
    pub fn parse(text: &str) -> Result<Self, GitUrlError> {
        if let Some((scheme, rest)) = scheme(text) {
            let scheme = scheme.to_ascii_lowercase();
            if !SCHEMES.contains(&scheme.as_str()) {
                return Err(GitUrlError::InvalidProtocol(scheme));
            }
            return Self::from_url(text, scheme, rest);
        }
        let (user, host, rest) = scp_style(text).ok_or(GitUrlError::UnknownProtocol)?;
        let (path, query, fragment) = split_tail(rest);
        let (git_ref, subdir) = split_fragment(fragment);
        Ok(Self {
            scheme: "ssh".into(),
            user: user.into(),
            host: host.into(),
            path: path.into(),
            query: parse_query(query),
            git_ref,
            subdir,
            remote: format!("{user}@{host}:{path}"),
        })
    }

    fn from_url(text: &str, scheme: String, rest: &str) -> Result<Self, GitUrlError> {
        let bad = || GitUrlError::Malformed(text.to_owned());
        if text.bytes().any(|b| b.is_ascii_control() || b == b' ') {
            return Err(bad());
        }
        let (location, query, fragment) = split_tail(rest);
        let (authority, path) = match location.find('/') {
            Some(at) => location.split_at(at),
            None => (location, ""),
        };
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if host.is_empty() {
            return Err(bad());
        }
        let (git_ref, subdir) = split_fragment(&unescape(fragment, false).ok_or_else(bad)?);
        Ok(Self {
            remote: format!("{scheme}://{location}"),
            scheme,
            user: user.into(),
            host: host.into(),
            path: unescape(path, false).ok_or_else(bad)?,
            query: parse_query(query),
            git_ref,
            subdir,
        })
    }

    /// Returns the scheme-free identity: the same for https and ssh addresses of one repository.
    pub fn host_and_path(&self) -> String {
        format!("{}{}", self.host, clean_path(&format!("/{}", self.path)))
    }
}

fn split_tail(rest: &str) -> (&str, &str, &str) {
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    (rest, query, fragment)
}

/// Splits `ref:subdir`, cleaning the directory.
pub(crate) fn split_fragment(fragment: &str) -> (String, String) {
    let (git_ref, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    (git_ref.to_owned(), clean_path(&format!("/{subdir}")).trim_start_matches('/').to_owned())
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    let text = |part: &str| unescape(part, true).unwrap_or_else(|| part.to_owned());
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').map_or_else(|| (text(pair), String::new()), |(k, v)| (text(k), text(v))))
        .collect()
}

fn unescape(text: &str, plus: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// Cleans a slash path as Go's `path.Clean` does: no `.`, no empty part, `..` resolved by text.
pub(crate) fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let url =
            GitUrl::parse("https://tok@forge.test:8443/team/../group/app.git?ref=x&k=a%20b#v1.2:/deep/./dir/").unwrap();
        assert_eq!((url.scheme.as_str(), url.user.as_str()), ("https", "tok"));
        assert_eq!(url.host, "forge.test:8443");
        assert_eq!(url.remote, "https://tok@forge.test:8443/team/../group/app.git");
        assert_eq!((url.git_ref.as_str(), url.subdir.as_str()), ("v1.2", "deep/dir"));
        assert_eq!(url.query, [("ref".into(), "x".into()), ("k".into(), "a b".into())]);
        assert_eq!(url.host_and_path(), "forge.test:8443/group/app.git");
    }

    #[test]
    fn scp_form_is_ssh() {
        let url = GitUrl::parse("git@forge.test:group/app.git#main").unwrap();
        assert_eq!((url.scheme.as_str(), url.host.as_str(), url.path.as_str()), ("ssh", "forge.test", "group/app.git"));
        assert_eq!(url.remote, "git@forge.test:group/app.git");
        assert_eq!(url.host_and_path(), "forge.test/group/app.git");
        assert_eq!(url.git_ref, "main");
    }

    #[test]
    fn others_are_refused() {
        assert_eq!(GitUrl::parse("./dir"), Err(GitUrlError::UnknownProtocol));
        assert_eq!(GitUrl::parse("ftp://h/x"), Err(GitUrlError::InvalidProtocol("ftp".into())));
        assert!(GitUrl::parse("https:///x").is_err());
        assert!(is_git_transport("SSH://git@h/x") && !is_git_transport("oci-layout://x"));
    }

    #[test]
    fn paths_are_cleaned_by_text() {
        for (given, want) in
            [("/a//b/./../c", "/a/c"), ("/../x", "/x"), ("", "."), ("../a/..", ".."), ("a/b/", "a/b"), ("/", "/")]
        {
            assert_eq!(clean_path(given), want, "{given}");
        }
    }
}
