//! Mounts of `RUN`.

use kiln_llb::builder::{
    CacheMount, ExecMount, FileActions, Meta, MkdirOptions, MountSource, NameOrId, Output, OwnerSpec, SecretSpec,
    SshSpec,
};
use kiln_llb::op::Sharing;

use super::Lowering;
use super::stage::Stage;
use crate::ast::Run;
use crate::diag::{Fault, Outcome};
use crate::parse::run_mount::{self, CacheSharing, Mount, MountType};
use crate::source::Lines;
use crate::stage::{Command, NodeId};

/// All mounts of one `RUN`.
#[derive(Debug, Default)]
pub(super) struct RunMounts {
    pub mounts: Vec<ExecMount>,
    pub secrets: Vec<SecretSpec>,
    pub ssh: Vec<SshSpec>,
}

impl Lowering<'_> {
    pub(super) fn mounts(&mut self, stage: &mut Stage, command: &Command, run: &Run) -> Outcome<RunMounts> {
        let instruction = &command.instruction;
        let mut out = RunMounts::default();
        for (i, written) in run.mounts.iter().enumerate() {
            let mount = run_mount::parse(&written.text, |value| self.expand(stage, instruction, value))?;
            match mount.kind {
                MountType::Secret => out.secrets.push(self.secret(&mount, instruction.lines)?),
                MountType::Ssh => out.ssh.push(self.ssh(&mount, instruction.lines)?),
                _ => {
                    let source = command.sources.get(i).copied().flatten();
                    out.mounts.push(self.mount(stage, &mount, source, instruction.lines)?);
                }
            }
        }
        Ok(out)
    }

    fn mount(&mut self, stage: &Stage, mount: &Mount, source: Option<NodeId>, lines: Lines) -> Outcome<ExecMount> {
        let mut output = match source {
            Some(id) => self.stages[id].as_ref().map(|s| s.output).ok_or_else(|| {
                Fault::new(format!(
                    "cannot mount from stage {:?} to {:?}, stage needs to be defined before current command",
                    mount.from, mount.target
                ))
            })?,
            None if mount.kind == MountType::Bind => self.context,
            None => Output::SCRATCH,
        };
        let target = target_path(&mount.target, &stage.cwd)?;
        let path = super::rooted(&mount.source);
        let mut selector = String::new();
        if path != "/" {
            selector.clone_from(&path);
        } else if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
            output = self.cache_directory(mount, output);
            selector = "/cache".into();
        }
        match source {
            Some(id) => self.mark_used(id, &path),
            None if mount.kind == MountType::Bind => {
                self.context_paths.insert(path);
            }
            None => {}
        }
        let source = match mount.kind {
            MountType::Tmpfs => MountSource::Tmpfs { size: mount.size },
            MountType::Cache => MountSource::Cache(self.cache(mount, output, lines)),
            _ => MountSource::Bind(output),
        };
        Ok(ExecMount {
            source,
            selector,
            readonly: mount.readonly,
            // What is written into somebody else's files is dropped.
            no_output: mount.kind == MountType::Bind && !mount.readonly,
            ..ExecMount::bind(target, output)
        })
    }

    fn cache(&mut self, mount: &Mount, base: Output, lines: Lines) -> CacheMount {
        let id = if mount.id.is_empty() { clean(&mount.target) } else { mount.id.clone() };
        self.outline.caches.entry(id.clone()).or_insert(lines);
        let sharing = match mount.sharing {
            None | Some(CacheSharing::Shared) => Sharing::Shared,
            Some(CacheSharing::Private) => Sharing::Private,
            Some(CacheSharing::Locked) => Sharing::Locked,
        };
        CacheMount { id: format!("{}/{id}", self.options.cache_namespace), sharing, base }
    }

    /// Makes a directory with the owner and mode that a new cache begins with.
    fn cache_directory(&mut self, mount: &Mount, base: Output) -> Output {
        let owner = OwnerSpec {
            user: Some(NameOrId::Id(mount.uid.unwrap_or(0))),
            group: Some(NameOrId::Id(mount.gid.unwrap_or(0))),
        };
        let options = MkdirOptions { owner: Some(owner), ..MkdirOptions::default() };
        let actions = FileActions::new().mkdir("/cache", mount.mode.unwrap_or(0o755), options);
        self.builder.file(base, actions, Meta::named("[internal] setting cache mount permissions"))
    }

    fn secret(&mut self, mount: &Mount, lines: Lines) -> Outcome<SecretSpec> {
        let id = match (mount.source.as_str(), mount.id.as_str()) {
            ("", "") if mount.target.is_empty() => return Err(Fault::new("one of source, target required")),
            ("", "") => base_name(&mount.target),
            ("", id) => id.to_owned(),
            (source, _) => source.to_owned(),
        };
        let target = match (mount.target.as_str(), &mount.env) {
            ("", Some(_)) => None,
            ("", None) => Some(format!("/run/secrets/{}", base_name(&id))),
            (target, _) => Some(below_root(target.to_owned())?),
        };
        self.outline.secrets.entry(id.clone()).or_insert((lines, mount.required));
        Ok(SecretSpec {
            id,
            target,
            env: mount.env.clone(),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
            mode: mount.mode.unwrap_or(0o400),
            optional: !mount.required,
        })
    }

    fn ssh(&mut self, mount: &Mount, lines: Lines) -> Outcome<SshSpec> {
        if !mount.source.is_empty() {
            return Err(Fault::new("ssh does not support source"));
        }
        let shown = if mount.id.is_empty() { "default".to_owned() } else { mount.id.clone() };
        self.outline.ssh.entry(shown).or_insert((lines, mount.required));
        Ok(SshSpec {
            // The definition leaves out what was not written, so that its digest is the one BuildKit's caches know.
            id: mount.id.clone(),
            target: Some(below_root(mount.target.clone())?).filter(|t| !t.is_empty()),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
            mode: mount.mode.unwrap_or(0o600),
            optional: !mount.required,
        })
    }
}

fn clean(path: &str) -> String {
    String::from_utf8_lossy(&kiln_stdx::pattern::clean(path.as_bytes())).into_owned()
}

fn base_name(path: &str) -> String {
    String::from_utf8_lossy(kiln_stdx::pattern::base(path.as_bytes())).into_owned()
}

/// Returns where a mount appears: under the working directory unless absolute.
fn target_path(target: &str, cwd: &str) -> Outcome<String> {
    let path = if target.starts_with('/') { target.to_owned() } else { super::rooted(&format!("{cwd}/{target}")) };
    below_root(path)
}

/// Returns a target unless it is the root, which is mounted already.
fn below_root(target: String) -> Outcome<String> {
    match target.as_str() {
        "/" => Err(Fault::new("invalid mount target \"/\"").hint("mount onto a path below the root")),
        _ => Ok(target),
    }
}
