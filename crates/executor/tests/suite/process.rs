//! What the process is, gets and gives.

use kiln_executor::{Control, ExecError, ProcessIo, StartFailure, Stdin, TtySize};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::fixture::Fixture;

pub async fn exit_codes_and_output(f: &Fixture) {
    for code in [0, 1, 42, 255] {
        let ran = f.run(f.shell(&format!("echo out; echo err >&2; exit {code}"))).await.unwrap();
        assert_eq!((ran.exit.code, ran.exit.signal, ran.exit.oom), (code, None, false));
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out\n", "err\n"));
        assert_eq!(ran.exit.is_success(&[]), code == 0);
        assert!(ran.exit.is_success(&[7, code]));
        assert!(ran.exit.usage.wall_micros > 0 && ran.exit.usage.max_rss > 0);
    }
}

pub async fn signals_become_128_plus_n(f: &Fixture) {
    // PID 1 cannot kill itself: its child does the dying, and the shell passes the code on as runtimes do.
    let ran = f.run(f.shell("sh -c 'kill -TERM $$'; exit $?")).await.unwrap();
    assert_eq!(ran.exit.code, 128 + 15);
}

pub async fn is_pid_1_in_its_own_namespace(f: &Fixture) {
    assert_eq!(f.output("echo $$").await, "1");
    assert_eq!(f.output("set -- /proc/[0-9]*; echo $#").await, "1");
}

pub async fn environment_is_exactly_the_given_one(f: &Fixture) {
    let mut spec = f.spec(&["env"]);
    spec.env.push(("A".to_owned(), "first".to_owned()));
    spec.env.push(("B".to_owned(), "two words\"$".to_owned()));
    spec.env.push(("A".to_owned(), "last".to_owned()));
    let out = f.output_of(spec).await;
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=last", "B=two words\"$", "HOME=/root", "PATH=/usr/bin:/bin"]);
    let mut spec = f.spec(&["env"]);
    spec.env.push(("HOME".to_owned(), "/elsewhere".to_owned()));
    assert!(f.output_of(spec).await.contains("HOME=/elsewhere"));
}

pub async fn working_directory_is_made_for_the_user(f: &Fixture) {
    let mut spec = f.shell("pwd; stat -c '%u:%g %a' . ..");
    spec.cwd = "/work/deep".to_owned();
    spec.user = "app".to_owned();
    assert_eq!(f.output_of(spec).await, "/work/deep\n1000:1001 755\n1000:1001 755");
    assert!(f.path("upper/work/deep").is_dir());
    let mut spec = f.shell("true");
    spec.cwd = "/etc/passwd".to_owned();
    assert!(f.run(spec).await.is_err());
}

pub async fn users_and_groups_come_from_the_root(f: &Fixture) {
    let table = [
        ("", "0:0 0 /root"),
        ("app", "1000:1001 1001 2000 /home/app"),
        ("1000", "1000:1001 1001 2000 /home/app"),
        ("app:extra", "1000:2000 2000 /home/app"),
        ("4321", "4321:0 0 /"),
        ("4321:77", "4321:77 77 /"),
    ];
    for (user, expected) in table {
        let mut spec = f.shell("echo $(id -u):$(id -g) $(id -G) $HOME");
        spec.user = user.to_owned();
        assert_eq!(f.output_of(spec).await, expected, "{user}");
    }
}

pub async fn stdin_is_streamed(f: &Fixture) {
    let text = "line\n".repeat(50_000);
    let io = ProcessIo { stdin: Stdin::Reader(Box::pin(std::io::Cursor::new(text.clone()))), ..ProcessIo::default() };
    let ran = f.run_with(f.spec(&["cat"]), io, CancellationToken::new()).await.unwrap();
    assert!(ran.out == text, "{} bytes instead of {}", ran.out.len(), text.len());
    // Nobody reads: the run must not wait for its input.
    let (_keep, endless) = tokio::io::duplex(16);
    let io = ProcessIo { stdin: Stdin::Reader(Box::pin(endless)), ..ProcessIo::default() };
    assert_eq!(f.run_with(f.spec(&["true"]), io, CancellationToken::new()).await.unwrap().exit.code, 0);
    assert_eq!(f.output("cat").await, "");
}

pub async fn large_output_arrives_whole(f: &Fixture) {
    let ran = f.run(f.shell("dd if=/dev/zero bs=1000 count=5000 2>/dev/null")).await.unwrap();
    assert_eq!(ran.out.len(), 5_000_000);
}

