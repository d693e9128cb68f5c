//! The daemon at TCP addresses: TLS both ways, its debug address, what it tells its supervisor, runtimes it is told of.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use kiln_session::proto::opentelemetry::trace::v1::ExportTraceServiceRequest;
use kiln_session::proto::opentelemetry::trace::v1::trace_service_client::TraceServiceClient;
use kiln_testkit::debian_registry::Certificates;
use kiln_testkit::{Run, Running, TestEnv, program};
use rustix::process::Signal;
use tonic::transport::Endpoint;

/// Prepares a run of the program under the name `buildkitd`, with a root of its own.
fn buildkitd(env: &TestEnv, args: &[&str]) -> Run {
    let path = env.path().join("buildkitd");
    if !path.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kiln"), &path).expect("link");
    }
    let root = env.path().join("state").display().to_string();
    Run::new(path).args(["--root", &root]).args(args).env("HOME", env.path().join("home"))
}

/// Returns what follows `text` in a line of the daemon's log.
fn place(daemon: &Running, text: &str) -> String {
    daemon.wait_for(text);
    let log = loop {
        let log = daemon.err();
        if log.split_once(text).is_some_and(|(_, rest)| rest.contains('\n')) {
            break log;
        }
        std::thread::yield_now();
    };
    let (_, rest) = log.split_once(text).expect("found");
    rest.split_whitespace().next().expect("a place").to_owned()
}

const TCP: &str = "running server on 127.0.0.1";

/// Ends a daemon and sees that it ends well.
fn end(daemon: Running) {
    daemon.signal(Signal::TERM);
    let done = daemon.finish();
    assert_eq!(done.code, Some(0), "{}", done.report());
}

#[test]
fn clients_with_a_certificate_are_let_in_by_tls() {
    let env = crate::env();
    let Some(certificates) = Certificates::make(env.path()) else { kiln_testkit::skip!("no openssl") };
    let file = |name: &str| certificates.dir.join(name).display().to_string();
    let unix = format!("unix://{}", env.path().join("d.sock").display());
    let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let tls = ["--tlscert", &cert, "--tlskey", &key, "--tlscacert", &ca];
    let daemon = buildkitd(&env, &[&["--addr", "tcp://127.0.0.1:0", "--addr", &unix][..], &tls].concat()).start();
    let address = format!("tcp://127.0.0.1{}", place(&daemon, TCP));
    daemon.wait_for(&format!("running server on {}", env.path().join("d.sock").display()));
    env.context(&[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "x")]);
    let context = env.ctx().display().to_string();
    let (client, secret) = (file("client.pem"), file("client.key"));

    let own = ["--tlscacert", &ca, "--tlscert", &client, "--tlskey", &secret];
    let build = ["build", "--builder", &address, "-o", "type=local,dest=out", &context];
    let done = env.kiln([&build[..], &own].concat()).finish().ok();
    assert_eq!(std::fs::read_to_string(env.path().join("out/a")).expect("file"), "x", "{}", done.report());
    // The unix socket stays as it was.
    let _ = env.kiln(["du", "--addr", &unix]).finish().ok();

    // Without a certificate, without TLS, and with a name that the engine's certificate is not for, there is no way in.
    for wrong in [&own[..2], &[], &[&own[..], &["--tlsservername", "other.test"]].concat()] {
        let done = env.kiln([&["du", "--addr", &address][..], wrong].concat()).finish();
        assert!(done.code != Some(0) && done.err().contains("no engine answers"), "{wrong:?}: {}", done.report());
    }

    if let Some(buildctl) = program("buildctl") {
        let local = |name: &str| format!("{name}={context}");
        let args = [
            &["--addr", &address][..],
            &own,
            &["build", "--progress=plain", "--frontend", "dockerfile.v0", "--local", &local("context")],
            &["--local", &local("dockerfile"), "--output", "type=local,dest=out2"],
        ];
        let _ = Run::new(buildctl).args(args.concat()).dir(env.path()).finish().ok();
        assert_eq!(std::fs::read_to_string(env.path().join("out2/a")).expect("file"), "x");
    }
    end(daemon);
}

#[test]
fn certificates_that_are_wrong_are_refused() {
    let env = crate::env();
    let done = buildkitd(&env, &["--addr", "tcp://127.0.0.1:0", "--tlscert", "none.pem"]).finish();
    let _ = done.fails_with("certificate and key are given together");
    let done = buildkitd(&env, &["--addr", "tcp://127.0.0.1:0", "--tlscert", "none.pem", "--tlskey", "k"]).finish();
    let _ = done.fails_with("cannot read none.pem");
}

fn get(place: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(place).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").expect("write");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    text
}

#[test]
fn the_debug_address_tells_of_builds() {
    let env = crate::env();
    let unix = format!("unix://{}", env.path().join("d.sock").display());
    let daemon = buildkitd(&env, &["--addr", &unix, "--debugaddr", "127.0.0.1:0", "--oci-worker-gc=false"]).start();
    let debug = format!("127.0.0.1{}", place(&daemon, "debug handlers listening at 127.0.0.1"));
    daemon.wait_for("running server on");
    env.context(&[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "x")]);
    let context = env.ctx().display().to_string();
    let _ = env.kiln(["build", "--addr", &unix, "-o", "type=cacheonly", &context]).finish().ok();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY none /\n")]);
    assert_ne!(env.kiln(["build", "--addr", &unix, "-o", "type=cacheonly", &context]).finish().code, Some(0));
    let metrics = get(&debug, "/metrics");
    for line in [
        "# TYPE kiln_builds_total counter",
        "kiln_builds_total{result=\"succeeded\"} 1",
        "kiln_builds_total{result=\"failed\"} 1",
        "kiln_builds_running 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
    }
    assert!(get(&debug, "/debug/vars").contains("\"cmdline\":["));
    assert!(get(&debug, "/debug/gc").starts_with("HTTP/1.0 404"), "collection is turned off");
    assert!(get(&debug, "/none").starts_with("HTTP/1.0 404"));
    end(daemon);
}

