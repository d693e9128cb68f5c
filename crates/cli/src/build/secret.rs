//! `--secret` and `--ssh`: what the build may ask the client for, checked before it begins.
//!
//! Invariant: no value of a secret is read here, only its place is noted.

use std::path::PathBuf;

use super::csv;
use crate::env::Env;
use crate::error::{CliError, io_text};

/// A secret the build may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretSpec {
    /// Identity, as in `RUN --mount=type=secret,id=`.
    pub id: String,
    /// Where its value is.
    pub from: SecretFrom,
}

/// Where the value of a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFrom {
    /// In a file.
    File(PathBuf),
    /// In an environment variable of the client.
    Env(String),
}

/// An SSH agent the build may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSpec {
    /// Identity, `default` unless given.
    pub id: String,
    /// One socket of an agent, or key files.
    pub paths: Vec<PathBuf>,
}

/// Parses `--secret` values.
pub fn parse_secrets(values: &[String], env: &Env) -> Result<Vec<SecretSpec>, CliError> {
    let mut out: Vec<SecretSpec> = Vec::new();
    for value in values.iter().filter(|v| !v.is_empty()) {
        let spec = parse_secret(value, env)?;
        match out.iter_mut().find(|s| s.id == spec.id) {
            Some(old) => *old = spec,
            None => out.push(spec),
        }
    }
    Ok(out)
}

fn parse_secret(value: &str, env: &Env) -> Result<SecretSpec, CliError> {
    let fields = csv::fields(value).map_err(|e| CliError::user(format!("failed to parse csv secret: {e}")))?;
    let (mut id, mut src, mut var, mut kind) = (String::new(), String::new(), String::new(), "");
    for field in &fields {
        let Some((key, value)) = field.split_once('=') else {
            return Err(CliError::user(format!("invalid field '{field}' must be a key=value pair"))
                .hint("write a secret as id=NAME,src=FILE or id=NAME,env=VARIABLE"));
        };
        match key.to_lowercase().as_str() {
            "type" if value == "file" => kind = "file",
            "type" if value == "env" => kind = "env",
            "type" => return Err(CliError::user(format!("unsupported secret type \"{value}\""))),
            "id" => value.clone_into(&mut id),
            "source" | "src" => value.clone_into(&mut src),
            "env" => value.clone_into(&mut var),
            key => {
                return Err(CliError::user(format!("unexpected key '{key}' in '{field}'")).nearest(
                    "key",
                    key,
                    ["id", "src", "env", "type"].into_iter(),
                ));
            }
        }
    }
    if id.is_empty() {
        return Err(CliError::user("secret missing ID").hint("write a secret as id=NAME,src=FILE"));
    }
    if kind == "env" && var.is_empty() {
        var = std::mem::take(&mut src);
    }
    if var.is_empty() && src.is_empty() {
        if env.var_os(&id).is_some() { var.clone_from(&id) } else { src.clone_from(&id) }
    }
    if !src.is_empty() {
        return secret_file(id, &src, env);
    }
    if env.var_os(&var).is_none() {
        return Err(CliError::user(format!("secret {id}: environment variable {var} is not set")));
    }
    Ok(SecretSpec { id, from: SecretFrom::Env(var) })
}

fn secret_file(id: String, src: &str, env: &Env) -> Result<SecretSpec, CliError> {
    let path = env.cwd().join(src);
    let meta = std::fs::metadata(&path).map_err(|e| {
        CliError::user(format!("failed to stat {src}: {}", io_text(&e)))
            .hint(format!("secret {id} is read from this file"))
    })?;
    if meta.is_dir() {
        return Err(CliError::user(format!("secret {id}: {src} is a directory")));
    }
    if meta.len() > kiln_stdx::limits::SECRET as u64 {
        return Err(CliError::user(format!("secret {id} too big. max size {}KB", kiln_stdx::limits::SECRET / 1024)));
    }
    if let Err(e) = rustix::fs::access(&path, rustix::fs::Access::READ_OK) {
        return Err(CliError::user(format!("secret {id}: cannot read {src}: {}", io_text(&e.into()))));
    }
    Ok(SecretSpec { id, from: SecretFrom::File(path) })
}

