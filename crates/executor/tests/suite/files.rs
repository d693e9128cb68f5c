//! What the process sees of files, and what it leaves.

use std::os::unix::fs::{MetadataExt, symlink};
use std::time::{Duration, UNIX_EPOCH};

use kiln_executor::{ExecError, MountSource, ProcessSpec, SandboxMount};
use kiln_snapshot::Mount;
use kiln_stdx::{ErrorClass, Secret};

use super::fixture::{Fixture, bind};

fn mount(dest: &str, source: MountSource) -> SandboxMount {
    SandboxMount { dest: dest.to_owned(), source, subpath: String::new(), readonly: false }
}

pub async fn overlay_changes_land_in_the_upper_directory(f: &Fixture) {
    f.output("cat /data/file; echo new > /data/new; rm /data/file; mkdir /made").await;
    let upper = f.path("upper");
    assert_eq!(std::fs::read_to_string(upper.join("data/new")).unwrap(), "new\n");
    let whiteout = std::fs::symlink_metadata(upper.join("data/file")).unwrap();
    assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev()), (libc::S_IFCHR, 0));
    let mut names: Vec<String> =
        std::fs::read_dir(&upper).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    // `/etc` was copied up for the files mounted in it.
    assert_eq!(names, ["data", "etc", "made"]);
    assert_eq!(std::fs::read_dir(upper.join("etc")).unwrap().count(), 0);
    // The same directories can be mounted again at once.
    assert_eq!(f.output("cat /data/new; ls /data").await, "new\nnew");
}

pub async fn readonly_root_refuses_writes(f: &Fixture) {
    let mut spec = f.shell("touch /x");
    spec.root_readonly = true;
    let ran = f.run(spec).await.unwrap();
    assert_ne!(ran.exit.code, 0);
    assert!(ran.err.contains("Read-only"), "{ran:?}");
}

pub async fn binds_are_readonly_or_not(f: &Fixture) {
    let shared = f.path("shared");
    std::fs::create_dir(&shared).unwrap();
    let mut spec = f.shell("echo text > /rw/file; cat /ro/file; touch /ro/x 2>/dev/null && exit 9; exit 0");
    spec.mounts.extend([bind(&shared, "/rw", false), bind(&shared, "/ro", true)]);
    assert_eq!(f.output_of(spec).await, "text");
    assert_eq!(std::fs::read_to_string(shared.join("file")).unwrap(), "text\n");
    assert!(!shared.join("x").exists());
}

pub async fn a_file_can_be_bound(f: &Fixture) {
    std::fs::write(f.path("host-file"), "of the host").unwrap();
    let mut spec = f.shell("cat /new/dir/file /etc/passwd");
    spec.remove_stubs_recursive = true;
    spec.mounts.push(bind(&f.path("host-file"), "/new/dir/file", true));
    spec.mounts.push(bind(&f.path("host-file"), "/etc/passwd", true));
    assert_eq!(f.output_of(spec).await, "of the hostof the host");
    assert!(!f.path("upper/new").exists() && !f.path("upper/etc/passwd").exists());
}

pub async fn a_part_of_an_overlay_can_be_bound(f: &Fixture) {
    let overlay = Mount::Overlay { lowers: vec![f.path("second"), f.path("base")], upper: None, work: None };
    symlink("/data", f.path("second/link")).unwrap();
    for (subpath, script) in [("data", "cat /part/file"), ("data/file", "cat /part"), ("/link/file", "cat /part")] {
        let mut spec = f.shell(script);
        let mut part = mount("/part", MountSource::Mount(overlay.clone()));
        part.subpath = subpath.to_owned();
        spec.mounts.push(part);
        assert_eq!(f.output_of(spec).await, "from the second layer", "{subpath}");
    }
    let mut spec = f.shell("true");
    let mut part = mount("/part", MountSource::Mount(overlay));
    part.subpath = "nothing".to_owned();
    spec.mounts.push(part);
    let error = f.run(spec).await.unwrap_err();
    assert!(error.to_string().contains("/nothing"), "{error}");
}

