//! `kiln run`: where images come from, what the process gets, how it ends, and that nothing of it stays.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_testkit::{FakeRegistry, Finished, Run, Running, TestEnv};
use rustix::process::Signal;

/// How long things that happen at once may take.
const SOON: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(10);

/// Returns an environment, and the base image as `kiln run` names it.
macro_rules! env_with_image {
    () => {{
        let (env, base) = crate::env_with_base!();
        let image = base.trim_start_matches("base=").to_owned();
        (env, image)
    }};
}

fn run(env: &TestEnv, args: &[&str]) -> Finished {
    prepared(env, args).finish()
}

fn prepared(env: &TestEnv, args: &[&str]) -> Run {
    env.kiln(["run"].iter().chain(args))
}

/// Starts a run and waits until the process has said so on standard error.
fn started(env: &TestEnv, args: &[&str]) -> Running {
    let running = prepared(env, args).start();
    running.wait_for("it runs");
    running
}

#[track_caller]
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < SOON, "{what}");
        std::thread::sleep(GLANCE);
    }
}

/// Returns whether a process of the host has `mark` among its arguments.
fn alive(mark: &str) -> bool {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|b| *b == 0).collect();
        words.first().is_some_and(|w| w.ends_with(b"sleep")) && words.contains(&mark.as_bytes())
    })
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[track_caller]
fn nothing_stays(env: &TestEnv, mark: &str) {
    soon("the process is still there", || !alive(mark));
    soon("what it wrote is still there", || is_empty(&env.root().join("drafts")));
}

#[test]
fn images_come_from_store_layout_and_registry() {
    let registry = FakeRegistry::start();
    let _ = crate::busybox_in!(registry, "base");
    let (env, image) = env_with_image!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo built > /word\nENTRYPOINT [\"cat\"]\nCMD [\"/word\"]\n")]);
    let _ =
        run(&env, &["--pull=never", "app"]).fails_with("docker.io/library/app:latest: not found in the image store");
    let _ = env.build(&["--build-context", &format!("base={image}"), "-t", "app"]).ok();
    let done = run(&env, &["app"]).ok();
    assert_eq!((done.out().as_str(), done.err().as_str()), ("built\n", ""), "an image that is here shows no progress");
    assert_eq!(run(&env, &[&image, "echo", "from a layout"]).ok().out(), "from a layout\n");
    let name = format!("{}/base", registry.host);
    let first = run(&env, &[&name, "echo", "pulled"]).ok();
    assert_eq!(first.out(), "pulled\n");
    let _ = registry.take_lines();
    assert_eq!(run(&env, &[&name, "echo", "again"]).ok().out(), "again\n");
    let lines = registry.take_lines();
    assert!(!lines.iter().any(|line| line.starts_with("GET ") && line.contains("/blobs/")), "{lines:?}");
}

