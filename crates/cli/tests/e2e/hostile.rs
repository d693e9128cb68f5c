//! Peers that mean harm: whatever they send, the engine answers with an error, keeps its memory, and builds for others.
//!
//! `KILN_HOSTILE_OPERATIONS=10000` is the full size of the large graph.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures::stream::{self, BoxStream, StreamExt};
use kiln_llb::builder::{Builder, CopyOptions, FileActions, FileOptions, LocalOptions, Meta, Output};
use kiln_llb::{Definition, pb};
use kiln_oci::Platform;
use kiln_session::proto::control::control_client::ControlClient;
use kiln_session::proto::control::{BytesMessage, SolveRequest, StatusRequest};
use kiln_session::proto::filesync::file_sync_server::{FileSync, FileSyncServer};
use kiln_session::proto::fs::packet::PacketType;
use kiln_session::proto::fs::{Packet, Stat};
use kiln_session::stat::go;
use kiln_session::tunnel::Tunnel;
use kiln_testkit::TestEnv;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::api::connected;

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(100);
/// What an engine may need more while somebody floods it, in KiB.
const ROOM: u64 = 128 << 10;

/// Messages as the bytes they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, data: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(data.copy_to_bytes(data.remaining())))
    }
}

/// Returns the engine's memory in KiB.
fn memory(env: &TestEnv) -> u64 {
    let pid = env.engine_pid().expect("an engine");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Somebody else's build, which nothing of this may harm.
#[track_caller]
fn others_build(env: &TestEnv) {
    env.context(&[("Dockerfile", "FROM scratch\nCOPY a /b\n"), ("a", "x")]);
    let (image, _) = env.build_image(&["--no-cache"]);
    assert_eq!(image.text("b"), "x");
}

async fn solve(channel: Channel, session: &str, definition: Definition) -> Result<(), Status> {
    let reference = definition.ops.last().map(|op| kiln_stdx::Digest::of(op).hex().to_string());
    let request = SolveRequest {
        r#ref: format!("{session}-{}", reference.unwrap_or_default()),
        session: session.to_owned(),
        definition: Some(definition.to_pb()),
        ..SolveRequest::default()
    };
    let mut client = ControlClient::new(channel);
    let solved = client.solve(request);
    tokio::time::timeout(PATIENCE, solved).await.expect("an answer").map(drop)
}

#[test]
fn messages_that_are_none_are_refused() {
    let env = crate::env();
    let mut noise = 1_u64;
    connected(&env, async |channel| {
        for method in
            ["Control/Solve", "Control/Status", "Control/Prune", "frontend.LLBBridge/Solve", "Control/Session"]
        {
            for length in [1, 7, 100, 70_000] {
                let path = match method.strip_prefix("frontend.") {
                    Some(rest) => format!("/moby.buildkit.v1.frontend.{rest}"),
                    None => format!("/moby.buildkit.v1.{method}"),
                };
                let mut message = vec![0xff_u8; length];
                for byte in message.iter_mut().skip(1) {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (noise >> 56) as u8;
                }
                let mut client = tonic::client::Grpc::new(channel.clone());
                client.ready().await.expect("an engine");
                let call = client.unary(Request::new(Bytes::from(message)), path.parse().expect("a path"), Raw);
                let answer = tokio::time::timeout(PATIENCE, call).await.expect("an answer");
                assert!(answer.is_err(), "{method} takes noise");
            }
        }
        let large = Definition { ops: vec![vec![0x12; 17 << 20].into()], ..Definition::default() };
        assert!(solve(channel.clone(), "", large).await.is_err(), "a message beyond the limit");
    });
    others_build(&env);
}

#[test]
fn connections_that_never_say_anything_cost_nothing() {
    let env = crate::env();
    others_build(&env);
    let socket = env.root().join("engine.sock");
    let before = memory(&env);
    let mut open = Vec::new();
    for n in 0..200_u32 {
        let mut stream = UnixStream::connect(&socket).expect("a connection");
        // Nothing, a part of the greeting, something else altogether, the greeting and nothing after it.
        let said: &[u8] = match n % 4 {
            0 => b"",
            1 => b"PRI * HTTP/2.0\r\n",
            2 => b"GET / HTTP/1.1\r\n\r\n\0\0\0\xff\xff",
            _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        };
        let _ = stream.write_all(said);
        open.push(stream);
    }
    others_build(&env);
    let now = memory(&env);
    assert!(now < before + ROOM, "{before} KiB, then {now} KiB");
    for mut stream in open {
        stream.set_nonblocking(true).expect("a socket");
        // Whatever it said to that.
        let _ = stream.read(&mut [0; 64]);
    }
    others_build(&env);
}

/// A file sync service that plays packets.
struct Script(Vec<Packet>);

#[tonic::async_trait]
impl FileSync for Script {
    type DiffCopyStream = BoxStream<'static, Result<Packet, Status>>;
    type TarStreamStream = BoxStream<'static, Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        // The stream ends only when the engine's does.
        let rest = request.into_inner().filter_map(|_| std::future::ready(None));
        Ok(Response::new(stream::iter(self.0.clone()).map(Ok).chain(rest).boxed()))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("no"))
    }
}

