//! RUN: environment, users, exit codes, networks, signals, PID 1, what a step sees and what it leaves behind.

#[test]
fn a_step_sees_its_environment() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "FROM base\nARG a=1\nENV b=2 c=\"x y\"\nWORKDIR /w/sub\nUSER app\n\
         RUN echo \"$a $b $c $(pwd) $(id -u):$(id -g) $HOME $$\" > /tmp/out || true\n\
         USER root\nRUN [\"/bin/sh\", \"-c\", \"echo $0 exec >> /tmp/out\"]\n",
    )]);
    let base_tmp = "RUN chmod 1777 /tmp";
    let text = std::fs::read_to_string(env.ctx().join("Dockerfile")).unwrap().replacen(
        "FROM base",
        &format!("FROM base\n{base_tmp}"),
        1,
    );
    std::fs::write(env.ctx().join("Dockerfile"), text).unwrap();
    let (image, _) = env.build_image(&["--build-context", &base, "--build-arg", "a=9"]);
    assert_eq!(image.text("tmp/out"), "9 2 x y /w/sub 1000:1000 /home/app 1\n/bin/sh exec\n");
    assert_eq!(image.config.config.working_dir, "/w/sub");
    assert_eq!(image.config.config.user, "root");
}

#[test]
fn a_failing_step_names_code_line_and_output() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN true\nRUN echo from the step && exit 7\nRUN true\n")]);
    let done = env.build(&["--build-context", &base, "-o", "type=cacheonly"]);
    let done = done.fails_with("exit code: 7");
    let text = done.err();
    assert!(text.contains("from the step"), "{text}");
    assert!(text.contains("Dockerfile:3"), "{text}");
    assert!(text.contains(">>> RUN echo from the step && exit 7"), "{text}");
}

#[test]
fn a_missing_command_gets_a_hint() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN frobnicate --now\n")]);
    let done = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).fails_with("exit code: 127");
    assert!(done.err().to_lowercase().contains("hint"), "{}", done.report());
}

#[test]
fn no_network_means_loopback_only() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN --network=none ls /sys/class/net > /nets\n")]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("nets"), "lo\n");
}

#[test]
fn mount_points_leave_nothing_behind() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "FROM base\nRUN --mount=type=tmpfs,target=/scratch/deep --mount=type=cache,target=/caches/c \
         --mount=type=bind,target=/ctx touch /caches/c/x /scratch/deep/y && ls /ctx/Dockerfile\n",
    )]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    let top = image.layers.last().unwrap();
    let names: Vec<String> = top.keys().map(|p| String::from_utf8_lossy(p).into_owned()).collect();
    for name in ["scratch/deep", "caches/c", "ctx", "caches/c/x", "etc/resolv.conf", "etc/hosts", "dev", "proc", "sys"]
    {
        assert!(!names.contains(&name.to_owned()), "{name} in {names:?}");
    }
}

#[test]
fn a_background_process_ends_with_its_step() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN sleep 1000 & echo started\n")]);
    let done = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).ok();
    assert!(done.err().contains("started"), "{}", done.report());
}

#[test]
fn hosts_hostname_and_limits() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "FROM base\nRUN grep extra.test /etc/hosts > /hosts; hostname > /name; ulimit -n > /files; \
         df -k /dev/shm | tail -1 | awk '{print $2}' > /shm\n",
    )]);
    let (image, _) = env.build_image(&[
        "--build-context",
        &base,
        "--add-host",
        "extra.test:10.1.2.3",
        "--ulimit",
        "nofile=512:1024",
        "--shm-size",
        "8m",
    ]);
    assert!(image.text("hosts").contains("10.1.2.3"));
    assert_eq!(image.text("name"), "buildkitsandbox\n");
    assert_eq!(image.text("files"), "512\n");
    assert_eq!(image.text("shm"), "8192\n");
}

#[test]
fn deletions_become_whiteouts() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "FROM base\nRUN mkdir -p /d/sub && echo 1 > /d/a && echo 2 > /d/sub/b && echo 3 > /gone\n\
         RUN rm /gone && rm -r /d && mkdir /d && echo 4 > /d/new\n",
    )]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    let root = image.root();
    assert!(!root.contains_key(b"gone".as_slice()));
    assert!(!root.contains_key(b"d/a".as_slice()) && !root.contains_key(b"d/sub".as_slice()));
    assert_eq!(root[b"d/new".as_slice()].content, b"4\n");
}

#[test]
fn a_step_may_stand_on_more_layers_than_an_overlay_takes() {
    let (env, base) = crate::env_with_base!();
    let copies: String = (0..510).map(|i| format!("COPY a /many/f{i}\n")).collect();
    let dockerfile = format!("FROM base\n{copies}RUN rm /many/f7 && ls /many | wc -l > /count\nRUN ls /many/f8\n");
    env.context(&[("Dockerfile", &dockerfile), ("a", "a")]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("count").trim(), "509");
}
