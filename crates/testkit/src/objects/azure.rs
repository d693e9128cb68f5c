//! Azure's blobs: containers below an account, blobs whole or in blocks, requests signed with the account's key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::keyed::keyed;
use super::{Objects, parameter, read, unescape};
use crate::registry::{Answer, Asked};

fn refusal(status: u16, code: &str) -> Answer {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code} it is</Message></Error>");
    Answer::new(status).with("x-ms-error-code", code).body(text)
}

pub fn answer(asked: &Asked, objects: &mut Objects, account: &str, key: &str) -> Answer {
    if !is_signed(asked, account, key) {
        return refusal(403, "AuthenticationFailed");
    }
    let path = unescape(&asked.path);
    let Some(name) = path.strip_prefix(&format!("/{account}/")) else { return refusal(404, "ResourceNotFound") };
    if parameter(asked, "restype").as_deref() == Some("container") {
        return match asked.method.as_str() {
            "PUT" if objects.open.insert(name.to_owned()) => Answer::new(201),
            "PUT" => refusal(409, "ContainerAlreadyExists"),
            _ if objects.open.contains(name) => Answer::new(200),
            _ => refusal(404, "ContainerNotFound"),
        };
    }
    if !objects.open.contains(name.split('/').next().unwrap_or_default()) {
        return refusal(404, "ContainerNotFound");
    }
    blob(asked, objects, name)
}

/// Reads or writes one blob; the caller has seen to it that this is allowed.
pub fn blob(asked: &Asked, objects: &mut Objects, name: &str) -> Answer {
    match (asked.method.as_str(), parameter(asked, "comp").as_deref()) {
        ("PUT", Some("block")) => {
            let id = parameter(asked, "blockid").unwrap_or_default();
            objects.parts.insert((name.to_owned(), id), asked.body.clone());
            Answer::new(201)
        }
        ("PUT", Some("blocklist")) => {
            let text = String::from_utf8_lossy(&asked.body).into_owned();
            let ids = text
                .split('<')
                .filter_map(|part| part.split_once('>'))
                .filter(|(tag, id)| matches!(*tag, "Latest" | "Uncommitted" | "Committed") && !id.is_empty());
            let parts: Option<Vec<Vec<u8>>> =
                ids.map(|(_, id)| objects.parts.get(&(name.to_owned(), id.to_owned())).cloned()).collect();
            let Some(parts) = parts else { return refusal(400, "InvalidBlockList") };
            objects.parts.retain(|(blob, _), _| blob != name);
            objects.kept.insert(name.to_owned(), parts.concat());
            Answer::new(201).with("x-ms-request-id", "1")
        }
        ("PUT", None) if asked.header("x-ms-blob-type") != "BlockBlob" => refusal(400, "MissingRequiredHeader"),
        ("PUT", None) if asked.header("if-none-match") == "*" && objects.kept.contains_key(name) => {
            refusal(409, "BlobAlreadyExists")
        }
        ("PUT", None) => {
            objects.kept.insert(name.to_owned(), asked.body.clone());
            Answer::new(201).with("x-ms-request-id", "1")
        }
        ("GET" | "HEAD", None) => read(asked, objects, name).unwrap_or_else(|| refusal(404, "BlobNotFound")),
        _ => refusal(405, "UnsupportedHttpVerb"),
    }
}

/// Checks a signature by its definition.
fn is_signed(asked: &Asked, account: &str, key: &str) -> bool {
    let given = asked.header("authorization").strip_prefix(&format!("SharedKey {account}:")).map(str::to_owned);
    let Ok(key) = STANDARD.decode(key) else { return false };
    let mut text = format!("{}\n", asked.method);
    for name in [
        "content-encoding",
        "content-language",
        "content-length",
        "content-md5",
        "content-type",
        "date",
        "if-modified-since",
        "if-match",
        "if-none-match",
        "if-unmodified-since",
        "range",
    ] {
        let value = asked.header(name);
        text += if name == "content-length" && value == "0" { "" } else { value };
        text += "\n";
    }
    for (name, value) in asked.headers.iter().filter(|(name, _)| name.starts_with("x-ms-")) {
        text += &format!("{name}:{value}\n");
    }
    text += &format!("/{account}{}", asked.path);
    let mut query: Vec<(String, String)> = asked
        .query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_lowercase(), unescape(&value.replace('+', " "))))
        .collect();
    query.sort();
    for (name, value) in query {
        text += &format!("\n{name}:{value}");
    }
    given == Some(STANDARD.encode(keyed(&key, text.as_bytes())))
}
