//! One suite for every driver: what a step sees, does, and leaves as a layer.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_snapshot::dump::{self, DumpOptions};
use kiln_snapshot::layer::{FileMeta, LayerBuilder, scan, verify_digest};
use kiln_snapshot::{CopySnapshotter, LayerManifest, Mount, OverlaySnapshotter, Snapshotter, Tree};

use crate::support::*;

/// Runs `work` on the mounted view, in a mount namespace of its own. `None` where the host does not permit that.
fn with_mount<T: Send>(mount: &Mount, at: &Path, work: impl FnOnce(&Path) -> T + Send) -> Option<T> {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    if let Mount::Bind { source, readonly: false } = mount {
        return Some(work(source));
    }
    std::fs::create_dir_all(at).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only this thread gets the new namespace; it shares its file system state with no other then.
            if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
                kiln_testkit::report_skip("mount namespaces are not permitted");
                return None;
            }
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            match mount {
                Mount::Bind { source, .. } => {
                    rustix::mount::mount_bind(source, at).unwrap();
                    let flags = MountFlags::BIND | MountFlags::RDONLY;
                    rustix::mount::mount_remount(at, flags, "").unwrap();
                }
                Mount::Overlay { lowers, upper, work } => {
                    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
                    let lowers: Vec<String> = lowers.iter().map(text).collect();
                    let mut options =
                        format!("index=off,metacopy=off,redirect_dir=off,xino=off,lowerdir={}", lowers.join(":"));
                    if let (Some(upper), Some(work)) = (upper, work) {
                        options += &format!(",upperdir={},workdir={}", text(upper), text(work));
                    }
                    let options = std::ffi::CString::new(options).unwrap();
                    if let Err(e) =
                        rustix::mount::mount("overlay", at, "overlay", MountFlags::empty(), options.as_c_str())
                    {
                        kiln_testkit::report_skip(&format!("overlay cannot be mounted: {e}"));
                        return None;
                    }
                }
                Mount::Tmpfs { .. } => panic!("no driver uses tmpfs"),
            }
            let result = work(at);
            rustix::mount::unmount(at, UnmountFlags::empty()).unwrap();
            Some(result)
        });
        thread.join().unwrap()
    })
}

/// Layers of every test: hard links, deletions and an opaque directory among them.
fn base() -> Chain {
    let mut chain = Chain::new();
    chain.build(|b| {
        b.mkdir(b"", &FileMeta { uid: 1, ..meta(0o751) }).unwrap();
        b.file_from_bytes(b"etc/conf", &meta(0o644), b"one").unwrap();
        b.file_from_bytes(b"etc/keep", &FileMeta { uid: 33, ..meta(0o4755) }, b"kept").unwrap();
        b.file_from_bytes(b"old/a/b", &meta(0o644), b"deep").unwrap();
        b.file_from_bytes(b"h1", &meta(0o644), b"linked").unwrap();
        b.hard_link(b"h1", b"h2").unwrap();
        b.file_from_bytes(b"gone", &meta(0o644), b"").unwrap();
        b.file_from_bytes(b"opaque/hidden", &meta(0o644), b"").unwrap();
        b.symlink(b"link", b"etc/conf", &meta(0)).unwrap();
    });
    chain.build(|b| {
        b.remove(b"gone").unwrap();
        b.set_opaque(b"opaque").unwrap();
        b.file_from_bytes(b"opaque/shown", &meta(0o644), b"top").unwrap();
    });
    chain
}

/// What a step did: the layer, the merged view after it, and the view as the step saw it at its end.
struct Outcome {
    chain: Chain,
    layer: Arc<LayerManifest>,
    seen: String,
}

fn text(tree: &Tree) -> String {
    dump::tree(tree, &DumpOptions { now: Some(1_750_000_000) })
}

fn step(driver: &dyn Snapshotter, mut chain: Chain, work: impl FnOnce(&Path) + Send) -> Option<Outcome> {
    let scratch = chain.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let active = driver.prepare(&chain.dirs, &scratch).unwrap();
    let at = chain.path("mnt");
    let seen = with_mount(active.mount(), &at, |root| {
        work(root);
        dump::dir(root, &DumpOptions { now: Some(1_750_000_000) }).unwrap()
    })?;
    let dest = chain.path("collected");
    let manifest = driver.collect(active, &chain.tree(), &dest).unwrap();
    assert_eq!(verify_digest(&manifest, &dest), Ok(()));
    assert_eq!(scan(&dest).unwrap(), manifest, "what is on disk is what the driver says");
    let layer = chain.push(manifest, dest);
    Some(Outcome { chain, layer, seen })
}

