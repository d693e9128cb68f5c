//! `WWW-Authenticate` challenges (RFC 9110 section 11.6.1; distribution's "Token Authentication").

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// One way to log in that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: Vec<String>, error: Option<String> },
}

/// Returns the challenges this client understands, in the server's order.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()).flat_map(parse).collect()
}

/// Parses one header value, which may hold several challenges.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut current: Option<(String, Vec<(String, String)>)> = None;
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let after_spaces = tail.trim_start();
        if let Some(value) = after_spaces.strip_prefix('=') {
            let (value, tail) = parameter_value(value.trim_start());
            if let Some((_, parameters)) = &mut current {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = tail;
        } else {
            found.extend(current.take().and_then(finish));
            current = Some((word.to_ascii_lowercase(), Vec::new()));
            rest = tail;
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    found.extend(current.and_then(finish));
    found
}

/// Splits a token or quoted string off the front of `text`.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn finish((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service").unwrap_or_default(),
            scope: get("scope").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
            error: get("error"),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_with_several_scopes_and_commas() {
        let text = r#"Bearer realm="https://auth.example/token",service="reg, \"one\"",scope="repository:a/b:pull,push repository:c:pull",error="invalid_token""#;
        let [Challenge::Bearer { realm, service, scope, error }] = &parse(text)[..] else {
            panic!("{:?}", parse(text))
        };
        assert_eq!((realm.as_str(), service.as_str()), ("https://auth.example/token", "reg, \"one\""));
        assert_eq!(scope, &["repository:a/b:pull,push", "repository:c:pull"]);
        assert_eq!(error.as_deref(), Some("invalid_token"));
    }

    #[test]
    fn several_challenges_in_one_header() {
        let found = parse(r#"Negotiate, Basic realm="x y", bearer realm=https://a/t"#);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], Challenge::Basic);
        assert!(matches!(&found[1], Challenge::Bearer { realm, .. } if realm == "https://a/t"));
    }

    #[test]
    fn nonsense_is_nothing() {
        for text in ["", ",,,", "=", "Bearer", "Bearer scope=\"unterminated", "\"\"\"", "a=b=c, d \\"] {
            assert!(parse(text).is_empty(), "{text}");
        }
    }
}
