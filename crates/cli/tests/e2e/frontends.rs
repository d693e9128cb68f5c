//! Frontends in images, seen from a client of the API: a frontend of our own (`examples/frontend.rs`) that uses containers,
//! inputs and metadata. And a client that drives its build itself and looks at what a failed step left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_llb::builder::{Builder, Exec, FileActions, FileOptions, Meta};
use kiln_llb::pb;
use kiln_oci::Platform;
use kiln_session::errdetail;
use kiln_session::proto::control::control_client::ControlClient;
use kiln_session::proto::control::{Exporter, SolveRequest, SolveResponse};
use kiln_session::proto::gateway as gw;
use kiln_session::proto::gateway::llb_bridge_client::LlbBridgeClient;
use kiln_testkit::{DebianRegistry, Image, Run, TestEnv, write_tree};

use tonic::transport::Channel;

use crate::api::connected;

/// Returns the frontend's program; none where only this test was built.
fn program() -> Option<PathBuf> {
    let file = Path::new(env!("CARGO_BIN_EXE_kiln")).parent()?.join("examples/frontend");
    file.is_file().then_some(file)
}

/// Lays out a root with a program and the libraries that it needs of the host.
fn root(env: &TestEnv, program: &Path) {
    write_tree(&env.ctx(), &[("Dockerfile", "FROM scratch\nCOPY root /\nENTRYPOINT [\"/frontend\"]\n"), ("root/", "")]);
    let listed = Run::new("ldd").args([program]).finish().ok().out();
    let libraries = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let copies = libraries.map(|file| (Path::new(file).to_owned(), file.trim_start_matches('/').to_owned()));
    for (from, to) in copies.chain([(program.to_owned(), "frontend".to_owned())]) {
        let to = env.ctx().join("root").join(to);
        std::fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
        std::fs::copy(&from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
}

/// A base that the frontend gets as its input: busybox, copied file by file.
fn base(env: &TestEnv) -> pb::Definition {
    let busybox = kiln_testkit::base::busybox().expect("busybox was here before");
    let data = std::fs::read(busybox).expect("busybox");
    let _ = env;
    let mut builder = Builder::new(Platform::host());
    let options = FileOptions::default;
    let actions = FileActions::new()
        .mkdir("/bin", 0o755, Default::default())
        .mkfile("/bin/sh", 0o755, data, options())
        .mkfile("/greeting", 0o644, b"hello from the input".to_vec(), options());
    let made = builder.file(kiln_llb::builder::Output::SCRATCH, actions, Meta::named("base"));
    builder.definition(made).expect("a definition").to_pb()
}

fn solve(env: &TestEnv, image: &str, attrs: &[(&str, &str)]) -> Result<SolveResponse, tonic::Status> {
    let mut frontend_attrs = BTreeMap::from([("source".to_owned(), image.to_owned())]);
    frontend_attrs.extend(attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    let name = BTreeMap::from([("name".to_owned(), "example.org/made:1".to_owned())]);
    let request = SolveRequest {
        r#ref: format!("frontend-{}", attrs.len()),
        frontend: "gateway.v0".to_owned(),
        frontend_attrs,
        frontend_inputs: BTreeMap::from([("base".to_owned(), base(env))]),
        exporters: vec![Exporter { r#type: "image".to_owned(), attrs: name }],
        ..SolveRequest::default()
    };
    connected(env, async |channel| {
        let mut client = ControlClient::new(channel).max_encoding_message_size(16 << 20);
        client.solve(request).await.map(tonic::Response::into_inner)
    })
}

/// A request of the client that drives the build `look`.
fn driving<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("buildkit-controlapi-buildid", "look".parse().expect("a name"));
    request
}

/// Runs a command in a container and returns what it prints.
async fn said(bridge: &mut LlbBridgeClient<Channel>, args: &[&str]) -> String {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let meta = pb::Meta { args, cwd: "/".into(), ..pb::Meta::default() };
    let init = gw::InitMessage { container_id: "c".into(), meta: Some(meta), fds: vec![1], ..Default::default() };
    let init = gw::ExecMessage { process_id: "p".into(), input: Some(gw::exec_message::Input::Init(init)) };
    let messages = futures::StreamExt::chain(futures::stream::iter([init]), futures::stream::pending());
    let mut answers = bridge.exec_process(driving(messages)).await.expect("a process").into_inner();
    let mut text = Vec::new();
    while let Some(message) = answers.message().await.expect("messages") {
        match message.input {
            Some(gw::exec_message::Input::File(file)) => text.extend_from_slice(&file.data),
            Some(gw::exec_message::Input::Done(_)) => break,
            _ => {}
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn what_a_failed_step_left_can_be_looked_at() {
    let (env, _base) = crate::env_with_base!();
    let base = base(&env);
    connected(&env, async |channel| {
        let mut control = ControlClient::new(channel.clone()).max_encoding_message_size(16 << 20);
        let build = SolveRequest { r#ref: "look".into(), ..SolveRequest::default() };
        let driven = tokio::spawn(async move { control.solve(build).await });
        let mut bridge = LlbBridgeClient::new(channel).max_encoding_message_size(16 << 20);
        let mut builder = Builder::new(Platform::host());
        let below = builder.import(&kiln_llb::Definition::from(base)).expect("the base");
        let command = ["/bin/sh", "-c", "echo half done > /state; exit 4"].map(str::to_owned).to_vec();
        let step = builder.exec(Exec::new(below, command), Meta::named("fails")).expect("a step").root();
        let definition = builder.definition(step).expect("a definition").to_pb();
        let request = gw::SolveRequest { definition: Some(definition), evaluate: true, ..gw::SolveRequest::default() };
        let error = bridge.solve(driving(request)).await.expect_err("the step fails");
        assert!(error.message().contains("exit code: 4"), "{error}");
        let ids = errdetail::details(&error).into_iter().find_map(|detail| match detail {
            errdetail::Detail::Solve { input_ids, mount_ids, .. } => Some((input_ids, mount_ids)),
            _ => None,
        });
        let (inputs, mounts) = ids.expect("what is left");
        assert_eq!((inputs.len(), mounts.len()), (1, 1));
        let mount =
            |dest: &str, id: &String| pb::Mount { dest: dest.into(), result_id: id.clone(), ..pb::Mount::default() };
        let mounts = vec![mount("/", &mounts[0]), mount("/before", &inputs[0])];
        let container = gw::NewContainerRequest { container_id: "c".into(), mounts, ..Default::default() };
        let _ = bridge.new_container(driving(container)).await.expect("a container");
        let look = "read line < /state; echo $line; test -e /before/state || echo not before";
        assert_eq!(said(&mut bridge, &["/bin/sh", "-c", look]).await, "half done\nnot before\n");
        let done = gw::ReturnRequest { result: Some(gw::Result::default()), error: None };
        let _ = bridge.r#return(driving(done)).await.expect("the end");
        let _ = driven.await.expect("the build").expect("a build");
    });
}

#[test]
fn a_frontend_uses_containers_inputs_and_metadata() {
    let (env, _base) = crate::env_with_base!();
    let Some(program) = program() else { kiln_testkit::skip!("the example `frontend` is not built") };
    if kiln_testkit::program("ldd").is_none() {
        kiln_testkit::skip!("no ldd on this host");
    }
    let Some(registry) = DebianRegistry::start(env.path()) else { kiln_testkit::skip!("no docker-registry") };
    root(&env, &program);
    let image = format!("{}/me/frontend:1", registry.host);
    let _ = env.build(&["-t", &image, "--push"]).ok();
    let command = "read line < /greeting; echo \"$line, $0\"; exit 3";
    let done = solve(&env, &image, &[("opt:command", command)]).expect("a build");
    assert_eq!(
        done.exporter_response.get("frontend.said").map(String::as_str),
        Some("hello from the input, /bin/sh\n")
    );
    let image_made = Image::read(&env.root().join("images"));
    assert_eq!(image_made.text("said"), "hello from the input, /bin/sh\n");
    assert_eq!(image_made.text("greeting"), "hello from the input", "the input is below it");
    assert_eq!(image_made.config.config.labels.get("exit").map(String::as_str), Some("3"));
    let error = solve(&env, &image, &[("opt:command", "true"), ("opt:fail", "it will not")]).expect_err("an error");
    assert!(error.message().contains("it will not"), "{error}");
}
