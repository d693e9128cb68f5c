//! Outputs: archives, tar files and directories.

use std::os::unix::fs::MetadataExt;

#[test]
fn a_directory_output_has_the_tree_and_shares_nothing() {
    let (env, base) = crate::env_with_base!();
    env.context(&[(
        "Dockerfile",
        "FROM base AS b\nRUN mkdir /o && echo x > /o/f && ln /o/f /o/hard && ln -s f /o/soft && chmod 4755 /o/f\n\
         FROM scratch\nCOPY --from=b /o /\n",
    )]);
    let dest = env.out("dir");
    let output = format!("type=local,dest={}", dest.display());
    let args = ["--build-context", base.as_str(), "-o", output.as_str()];
    let _ = env.build(&args).ok();
    assert_eq!(std::fs::read_to_string(dest.join("f")).unwrap(), "x\n");
    assert_eq!(std::fs::read_link(dest.join("soft")).unwrap().as_os_str(), "f");
    let meta = std::fs::metadata(dest.join("f")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o4755);
    assert_eq!(meta.ino(), std::fs::metadata(dest.join("hard")).unwrap().ino(), "hard links stay hard links");
    std::fs::write(dest.join("f"), "changed").unwrap();
    let again = env.out("again");
    let output = format!("type=local,dest={}", again.display());
    let _ = env.build(&["--build-context", &base, "-o", &output]).ok();
    assert_eq!(std::fs::read_to_string(again.join("f")).unwrap(), "x\n", "an output is a copy");
}

#[test]
fn a_tar_output_is_the_root() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /a/b/\n"), ("f", "x")]);
    let ctx = env.ctx();
    let done = env.kiln(["build", "--progress=plain", "-o", "-"]).args([ctx.as_os_str()]).finish().ok();
    let files = kiln_testkit::image::read_layer(&done.stdout);
    assert_eq!(files[b"a/b/f".as_slice()].content, b"x");
}

#[test]
fn a_docker_archive_names_its_image() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "x")]);
    let dest = env.out("docker.tar");
    let output = format!("type=docker,dest={}", dest.display());
    let _ = env.build(&["-t", "me/app:1", "-o", &output]).ok();
    let file = std::fs::File::open(&dest).unwrap();
    let mut names = Vec::new();
    let mut manifest = String::new();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        if name == "manifest.json" {
            std::io::Read::read_to_string(&mut entry, &mut manifest).unwrap();
        }
        names.push(name);
    }
    assert!(manifest.contains("me/app:1"), "{manifest} {names:?}");
}

#[test]
fn zstd_and_gzip_hold_the_same_tree() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", &"text ".repeat(1000))]);
    let mut diff_ids = Vec::new();
    for (compression, suffix) in [("gzip", "+gzip"), ("zstd", "+zstd"), ("uncompressed", ".tar")] {
        let dest = env.out(compression);
        let output = format!("type=oci,dest={},compression={compression},force-compression=true", dest.display());
        let _ = env.build(&["-o", &output]).ok();
        let image = kiln_testkit::Image::read(&dest);
        assert!(image.manifest.layers[0].media_type.ends_with(suffix), "{:?}", image.manifest.layers);
        diff_ids.push(image.config.rootfs.diff_ids.clone());
    }
    assert!(diff_ids.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn iidfile_and_metadata_file() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "x")]);
    let (iid, meta) = (env.out("iid"), env.out("meta.json"));
    let (image, _) = env.build_image(&[
        "--iidfile",
        iid.to_str().unwrap(),
        "--metadata-file",
        meta.to_str().unwrap(),
        "-t",
        "named:1",
    ]);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(meta).unwrap()).unwrap();
    assert_eq!(json["containerimage.config.digest"], image.config_digest.to_string());
    assert!(json["image.name"].as_str().unwrap().ends_with("named:1"));
    let iid = std::fs::read_to_string(iid).unwrap();
    assert!([image.config_digest.to_string(), image.digest.to_string()].contains(&iid), "{iid}");
}

#[test]
fn the_same_input_gives_the_same_digest() {
    let (env, base) = crate::env_with_base!();
    let files = [("Dockerfile", "FROM base\nCOPY a b /d/\nRUN echo x > /x\n"), ("a", "1"), ("b", "2")];
    env.context(&files);
    let args = ["--build-context", base.as_str(), "--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
    let rewrite = |env: &kiln_testkit::TestEnv| {
        let dest = env.out("image.tar");
        let output = format!("type=oci,dest={},rewrite-timestamp=true", dest.display());
        let _ = env.build(&[&args[..], &["-o", output.as_str()]].concat()).ok();
        kiln_testkit::Image::read(&dest)
    };
    let first = rewrite(&env);
    let other = crate::env();
    let mut reversed = files;
    reversed.reverse();
    other.context(&reversed);
    let second = rewrite(&other);
    assert_eq!(first.digest, second.digest);
    assert_eq!(first.config.created.as_deref(), Some("2023-11-14T22:13:20Z"));
}