#[test]
fn the_exit_code_is_that_of_the_process() {
    let (env, image) = env_with_image!();
    let done = run(&env, &[&image, "sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!((done.code, done.out(), done.err().ends_with("err\n")), (Some(42), "out\n".to_owned(), true));
    assert_eq!(run(&env, &[&image, "sh", "-c", "sh -c 'kill -KILL $$'; exit $?"]).code, Some(137));
    assert_eq!(run(&env, &[&image, "no-such-program"]).code, Some(127));
    assert_eq!(run(&env, &[&image, "/etc/passwd"]).code, Some(126));
    assert_eq!(run(&env, &["--pull=never", "none"]).code, Some(125));
    assert_eq!(run(&env, &["-v", "data:/data", &image]).code, Some(125));
    let done = run(&env, &["-u", "nobody-here", &image, "true"]).fails_with("nobody-here");
    assert_eq!(done.code, Some(125));
}

#[test]
fn streams_are_passed_on_whole() {
    let (env, image) = env_with_image!();
    let input = "a line of input\n".repeat(400_000);
    let done = prepared(&env, &["-i", &image, "cat"]).stdin(input.clone()).finish().ok();
    assert!(done.out() == input, "{} bytes of {}", done.stdout.len(), input.len());
    let done = prepared(&env, &[&image, "cat"]).stdin("ignored").finish().ok();
    assert_eq!(done.out(), "", "without -i there is no input");
    // A process that reads nothing still ends, and gets its signals.
    let done = prepared(&env, &["-i", &image, "true"]).stdin(input).finish();
    assert_eq!(done.code, Some(0));
}

#[test]
fn options_go_over_what_the_image_says() {
    let (env, image) = env_with_image!();
    env.context(&[("Dockerfile", "FROM base\nENV A=image B=image\nWORKDIR /srv\nENTRYPOINT [\"echo\", \"own\"]\n")]);
    let _ = env.build(&["--build-context", &format!("base={image}"), "-t", "app"]).ok();
    kiln_testkit::write_tree(env.path(), &[("vars", "# c\nB=file\nC=file\nHERE\n"), ("shown/f", "shown\n")]);
    let script = "echo $A $B $C $HERE; pwd; id -u; hostname; cat /in/f; touch /in/new; touch /out/new; touch /root-new";
    let args = [
        "-e",
        "A=mine",
        "--env-file",
        "vars",
        "-w",
        "/made/here",
        "-u",
        "1234:5",
        "--hostname",
        "box",
        "-v",
        "./shown:/in:ro",
        "-v",
        "./shown:/out",
        "--read-only",
        "--entrypoint",
        "sh",
        "--rm",
        "app",
        "-c",
        script,
    ];
    let done = prepared(&env, &args).env("HERE", "there").finish();
    assert_eq!(done.out(), "mine file file there\n/made/here\n1234\nbox\nshown\n", "{}", done.report());
    let errors = done.err();
    assert!(errors.contains("/in/new: Read-only") && errors.contains("/root-new"), "{errors}");
    assert_eq!(run(&env, &["app", "word"]).ok().out(), "own word\n");
    let done = run(&env, &["-v", "./shown:/out", &image, "sh", "-c", "echo 1 > /out/new"]).ok();
    assert_eq!(std::fs::read_to_string(env.path().join("shown/new")).ok().as_deref(), Some("1\n"), "{}", done.report());
    let done = run(&env, &["-v", "./shown/f:/etc/one:ro", &image, "cat", "/etc/one"]).ok();
    assert_eq!(done.out(), "shown\n");
}

#[test]
fn nothing_is_left_behind() {
    let (env, image) = env_with_image!();
    env.context(&[("Dockerfile", "FROM base\nRUN echo 1 > /kept\n")]);
    let _ = env.build(&["--build-context", &format!("base={image}"), "-t", "app"]).ok();
    let _ = run(&env, &["app", "sh", "-c", "echo 2 > /kept; echo new > /new; rm /bin/wc"]).ok();
    assert_eq!(run(&env, &["app", "sh", "-c", "cat /kept; ls -d /bin/wc /new"]).out(), "1\n/bin/wc\n");
    nothing_stays(&env, "none");
    // The client is killed.
    let script = |mark: &str| {
        format!("echo dirt > /dirt; echo it runs >&2; trap '' TERM HUP; sleep {mark} & wait; sleep {mark}")
    };
    let running = started(&env, &["app", "sh", "-c", &script("71001")]);
    soon("the shell starts its child", || alive("71001"));
    running.signal(Signal::KILL);
    let _ = running.finish();
    nothing_stays(&env, "71001");
    // The engine is killed.
    let running = started(&env, &["app", "sh", "-c", &script("71002")]);
    soon("the shell starts its child", || alive("71002"));
    let engine = env.engine_pid().and_then(rustix::process::Pid::from_raw).expect("an engine runs");
    rustix::process::kill_process(engine, Signal::KILL).expect("kill");
    let done = running.finish();
    assert_eq!(done.code, Some(125));
    assert!(done.err().contains("lost the connection to the engine"), "{}", done.report());
    soon("the process outlives its engine", || !alive("71002"));
    assert_eq!(run(&env, &["app", "cat", "/kept"]).ok().out(), "1\n");
    nothing_stays(&env, "71002");
}

#[test]
fn layers_stay_while_they_are_run() {
    let (env, image) = env_with_image!();
    let script =
        "echo it runs >&2; while [ ! -e /mark/go ]; do sleep 0.05; done; cat /etc/passwd > /dev/null && ls /bin/wc";
    kiln_testkit::write_tree(env.path(), &[("mark/x", "")]);
    let running = started(&env, &["-v", "./mark:/mark", &image, "sh", "-c", script]);
    let _ = env.kiln(["prune", "--all", "--force"]).finish().ok();
    kiln_testkit::write_tree(env.path(), &[("mark/go", "")]);
    let done = running.finish();
    assert_eq!((done.code, done.out().as_str()), (Some(0), "/bin/wc\n"), "{}", done.report());
}

#[test]
fn signals_are_passed_on() {
    let (env, image) = env_with_image!();
    let script = "trap 'echo got it; exit 3' USR1; echo it runs >&2; while :; do sleep 0.05; done";
    let running = started(&env, &[&image, "sh", "-c", script]);
    running.signal(Signal::USR1);
    let done = running.finish();
    assert_eq!((done.code, done.out().as_str()), (Some(3), "got it\n"));
    // The first process of a sandbox feels no signal that it has no handler for; it ends all the same.
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let running = started(&env, &[&image, "sh", "-c", "echo it runs >&2; exec sleep 71003"]);
        soon("the shell becomes sleep", || alive("71003"));
        running.signal(signal);
        assert_eq!(running.finish().code, Some(code));
    }
    nothing_stays(&env, "71003");
}

#[test]
fn a_process_has_the_terminal() {
    let (env, image) = env_with_image!();
    let Some(script) = kiln_testkit::program("script") else { kiln_testkit::skip!("no script on this host") };
    let _ = run(&env, &["-it", &image, "true"]).fails_with("the input device is not a TTY");
    kiln_testkit::write_tree(env.path(), &[("mark/x", "")]);
    let inside = "busybox stty size; trap \\\"busybox stty size; exit 9\\\" WINCH; touch /mark/ready; \
                  while :; do sleep 0.05; done";
    let line = format!(
        "stty rows 33 cols 111; kiln run -t -v $PWD/mark:/mark {image} sh -c \"{inside}\" & \
         while [ ! -e mark/ready ]; do sleep 0.05; done; stty rows 40 cols 90; wait $!"
    );
    let kiln = Path::new(env!("CARGO_BIN_EXE_kiln")).parent().expect("a directory");
    let path = format!("{}:{}", kiln.display(), std::env::var("PATH").unwrap_or_default());
    let shell = |line: &str, input: &str| {
        Run::new(&script)
            .args(["-qec", line, "/dev/null"])
            .env("PATH", &path)
            .env("HOME", env.path())
            .env("KILN_ROOT", env.root())
            .dir(env.path())
            .stdin(input)
            .finish()
    };
    let done = shell(&line, "");
    assert_eq!(done.code, Some(9), "{}", done.report());
    assert!(done.out().contains("33 111\r") && done.out().contains("40 90\r"), "{}", done.report());
    let line = format!("kiln run -it {image} sh -c 'test -t 0 && test -t 1 && read word && echo got $word $TERM'");
    let done = shell(&line, "typed\n").ok();
    assert!(done.out().contains("got typed xterm"), "{}", done.report());
}

/// Asks for a page, and again until somebody answers.
fn page(port: u16) -> String {
    let mut answer = String::new();
    soon("nobody answers", || {
        answer.clear();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        let _ = stream.write_all(b"GET /page HTTP/1.0\r\n\r\n");
        stream.read_to_string(&mut answer).is_ok() && !answer.is_empty()
    });
    answer
}

#[test]
fn ports_are_published_on_loopback() {
    let (env, image) = env_with_image!();
    // In a network of its own the process is reached through its port alone.
    let serve = "mkdir /www; echo the page > /www/page; echo it runs >&2; exec busybox httpd -f -p 80 -h /www";
    let running = started(&env, &["--network=none", "-p", "80", &image, "sh", "-c", serve]);
    running.wait_for("port 80 is published on 127.0.0.1:");
    let text = running.err();
    let port = text.split("127.0.0.1:").nth(1).and_then(|t| t.split_whitespace().next()).and_then(|n| n.parse().ok());
    let port: u16 = port.expect("a port");
    assert!(page(port).ends_with("the page\n"));
    let taken = run(&env, &["--network=none", "-p", &format!("{port}:80"), &image, "true"]);
    let _ = taken.fails_with(&format!("cannot publish port 80: 127.0.0.1:{port}"));
    running.signal(Signal::TERM);
    let _ = running.finish();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the port is free again");
    // In the host's network another port of the host leads to it too.
    let free = |_| std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let (outside, inside) = (free(()), free(()));
    let serve = serve.replace("-p 80", &format!("-p {inside}"));
    let running = started(&env, &["-p", &format!("{outside}:{inside}"), &image, "sh", "-c", &serve]);
    assert!(page(outside).ends_with("the page\n"));
    running.signal(Signal::INT);
    assert_eq!(running.finish().code, Some(130));
}