pub async fn a_missing_command_is_named(f: &Fixture) {
    let error = f.run(f.spec(&["no-such-tool", "x"])).await.unwrap_err();
    assert!(matches!(error, ExecError::NotStarted { reason: StartFailure::NotFound, .. }), "{error:?}");
    assert_eq!(error.exit_code(), Some(127));
    assert!(error.to_string().contains("no-such-tool"), "{error}");
    assert!(f.run(f.spec(&["/no/such/tool"])).await.unwrap_err().to_string().contains("/no/such/tool"));
}

pub async fn a_file_that_is_no_program_is_told_apart(f: &Fixture) {
    let error = f.run(f.spec(&["/etc/passwd"])).await.unwrap_err();
    assert!(matches!(error, ExecError::NotStarted { reason: StartFailure::NotExecutable, .. }), "{error:?}");
    assert_eq!(error.exit_code(), Some(126));
}

pub async fn an_unknown_user_is_refused(f: &Fixture) {
    for (user, kind) in [("nobody-here", "user"), ("app:nothing", "group")] {
        let mut spec = f.shell("true");
        spec.user = user.to_owned();
        let error = f.run(spec).await.unwrap_err();
        assert!(matches!(&error, ExecError::UnknownUser { kind: found, .. } if *found == kind), "{error:?}");
    }
}

pub async fn background_children_end_with_the_step(f: &Fixture) {
    let ran = f.run(f.shell("sleep 1000 & echo started")).await.unwrap();
    assert_eq!((ran.exit.code, ran.out.as_str()), (0, "started\n"));
}

pub async fn control_sends_signals(f: &Fixture) {
    let (send, control) = mpsc::channel(1);
    let (out, mut read) = mpsc::channel(4);
    let io = ProcessIo { stdout: kiln_executor::Output::Channel(out), control: Some(control), ..ProcessIo::default() };
    let spec = f.shell("trap 'echo got it; exit 5' USR1; echo ready; while :; do sleep 0.01; done");
    let talk = async {
        assert_eq!(read.recv().await.unwrap().as_ref(), b"ready\n");
        send.send(Control::Signal(libc::SIGUSR1)).await.unwrap();
        assert_eq!(read.recv().await.unwrap().as_ref(), b"got it\n");
    };
    let (exit, ()) = tokio::join!(f.executor.run(spec, io, CancellationToken::new()), talk);
    assert_eq!(exit.unwrap().code, 5);
    let (send, control) = mpsc::channel(1);
    let io = ProcessIo { control: Some(control), ..ProcessIo::default() };
    send.send(Control::Signal(libc::SIGKILL)).await.unwrap();
    let exit = f.executor.run(f.spec(&["sleep", "1000"]), io, CancellationToken::new()).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(libc::SIGKILL)));
}

pub async fn a_signal_without_handler_is_felt(f: &Fixture) {
    if f.executor.name() != "sandbox" {
        return;
    }
    for (number, script, code) in [
        (libc::SIGTERM, "echo ready; exec sleep 1000", 143),
        (libc::SIGTERM, "trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done", 4),
        (libc::SIGUSR1, "echo ready; exec sleep 1000", 138),
    ] {
        let (send, control) = mpsc::channel(1);
        let (out, mut read) = mpsc::channel(4);
        let stdout = kiln_executor::Output::Channel(out);
        let io = ProcessIo { stdout, control: Some(control), ..ProcessIo::default() };
        let talk = async {
            assert_eq!(read.recv().await.unwrap().as_ref(), b"ready\n");
            send.send(Control::Felt(libc::SIGWINCH)).await.unwrap();
            send.send(Control::Felt(number)).await.unwrap();
        };
        let (exit, ()) = tokio::join!(f.executor.run(f.shell(script), io, CancellationToken::new()), talk);
        assert_eq!(exit.unwrap().code, code, "{script}");
    }
}

pub async fn a_second_process_joins_or_is_refused(f: &Fixture) {
    let (started, running) = tokio::sync::oneshot::channel();
    let (typed, keys) = tokio::io::duplex(64);
    let io = ProcessIo { stdin: Stdin::Reader(Box::pin(keys)), started: Some(started), ..ProcessIo::default() };
    let first = f.shell("echo mine > /tmp/first; cat > /dev/null");
    let inside = first.id.clone();
    let talk = async {
        running.await.unwrap();
        let joined = f.exec(&inside, f.shell("cat /tmp/first; echo $$; hostname; exit 3")).await;
        if f.executor.name() == "sandbox" {
            // It sees the first one's files and processes and is not the first of them.
            let ran = joined.unwrap();
            let lines: Vec<&str> = ran.out.lines().collect();
            assert_eq!((ran.exit.code, lines[0], lines[2]), (3, "mine", "buildkitsandbox"), "{ran:?}");
            assert_ne!(lines[1], "1");
            let caps = f.exec(&inside, f.shell("grep CapEff /proc/self/status")).await.unwrap();
            let own = f.exec(&inside, f.shell("mknod /tmp/node b 7 0")).await.unwrap();
            assert_ne!(own.exit.code, 0, "devices cannot be made: {}", caps.out);
            let tmp = f.executor.open(&inside, "/tmp").unwrap();
            let own = format!("/proc/self/fd/{}/first", std::os::fd::AsRawFd::as_raw_fd(&tmp));
            assert_eq!(std::fs::read_to_string(own).unwrap(), "mine\n");
            assert!(f.executor.open(&inside, "/none").is_err());
        } else {
            assert!(joined.unwrap_err().to_string().contains("second process"));
        }
        drop(typed);
    };
    let (exit, ()) = tokio::join!(f.executor.run(first, io, CancellationToken::new()), talk);
    assert_eq!(exit.unwrap().code, 0);
    let gone = f.exec(&inside, f.shell("true")).await.unwrap_err();
    assert!(matches!(gone, ExecError::InvalidSpec(_)), "{gone:?}");
    assert!(matches!(f.executor.open(&inside, "/"), Err(ExecError::InvalidSpec(_))));
}

