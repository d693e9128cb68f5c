//! AWS Signature Version 4 of requests to S3 (the S3 API reference, "Authenticating Requests: Using the Authorization
//! Header").

use aws_lc_rs::hmac;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kiln_registry::ErrorKind;
use kiln_stdx::Digest;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};

use crate::aws::AwsKey;
use crate::client::{Call, Sign};
use crate::error::config;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Signs for one region with one key.
pub(crate) struct SigV4 {
    pub(crate) key: AwsKey,
    pub(crate) region: String,
}

impl Sign for SigV4 {
    fn sign(&self, call: &Call, now: Timestamp, headers: &mut HeaderMap) -> Result<(), ErrorKind> {
        let payload = call.digest().hex();
        let now = now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
        insert(headers, "x-amz-date", &now)?;
        insert(headers, "x-amz-content-sha256", &payload)?;
        if let Some(token) = &self.key.token {
            insert(headers, "x-amz-security-token", token)?;
        }
        let host = authority(&call.url);
        // Headers that something on the way may change are left out: only what says what is asked is signed.
        let mut signed: Vec<(String, String)> = headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-amz-"))
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.trim().to_owned())))
            .chain([(HOST.as_str().to_owned(), host)])
            .collect();
        signed.sort();
        let value = self.authorization(call.method.as_str(), &call.url, &signed, &payload, &now);
        let mut value = HeaderValue::from_str(&value).map_err(|_| config("access_key_id cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        Ok(())
    }
}

impl SigV4 {
    /// Returns the header for a request with these headers, sorted by their lower-case names.
    fn authorization(&self, method: &str, url: &Url, headers: &[(String, String)], payload: &str, now: &str) -> String {
        let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(";");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let request = format!("{method}\n{}\n{}\n{lines}\n{names}\n{payload}", url.path(), query(url));
        let day = &now[..8];
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let text = format!("{ALGORITHM}\n{now}\n{scope}\n{}", Digest::of(request).hex());
        let mut key = [b"AWS4", self.key.secret.expose()].concat();
        for part in [day, self.region.as_str(), "s3", "aws4_request"] {
            key = keyed(&key, part.as_bytes());
        }
        let signature = hex::encode(keyed(&key, text.as_bytes()));
        format!("{ALGORITHM} Credential={}/{scope},SignedHeaders={names},Signature={signature}", self.key.id)
    }
}

/// Returns the query with its parameters in order. They were escaped when the address was made.
fn query(url: &Url) -> String {
    let mut pairs: Vec<String> = url
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
        .collect();
    pairs.sort();
    pairs.join("&")
}

/// Returns host and port as the header `Host` has them.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn keyed(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), ErrorKind> {
    let mut value = HeaderValue::from_str(value).map_err(|_| config(format!("bad value of the header {name}")))?;
    value.set_sensitive(name.ends_with("token"));
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use kiln_stdx::Secret;

    use super::*;

    fn signer() -> SigV4 {
        let secret = Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
        let key = AwsKey { id: "AKIAIOSFODNN7EXAMPLE".into(), secret, token: None };
        SigV4 { key, region: "us-east-1".into() }
    }

    fn signature(method: &str, url: &str, headers: &[(&str, &str)]) -> String {
        let headers: Vec<_> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let (url, empty) = (Url::parse(url).unwrap(), Digest::of("").hex());
        let value = signer().authorization(method, &url, &headers, &empty, "20130524T000000Z");
        value.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// The examples of the S3 API reference.
    #[test]
    fn published_signatures() {
        let empty = Digest::of("").hex();
        let host = ("host", "examplebucket.s3.amazonaws.com");
        let common = [("x-amz-content-sha256", empty.as_str()), ("x-amz-date", "20130524T000000Z")];
        let get = [host, ("range", "bytes=0-9"), common[0], common[1]];
        assert_eq!(
            signature("GET", "https://examplebucket.s3.amazonaws.com/test.txt", &get),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let list = [host, common[0], common[1]];
        assert_eq!(
            signature("GET", "https://examplebucket.s3.amazonaws.com/?lifecycle", &list),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
    }

    #[test]
    fn a_signed_request_has_all_that_is_needed() {
        let mut signer = signer();
        signer.key.token = Some("session".into());
        let call = Call::new(reqwest::Method::GET, Url::parse("http://127.0.0.1:9000/b/k").unwrap());
        let mut headers = HeaderMap::new();
        signer.sign(&call, Timestamp::from_second(1_369_353_600).unwrap(), &mut headers).unwrap();
        assert_eq!(headers["x-amz-date"], "20130524T000000Z");
        let value = headers[AUTHORIZATION].to_str().unwrap();
        assert!(value.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,"), "{value}");
        assert!(!format!("{headers:?}").contains("session"), "{headers:?}");
    }
}
