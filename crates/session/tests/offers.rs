//! Secrets, agents, logins, blob stores, uploads and exporters over a session.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::Arc;

use bytes::Bytes;
use common::{offer, rig};
use futures::TryStreamExt;
use kiln_session::client::{
    AuthProvider, ContentProvider, DockerConfig, LayoutStore, SecretSource, SecretsProvider, SshAgent, SshProvider,
    UploadProvider, UploadSource,
};
use kiln_session::proto::exporter::exporter_server::Exporter;
use kiln_session::proto::exporter::{
    ExporterRequest, FinalizeExportRequest, FinalizeExportResponse, FindExportersRequest, FindExportersResponse,
};
use kiln_session::{SessionError, SshSocket};
use kiln_stdx::{Digest, Secret};
use signature::Verifier;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{LineEnding, PrivateKey, PublicKey, Signature};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tonic::{Request, Response, Status};

#[tokio::test]
async fn secrets_come_from_files_and_values() {
    let rig = rig().await;
    let path = rig.path().join("token");
    fs::write(&path, b"from \xff a file").unwrap();
    let secrets = SecretsProvider::new([
        ("file".to_owned(), SecretSource::File(path.clone())),
        ("value".to_owned(), SecretSource::Value(Secret::new("v"))),
    ])
    .unwrap();
    let (_running, session) = rig.open(offer().secrets(secrets)).await;
    assert_eq!(session.secret("file").await.unwrap().unwrap().expose(), b"from \xff a file");
    assert_eq!(session.secret("value").await.unwrap().unwrap().expose(), b"v");
    assert!(session.secret("other").await.unwrap().is_none());
    fs::remove_file(&path).unwrap();
    assert!(session.secret("file").await.is_err(), "a file that vanished is no missing secret");
    let (_running, bare) = rig.open(offer()).await;
    assert!(bare.secret("file").await.unwrap().is_none());
}

#[test]
fn secrets_that_cannot_be_had_are_refused_early() {
    let large = SecretSource::Value(Secret::new(vec![0; 600 * 1024]));
    assert!(SecretsProvider::new([("x".to_owned(), large)]).is_err());
    let missing = SecretSource::File("/nonexistent/secret".into());
    assert!(SecretsProvider::new([("x".to_owned(), missing)]).is_err());
}

/// One request to an agent and its answer, without the lengths.
async fn ask(stream: &mut UnixStream, request: &[u8]) -> Vec<u8> {
    stream.write_u32(u32::try_from(request.len()).unwrap()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

fn text(data: &[u8]) -> Vec<u8> {
    [&u32::try_from(data.len()).unwrap().to_be_bytes()[..], data].concat()
}

#[tokio::test]
async fn key_files_sign_through_a_forwarded_socket() {
    let rig = rig().await;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    key.set_comment("kiln test");
    let path = rig.path().join("id");
    fs::write(&path, key.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
    let agent = SshAgent::from_paths(&[path], false).unwrap();
    let provider = SshProvider::new([(String::new(), agent)]).unwrap();
    let (_running, session) = rig.open(offer().ssh(provider)).await;
    session.check_ssh("").await.unwrap();
    assert!(session.check_ssh("other").await.unwrap_err().is_not_found());

    let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let socket = SshSocket { path: rig.path().join("agent"), uid: owner.0, gid: owner.1, mode: 0o620 };
    let forward = session.forward_ssh("default", &socket).await.unwrap();
    let meta = fs::metadata(forward.path()).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o620);
    let blob = key.public_key().to_bytes().unwrap();
    // Two at once.
    let mut one = UnixStream::connect(forward.path()).await.unwrap();
    let mut two = UnixStream::connect(forward.path()).await.unwrap();
    for stream in [&mut one, &mut two] {
        let list = ask(stream, &[11]).await;
        assert_eq!(list, [&[12, 0, 0, 0, 1][..], &text(&blob), &text(b"kiln test")].concat());
    }
    let request = [&[13][..], &text(&blob), &text(b"challenge"), &[0; 4]].concat();
    let answer = ask(&mut two, &request).await;
    assert_eq!(answer[0], 14);
    let signature = Signature::try_from(&answer[5..]).unwrap();
    let public = PublicKey::from_bytes(&blob).unwrap();
    public.key_data().verify(b"challenge", &signature).unwrap();
    assert_eq!(ask(&mut one, &[17, 1]).await, [5], "adding keys fails");
    let foreign = [&[13][..], &text(b"no such key"), &text(b"x"), &[0; 4]].concat();
    assert_eq!(ask(&mut one, &foreign).await, [5]);
    let path = forward.path().to_owned();
    drop(forward);
    assert!(!path.exists());
}

#[tokio::test]
async fn raw_sockets_pass_everything() {
    let rig = rig().await;
    let path = rig.path().join("echo");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut data = Vec::new();
            stream.read_to_end(&mut data).await.unwrap();
            data.reverse();
            stream.write_all(&data).await.unwrap();
        }
    });
    let agent = SshAgent::from_paths(&[path], true).unwrap();
    let (_running, session) = rig.open(offer().ssh(SshProvider::new([("raw".to_owned(), agent)]).unwrap())).await;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let socket = SshSocket { path: rig.path().join("fwd"), uid, gid, mode: 0o600 };
    let forward = session.forward_ssh("raw", &socket).await.unwrap();
    let mut stream = UnixStream::connect(forward.path()).await.unwrap();
    stream.write_all(b"not an agent").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "tnega na ton", "half-closing goes through both ways");
}