/// Parses `--ssh` values.
pub fn parse_ssh(values: &[String], env: &Env) -> Result<Vec<SshSpec>, CliError> {
    let mut out: Vec<SshSpec> = Vec::new();
    for value in values.iter().filter(|v| !v.is_empty()) {
        let (id, paths) = value.split_once('=').unwrap_or((value, ""));
        let id = if id.is_empty() { "default" } else { id };
        if out.iter().any(|s| s.id == id) {
            return Err(CliError::user(format!("duplicate agent ID \"{id}\"")));
        }
        let mut list: Vec<PathBuf> = paths.split(',').filter(|p| !p.is_empty()).map(|p| env.cwd().join(p)).collect();
        if list.is_empty() {
            let Some(socket) = env.path("SSH_AUTH_SOCK") else {
                return Err(CliError::user("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
                    .hint("start an agent with: eval \"$(ssh-agent)\" && ssh-add"));
            };
            list.push(socket);
        }
        for path in &list {
            std::fs::metadata(path)
                .map_err(|e| CliError::user(format!("ssh {id}: failed to stat {}: {}", path.display(), io_text(&e))))?;
        }
        out.push(SshSpec { id: id.to_owned(), paths: list });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("key"), b"k").expect("write");
        let env = Env::of(&[("TOKEN", "t"), ("key2", "v")], dir.path());
        let file = || SecretFrom::File(dir.path().join("key"));
        let var = |n: &str| SecretFrom::Env(n.to_owned());
        let run = |v: &str| parse_secrets(&[v.to_owned()], &env).map(|s| (s[0].id.clone(), s[0].from.clone()));
        for (value, id, from) in [
            ("id=a,src=key", "a", file()),
            ("id=a,source=key,type=file", "a", file()),
            ("id=a,env=TOKEN", "a", var("TOKEN")),
            ("id=a,type=env,src=TOKEN", "a", var("TOKEN")),
            ("id=TOKEN", "TOKEN", var("TOKEN")),
            ("id=key", "key", file()),
            ("type=env,id=key2", "key2", var("key2")),
        ] {
            assert_eq!(run(value).map_err(|e| e.to_string()), Ok((id.to_owned(), from)), "{value}");
        }
        for (value, want) in [
            ("src=key", "secret missing ID"),
            ("id=a,src=none", "failed to stat none: no such file or directory"),
            ("id=a,src=.", "secret a: . is a directory"),
            ("id=a,env=NOPE", "secret a: environment variable NOPE is not set"),
            ("id=a,sorce=key", "unexpected key 'sorce' in 'sorce=key'"),
            ("id=a,type=vault", "unsupported secret type \"vault\""),
            ("a", "invalid field 'a' must be a key=value pair"),
        ] {
            assert_eq!(run(value).map_err(|e| e.to_string()), Err(want.to_owned()), "{value}");
        }
    }

    #[test]
    fn a_later_secret_replaces_an_earlier_one() {
        let env = Env::of(&[("A", "1"), ("B", "2")], std::path::Path::new("/"));
        let got = parse_secrets(&["id=x,env=A".into(), "id=x,env=B".into()], &env).map(|s| s.len());
        assert_eq!(got.map_err(|e| e.to_string()), Ok(1));
    }

    #[test]
    fn ssh() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["sock", "k1", "k2"] {
            std::fs::write(dir.path().join(name), b"").expect("write");
        }
        let sock = dir.path().join("sock");
        let env = Env::of(&[("SSH_AUTH_SOCK", sock.to_str().unwrap_or_default())], dir.path());
        let got = parse_ssh(&["default".into(), "work=k1,k2".into()], &env).map_err(|e| e.to_string());
        let want = vec![
            SshSpec { id: "default".into(), paths: vec![sock] },
            SshSpec { id: "work".into(), paths: vec![dir.path().join("k1"), dir.path().join("k2")] },
        ];
        assert_eq!(got, Ok(want));
        let none = Env::of(&[], dir.path());
        let error = parse_ssh(&["default".into()], &none).expect_err("no agent");
        assert!(error.message().starts_with("invalid empty ssh agent socket"));
        assert!(parse_ssh(&["default".into(), "default".into()], &env).is_err());
    }
}
