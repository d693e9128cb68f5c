//! The value of a secret is in no place that outlives its step or that others can read.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use kiln_stdx::Digest;
use kiln_testkit::{Gate, TestEnv};

use crate::wait_for_engine;

/// A value and the forms in which it could lie somewhere.
struct Value {
    text: String,
    forms: Vec<String>,
}

impl Value {
    /// Returns a value that nothing else holds.
    fn new(what: &str) -> Self {
        let unique = Digest::of(format!("{what} {} {:?}", std::process::id(), std::time::SystemTime::now()));
        let text = format!("v/{what}+{}~end", &unique.hex()[..40]);
        let mut forms = vec![text.clone(), text.chars().rev().collect()];
        let hex = text.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        forms.extend([hex.to_uppercase(), hex]);
        for shift in 0..3 {
            // What is in the middle is the same wherever in a longer text the value begins.
            let shifted = [&b"..."[..shift], text.as_bytes()].concat();
            for encoded in [BASE64_STANDARD_NO_PAD.encode(&shifted), BASE64_URL_SAFE_NO_PAD.encode(&shifted)] {
                forms.push(encoded[4..encoded.len() - 4].to_owned());
            }
        }
        Self { text, forms }
    }

    fn is_in(&self, data: &[u8]) -> bool {
        let text = String::from_utf8_lossy(data);
        self.forms.iter().any(|form| text.contains(form.as_str()))
    }
}

#[test]
fn every_form_is_recognised() {
    let value = Value::new("x");
    for (before, after) in [("", ""), ("a", "b"), ("ab", "c"), ("abc", "")] {
        let data = format!("{before}{}{after}", value.text);
        assert!(value.is_in(data.as_bytes()));
        assert!(value.is_in(BASE64_STANDARD_NO_PAD.encode(&data).as_bytes()), "{before}");
    }
    assert!(!value.is_in(b"something else"));
}

/// Calls `look` with every regular file below `dir`, as it is and decompressed.
fn files(dir: &Path, look: &mut dyn FnMut(&Path, &[u8])) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_dir() {
            files(&path, look);
        } else if kind.is_file() {
            // A running engine may remove what was listed.
            let Ok(data) = std::fs::read(&path) else { continue };
            look(&path, &data);
            if let Some(inner) = decompressed(&data) {
                look(&path, &inner);
            }
        }
    }
}

fn decompressed(data: &[u8]) -> Option<Vec<u8>> {
    let mut inner = Vec::new();
    match data {
        [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(data).read_to_end(&mut inner).ok()?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::new(data).ok()?.read_to_end(&mut inner).ok()?,
        _ => return None,
    };
    Some(inner)
}

/// Fails when a file below `dir`, other than those `allowed`, holds a value.
#[track_caller]
fn assert_nowhere_in(dir: &Path, values: &[&Value], allowed: &[&Path], when: &str) {
    let mut seen = 0;
    let mut bad: Vec<PathBuf> = Vec::new();
    files(dir, &mut |path, data| {
        seen += 1;
        if !allowed.contains(&path) && values.iter().any(|value| value.is_in(data)) {
            bad.push(path.to_owned());
        }
    });
    assert!(bad.is_empty(), "{when}: {bad:?}");
    assert!(seen > 0, "{when}: nothing to look at in {}", dir.display());
}

/// Returns the processes whose command line or environment holds a value, and whether each is in this process's own PID
/// namespace.
fn processes(value: &Value) -> Vec<(String, bool)> {
    let own = std::fs::read_link("/proc/self/ns/pid").ok();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let dir = entry.path();
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        for file in ["cmdline", "environ"] {
            if std::fs::read(dir.join(file)).is_ok_and(|data| value.is_in(&data)) {
                found.push((dir.join(file).display().to_string(), std::fs::read_link(dir.join("ns/pid")).ok() == own));
            }
        }
    }
    found
}

fn secret(env: &TestEnv, id: &str, value: &Value) -> (PathBuf, String) {
    let path = env.path().join(format!("secret-{id}"));
    std::fs::write(&path, &value.text).unwrap();
    let flag = format!("id={id},src={}", path.display());
    (path, flag)
}