#[test]
fn the_supervisor_hears_of_begin_and_end() {
    let env = crate::env();
    let path = env.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let hear = || {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).expect("a word");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let unix = format!("unix://{}", env.path().join("d.sock").display());
    let daemon = buildkitd(&env, &["--addr", &unix]).env("NOTIFY_SOCKET", &path).start();
    assert_eq!(hear(), "READY=1");
    daemon.signal(Signal::TERM);
    assert_eq!(hear(), "STOPPING=1");
    assert_eq!(daemon.finish().code, Some(0));
}

/// A build whose steps a runtime runs gives what one of the engine's own sandbox gives.
#[test]
fn steps_run_in_the_runtime_that_is_chosen() {
    for name in ["runc", "crun"] {
        let (env, base) = crate::env_with_base!();
        if program(name).is_none() {
            kiln_testkit::report_skip(&format!("no {name} on PATH"));
            continue;
        }
        let unix = format!("unix://{}", env.path().join("d.sock").display());
        let daemon = buildkitd(&env, &["--addr", &unix, "--oci-worker-binary", name]).start();
        daemon.wait_for("running server on");
        let text =
            "FROM base AS b\nRUN mkdir /d && id -u > /d/id && hostname > /d/host\nFROM scratch\nCOPY --from=b /d /\n";
        env.context(&[("Dockerfile", text)]);
        let context = env.ctx().display().to_string();
        let build = ["build", "--addr", &unix, "--build-context", &base, "-o", "type=local,dest=out", &context];
        let done = env.kiln(build).finish().ok();
        let read = |name: &str| std::fs::read_to_string(env.path().join("out").join(name)).expect("file");
        assert_eq!((read("id"), read("host")), ("0\n".into(), "buildkitsandbox\n".into()), "{}", done.report());
        if let Some(buildctl) = program("buildctl") {
            let done = Run::new(buildctl).args(["--addr", &unix, "debug", "workers", "-v"]).finish().ok();
            let line = done.out().lines().find(|l| l.contains("worker.executor")).map(str::to_owned);
            assert!(line.is_some_and(|l| l.ends_with(name)), "{}", done.report());
        }
        end(daemon);
    }
    let env = crate::env();
    let unix = format!("unix://{}", env.path().join("d.sock").display());
    let done = buildkitd(&env, &["--addr", &unix, "--oci-worker-binary", "none-such"]).finish();
    let _ = done.fails_with("none-such is not installed");
}

/// A second word ends a daemon at once that waits for a build to end.
#[test]
fn a_daemon_at_work_ends_when_told() {
    let (env, base) = crate::env_with_base!();
    let socket: PathBuf = env.path().join("d.sock");
    let unix = format!("unix://{}", socket.display());
    let daemon = buildkitd(&env, &["--addr", &unix]).start();
    daemon.wait_for("running server on");
    let gate = kiln_testkit::Gate::new();
    env.context(&[("Dockerfile", &format!("FROM base\nRUN {}\n", gate.command()))]);
    let context = env.ctx().display().to_string();
    let running = env.kiln(["build", "--addr", &unix, "--build-context", &base, "--progress=plain", &context]).start();
    let mut held = gate.wait();
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::INT);
    assert_eq!(daemon.finish().code, Some(0));
    assert!(held.dies_within(Duration::from_secs(1)), "the step goes on");
    assert_ne!(running.finish().code, Some(0));
    assert!(!socket.exists());
}

/// Waits for a request of the engine that holds all of the texts, and answers it.
fn collected(listener: &std::net::TcpListener, texts: &[&str]) {
    let (mut stream, _) = listener.accept().expect("the engine comes");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    let mut asked = Vec::new();
    let mut buffer = [0; 4096];
    let holds = |asked: &[u8], text: &str| asked.windows(text.len()).any(|w| w == text.as_bytes());
    while !texts.iter().all(|text| holds(&asked, text)) {
        let read = stream.read(&mut buffer).expect("read");
        assert!(read > 0, "{}", String::from_utf8_lossy(&asked));
        asked.extend_from_slice(&buffer[..read]);
    }
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

/// A collector that is spoken to by HTTP gets the steps of a build by name, and the spans that clients hand to the engine.
#[test]
fn traces_reach_a_collector() {
    let env = crate::env();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let unix = format!("unix://{}", env.path().join("d.sock").display());
    let daemon = buildkitd(&env, &["--addr", &unix])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_SERVICE_NAME", "builders of the east")
        .start();
    daemon.wait_for("running server on");
    env.context(&[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "x")]);
    let context = env.ctx().display().to_string();
    let _ = env.kiln(["build", "--addr", &unix, "-o", "type=cacheonly", &context]).finish().ok();

    collected(&listener, &["POST /v1/traces HTTP/1.1", "] COPY a /", "builders of the east"]);

    let socket = env.path().join("d.sock");
    let sent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let address = format!("unix://{}", socket.display());
            let channel = Endpoint::from_shared(address).expect("address").connect().await.expect("an engine");
            let spans = ExportTraceServiceRequest { resource_spans: vec![b"spans of a client".to_vec()] };
            TraceServiceClient::new(channel).export(spans).await.map(drop)
        })
    });
    collected(&listener, &["POST /v1/traces HTTP/1.1", "spans of a client"]);
    sent.join().expect("a client").expect("taken");
    end(daemon);
}
