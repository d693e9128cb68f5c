//! Caches in stores of objects that others wrote: an S3 server and Microsoft's emulator of Azure's, from npm. Both check
//! the signature of each request.

use kiln_testkit::{Run, Running, program};

use crate::object_caches::{DOCKERFILE, steps};

/// The account that Azure's emulator knows, whose key is public.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Starts a server that says where it listens, and returns its address; none where it is not installed.
fn start(name: &str, args: &[&str], said: &str, dir: &std::path::Path) -> Option<(Running, String)> {
    let program = program(name)?;
    // It speaks on standard output.
    let run = Run::new("sh").args(["-c", "exec \"$0\" \"$@\" >&2"]).args([program.as_os_str()]).args(args);
    let server = run.dir(dir).start();
    server.wait_for(said);
    let said = server.err();
    let (_, rest) = said.rsplit_once("127.0.0.1:")?;
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((server, format!("http://127.0.0.1:{port}")))
}

/// One engine exports, again without a change, and an empty one imports, with a cache mount on the way.
fn travels(attrs: &str, variables: &[(&str, &str)]) {
    let (env, base) = crate::env_with_base!();
    let dockerfile =
        format!("{DOCKERFILE}RUN --mount=type=cache,id=m,target=/m echo kept >> /m/notes; cp /m/notes /\n");
    let run = |env: &kiln_testkit::TestEnv, text: &str, args: &[&str]| {
        env.context(&[("Dockerfile", text), ("f", "content")]);
        let ctx = env.ctx();
        let all = ["build", "--progress=plain", "--build-context", &base];
        let run = env.kiln(all.into_iter().chain(args.iter().copied()).chain(ctx.to_str()));
        variables.iter().fold(run, |run, (name, value)| run.env(name, value)).finish().ok()
    };
    let to = format!("{attrs},mode=max,mounts=all");
    let first = run(&env, &dockerfile, &["-o", "type=cacheonly", "--cache-to", &to]);
    assert_eq!(steps(&first), (0, 5), "{}", first.report());
    let again = run(&env, &dockerfile, &["-o", "type=cacheonly", "--cache-to", &to]);
    assert_eq!(steps(&again), (5, 5), "{}", again.report());

    let (other, from) = (crate::env(), format!("{attrs},mounts=all"));
    let out = other.out("files");
    let second = run(&other, &dockerfile, &["-o", out.to_str().expect("path"), "--cache-from", &from]);
    assert_eq!(steps(&second), (5, 5), "{}", second.report());
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!((read("small"), read("notes")), ("made\n".to_owned(), "kept\n".to_owned()));
    let (fresh, changed) = (crate::env(), dockerfile.replace("echo kept", "echo more"));
    let out = fresh.out("files");
    let third = run(&fresh, &changed, &["-o", out.to_str().expect("path"), "--cache-from", &from]);
    assert_eq!(steps(&third), (4, 5), "{}", third.report());
    assert_eq!(std::fs::read_to_string(out.join("notes")).expect("notes"), "kept\nmore\n");
}

#[test]
fn a_cache_travels_by_a_real_s3_server() {
    let env = crate::env();
    let args = ["-d", "objects", "-a", "127.0.0.1", "-p", "0", "--configure-bucket", "b"];
    let Some((_server, url)) = start("s3rver", &args, "listening on 127.0.0.1:", env.path()) else {
        kiln_testkit::skip!("no s3rver")
    };
    let attrs = format!("type=s3,bucket=b,region=us-east-1,endpoint_url={url},use_path_style=true");
    travels(&attrs, &[("AWS_ACCESS_KEY_ID", "S3RVER"), ("AWS_SECRET_ACCESS_KEY", "S3RVER")]);
}

#[test]
fn a_cache_travels_by_a_real_server_of_azures_blobs() {
    let env = crate::env();
    let args =
        ["--silent", "--disableTelemetry", "--location", "objects", "--blobHost", "127.0.0.1", "--blobPort", "0"];
    let Some((_server, url)) = start("azurite-blob", &args, "listens on http://127.0.0.1:", env.path()) else {
        kiln_testkit::skip!("no azurite-blob")
    };
    let attrs = format!("type=azblob,account_url={url}/{ACCOUNT},account_name={ACCOUNT},secret_access_key={KEY}");
    travels(&attrs, &[]);
}