#[test]
fn unusable_agents_are_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let complaint = |content: &str| {
        fs::write(&path, content).unwrap();
        SshAgent::from_paths(std::slice::from_ref(&path), false).unwrap_err().to_string()
    };
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    assert!(complaint(legacy).contains("ssh-keygen -p"), "{}", complaint(legacy));
    let locked = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    assert!(complaint(locked).contains("ssh-add"), "{}", complaint(locked));
    assert!(SshAgent::from_paths(&["/nonexistent/agent".into()], false).is_err());
    assert!(SshAgent::from_paths(std::slice::from_ref(&path), true).is_err(), "raw is for sockets");
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    assert!(SshAgent::from_paths(&[path, dir.path().join("s")], false).is_err(), "not both");
}

#[tokio::test]
async fn logins_are_handed_over_and_tokens_left_to_the_engine() {
    let rig = rig().await;
    let config =
        br#"{"auths":{"r.test":{"auth":"dTpw"},"t.test":{"identitytoken":"idt"},"b.test":{"registrytoken":"bearer"}}}"#;
    let provider = AuthProvider::new(DockerConfig::parse(config).unwrap());
    let (_running, session) = rig.open(offer().auth(provider)).await;
    let login = session.credentials("r.test").await.unwrap().unwrap();
    assert_eq!((login.username.as_str(), login.secret.expose()), ("u", &b"p"[..]));
    let token = session.credentials("t.test").await.unwrap().unwrap();
    assert_eq!((token.username.as_str(), token.secret.expose()), ("", &b"idt"[..]));
    assert!(session.credentials("nobody.test").await.unwrap().is_none());
    assert_eq!(session.token_authority("r.test", b"salt").await.unwrap(), None);
    assert_eq!(session.verify_token_authority("r.test", b"p", b"salt").await.unwrap(), None);
    let fetch =
        |host: &str| kiln_session::proto::filesync::FetchTokenRequest { host: host.into(), ..Default::default() };
    assert!(session.fetch_token(fetch("r.test")).await.unwrap().is_none());
    assert_eq!(session.fetch_token(fetch("b.test")).await.unwrap().unwrap().token, "bearer");
    let (_running, bare) = rig.open(offer()).await;
    assert!(bare.credentials("r.test").await.unwrap().is_none());
}

