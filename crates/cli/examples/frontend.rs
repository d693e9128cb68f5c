//! A small frontend for images: it speaks LLBBridge over its standard streams, runs a process in a container over an input
//! that its caller hands in, and puts what that said into the result, with metadata.
//!
//! Options: `opt:command` is the shell command, `opt:fail` an error to end with instead.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use kiln_llb::builder::{Builder, FileActions, FileOptions, Meta};
use kiln_llb::{Definition, pb as llb};
use kiln_oci::Platform;
use kiln_session::connect;
use kiln_session::proto::gateway as pb;
use kiln_session::proto::gateway::exec_message::Input;
use kiln_session::proto::gateway::llb_bridge_client::LlbBridgeClient;
use kiln_session::proto::google::rpc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, Stdin, Stdout};
use tonic::transport::Channel;

/// The input that is built upon.
const BASE: &str = "base";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Standard input and output as one stream.
struct Standard(Stdin, Stdout);

impl AsyncRead for Standard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Standard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.1).poll_write(cx, data))?;
        // What is written is wanted at once: there is one peer, and it waits.
        let _ = Pin::new(&mut self.1).poll_flush(cx)?;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.1).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.1).poll_shutdown(cx)
    }
}

/// Returns the options that the caller gives.
fn options() -> BTreeMap<String, String> {
    let variables = std::env::vars().filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"));
    variables.filter_map(|(_, value)| value.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect()
}

async fn solve(bridge: &mut LlbBridgeClient<Channel>, definition: llb::Definition) -> Result<pb::Ref, Failure> {
    let request = pb::SolveRequest {
        definition: Some(definition),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..Default::default()
    };
    let result = bridge.solve(request).await?.into_inner().result.unwrap_or_default();
    match result.result {
        Some(pb::result::Result::Ref(reference)) => Ok(reference),
        other => Err(format!("no single result: {other:?}").into()),
    }
}

/// Runs a shell command in a container over `root`; returns what it prints and its exit code.
async fn run(bridge: &mut LlbBridgeClient<Channel>, root: &pb::Ref, command: &str) -> Result<(Vec<u8>, u32), Failure> {
    let mount = llb::Mount { dest: "/".into(), result_id: root.id.clone(), ..llb::Mount::default() };
    let container = pb::NewContainerRequest {
        container_id: "one".into(),
        mounts: vec![mount],
        ..pb::NewContainerRequest::default()
    };
    bridge.new_container(container).await?;
    let meta = llb::Meta {
        args: ["/bin/sh", "-c", command].map(str::to_owned).to_vec(),
        cwd: "/".into(),
        ..llb::Meta::default()
    };
    let init = pb::InitMessage { container_id: "one".into(), meta: Some(meta), fds: vec![1, 2], ..Default::default() };
    let (sender, messages) = tokio::sync::mpsc::channel(1);
    sender.send(pb::ExecMessage { process_id: "p".into(), input: Some(Input::Init(init)) }).await?;
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut answers = bridge.exec_process(stream).await?.into_inner();
    let (mut said, mut code) = (Vec::new(), None);
    while let Some(message) = answers.message().await? {
        match message.input {
            Some(Input::File(file)) if file.fd == 1 => said.extend_from_slice(&file.data),
            Some(Input::Exit(exit)) => code = Some(exit.code),
            Some(Input::Done(_)) => break,
            _ => {}
        }
    }
    drop(sender);
    bridge.release_container(pb::ReleaseContainerRequest { container_id: "one".into() }).await?;
    Ok((said, code.ok_or("the process has no end")?))
}

async fn build(bridge: &mut LlbBridgeClient<Channel>) -> Result<pb::Result, Failure> {
    let options = options();
    if let Some(text) = options.get("opt:fail") {
        return Err(text.clone().into());
    }
    let inputs = bridge.inputs(pb::InputsRequest {}).await?.into_inner().definitions;
    let base = inputs.get(BASE).ok_or("no input of the name base")?;
    let root = solve(bridge, base.clone()).await?;
    let command = options.get("opt:command").map_or("true", String::as_str);
    let (said, code) = run(bridge, &root, command).await?;
    let mut builder = Builder::new(Platform::host());
    let below = builder.import(&Definition::from(base.clone()))?;
    let actions = FileActions::new().mkfile("/said", 0o644, said.clone(), FileOptions::default());
    let made = builder.file(below, actions, Meta::named("what the process said"));
    let reference = solve(bridge, builder.definition(made)?.to_pb()).await?;
    let config = format!(
        "{{\"os\":\"linux\",\"architecture\":\"{}\",\"config\":{{\"Labels\":{{\"exit\":\"{code}\"}}}}}}",
        Platform::host().architecture
    );
    let metadata =
        BTreeMap::from([("containerimage.config".to_owned(), config.into_bytes()), ("frontend.said".to_owned(), said)]);
    Ok(pb::Result { result: Some(pb::result::Result::Ref(reference)), metadata, ..pb::Result::default() })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let channel = connect::over(Standard(tokio::io::stdin(), tokio::io::stdout())).await?;
    let mut bridge = LlbBridgeClient::new(channel);
    let (result, error) = match build(&mut bridge).await {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(rpc::Status { code: 2, message: error.to_string(), details: Vec::new() })),
    };
    bridge.r#return(pb::ReturnRequest { result, error }).await?;
    Ok(())
}
