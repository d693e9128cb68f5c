//! The engine's API as such: definitions that no frontend makes, and what is kept of builds.

use std::collections::BTreeMap;

use kiln_llb::builder::{Builder, FileActions, FileOptions, Meta, Output};
use kiln_llb::{Definition, pb};
use kiln_oci::Platform;
use kiln_session::proto::content::ReadContentRequest;
use kiln_session::proto::content::content_client::ContentClient;
use kiln_session::proto::control::control_client::ControlClient;
use kiln_session::proto::control::{
    BuildHistoryRecord, BuildHistoryRequest, Descriptor, Exporter, SolveRequest, StatusRequest, StatusResponse,
};
use kiln_stdx::Digest;
use kiln_testkit::{Image, TestEnv};
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};

/// Runs `work` with a connection to a running engine.
pub fn connected<T>(env: &TestEnv, work: impl AsyncFnOnce(Channel) -> T) -> T {
    let _ = env.kiln(["du"]).finish().ok();
    let address = format!("unix://{}", env.root().join("engine.sock").display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let channel = Endpoint::from_shared(address).expect("address").connect().await.expect("an engine");
        work(channel).await
    })
}

async fn record(channel: &Channel, reference: &str) -> BuildHistoryRecord {
    let request = BuildHistoryRequest { r#ref: reference.to_owned(), early_exit: true, ..Default::default() };
    let mut events =
        ControlClient::new(channel.clone()).listen_build_history(request).await.expect("history").into_inner();
    events.message().await.expect("history").expect("a record").record.expect("a record")
}

async fn read(channel: &Channel, descriptor: Option<Descriptor>) -> Vec<u8> {
    let descriptor = descriptor.expect("a descriptor");
    let request = ReadContentRequest { digest: descriptor.digest.clone(), ..Default::default() };
    let mut pieces = ContentClient::new(channel.clone()).read(request).await.expect("content").into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await.expect("content") {
        bytes.extend_from_slice(&piece.data);
    }
    assert_eq!(Digest::of(&bytes).to_string(), descriptor.digest);
    assert_eq!(i64::try_from(bytes.len()), Ok(descriptor.size));
    bytes
}

fn files(builder: &mut Builder, path: &str, data: Vec<u8>) -> Output {
    let actions = FileActions::new().mkfile(path, 0o644, data, FileOptions::default());
    builder.file(Output::SCRATCH, actions, Meta::named(format!("make {path}")))
}

/// Returns a definition that builds the definition which another step makes.
fn nested() -> Definition {
    let mut builder = Builder::new(Platform::host());
    let inner = files(&mut builder, "/built", b"inside".to_vec());
    let inner = builder.definition(inner).expect("inner").encode();
    let mut builder = Builder::new(Platform::host());
    let made = files(&mut builder, "/plan.llb", inner);
    let mut definition = builder.definition(made).expect("outer");
    // The last operation names the result; the one before it makes the file.
    definition.ops.pop();
    let input = |of: &[u8]| pb::Input { digest: Digest::of(of).to_string(), index: 0 };
    let build = pb::BuildOp {
        builder: -1,
        inputs: BTreeMap::from([("buildkit.llb.definition".to_owned(), pb::BuildInput { input: 0 })]),
        def: None,
        attrs: BTreeMap::from([("llbbuild.filename".to_owned(), "plan.llb".to_owned())]),
    };
    let inputs = vec![input(definition.ops.last().expect("an operation"))];
    let build = pb::Op { inputs, op: Some(pb::op::Op::Build(build)), ..Default::default() }.encode_to_vec();
    let last = pb::Op { inputs: vec![input(&build)], ..Default::default() }.encode_to_vec();
    definition.ops.extend([build.into(), last.into()]);
    definition
}

#[test]
fn a_definition_that_a_step_makes_is_built() {
    let env = crate::env();
    connected(&env, async |channel| {
        let attrs = BTreeMap::from([("name".to_owned(), "example.org/nested:1".to_owned())]);
        let request = SolveRequest {
            r#ref: "nested".to_owned(),
            definition: Some(nested().to_pb()),
            exporters: vec![Exporter { r#type: "image".to_owned(), attrs }],
            ..Default::default()
        };
        let _ = ControlClient::new(channel.clone()).solve(request).await.expect("a build");
        let record = record(&channel, "nested").await;
        let result = record.result.expect("a result");
        assert_eq!(result.results.len(), 1, "one output delivered an image");
        let image = read(&channel, result.results.get(&0).cloned()).await;
        let image: serde_json::Value = serde_json::from_slice(&image).expect("JSON");
        assert!(image["schemaVersion"] == 2, "{image}");
        let statement = read(&channel, result.attestations.first().cloned()).await;
        let statement: serde_json::Value = serde_json::from_slice(&statement).expect("JSON");
        assert!(statement["buildDefinition"].is_object(), "{statement}");
    });
    assert_eq!(Image::read(&env.root().join("images")).text("built"), "inside");
}

#[test]
fn what_was_shown_and_what_failed_is_kept() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo so far so good && exit 3\n")]);
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).fails_with("exit code: 3");
    connected(&env, async |channel| {
        let request = BuildHistoryRequest { early_exit: true, ..Default::default() };
        let mut events =
            ControlClient::new(channel.clone()).listen_build_history(request).await.expect("history").into_inner();
        let record = events.message().await.expect("history").expect("a record").record.expect("a record");
        let error = record.error.clone().expect("an error");
        assert!(error.details.is_empty() && error.message.contains("exit code: 3"), "{error:?}");
        let whole = read(&channel, record.external_error.clone()).await;
        let whole = kiln_session::proto::google::rpc::Status::decode(whole.as_slice()).expect("a status");
        assert_eq!((whole.code, whole.message.as_str()), (error.code, error.message.as_str()));
        assert!(whole.details.iter().any(|d| d.type_url.ends_with("errdefs.Source+json")), "{whole:?}");
        let logs = read(&channel, record.logs.clone()).await;
        let mut said = Vec::new();
        let mut rest = logs.as_slice();
        while let Some((length, after)) = rest.split_at_checked(4) {
            let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
            let response = StatusResponse::decode(&after[..length]).expect("events");
            said.extend(response.logs.iter().flat_map(|log| log.msg.to_vec()));
            rest = &after[length..];
        }
        assert_eq!(String::from_utf8_lossy(&said), "so far so good\n");
        let request = StatusRequest { r#ref: record.r#ref.clone() };
        let mut events = ControlClient::new(channel.clone()).status(request).await.expect("events").into_inner();
        let mut again = Vec::new();
        while let Some(response) = events.message().await.expect("events") {
            again.extend(response.logs.iter().flat_map(|log| log.msg.to_vec()));
        }
        assert_eq!(again, said, "what a build printed is told again when it is over");
        let trace = String::from_utf8(read(&channel, record.trace.clone()).await).expect("text");
        assert!(trace.lines().count() > 1 && trace.contains("exit code: 3"), "{trace}");
    });
}
