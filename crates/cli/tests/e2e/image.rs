//! The image config: what instructions do to it, and what a base image hands down.

#[test]
fn instructions_shape_the_config() {
    let env = crate::env();
    env.context(&[
        (
            "Dockerfile",
            "FROM scratch\nENV A=1\nEXPOSE 80/tcp 53/udp\nVOLUME /data\nSTOPSIGNAL SIGINT\nUSER 7\n\
             HEALTHCHECK --interval=5s --retries=2 CMD [\"/check\"]\nSHELL [\"/bin/bash\", \"-c\"]\n\
             ENTRYPOINT [\"/entry\"]\nCMD echo hi\nONBUILD RUN echo later\nCOPY f /\n",
        ),
        ("f", "x"),
    ]);
    let (image, _) = env.build_image(&["--label", "from=cli"]);
    let config = &image.config.config;
    assert!(config.env.contains(&"A=1".to_owned()));
    assert!(config.env.iter().any(|e| e.starts_with("PATH=")), "{:?}", config.env);
    assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
    assert!(config.volumes.contains_key("/data"));
    assert_eq!((config.stop_signal.as_str(), config.user.as_str()), ("SIGINT", "7"));
    let health = config.healthcheck.as_ref().unwrap();
    assert_eq!((health.interval, health.retries), (5_000_000_000, 2));
    assert_eq!(config.entrypoint, Some(vec!["/entry".to_owned()]));
    assert_eq!(config.cmd, Some(["/bin/bash", "-c", "echo hi"].map(str::to_owned).to_vec()));
    assert_eq!(config.on_build, ["RUN echo later"]);
    assert_eq!(config.labels.get("from").map(String::as_str), Some("cli"));
}

#[test]
fn onbuild_runs_in_the_child() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nONBUILD COPY f /from-child\nONBUILD RUN cat /from-child > /ran\n")]);
    let parent = env.out("parent");
    let output = format!("type=oci,dest={},tar=false", parent.display());
    let _ = env.build(&["--build-context", &base, "-o", &output]).ok();
    env.context(&[("Dockerfile", "FROM parent\nRUN true\n"), ("f", "child\n")]);
    let named = format!("parent=oci-layout://{}", parent.display());
    let (image, _) = env.build_image(&["--build-context", &named]);
    assert_eq!(image.text("ran"), "child\n");
    assert!(image.config.config.on_build.is_empty());
}

#[test]
fn args_in_from_and_targets() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "ARG tag=base\nFROM ${tag} AS build\nRUN echo $TARGETARCH > /none; echo build > /stage\n\
         FROM build AS final\nARG TARGETARCH\nRUN echo $TARGETARCH > /arch\n",
    )]);
    let (image, _) = env.build_image(&["--build-context", &base, "--target", "build"]);
    assert_eq!(image.text("stage"), "build\n");
    let (image, _) = env.build_image(&["--build-context", &base]);
    let arch = kiln_oci::Platform::host().architecture;
    assert_eq!((image.text("none"), image.text("arch")), ("\n".to_owned(), format!("{arch}\n")));
}

#[test]
fn a_dockerfile_on_standard_input() {
    let (env, base) = crate::env_with_base!();
    let dest = env.out("image.tar");
    let output = format!("type=oci,dest={}", dest.display());
    let _ = env
        .kiln(["build", "--progress=plain", "--build-context", &base, "-o", &output, "-"])
        .stdin("FROM base\nRUN echo piped > /f\n")
        .finish()
        .ok();
    assert_eq!(kiln_testkit::Image::read(&dest).text("f"), "piped\n");
}

#[test]
fn many_layers() {
    let (env, base) = crate::env_with_base!();
    let mut text = String::from("FROM base\n");
    for n in 0..130 {
        text += &format!("RUN echo {n} > /n{n}\n");
    }
    env.context(&[("Dockerfile", &text)]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.layers.len(), 131);
    assert_eq!((image.text("n0"), image.text("n129")), ("0\n".to_owned(), "129\n".to_owned()));
}
