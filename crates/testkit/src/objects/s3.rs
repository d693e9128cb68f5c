//! S3: objects of one bucket, uploads in parts, copies. Every signature is checked, and every body with it.

use kiln_stdx::Digest;

use super::keyed::{hex, keyed};
use super::{Objects, Protocol, parameter, read, unescape};
use crate::registry::{Answer, Asked};

fn refusal(status: u16, code: &str) -> Answer {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code} it is</Message></Error>");
    Answer::new(status).with("Content-Type", "application/xml").body(text)
}

pub fn answer(asked: &Asked, objects: &mut Objects, protocol: &Protocol) -> Answer {
    let Protocol::S3 { bucket, region, id, secret } = protocol else { return Answer::new(500) };
    if let Err(code) = check(asked, region, id, secret) {
        return refusal(403, code);
    }
    let path = unescape(&asked.path);
    let Some(key) = path.strip_prefix(&format!("/{bucket}/")) else { return refusal(404, "NoSuchBucket") };
    match (asked.method.as_str(), parameter(asked, "uploadId")) {
        ("POST", None) if parameter(asked, "uploads").is_some() => {
            objects.uploads += 1;
            let id = format!("up/{}", objects.uploads);
            Answer::new(200).body(format!("<R><Key>{key}</Key><UploadId>{id}</UploadId></R>"))
        }
        ("PUT", Some(upload)) => {
            let number = parameter(asked, "partNumber").unwrap_or_default();
            let body = copied(asked, objects, bucket).unwrap_or_else(|| asked.body.clone());
            objects.parts.insert((upload, format!("{number:0>5}")), body);
            let answer = Answer::new(200).with("ETag", format!("\"p{number}\""));
            answer.body(format!("<CopyPartResult><ETag>&quot;p{number}&quot;</ETag></CopyPartResult>"))
        }
        ("POST", Some(upload)) => {
            let parts: Vec<Vec<u8>> =
                objects.parts.iter().filter(|((id, _), _)| *id == upload).map(|(_, body)| body.clone()).collect();
            let listed = String::from_utf8_lossy(&asked.body).matches("<Part>").count();
            objects.parts.retain(|(id, _), _| *id != upload);
            if listed != parts.len() || listed == 0 {
                return refusal(400, "InvalidPart");
            }
            put(objects, key, parts.concat());
            Answer::new(200).body("<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")
        }
        ("DELETE", Some(upload)) => {
            objects.parts.retain(|(id, _), _| *id != upload);
            Answer::new(204)
        }
        ("PUT", None) if !asked.header("x-amz-copy-source").is_empty() => match copied(asked, objects, bucket) {
            Some(_) if asked.header("x-amz-metadata-directive") != "REPLACE" => refusal(400, "InvalidRequest"),
            Some(body) => {
                put(objects, key, body);
                Answer::new(200).body("<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")
            }
            None => refusal(404, "NoSuchKey"),
        },
        ("PUT", None) => {
            put(objects, key, asked.body.clone());
            Answer::new(200).with("ETag", "\"t\"")
        }
        ("GET" | "HEAD", None) => read(asked, objects, key).unwrap_or_else(|| refusal(404, "NoSuchKey")),
        _ => refusal(405, "MethodNotAllowed"),
    }
}

fn put(objects: &mut Objects, key: &str, body: Vec<u8>) {
    objects.old.remove(key);
    objects.kept.insert(key.to_owned(), body);
}

fn copied(asked: &Asked, objects: &Objects, bucket: &str) -> Option<Vec<u8>> {
    let source = unescape(asked.header("x-amz-copy-source"));
    let key = source.trim_start_matches('/').strip_prefix(&format!("{bucket}/"))?;
    objects.kept.get(key).cloned()
}

/// Checks a signature by its definition.
fn check(asked: &Asked, region: &str, id: &str, secret: &str) -> Result<(), &'static str> {
    let header = asked.header("authorization").strip_prefix("AWS4-HMAC-SHA256 ").ok_or("AccessDenied")?;
    let field = |name: &str| header.split(',').find_map(|part| part.trim().strip_prefix(name)).ok_or("AccessDenied");
    let (credential, signed, signature) = (field("Credential=")?, field("SignedHeaders=")?, field("Signature=")?);
    let now = asked.header("x-amz-date");
    let day = now.get(..8).ok_or("AccessDenied")?;
    let scope = format!("{day}/{region}/s3/aws4_request");
    if credential != format!("{id}/{scope}") {
        return Err("InvalidAccessKeyId");
    }
    let payload = asked.header("x-amz-content-sha256");
    if payload != "UNSIGNED-PAYLOAD" && payload != Digest::of(&asked.body).hex() {
        return Err("XAmzContentSHA256Mismatch");
    }
    let names: Vec<&str> = signed.split(';').collect();
    // What decides what is done has to be signed.
    let must = asked.headers.keys().filter(|name| name.starts_with("x-amz-") || *name == "host");
    if must.into_iter().any(|name| !names.contains(&name.as_str())) {
        return Err("AccessDenied");
    }
    let lines: String = names.iter().map(|name| format!("{name}:{}\n", asked.header(name))).collect();
    let mut query: Vec<String> = asked.query.split('&').filter(|p| !p.is_empty()).map(with_value).collect();
    query.sort();
    let request = [&asked.method, &asked.path, &query.join("&"), &lines, signed, payload].map(String::from).join("\n");
    let text = format!("AWS4-HMAC-SHA256\n{now}\n{scope}\n{}", Digest::of(request).hex());
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [day, region, "s3", "aws4_request"] {
        key = keyed(&key, part.as_bytes()).to_vec();
    }
    if signature == hex(&keyed(&key, text.as_bytes())) { Ok(()) } else { Err("SignatureDoesNotMatch") }
}

fn with_value(pair: &str) -> String {
    if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") }
}