/// Checks that the layer on top of the chain shows what the step saw, also after a trip through an archive.
fn check(outcome: &Outcome) {
    assert_eq!(text(&outcome.chain.tree()), outcome.seen);
    let below = outcome.chain.layers.len() - 1;
    let archive = tar_of(&outcome.layer, &outcome.chain.dirs[below]);
    let lower = Tree::merge(&outcome.chain.layers[..below]);
    let again = outcome.chain.path("again");
    let applied = kiln_snapshot::layer::apply(&archive[..], &again, &lower, &outcome.chain.dirs[..below]).unwrap();
    assert_eq!(portable(&applied.manifest), portable(&outcome.layer));
}

macro_rules! conformance {
    ($name:ident, $driver:expr) => {
        mod $name {
            use super::*;

            fn run(work: impl FnOnce(&Path) + Send) -> Option<Outcome> {
                step(&$driver, base(), work)
            }

            #[test]
            fn a_step_that_does_nothing_leaves_nothing() {
                root_only!();
                let Some(outcome) = run(|_| {}) else { return };
                check(&outcome);
                assert!(outcome.layer.changes_nothing(), "{:?}", names(&outcome.layer));
            }

            #[test]
            fn the_root_has_the_metadata_of_the_layers() {
                root_only!();
                let Some(outcome) = run(|_| {}) else { return };
                assert!(outcome.seen.starts_with("/ dir 0751 1:0 "), "{}", outcome.seen);
            }

            #[test]
            fn new_changed_and_removed_files() {
                root_only!();
                let Some(outcome) = run(|root| {
                    std::fs::create_dir_all(root.join("new/dir")).unwrap();
                    std::fs::write(root.join("new/dir/file"), "new").unwrap();
                    std::fs::write(root.join("etc/conf"), "two").unwrap();
                    std::fs::remove_file(root.join("etc/keep")).unwrap();
                    std::fs::remove_dir_all(root.join("old")).unwrap();
                    symlink("nowhere", root.join("new/link")).unwrap();
                    std::fs::write(root.join("gone"), "back").unwrap();
                }) else {
                    return;
                };
                check(&outcome);
                let expected =
                    ["", "etc", "etc/conf", "-etc/keep", "gone", "new", "new/dir", "new/dir/file", "new/link", "-old"];
                assert_eq!(names(&outcome.layer), expected);
            }

            #[test]
            fn metadata_alone() {
                root_only!();
                let Some(outcome) = run(|root| {
                    let mode = std::fs::Permissions::from_mode(0o2711);
                    std::fs::set_permissions(root.join("etc"), mode).unwrap();
                    std::os::unix::fs::lchown(root.join("link"), Some(7), Some(8)).unwrap();
                    std::os::unix::fs::chown(root.join("etc/conf"), Some(5), None).unwrap();
                    let flags = rustix::fs::XattrFlags::empty();
                    rustix::fs::setxattr(root.join("opaque/shown"), "user.note", b"x", flags).unwrap();
                }) else {
                    return;
                };
                check(&outcome);
                assert_eq!(names(&outcome.layer), ["", "etc", "etc/conf", "link", "opaque", "opaque/shown"]);
                assert_eq!(outcome.layer.get(b"etc").unwrap().mode, 0o2711);
            }

            #[test]
            fn what_was_only_opened_is_not_in_the_layer() {
                root_only!();
                let Some(outcome) = run(|root| {
                    drop(std::fs::File::options().append(true).open(root.join("etc/conf")).unwrap());
                    drop(std::fs::File::options().write(true).open(root.join("old/a/b")).unwrap());
                }) else {
                    return;
                };
                check(&outcome);
                assert!(outcome.layer.changes_nothing(), "{:?}", names(&outcome.layer));
            }

            #[test]
            fn a_change_that_keeps_size_and_time_is_noticed() {
                root_only!();
                let Some(outcome) = run(|root| {
                    let path = root.join("etc/conf");
                    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
                    std::fs::write(&path, "ONE").unwrap();
                    std::fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
                }) else {
                    return;
                };
                check(&outcome);
                assert_eq!(names(&outcome.layer), ["", "etc", "etc/conf"]);
            }

            #[test]
            fn kinds_change_into_each_other() {
                root_only!();
                let Some(outcome) = run(|root| {
                    std::fs::remove_dir_all(root.join("old")).unwrap();
                    std::fs::write(root.join("old"), "file").unwrap();
                    std::fs::remove_file(root.join("etc/conf")).unwrap();
                    std::fs::create_dir(root.join("etc/conf")).unwrap();
                    std::fs::write(root.join("etc/conf/in"), "x").unwrap();
                    std::fs::remove_dir_all(root.join("opaque")).unwrap();
                    std::fs::create_dir(root.join("opaque")).unwrap();
                    std::fs::write(root.join("opaque/third"), "x").unwrap();
                    std::fs::remove_file(root.join("link")).unwrap();
                    std::fs::create_dir(root.join("link")).unwrap();
                }) else {
                    return;
                };
                check(&outcome);
                assert!(outcome.chain.tree().get(b"opaque/shown").is_none());
                assert!(outcome.chain.tree().get(b"old/a").is_none());
            }

            #[test]
            fn new_hard_links() {
                root_only!();
                let Some(outcome) = run(|root| {
                    std::fs::write(root.join("n1"), "x").unwrap();
                    std::fs::hard_link(root.join("n1"), root.join("n2")).unwrap();
                    std::fs::hard_link(root.join("etc/keep"), root.join("etc/also")).unwrap();
                }) else {
                    return;
                };
                check(&outcome);
                let of = |path: &str| outcome.layer.get(path.as_bytes()).map(|e| (e.nlink_group, e.mode)).unwrap();
                assert_eq!(of("n1"), of("n2"));
                assert_eq!(of("etc/keep"), of("etc/also"));
                assert!(of("n1").0.is_some() && of("etc/keep").0.is_some() && of("n1") != of("etc/keep"));
            }

            #[test]
            fn renames_and_sockets() {
                root_only!();
                let Some(outcome) = run(|root| {
                    std::fs::rename(root.join("etc/conf"), root.join("renamed")).unwrap();
                    std::fs::rename(root.join("opaque/shown"), root.join("etc/keep")).unwrap();
                    // The address of a socket is short; a view's path may not be.
                    let here = std::env::temp_dir().join(format!("k{}", std::process::id()));
                    let _ = std::fs::remove_file(&here);
                    symlink(root, &here).unwrap();
                    drop(std::os::unix::net::UnixListener::bind(here.join("socket")).unwrap());
                    std::fs::remove_file(&here).unwrap();
                }) else {
                    return;
                };
                check(&outcome);
                assert_eq!(
                    names(&outcome.layer),
                    ["", "etc", "-etc/conf", "etc/keep", "opaque", "-opaque/shown", "renamed"]
                );
                let dir = outcome.chain.dirs.last().unwrap();
                assert!(std::fs::symlink_metadata(dir.join("socket")).is_err());
            }

            #[test]
            fn a_step_without_layers_below() {
                root_only!();
                let work = |root: &Path| std::fs::write(root.join("f"), "x").unwrap();
                let Some(outcome) = step(&$driver, Chain::new(), work) else { return };
                assert_eq!(names(&outcome.layer), ["", "f"]);
                assert_eq!(outcome.layer.get(b"").unwrap().mode, 0o755);
            }

            #[test]
            fn views_are_read_only_and_merged() {
                root_only!();
                for layers in 0..3 {
                    let chain = base();
                    let scratch = chain.path("scratch");
                    std::fs::create_dir(&scratch).unwrap();
                    let mount = $driver.view(&chain.dirs[..layers], &scratch).unwrap();
                    let seen = with_mount(&mount, &chain.path("mnt"), |root| {
                        assert!(std::fs::write(root.join("new"), "").is_err());
                        dump::dir(root, &DumpOptions { now: Some(1_750_000_000) }).unwrap()
                    });
                    let Some(seen) = seen else { return };
                    if layers > 0 {
                        assert_eq!(seen, text(&Tree::merge(&chain.layers[..layers])), "{layers} layers");
                    } else {
                        assert_eq!(seen.lines().count(), 1);
                    }
                }
            }

            #[test]
            fn a_lone_layer_of_deletions_shows_none_of_them() {
                root_only!();
                let mut chain = base();
                let layer = chain.build(|b| assert!(b.remove(b"link").unwrap()));
                assert!(names(&layer).contains(&"-link".to_owned()));
                let scratch = chain.path("scratch");
                std::fs::create_dir(&scratch).unwrap();
                let mount = $driver.view(&chain.dirs[2..], &scratch).unwrap();
                let Some(count) = with_mount(&mount, &chain.path("mnt"), |root| root.read_dir().unwrap().count())
                else {
                    return;
                };
                assert_eq!(count, 0);
            }
        }
    };
}

conformance!(overlay, OverlaySnapshotter);
conformance!(copying, CopySnapshotter);

#[test]
fn a_removed_directory_of_an_opaque_one_is_needed_though_equal() {
    root_only!();
    // What is below an opaque directory must stay in the layer even where it equals what is hidden.
    let chain = base();
    let work = |root: &Path| {
        std::fs::remove_dir_all(root.join("old")).unwrap();
        let tree = Tree::default();
        let mut builder = LayerBuilder::new(&root.join("old"), &tree, &[]).unwrap();
        builder.file_from_bytes(b"a/b", &meta(0o644), b"deep").unwrap();
        builder.finish().unwrap();
    };
    let Some(outcome) = step(&OverlaySnapshotter, chain, work) else { return };
    check(&outcome);
    assert!(outcome.layer.get(b"old/a/b").is_some());
}
