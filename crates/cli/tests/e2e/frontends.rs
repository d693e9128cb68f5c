//! Frontends in images, seen from a client of the API: a frontend of our own (`examples/frontend.rs`) that uses containers,
//! inputs and metadata.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_llb::builder::{Builder, FileActions, FileOptions, Meta};
use kiln_llb::pb;
use kiln_oci::Platform;
use kiln_session::proto::control::control_client::ControlClient;
use kiln_session::proto::control::{Exporter, SolveRequest, SolveResponse};
use kiln_testkit::{DebianRegistry, Image, Run, TestEnv, write_tree};

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
