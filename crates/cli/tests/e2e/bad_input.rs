//! Bad input: one clear error with the place and a hint, and nothing written.

use kiln_testkit::TestEnv;

fn refused(env: &TestEnv, args: &[&str], text: &str) {
    let dest = env.out("never.tar");
    let output = format!("type=oci,dest={}", dest.display());
    let mut all = vec!["-o", output.as_str()];
    all.extend(args);
    let done = env.build(&all).fails_with(text);
    assert!(!dest.exists(), "{}", done.report());
    let left: Vec<_> = std::fs::read_dir(env.path().join("out")).unwrap().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_missing_dockerfile() {
    let env = crate::env();
    refused(&env, &[], "failed to read dockerfile: open Dockerfile: no such file or directory");
}

#[test]
fn a_syntax_error_names_the_line() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\n\nCOPPY a b\n")]);
    refused(&env, &[], "unknown instruction: COPPY");
    refused(&env, &[], "Dockerfile:3");
    refused(&env, &[], "COPY");
}

#[test]
fn an_unknown_target_names_the_nearest() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch AS release\nCOPY Dockerfile /\n")]);
    refused(&env, &["--target", "relaese"], "release");
}

#[test]
fn an_unknown_flag_names_the_nearest() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\n")]);
    refused(&env, &["--buld-arg", "a=b"], "--build-arg");
}

#[test]
fn a_missing_source_names_the_nearest() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY package.json /\n"), ("packages.json", "{}")]);
    refused(&env, &[], "\"/package.json\": not found");
    refused(&env, &[], "packages.json");
}

#[test]
fn a_truncated_archive() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nADD a.tar /\n"), ("big", &"x".repeat(100_000))]);
    let mut tar = kiln_testkit::base::tar_of(&env.ctx());
    tar.truncate(50_000);
    std::fs::write(env.ctx().join("a.tar"), tar).unwrap();
    refused(&env, &[], "a.tar");
}

#[test]
fn a_destination_that_cannot_be_written() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let _ = env.build(&["-o", "type=oci,dest=/proc/nowhere/x.tar"]).fails_with("/proc/nowhere");
}

#[test]
fn an_archive_that_climbs_out_stays_inside() {
    let env = crate::env();
    env.context(&[("Dockerfile", "FROM scratch\nADD evil.tar /safe/\n")]);
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    let name = b"../../../escaped";
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, &b"evil"[..]).unwrap();
    std::fs::write(env.ctx().join("evil.tar"), tar.into_inner().unwrap()).unwrap();
    refused(&env, &[], "evil.tar");
    assert!(!env.path().join("escaped").exists());
}
