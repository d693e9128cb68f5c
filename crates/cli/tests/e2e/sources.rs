//! Sources that come over HTTP: files, and git repositories as plain files of a web server.

use kiln_testkit::{FileServer, git_repository as repository};

use crate::env_with_base;

#[test]
fn repositories_are_checked_out_at_what_they_name() {
    let (env, base) = env_with_base!();
    let Some(web) = repository(env.path()) else { kiln_testkit::skip!("no git on this host") };
    let server = FileServer::start(&web);
    let url = format!("{}/repo.git", server.address);
    let text = format!(
        "FROM base\nADD {url} /head\nADD {url}#v1 /tag\nADD {url}#trunk:docs /docs\nADD --keep-git-dir=true {url} /kept\n"
    );
    env.context(&[("Dockerfile", &text)]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!((image.text("head/file"), image.text("tag/file")), ("two".to_owned(), "one".to_owned()));
    assert_eq!(image.text("docs/page"), "words");
    let root = image.root();
    assert!(root.contains_key(b"kept/.git/HEAD".as_slice()), "{:?}", root.keys());
    assert!(!root.contains_key(b"head/.git".as_slice()) && !root.contains_key(b"docs/file".as_slice()));
}

#[test]
fn a_reference_that_is_not_there_is_named() {
    let (env, base) = env_with_base!();
    let Some(web) = repository(env.path()) else { kiln_testkit::skip!("no git on this host") };
    let server = FileServer::start(&web);
    env.context(&[("Dockerfile", &format!("FROM base\nADD {}/repo.git#nowhere /x\n", server.address))]);
    let done = env.build(&["--build-context", &base, "-o", "type=cacheonly"]);
    done.fails_with("repository does not contain ref nowhere");
}

#[test]
fn a_file_that_has_not_changed_is_not_sent_again() {
    let (env, base) = env_with_base!();
    let web = env.path().join("web");
    std::fs::create_dir(&web).expect("mkdir");
    std::fs::write(web.join("data"), "first").expect("write");
    let server = FileServer::start(&web);
    env.context(&[("Dockerfile", &format!("FROM base\nADD {}/data /data\n", server.address))]);
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("data"), "first");
    assert_eq!(server.take_log(), ["GET /data"]);
    env.build_image(&["--build-context", &base]);
    assert_eq!(server.take_log(), ["HEAD /data"]);
    std::fs::write(web.join("data"), "second").expect("write");
    let (image, _) = env.build_image(&["--build-context", &base]);
    assert_eq!(image.text("data"), "second");
    assert_eq!(server.take_log(), ["HEAD /data", "GET /data"]);
}

#[test]
fn contexts_may_lie_elsewhere() {
    let env = crate::env();
    let Some(web) = repository(env.path()) else { kiln_testkit::skip!("no git on this host") };
    let packed = kiln_testkit::base::tar_of(&env.path().join("work"));
    std::fs::write(web.join("context.tar"), packed).expect("write");
    std::fs::write(web.join("plain"), "FROM scratch\nLABEL from=web\n").expect("write");
    std::fs::write(env.path().join("own.Dockerfile"), "FROM scratch\nCOPY file /renamed\n").expect("write");
    let server = FileServer::start(&web);
    let built = |context: &str, args: &[&str]| {
        let (place, out) = (format!("{}/{context}", server.address), env.out("tree"));
        let output = format!("type=local,dest={}", out.display());
        let all = ["build", "-o", &output].into_iter().chain(args.iter().copied()).chain([place.as_str()]);
        let _ = env.kiln(all).dir(env.path()).finish().ok();
        let names = std::fs::read_dir(&out).map(|dir| dir.flatten().map(|e| e.path()).collect::<Vec<_>>());
        let text = names.unwrap_or_default().first().map(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{name}={}", std::fs::read_to_string(file).expect("read"))
        });
        let _ = std::fs::remove_dir_all(&out);
        text.unwrap_or_default()
    };
    assert_eq!(built("repo.git", &[]), "copied=two");
    assert_eq!(built("repo.git#v1", &[]), "copied=one");
    assert_eq!(built("repo.git#trunk:docs", &[]), "copied=words");
    assert_eq!(built("repo.git?branch=trunk&subdir=docs", &[]), "copied=words");
    assert_eq!(built("repo.git?tag=v1", &["-f", "Dockerfile"]), "copied=one");
    assert_eq!(built("context.tar", &[]), "copied=two");
    assert_eq!(built("context.tar", &["-f", "own.Dockerfile"]), "renamed=two");
    assert_eq!(built("plain", &[]), "");
    let asked = env.kiln(["build", "--call=targets", &format!("{}/repo.git", server.address)]).finish().ok();
    assert_eq!(asked.out(), "TARGET    DESCRIPTION\n(default) \n");
}