#[tokio::test]
async fn blob_stores_are_read_and_written() {
    let rig = rig().await;
    let store = LayoutStore::create(&rig.path().join("cache")).unwrap();
    let provider = ContentProvider::new([("local:cache".to_owned(), store.clone())]);
    let (_running, session) = rig.open(offer().content(provider)).await;
    let content = session.content("local:cache");
    let data: Vec<u8> = (0..700_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::of(&data);
    assert!(content.info(&digest).await.unwrap().is_none());
    let mut writer = content.write(&digest, data.len() as u64).await.unwrap().unwrap();
    writer.write(Bytes::from(data.clone())).await.unwrap();
    assert!(content.list().await.unwrap().is_empty(), "not visible before it is committed");
    writer.commit().await.unwrap();
    assert_eq!(content.info(&digest).await.unwrap().unwrap().size, data.len() as u64);
    assert!(content.write(&digest, data.len() as u64).await.unwrap().is_none(), "it is there");
    let part: Vec<u8> =
        content.read(&digest, 10, Some(300_000)).await.unwrap().try_collect::<Vec<_>>().await.unwrap().concat();
    assert_eq!(part, &data[10..300_010]);
    assert_eq!(content.read_all(&digest, 1 << 30).await.unwrap(), data);
    assert!(content.read_all(&digest, 10).await.is_err(), "the limit holds");
    assert_eq!(content.list().await.unwrap().len(), 1);
    let beyond = async { content.read(&digest, u64::from(u32::MAX), None).await?.try_collect::<Vec<_>>().await };
    assert!(beyond.await.is_err());
}

#[tokio::test]
async fn blobs_that_are_something_else_stay_invisible() {
    let rig = rig().await;
    let store = LayoutStore::create(&rig.path().join("cache")).unwrap();
    let provider = ContentProvider::new([("export".to_owned(), store.clone())]);
    let (_running, session) = rig.open(offer().content(provider)).await;
    let content = session.content("export");
    let digest = Digest::of("right");
    let mut writer = content.write(&digest, 5).await.unwrap().unwrap();
    writer.write(Bytes::from_static(b"wrong")).await.unwrap();
    let error = writer.commit().await.unwrap_err().to_string();
    assert!(error.contains("unexpected commit digest"), "{error}");
    assert!(store.list().unwrap().is_empty());
    assert!(session.content("oci:other").info(&digest).await.is_ok_and(|i| i.is_none()), "no store, no blob");
    fs::write(store.blob_path(&digest), "damaged").unwrap();
    assert!(content.read_all(&digest, 100).await.is_err());
}

#[tokio::test]
async fn layouts_of_images_are_read_only() {
    let rig = rig().await;
    let root = rig.path().join("layout");
    LayoutStore::create(&root).unwrap().put(&serde_json::json!({"digest": "d"}), &[]).unwrap();
    let provider = ContentProvider::new([("oci:base".to_owned(), LayoutStore::open(&root).unwrap())]);
    let (_running, session) = rig.open(offer().content(provider)).await;
    let error = session.content("oci:base").write(&Digest::of("x"), 1).await.unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[tokio::test]
async fn uploads_are_pulled_by_id() {
    let rig = rig().await;
    let uploads = UploadProvider::new();
    let body = Bytes::from(vec![9; 200_000]);
    let twice = uploads.add(UploadSource::Bytes(body.clone()));
    let once = uploads.add(UploadSource::Stream(Box::new(std::io::Cursor::new(b"stdin".to_vec()))));
    let (_running, session) = rig.open(offer().upload(uploads)).await;
    let pull = async |url: &str| {
        let path = url.strip_prefix("http://buildkit-session").unwrap();
        let stream = session.upload(path, "buildkit-session").await?;
        Ok::<_, SessionError>(stream.try_collect::<Vec<_>>().await?.concat())
    };
    assert_eq!(pull(&twice).await.unwrap(), body);
    assert_eq!(pull(&twice).await.unwrap(), body);
    assert_eq!(pull(&once).await.unwrap(), b"stdin");
    assert!(pull(&once).await.is_err(), "a stream is read once");
}

struct Chooser;

#[tonic::async_trait]
impl Exporter for Chooser {
    async fn find_exporters(
        &self,
        request: Request<FindExportersRequest>,
    ) -> Result<Response<FindExportersResponse>, Status> {
        let attrs = BTreeMap::from([("refs".to_owned(), request.into_inner().refs.join(","))]);
        let exporters = vec![ExporterRequest { r#type: "local".into(), attrs }];
        Ok(Response::new(FindExportersResponse { exporters }))
    }

    async fn finalize_export(
        &self,
        request: Request<FinalizeExportRequest>,
    ) -> Result<Response<FinalizeExportResponse>, Status> {
        match request.into_inner().exporter_response.get("ok") {
            Some(_) => Ok(Response::new(FinalizeExportResponse {})),
            None => Err(Status::aborted("not what was asked for")),
        }
    }
}

#[tokio::test]
async fn clients_may_choose_exporters_late() {
    let rig = rig().await;
    let (_running, session) = rig.open(offer().exporters(Arc::new(Chooser))).await;
    let chosen = session.find_exporters(BTreeMap::new(), vec!["a".into(), "b".into()]).await.unwrap();
    assert_eq!(chosen[0].attrs["refs"], "a,b");
    session.finalize_export(BTreeMap::from([("ok".into(), "1".into())])).await.unwrap();
    let error = session.finalize_export(BTreeMap::new()).await.unwrap_err();
    assert!(error.to_string().contains("not what was asked for"), "{error}");
    let (_running, bare) = rig.open(offer()).await;
    let absent = bare.find_exporters(BTreeMap::new(), Vec::new()).await;
    assert!(matches!(absent, Err(SessionError::Unsupported { .. })));
}