pub async fn secrets_are_files_on_tmpfs(f: &Fixture) {
    let secret = |dest: &str, mode, uid, gid| {
        mount(dest, MountSource::File { content: Secret::new("s3cret-value"), mode, uid, gid })
    };
    let mut spec = f.shell(
        "cat /run/secrets/one; echo; stat -c '%a %u %g' /run/secrets/one /two; grep -c ' /run/secrets/one .* - tmpfs ' \
         /proc/self/mountinfo; grep ' /two ' /proc/self/mountinfo",
    );
    spec.remove_stubs_recursive = true;
    spec.mounts.extend([secret("/run/secrets/one", 0o400, 0, 0), secret("/two", 0o640, 1000, 1001)]);
    let out = f.output_of(spec).await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..4], ["s3cret-value", "400 0 0", "640 1000 1001", "1"]);
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(lines[4].contains(option), "{option} in {}", lines[4]);
    }
    assert!(!f.path("upper/run").exists() && !f.path("upper/two").exists());
}

pub async fn sockets_can_be_bound(f: &Fixture) {
    let listener = std::os::unix::net::UnixListener::bind(f.path("agent.sock")).unwrap();
    let mut spec = f.shell("test -S /run/agent.0 && echo socket");
    spec.mounts.push(mount("/run/agent.0", MountSource::Socket(f.path("agent.sock"))));
    assert_eq!(f.output_of(spec).await, "socket");
    drop(listener);
}

pub async fn tmpfs_has_its_size(f: &Fixture) {
    let mut spec =
        f.shell("dd if=/dev/zero of=/scratch/x bs=1024 count=2000 2>/dev/null; stat -c '%s %a' /scratch/x /scratch");
    spec.mounts.push(mount("/scratch", MountSource::Mount(Mount::Tmpfs { size: Some(1 << 20), mode: 0o1777 })));
    let out = f.output_of(spec).await;
    assert!(out.starts_with("1048576 ") && out.ends_with(" 1777"), "{out}");
}

fn with_targets(f: &Fixture, script: &str) -> ProcessSpec {
    std::fs::create_dir_all(f.path("shared")).unwrap();
    let mut spec = f.shell(script);
    spec.mounts.push(bind(&f.path("shared"), "/data/cache/deep", false));
    spec
}

pub async fn stubs_are_taken_away(f: &Fixture) {
    let old = UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    let data = std::fs::File::open(f.path("second/data")).unwrap();
    data.set_modified(old).unwrap();
    let mut spec = with_targets(f, "true");
    spec.remove_stubs_recursive = true;
    f.output_of(spec).await;
    let left = |name: &str| f.path("upper").join(name).exists();
    assert!(!left("data/cache") && !left("proc") && !left("sys") && !left("dev") && !left("etc/hosts"));
    assert_eq!(std::fs::metadata(f.path("upper/data")).unwrap().modified().unwrap(), old);
    // Without the flag only the target itself goes, as BuildKit has it.
    f.output_of(with_targets(f, "true")).await;
    assert!(left("data/cache") && !left("data/cache/deep"));
}

pub async fn targets_never_lead_out_of_the_root(f: &Fixture) {
    let outside = f.path("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, f.path("second/absolute")).unwrap();
    symlink("../../../../../../../../../../..", f.path("second/up")).unwrap();
    std::fs::create_dir(f.path("shared")).unwrap();
    std::fs::write(f.path("shared/here"), "").unwrap();
    let mut spec = f.shell("ls /absolute/inner; ls /up/inner2");
    spec.mounts.push(bind(&f.path("shared"), "/absolute/inner", true));
    spec.mounts.push(bind(&f.path("shared"), "/up/inner2", true));
    assert_eq!(f.output_of(spec).await, "here\nhere");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/inner2").exists());
}

pub async fn a_missing_source_is_named(f: &Fixture) {
    let mut spec = f.shell("true");
    spec.mounts.push(bind(&f.path("not-there"), "/x", true));
    let error = f.run(spec).await.unwrap_err();
    assert!(matches!(error, ExecError::Mount { .. }), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Environment);
    let text = error.to_string();
    assert!(text.contains("not-there") && text.contains("/x") && text.contains("No such file"), "{text}");
    assert!(!f.path("upper/x").exists());
}

pub async fn mounts_inside_mounts(f: &Fixture) {
    for name in ["outer", "inner"] {
        std::fs::create_dir(f.path(name)).unwrap();
    }
    let mut spec = f.shell("echo a > /o/a; echo b > /o/x/i/b; pwd");
    spec.cwd = "/o/work".to_owned();
    spec.mounts.extend([bind(&f.path("inner"), "/o/x/i", false), bind(&f.path("outer"), "/o", false)]);
    assert_eq!(f.output_of(spec).await, "/o/work");
    assert!(f.path("outer/a").exists() && f.path("inner/b").exists() && !f.path("outer/b").exists());
    assert!(!f.path("upper/o").exists());
}