/// Opens a session that offers nothing but the script; ends with the returned task.
fn session(channel: Channel, id: &str, script: Vec<Packet>) -> tokio::task::JoinHandle<()> {
    let (pending, outgoing) = Tunnel::outgoing_first::<BytesMessage>();
    let mut call = Request::new(outgoing);
    let headers = kiln_session::SessionHeaders {
        id: id.to_owned(),
        methods: vec!["/moby.filesync.v1.FileSync/DiffCopy".to_owned(), "/grpc.health.v1.Health/Check".to_owned()],
        ..Default::default()
    };
    headers.to_metadata(call.metadata_mut());
    tokio::spawn(async move {
        let incoming = stream::once(async move { ControlClient::new(channel).session(call).await });
        let incoming = incoming.map(|answer| match answer {
            Ok(answer) => answer.into_inner().boxed(),
            Err(status) => stream::once(std::future::ready(Err(status))).boxed(),
        });
        let mut tunnel = pending.attach(incoming.flatten());
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let once = stream::once(std::future::ready(Ok::<_, std::io::Error>(far))).chain(stream::pending());
        let serve = Server::builder().add_service(FileSyncServer::new(Script(script))).serve_with_incoming(once);
        let _ = tokio::join!(serve, tokio::io::copy_bidirectional(&mut tunnel, &mut near));
    })
}

