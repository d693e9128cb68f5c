//! The five kinds of `RUN --mount`.

use kiln_stdx::Digest;

#[test]
fn a_cache_mount_outlives_its_step() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "FROM base\nARG n\nRUN --mount=type=cache,target=/c,sharing=locked echo $n >> /c/log && cp /c/log /log\n",
    )]);
    let args = ["--build-context", &base, "--build-arg"];
    let (image, _) = env.build_image(&[&args[..], &["n=1"]].concat());
    assert_eq!(image.text("log"), "1\n");
    let (image, _) = env.build_image(&[&args[..], &["n=2"]].concat());
    assert_eq!(image.text("log"), "1\n2\n");
}

#[test]
fn a_secret_is_read_and_masked_and_never_stored() {
    let (env, base) = crate::env_with_base!();
    let secret = "correct-horse-battery-staple-57";
    std::fs::write(env.path().join("s"), secret).unwrap();
    env.context(&[(
        "Dockerfile",
        "FROM base\nRUN --mount=type=secret,id=s --mount=type=secret,id=e,env=TOKEN \
         stat -c '%a %u' /run/secrets/s > /mode; cat /run/secrets/s; echo; echo $TOKEN; \
         sha256sum /run/secrets/s | cut -d' ' -f1 > /sum; printf %s \"$TOKEN\" | sha256sum | cut -d' ' -f1 > /envsum\n",
    )]);
    let file = format!("id=s,src={}", env.path().join("s").display());
    let dest = env.out("image.tar");
    let output = format!("type=oci,dest={}", dest.display());
    let ctx = env.ctx();
    let done = env
        .kiln([
            "build",
            "--progress=plain",
            "--build-context",
            &base,
            "--secret",
            &file,
            "--secret",
            "id=e,env=E",
            "-o",
            &output,
        ])
        .args([ctx.as_os_str()])
        .env("E", "value-from-the-environment")
        .finish()
        .ok();
    let image = kiln_testkit::Image::read(&dest);
    assert_eq!(image.text("sum").trim(), Digest::of(secret).hex());
    assert_eq!(image.text("envsum").trim(), Digest::of("value-from-the-environment").hex());
    assert_eq!(image.text("mode"), "400 0\n");
    assert!(done.err().contains("***"), "{}", done.report());
    for value in [secret, "value-from-the-environment"] {
        assert!(!done.err().contains(value), "{}", done.report());
        assert!(find(env.root(), value.as_bytes()).is_none(), "{:?}", find(env.root(), value.as_bytes()));
    }
}

/// Returns a file below `dir` that holds `needle`.
fn find(dir: &std::path::Path, needle: &[u8]) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            if let Some(found) = find(&path, needle) {
                return Some(found);
            }
        } else if kind.is_file() && std::fs::read(&path).is_ok_and(|d| d.windows(needle.len()).any(|w| w == needle)) {
            return Some(path);
        }
    }
    None
}

#[test]
fn a_required_secret_that_is_missing_is_an_error() {
    let (env, base) = crate::env_with_base!();
    env.context(&[("Dockerfile", "FROM base\nRUN --mount=type=secret,id=nope,required=true true\n")]);
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).fails_with("secret nope: not found");
    env.context(&[("Dockerfile", "FROM base\nRUN --mount=type=secret,id=nope test ! -e /run/secrets/nope\n")]);
    let _ = env.build(&["--build-context", &base, "-o", "type=cacheonly"]).ok();
}

#[test]
fn bind_mounts_show_stages_and_drop_writes() {
    let (env, base) = crate::env_with_base!();
    env.context(&[
        (
            "Dockerfile",
            "FROM base AS src\nRUN mkdir /d && echo stage > /d/f\nFROM base\n\
             RUN --mount=type=bind,from=src,source=/d,target=/m cat /m/f > /out && ! touch /m/x 2>/dev/null\n\
             RUN --mount=type=bind,target=/m,rw cat /m/ctx.txt >> /out && touch /m/x\n\
             RUN --mount=type=bind,target=/m test ! -e /m/x\n\
             RUN --mount=type=tmpfs,target=/t,size=1m df -k /t | tail -1 | awk '{print $2}' >> /out\n",
        ),
        ("ctx.txt", "context\n"),
    ]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("out"), "stage\ncontext\n1024\n");
}