#[test]
fn a_secret_is_nowhere_but_in_its_step() {
    let (env, base) = crate::env_with_base!();
    let (file, variable) = (Value::new("file"), Value::new("variable"));
    let ((file_path, file_flag), (var_path, var_flag)) = (secret(&env, "f", &file), secret(&env, "e", &variable));
    let (with_file, with_both) = (Gate::new(), Gate::new());
    env.context(&[(
        "Dockerfile",
        &format!(
            "FROM base\n\
             RUN --mount=type=secret,id=f awk '$2==\"/run/secrets/f\"{{print $3}}' /proc/mounts > /kind; \
             sha256sum /run/secrets/f | cut -d' ' -f1 > /file; {}\n\
             RUN --mount=type=secret,id=f,target=/deep/er/f --mount=type=secret,id=e,env=TOKEN \
             printf %s \"$TOKEN\" | sha256sum | cut -d' ' -f1 > /variable; cat /deep/er/f; echo; \
             echo \"x${{TOKEN}}y\"; cut -c 1-9 /deep/er/f | tr -d '\\n'; sync; cut -c 10- /deep/er/f >&2; {}\n",
            with_file.command(),
            with_both.command()
        ),
    )]);
    let (dest, cache, ctx) = (env.out("image.tar"), env.out("cache"), env.ctx());
    let outputs =
        (format!("type=oci,dest={}", dest.display()), format!("type=local,mode=max,dest={}", cache.display()));
    let (metadata, temporary) = (env.out("metadata"), env.path().join("tmp"));
    std::fs::create_dir(&temporary).unwrap();
    // An engine that logs all it can.
    let engine = env.kiln(["--debug", "daemon", "run"]).start();
    wait_for_engine(&env);
    let mut args = vec!["--debug", "build", "--progress=rawjson", "--build-context", &base, "-o", &outputs.0];
    args.extend(["--cache-to", &outputs.1, "--secret", &file_flag, "--secret", &var_flag, "--metadata-file"]);
    let args = args.into_iter().map(std::ffi::OsStr::new).chain([metadata.as_os_str(), ctx.as_os_str()]);
    let build = env.kiln(args).env("TMPDIR", &temporary).start();
    let values = [&file, &variable];
    let allowed = [file_path.as_path(), var_path.as_path()];

    let held = with_file.wait();
    assert_eq!(processes(&file), []);
    assert_eq!(processes(&variable), []);
    assert_nowhere_in(env.path(), &values, &allowed, "while the file is mounted");
    held.release();
    let held = with_both.wait();
    assert_eq!(processes(&file), []);
    // A variable is in the environment of the step's own processes by definition; no other may have it.
    let holders = processes(&variable);
    assert!(!holders.is_empty() && holders.iter().all(|(path, own)| !own && path.ends_with("environ")), "{holders:?}");
    assert_nowhere_in(env.path(), &values, &allowed, "while the variable is set");
    held.release();

    let done = build.finish().ok();
    for output in [&done.stdout, &done.stderr] {
        assert!(values.iter().all(|value| !value.is_in(output)), "{}", done.report());
    }
    let printed = printed(&done.err());
    assert!(printed.contains("***\nx***y\n"), "{printed}");
    assert!(values.iter().all(|value| !value.is_in(printed.as_bytes())), "{printed}");
    let image = kiln_testkit::Image::read(&dest);
    assert_eq!(image.text("kind"), "tmpfs\n");
    assert_eq!(image.text("file").trim(), Digest::of(&file.text).hex());
    assert_eq!(image.text("variable").trim(), Digest::of(&variable.text).hex());
    for layer in image.blobs.values() {
        let inner = decompressed(layer);
        let in_either = |v: &&Value| v.is_in(layer) || inner.as_deref().is_some_and(|inner| v.is_in(inner));
        assert!(!values.iter().any(in_either), "a value is in a blob of the image");
    }
    assert_nowhere_in(env.path(), &values, &allowed, "after the build");
    let _ = env.kiln(["daemon", "stop"]).finish().ok();
    assert_nowhere_in(env.path(), &values, &allowed, "after the engine's end");
    let engine = engine.finish();
    assert!(values.iter().all(|v| !v.is_in(&engine.stderr) && !v.is_in(&engine.stdout)), "{}", engine.report());
}

/// Returns what the steps of a build printed, from its progress as JSON lines.
fn printed(lines: &str) -> String {
    let mut printed = Vec::new();
    for line in lines.lines() {
        let Ok(json) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        for log in json["logs"].as_array().into_iter().flatten() {
            let data = log["data"].as_str().unwrap_or_default();
            printed.extend(base64::prelude::BASE64_STANDARD.decode(data).unwrap());
        }
    }
    String::from_utf8_lossy(&printed).into_owned()
}

#[test]
fn a_step_that_fails_does_not_tell_either() {
    let (env, base) = crate::env_with_base!();
    let value = Value::new("failing");
    let (path, flag) = secret(&env, "f", &value);
    env.context(&[("Dockerfile", "FROM base\nRUN --mount=type=secret,id=f cat /run/secrets/f; exit 3\n")]);
    let done = env.build(&["--build-context", &base, "--secret", &flag, "-o", "type=cacheonly"]);
    let done = done.fails_with("exit code: 3").fails_with("***");
    assert!(!value.is_in(&done.stderr) && !value.is_in(&done.stdout), "{}", done.report());
    assert_nowhere_in(env.path(), &[&value], &[path.as_path()], "after a failure");
}

#[test]
fn a_value_of_the_clients_environment_stays_there() {
    let (env, base) = crate::env_with_base!();
    let value = Value::new("client");
    let gate = Gate::new();
    let text = format!("FROM base\nRUN --mount=type=secret,id=e sha256sum /run/secrets/e; {}\n", gate.command());
    env.context(&[("Dockerfile", &text)]);
    let ctx = env.ctx();
    let args =
        ["build", "--progress=plain", "--build-context", &base, "--secret", "id=e,env=E", "-o", "type=cacheonly"];
    let args = args.into_iter().map(std::ffi::OsStr::new).chain([ctx.as_os_str()]);
    let build = env.kiln(args).env("E", &value.text).start();
    let held = gate.wait();
    // The client was given it so; the engine that it started was not.
    let client = format!("/proc/{}/environ", build.id());
    assert_eq!(processes(&value), [(client, true)]);
    held.release();
    let done = build.finish().ok();
    assert!(done.err().contains(&Digest::of(&value.text).hex()), "{}", done.report());
    assert_nowhere_in(env.path(), &[&value], &[], "after the build");
}