fn packet(kind: PacketType) -> Packet {
    Packet { r#type: kind.into(), ..Packet::default() }
}

fn entry(path: &str, mode: u32, link: &str) -> Packet {
    let stat = Stat { path: path.into(), mode, linkname: link.into(), size: 4, ..Stat::default() };
    Packet { stat: Some(stat), ..packet(PacketType::PacketStat) }
}

fn data(id: u32) -> Packet {
    Packet { id, data: b"evil"[..].into(), ..packet(PacketType::PacketData) }
}

#[test]
fn directories_that_lead_out_are_refused() {
    let env = crate::env();
    let end = || packet(PacketType::PacketStat);
    let target = env.path().display().to_string();
    let scripts: Vec<(Vec<Packet>, &str)> = vec![
        (vec![entry("../escaped", 0o644, ""), end(), data(0)], "unclean path"),
        (vec![entry("/escaped", 0o644, ""), end(), data(0)], "absolute path"),
        (vec![entry("a/../../escaped", 0o644, ""), end(), data(0)], "unclean path"),
        (vec![entry("up", go::SYMLINK, &target), entry("up/escaped", 0o644, ""), end(), data(1)], "out of order"),
        (vec![entry("hard", 0o644, "/etc/hostname"), end()], "hard link"),
        (vec![entry("hard", 0o644, "../../etc/hostname"), end()], "hard link"),
        (vec![entry("a", 0o644, ""), end(), data(7)], "not asked for"),
        (vec![entry("a", 0o644, ""), end(), entry("b", 0o644, "")], "after the end"),
        (vec![packet(PacketType::PacketReq)], "must not send"),
        (vec![entry("a\0b", 0o644, "")], "malformed path"),
        (vec![entry("b", 0o644, ""), entry("a", 0o644, "")], "out of order"),
        (vec![Packet { data: b"told so"[..].into(), ..packet(PacketType::PacketErr) }], "told so"),
    ];
    connected(&env, async |channel| {
        for (number, (script, word)) in scripts.into_iter().enumerate() {
            let id = format!("evil{number}");
            let serving = session(channel.clone(), &id, script);
            let mut builder = Builder::new(Platform::host());
            let options = LocalOptions { session: Some(id.clone()), ..LocalOptions::default() };
            let local = builder.local("context", &options, Meta::named("context"));
            let definition = builder.definition(local).expect("a definition");
            let error = solve(channel.clone(), &id, definition).await.expect_err(word);
            assert!(error.message().contains(word), "expected `{word}`: {error}");
            serving.abort();
        }
    });
    let escaped: Vec<_> =
        [env.path(), env.root()].iter().map(|dir| dir.join("escaped")).filter(|p| p.exists()).collect();
    assert!(escaped.is_empty(), "{escaped:?}");
    others_build(&env);
    let left: Vec<_> = std::fs::read_dir(env.root().join("tmp")).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn thousands_of_operations_are_built() {
    let many = std::env::var("KILN_HOSTILE_OPERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    let env = crate::env();
    let mut builder = Builder::new(Platform::host());
    let mut all = FileActions::new();
    for n in 0..many {
        let actions = FileActions::new().mkfile("/f", 0o644, n.to_string().into_bytes(), FileOptions::default());
        let made = builder.file(Output::SCRATCH, actions, Meta::default());
        if n % 100 == 0 {
            all = all.copy(made, "/f", &format!("/{n}"), CopyOptions::default());
        } else {
            all = all.copy(made, "/f", "/last", CopyOptions::default());
        }
    }
    let whole = builder.file(Output::SCRATCH, all, Meta::named("all of them"));
    let definition = builder.definition(whole).expect("a definition");
    connected(&env, async |channel| {
        let before = memory(&env);
        solve(channel, "", definition).await.expect("a build");
        let now = memory(&env);
        assert!(now < before + 4 * ROOM, "{before} KiB, then {now} KiB");
    });
    others_build(&env);
}

#[test]
fn readers_that_do_not_read_hold_nobody_up() {
    let (env, base) = crate::env_with_base!();
    let gate = kiln_testkit::Gate::new();
    let step = format!("{} && yes 0123456789012345678901234567890123456789 | head -c 150000000", gate.command());
    env.context(&[("Dockerfile", &format!("FROM base\nRUN {step}\n"))]);
    let ctx = env.ctx();
    let args = ["build", "--progress=quiet", "--network=host", "--build-context", &base, "-o", "type=cacheonly"];
    let args = args.map(std::ffi::OsStr::new);
    let build = env.kiln(args.into_iter().chain([ctx.as_os_str()])).start();
    let held = gate.wait();
    connected(&env, async |channel| {
        let mut client = ControlClient::new(channel);
        let request = kiln_session::proto::control::BuildHistoryRequest {
            active_only: true,
            early_exit: true,
            ..Default::default()
        };
        let mut events = client.listen_build_history(request).await.expect("history").into_inner();
        let running = events.message().await.expect("history").and_then(|e| e.record).expect("the build");
        let before = memory(&env);
        let mut readers = Vec::new();
        for _ in 0..20 {
            let request = StatusRequest { r#ref: running.r#ref.clone() };
            readers.push(client.status(request).await.expect("events").into_inner());
        }
        held.release();
        let _ = build.finish().ok();
        let now = memory(&env);
        assert!(now < before + ROOM, "{before} KiB, then {now} KiB");
        drop(readers);
    });
    others_build(&env);
}

/// Digests that name other bytes than they say, in what a definition carries beside its operations.
#[test]
fn forged_digests_are_misses() {
    let env = crate::env();
    let mut builder = Builder::new(Platform::host());
    let actions = FileActions::new().mkfile("/a", 0o644, b"x".to_vec(), FileOptions::default());
    let made = builder.file(Output::SCRATCH, actions, Meta::default());
    let mut definition = builder.definition(made).expect("a definition");
    let stranger = kiln_stdx::Digest::of("nothing").to_string();
    let metadata = pb::OpMetadata { caps: BTreeMap::from([("file.base".to_owned(), true)]), ..Default::default() };
    definition.metadata.insert(stranger.clone(), metadata);
    connected(&env, async |channel| {
        solve(channel.clone(), "", definition.clone()).await.expect("metadata of nothing harms nothing");
        let head = pb::Op { inputs: vec![pb::Input { digest: stranger, index: 0 }], ..pb::Op::default() };
        let last = definition.ops.len() - 1;
        definition.ops[last] = prost::Message::encode_to_vec(&head).into();
        let error = solve(channel.clone(), "", definition.clone()).await.expect_err("an error");
        assert!(error.message().contains("invalid LLB") || error.message().contains("sha256:"), "{error}");
        let head =
            pb::Op { inputs: vec![pb::Input { digest: "sha256:../../x".into(), index: 0 }], ..pb::Op::default() };
        definition.ops[last] = prost::Message::encode_to_vec(&head).into();
        assert!(solve(channel.clone(), "", definition).await.is_err());
    });
    others_build(&env);
}
