//! Logging in: challenges, tokens, their expiry, and where credentials must never go.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::TryStreamExt;
use kiln_registry::{
    Credential, CredentialError, CredentialSource, Credentials, ErrorKind, Repository, Token, TokenRequest,
};
use kiln_stdx::{ErrorClass, Secret};
use parking_lot::Mutex;
use support::{Content, Fake, Reply, Seen, anonymous, client, login};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;

fn challenge(seen: &Seen, realm: &str) -> Reply {
    let repository = seen.path.trim_start_matches("/v2/").split('/').next().unwrap_or_default();
    let action = if seen.method == "GET" || seen.method == "HEAD" { "pull" } else { "pull,push" };
    Reply::new(401)
        .with(
            "WWW-Authenticate",
            format!(r#"Bearer realm="{realm}",service="fake",scope="repository:{repository}:{action}""#),
        )
        .body(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
}

/// A registry whose own `/token` gives `tok-N`; `valid` says which tokens open the rest.
async fn token_registry(
    token: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    valid: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Fake {
    Fake::scripted(move |seen: &Seen, _: &mut Content| {
        if seen.path == "/token" {
            return Some(token(seen));
        }
        let given = seen.header("authorization").strip_prefix("Bearer ").unwrap_or_default();
        let realm = format!("http://{}/token", seen.header("host"));
        (!valid(given)).then(|| challenge(seen, &realm))
    })
    .await
}

fn numbered() -> impl Fn(&Seen) -> Reply {
    let count = AtomicUsize::new(0);
    move |_| Reply::new(200).body(format!(r#"{{"token":"tok-{}"}}"#, count.fetch_add(1, Ordering::SeqCst) + 1))
}

fn tokens_asked(fake: &Fake) -> Vec<Seen> {
    fake.log().into_iter().filter(|s| s.path == "/token").collect()
}

#[tokio::test]
async fn basic_login_is_sent_once_it_is_asked_for() {
    let fake = Fake::scripted(|seen, _| {
        let want = format!("Basic {}", BASE64_STANDARD.encode("me:pass:word"));
        (seen.header("authorization") != want).then(|| Reply::new(401).with("WWW-Authenticate", "Basic realm=\"r\""))
    })
    .await;
    fake.add_manifest("a", "1", MANIFEST);
    let (registry, _) = client();
    let good = login(&fake.host, "me", "pass:word");
    for _ in 0..2 {
        registry.resolve(&fake.reference("a:1"), &good).await.unwrap();
    }
    assert_eq!(fake.lines().len(), 3, "one refused, two with the login");
    let bad = login(&fake.host, "me", "hunter2");
    let error = registry.resolve(&fake.reference("a:1"), &bad).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unauthorized(_)) && error.class() == ErrorClass::UserInput, "{error:?}");
    assert!(error.hint().unwrap().contains(&format!("docker login {}", fake.host)));
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn one_token_serves_all_requests_of_a_scope() {
    let fake = token_registry(numbered(), |t| t.starts_with("tok-")).await;
    fake.add_manifest("a", "1", MANIFEST);
    let (registry, _) = client();
    let user = login(&fake.host, "me", "pw");
    for _ in 0..3 {
        registry.resolve(&fake.reference("a:1"), &user).await.unwrap();
    }
    let asked = tokens_asked(&fake);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].query["scope"], ["repository:a:pull"]);
    assert_eq!(asked[0].query["service"], ["fake"]);
    assert_eq!(asked[0].header("authorization"), format!("Basic {}", BASE64_STANDARD.encode("me:pw")));
    registry.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap();
    assert_eq!(tokens_asked(&fake).len(), 2, "another identity gets a token of its own");
}

#[tokio::test]
async fn requests_at_once_share_one_token_fetch() {
    let fake = token_registry(numbered(), |t| t.starts_with("tok-")).await;
    let blob = fake.add_blob(b"some bytes");
    fake.add_manifest("a", "1", MANIFEST);
    let (registry, _) = client();
    let user = anonymous();
    registry.resolve(&fake.reference("a:1"), &user).await.unwrap();
    let repository = Repository::new(&fake.host, "b");
    let fetches =
        (0..6).map(|_| async { registry.fetch_blob(&repository, &blob, &user).await?.try_collect::<Vec<_>>().await });
    futures::future::try_join_all(fetches).await.unwrap();
    let scopes: Vec<_> = tokens_asked(&fake).iter().map(|s| s.query["scope"].clone()).collect();
    assert_eq!(scopes, [["repository:a:pull"], ["repository:b:pull"]]);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let now_valid = Arc::new(Mutex::new("tok-1"));
    let check = now_valid.clone();
    let fake = token_registry(numbered(), move |t| t == *check.lock()).await;
    fake.add_manifest("a", "1", MANIFEST);
    let (registry, _) = client();
    registry.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap();
    *now_valid.lock() = "tok-2";
    registry.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap();
    *now_valid.lock() = "none at all";
    let error = registry.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unauthorized(_)), "{error}");
    assert!(!format!("{error:?}").contains("tok-"));
    assert_eq!(tokens_asked(&fake).len(), 3);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let fake =
        token_registry(|_| Reply::new(200).body(r#"{"access_token":"fine","expires_in":300}"#), |t| t == "fine").await;
    fake.add_manifest("a", "1", MANIFEST);
    client().0.resolve(&fake.reference("a:1"), &login(&fake.host, "", "refresh me")).await.unwrap();
    let asked = tokens_asked(&fake);
    let form: Vec<_> = url::form_urlencoded::parse(&asked[0].body).into_owned().collect();
    assert_eq!(asked[0].method, "POST");
    for (name, value) in
        [("grant_type", "refresh_token"), ("refresh_token", "refresh me"), ("scope", "repository:a:pull")]
    {
        assert!(form.contains(&(name.into(), value.into())), "{form:?}");
    }
}

#[tokio::test]
async fn a_token_server_that_only_takes_post_gets_the_password_so() {
    let token = |seen: &Seen| match seen.method.as_str() {
        "POST" => Reply::new(200).body(r#"{"token":"fine"}"#),
        _ => Reply::new(405),
    };
    let fake = token_registry(token, |t| t == "fine").await;
    fake.add_manifest("a", "1", MANIFEST);
    client().0.resolve(&fake.reference("a:1"), &login(&fake.host, "me", "pw")).await.unwrap();
    let last = tokens_asked(&fake).pop().unwrap();
    assert!(String::from_utf8(last.body).unwrap().contains("grant_type=password"));
}

#[tokio::test]
async fn mounting_asks_for_both_repositories() {
    let fake = token_registry(numbered(), |t| t.starts_with("tok-")).await;
    let blob = fake.add_blob(b"shared");
    fake.content(|c| c.blobs.clear());
    let (registry, _) = client();
    let target = Repository::new(&fake.host, "b");
    let source = Arc::new(bytes::Bytes::from_static(b"shared"));
    registry.push_blob(&target, &blob, source, &["a".to_owned()], &anonymous()).await.unwrap();
    let scopes: Vec<_> = tokens_asked(&fake).iter().map(|s| s.query["scope"].clone()).collect();
    assert!(scopes.contains(&vec!["repository:a:pull".into(), "repository:b:pull,push".into()]), "{scopes:?}");
}

#[tokio::test]
async fn the_session_can_fetch_tokens_itself() {
    struct Session(Mutex<Vec<TokenRequest>>);
    #[async_trait]
    impl CredentialSource for Session {
        fn identity(&self) -> String {
            "session".into()
        }
        async fn credentials(&self, _: &str) -> Result<Option<Credential>, CredentialError> {
            Err(CredentialError("the password stays at home".into()))
        }
        async fn token(&self, request: &TokenRequest) -> Result<Option<Token>, CredentialError> {
            self.0.lock().push(request.clone());
            Ok(Some(Token { value: Secret::new("from-session"), expires_in: None }))
        }
    }
    let fake = token_registry(|_| Reply::new(500), |t| t == "from-session").await;
    fake.add_manifest("a", "1", MANIFEST);
    let session = Arc::new(Session(Mutex::default()));
    let credentials: Credentials = session.clone();
    client().0.resolve(&fake.reference("a:1"), &credentials).await.unwrap();
    assert!(tokens_asked(&fake).is_empty());
    let asked = session.0.lock();
    assert_eq!(
        (asked[0].host.as_str(), asked[0].scopes.clone()),
        (fake.host.as_str(), vec!["repository:a:pull".into()])
    );
}

#[tokio::test]
async fn redirects_carry_no_login_elsewhere() {
    let storage = Fake::new().await;
    let blob = storage.add_blob(b"stored elsewhere");
    let to = storage.host.clone();
    let fake = Fake::scripted(move |seen, _| {
        if seen.header("authorization").is_empty() {
            return Some(Reply::new(401).with("WWW-Authenticate", "Basic"));
        }
        Some(match seen.path.strip_prefix("/v2/a/") {
            Some(rest) => Reply::new(307).with("Location", format!("/v2/moved/{rest}")),
            None => Reply::new(302).with("Location", format!("http://{to}{}?sig=s3cret", seen.path)),
        })
    })
    .await;
    let user = login(&fake.host, "me", "pw");
    let (registry, _) = client();
    let repository = Repository::new(&fake.host, "a");
    let got: Vec<_> = registry.fetch_blob(&repository, &blob, &user).await.unwrap().try_collect().await.unwrap();
    assert_eq!(got.concat(), b"stored elsewhere");
    assert!(fake.log().last().unwrap().path.starts_with("/v2/moved/"));
    assert!(!fake.log().last().unwrap().header("authorization").is_empty(), "the same origin gets the login again");
    assert!(storage.log().iter().all(|s| s.header("authorization").is_empty()));

    storage.content(|c| c.blobs.clear());
    let error = registry.fetch_blob(&repository, &blob, &user).await.err().unwrap();
    assert!(!format!("{error:?}").contains("s3cret"));
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let fake = Fake::scripted(|seen, _| Some(Reply::new(302).with("Location", &seen.path))).await;
    let error = client().0.resolve(&fake.reference("a:1"), &anonymous()).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Protocol(_)), "{error}");
}

#[tokio::test]
async fn passwords_do_not_go_to_a_plain_token_server_far_away() {
    let fake =
        Fake::scripted(|seen, _| (seen.path != "/token").then(|| challenge(seen, "ftp://tokens.example/token"))).await;
    let error = client().0.resolve(&fake.reference("a:1"), &login(&fake.host, "me", "pw")).await.unwrap_err();
    assert!(error.to_string().contains("tokens.example"), "{error}");
}

#[tokio::test]
async fn a_refused_login_at_the_token_server_is_the_users_to_mend() {
    for status in [400, 401, 403] {
        let fake = token_registry(move |_| Reply::new(status), |_| false).await;
        let error = client().0.resolve(&fake.reference("a:1"), &login(&fake.host, "me", "pw")).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::UserInput, "{error}");
        assert_eq!(tokens_asked(&fake).len(), 1);
    }
}
