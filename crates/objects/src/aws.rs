//! Keys of AWS, from where its own tools look for them: the environment, then the file of credentials.

use std::path::PathBuf;

use kiln_stdx::Secret;

use crate::attrs::{Attrs, Environment, given};

/// A key that signs requests.
#[derive(Debug, Clone)]
pub struct AwsKey {
    pub id: String,
    pub secret: Secret,
    /// Goes with keys that are good for a while.
    pub token: Option<String>,
}

/// Returns the key that an environment has, or the file of credentials that it leads to.
pub fn aws_key(env: Environment<'_>) -> Option<AwsKey> {
    let var = |name: &str| env(name).filter(|text| !text.is_empty());
    if let (Some(id), Some(secret)) = (var("AWS_ACCESS_KEY_ID"), var("AWS_SECRET_ACCESS_KEY")) {
        return Some(AwsKey { id, secret: Secret::new(secret), token: var("AWS_SESSION_TOKEN") });
    }
    let file = match var("AWS_SHARED_CREDENTIALS_FILE") {
        Some(file) => PathBuf::from(file),
        None => PathBuf::from(var("HOME")?).join(".aws/credentials"),
    };
    let text = std::fs::read_to_string(file).ok()?;
    of_profile(&text, &var("AWS_PROFILE").unwrap_or_else(|| "default".to_owned()))
}

/// Returns the key of attributes, which have both halves or count for nothing.
pub(crate) fn of_attrs(attrs: &Attrs) -> Option<AwsKey> {
    let (id, secret) = (given(attrs, "access_key_id")?, given(attrs, "secret_access_key")?);
    let token = given(attrs, "session_token").map(str::to_owned);
    Some(AwsKey { id: id.to_owned(), secret: Secret::new(secret), token })
}

fn of_profile(text: &str, profile: &str) -> Option<AwsKey> {
    let (mut inside, mut id, mut secret, mut token) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if let (true, Some((name, value))) = (inside, line.split_once('=')) {
            let value = Some(value.trim().to_owned()).filter(|text| !text.is_empty());
            match name.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(AwsKey { id: id?, secret: Secret::new(secret?), token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_comes_before_the_file() {
        let text = "[default]\naws_access_key_id = A\n aws_secret_access_key=B=\n# note\n[work]\naws_access_key_id=C\n";
        let key = of_profile(text, "default").unwrap();
        assert_eq!((key.id.as_str(), key.secret.expose(), key.token), ("A", b"B=".as_slice(), None));
        assert!(of_profile(text, "work").is_none() && of_profile(text, "none").is_none());
        let env = |name: &str| {
            let found = [("AWS_ACCESS_KEY_ID", "I"), ("AWS_SECRET_ACCESS_KEY", "S"), ("AWS_SESSION_TOKEN", "T")];
            found.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        };
        let key = aws_key(&env).unwrap();
        assert_eq!((key.id.as_str(), key.token.as_deref()), ("I", Some("T")));
        assert!(aws_key(&|_| None).is_none());
    }
}