pub async fn a_terminal_is_given_or_refused(f: &Fixture) {
    let (send, control) = mpsc::channel(1);
    let (out, mut read) = mpsc::channel(4);
    let (typed, keys) = tokio::io::duplex(64);
    let io = ProcessIo {
        stdin: Stdin::Reader(Box::pin(keys)),
        stdout: kiln_executor::Output::Channel(out),
        control: Some(control),
        ..ProcessIo::default()
    };
    let mut spec =
        f.shell("test -t 0 && test -t 1 && test -t 2 && stty size; read line; stty size; echo got $line; tty");
    spec.tty = Some(TtySize { rows: 30, cols: 100 });
    if f.executor.name() != "sandbox" {
        let error = f.run_with(spec, io, CancellationToken::new()).await.unwrap_err();
        assert!(error.to_string().contains("terminal"), "{error}");
        return;
    }
    let talk = async {
        let mut seen = String::new();
        let mut typed = typed;
        while let Some(piece) = read.recv().await {
            seen.push_str(&String::from_utf8_lossy(&piece));
            if seen.ends_with("30 100\r\n") {
                send.send(Control::Resize(TtySize { rows: 40, cols: 120 })).await.unwrap();
                // The size changes before the key arrives: the order of the channel's use decides, then the key.
                send.send(Control::Signal(0)).await.unwrap();
                send.reserve().await.unwrap();
                typed.write_all(b"key\n").await.unwrap();
            }
        }
        seen
    };
    let (exit, seen) = tokio::join!(f.executor.run(spec, io, CancellationToken::new()), talk);
    assert_eq!(exit.unwrap().code, 0);
    assert_eq!(seen, "30 100\r\nkey\r\n40 120\r\ngot key\r\n/dev/pts/0\r\n");
}

pub async fn standard_output_can_be_reopened_by_a_user(f: &Fixture) {
    let mut spec = f.shell("echo again > /dev/stdout; echo wrong > /dev/stderr");
    spec.user = "app".to_owned();
    let ran = f.run(spec).await.unwrap();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("again\n", "wrong\n"));
}

pub async fn many_at_once(f: &Fixture) {
    let specs: Vec<_> = (0..16)
        .map(|number| {
            let mut spec = f.shell(&format!("echo {number}; exit {number}"));
            spec.root = kiln_snapshot::Mount::Overlay {
                lowers: vec![f.path("second"), f.path("base")],
                upper: None,
                work: None,
            };
            spec.root_readonly = true;
            spec
        })
        .collect();
    // A read-only overlay cannot take mount targets; the base has them all.
    for dir in ["proc", "dev", "sys"] {
        std::fs::create_dir(f.path("base").join(dir)).unwrap();
    }
    for file in ["etc/hosts", "etc/resolv.conf"] {
        std::fs::write(f.path("base").join(file), "").unwrap();
    }
    let runs = specs.into_iter().map(|spec| f.run(spec));
    let ended = futures_join(runs).await;
    for (number, ran) in ended.into_iter().enumerate() {
        let ran = ran.unwrap();
        assert_eq!((ran.exit.code, ran.out), (number as i32, format!("{number}\n")));
    }
}

/// Polls all futures until each has ended.
async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|future| (Some(Box::pin(future)), None)).collect();
    std::future::poll_fn(move |cx| {
        let mut waiting = false;
        for (future, output) in &mut pending {
            if let Some(running) = future {
                match running.as_mut().poll(cx) {
                    std::task::Poll::Ready(done) => {
                        *output = Some(done);
                        *future = None;
                    }
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(pending.iter_mut().filter_map(|(_, output)| output.take()).collect())
    })
    .await
}
