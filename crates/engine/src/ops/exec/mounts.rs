//! The mounts of a step: what each is made from, and what becomes of it when the step is over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_executor::{MountSource, SandboxMount};
use kiln_llb::op::{Mount as LlbMount, MountKind, SessionFile};
use kiln_oci::Platform;
use kiln_snapshot::{Active, Mount};
use kiln_solver::OpContext;
use kiln_stdx::{ErrorClass, Secret};
use kiln_store::{ImmutableRef, LayerDraft, Mark, RecordType, WriteEnd};

use super::caches::Caches;
use crate::error::EngineError;
use crate::layers;
use crate::parts::Parts;
use crate::session::{self, SshSocket};

/// What mounts are made from.
pub struct Needs<'a> {
    pub parts: &'a Arc<Parts>,
    pub cx: &'a OpContext,
    pub mounts: &'a [LlbMount],
    /// What relative targets are relative to.
    pub cwd: &'a str,
    pub inputs: &'a [ImmutableRef],
    /// Cache mounts of one platform are not those of another.
    pub platform: &'a Platform,
    /// Whether cached results of the step are ignored, which says of cache mounts what the build decides.
    pub ignore_cache: bool,
}

/// How many directories an overlay can lie on.
const MOST_LOWERS: usize = 500;

/// Everything one run of a step holds until it is over.
pub struct Prepared {
    /// The root; taken when the process is described.
    pub root: Option<Mount>,
    pub root_readonly: bool,
    pub mounts: Vec<SandboxMount>,
    /// Values that must not show in the log.
    pub secrets: Vec<Secret>,
    /// From a tmpfs at `/dev/shm`, which is how a size of it is asked for.
    pub shm_size: Option<u64>,
    /// What becomes of mounts: the place of the mount, and of its output where it has one.
    left: Vec<(usize, Option<usize>, Left)>,
    /// Dropped after the process is gone: directories that are written and thrown away, cache mounts, agent sockets.
    _discarded: Vec<LayerDraft>,
    /// What is mounted.
    _held: Vec<ImmutableRef>,
    caches: Caches,
    _sockets: Vec<SshSocket>,
}

/// Puts the store's floor under the layers of a root.
fn lay_floor(parts: &Parts, root: &mut Mount) {
    if let Mount::Overlay { lowers, .. } = root
        && lowers.len() < MOST_LOWERS
    {
        lowers.extend(parts.store.floor());
    }
}

/// What a mount is when the step is over.
pub enum Left {
    /// What the step has changed.
    Changes(Box<Changes>),
    /// What came in.
    Same(ImmutableRef),
}

/// Changes that are no layer yet.
pub struct Changes {
    parent: ImmutableRef,
    draft: LayerDraft,
    active: Active,
    dest: String,
}

impl Prepared {
    /// Prepares every mount.
    ///
    /// # Errors
    /// A secret or agent that is required and missing, a full disk, a call that was called off while it waited.
    pub async fn new(needs: &Needs<'_>) -> Result<Self, EngineError> {
        let mut this = Self {
            root: None,
            root_readonly: false,
            mounts: Vec::new(),
            secrets: Vec::new(),
            shm_size: None,
            left: Vec::new(),
            _discarded: Vec::new(),
            _held: Vec::new(),
            caches: Caches::take(needs).await?,
            _sockets: Vec::new(),
        };
        for (place, mount) in needs.mounts.iter().enumerate() {
            let dest = absolute(needs.cwd, &mount.dest);
            match &mount.kind {
                MountKind::Bind => {
                    let source = this.bind(needs, place, mount).await?;
                    this.place(dest, mount, source);
                }
                MountKind::Tmpfs { size } if dest == "/dev/shm" => this.shm_size = *size,
                MountKind::Tmpfs { size } => {
                    this.place(dest, mount, Mount::Tmpfs { size: *size, mode: 0o1777 });
                }
                MountKind::Cache { .. } => {
                    let directory = this.caches.directory(place).map(Path::to_owned);
                    let source =
                        directory.ok_or_else(|| EngineError::new(ErrorClass::Bug, "a mount without source"))?;
                    let source = Mount::Bind { source, readonly: mount.readonly };
                    // The selector says what a new mount begins with, not which part of it is shown.
                    this.place(dest, &LlbMount { selector: String::new(), ..mount.clone() }, source);
                }
                MountKind::Secret(file) => this.secret(needs, dest, file).await?,
                MountKind::Ssh(file) => {
                    this.ssh(needs, dest, file).await?;
                }
            }
        }
        Ok(this)
    }

    fn place(&mut self, dest: String, mount: &LlbMount, source: Mount) {
        if mount.is_root() {
            self.root = Some(source);
            self.root_readonly = mount.readonly;
            return;
        }
        self.mounts.push(SandboxMount {
            dest,
            source: MountSource::Mount(source),
            subpath: mount.selector.clone(),
            readonly: mount.readonly,
        });
    }

    async fn bind(&mut self, needs: &Needs<'_>, place: usize, mount: &LlbMount) -> Result<Mount, EngineError> {
        let reference = match mount.input {
            Some(index) => super::super::input(needs.inputs, index)?.clone(),
            None => needs.parts.store.scratch(),
        };
        let parts = needs.parts.clone();
        // Mount targets are made in the root before it becomes read-only for the process.
        let readonly = mount.readonly && !mount.is_root();
        let parent = reference.clone();
        let (draft, held, view, active) = parts
            .clone()
            .blocking(move || {
                let draft = parts.store.draft_of_view()?;
                let held = layers::mountable(&parts.store, &parent)?;
                let lowers = held.dirs();
                if readonly {
                    let view = parts.snapshotter.view(&lowers, draft.scratch()?)?;
                    return Ok((draft, held, Some(view), None));
                }
                draft.room().runs();
                let active = parts.snapshotter.prepare(&lowers, draft.scratch()?)?;
                Ok((draft, held, None, Some(active)))
            })
            .await?;
        self._held.push(held);
        match (view, active) {
            (None, Some(active)) => {
                let mut source = active.mount().clone();
                if mount.is_root() {
                    lay_floor(needs.parts, &mut source);
                }
                if mount.readonly {
                    self.left.push((place, mount.output, Left::Same(reference)));
                    self._discarded.push(draft);
                } else {
                    let changes = Changes { parent: reference, draft, active, dest: mount.dest.clone() };
                    self.left.push((place, mount.output, Left::Changes(Box::new(changes))));
                }
                Ok(source)
            }
            (Some(view), _) => {
                self.left.push((place, mount.output, Left::Same(reference)));
                // The view may lie in the draft's scratch directory, which must outlive the process.
                self._discarded.push(draft);
                Ok(view)
            }
            (None, None) => Err(EngineError::new(ErrorClass::Bug, "a mount without source")),
        }
    }

    /// Records that the step's process is about to write to its cache mounts.
    pub fn begin_writes(&mut self) {
        self.caches.begin_writes();
    }

    /// Returns the directories that the process writes to.
    pub fn written(&self) -> Vec<PathBuf> {
        let upper = |left: &Left| match left {
            Left::Changes(changes) => changes.draft.scratch().ok().map(Path::to_owned),
            Left::Same(_) => None,
        };
        let caches = self.caches.written().map(Path::to_owned);
        self.left.iter().filter_map(|(_, _, left)| upper(left)).chain(caches).collect()
    }

    /// Records how the process ended. What is dropped without that was cut off.
    pub fn end_writes(&mut self, end: WriteEnd<'_>) {
        self.caches.end_writes(end);
    }

    /// Returns the cache mounts that may have been damaged before the step began, with what happened.
    pub fn marked(&self) -> impl Iterator<Item = (&str, &Mark)> {
        self.caches.marked()
    }

    async fn secret(&mut self, needs: &Needs<'_>, dest: String, file: &SessionFile) -> Result<(), EngineError> {
        match session::secret(needs.parts, needs.cx, &file.id).await? {
            Some(value) => {
                self.mounts.push(SandboxMount {
                    dest,
                    source: MountSource::File { content: value.clone(), mode: file.mode, uid: file.uid, gid: file.gid },
                    subpath: String::new(),
                    readonly: true,
                });
                self.secrets.push(value);
                Ok(())
            }
            None if file.optional => Ok(()),
            None => Err(EngineError::user(format!("secret {}: not found", file.id))
                .with_hint(format!("add --secret id={} to the command", file.id))),
        }
    }

    async fn ssh(&mut self, needs: &Needs<'_>, dest: String, file: &SessionFile) -> Result<(), EngineError> {
        let socket = session::ssh_socket(needs.parts, needs.cx, file).await?;
        match socket {
            Some(socket) => {
                self.mounts.push(SandboxMount {
                    dest,
                    source: MountSource::Socket(socket.path().to_owned()),
                    subpath: String::new(),
                    readonly: true,
                });
                self._sockets.push(socket);
                Ok(())
            }
            None if file.optional => Ok(()),
            None if session::open_sessions(needs.parts, needs.cx).iter().all(|s| !s.forwards_ssh()) => {
                Err(EngineError::user(format!("no SSH key {:?} forwarded from the client", file.id))
                    .with_hint(format!("add --ssh {} to the command", file.id)))
            }
            None => Err(EngineError::user(format!("unset ssh forward key {}", file.id))
                .with_hint(format!("add --ssh {} to the command", file.id))),
        }
    }

    /// Turns what the step changed into layers and returns the outputs in order.
    ///
    /// # Errors
    /// The changes cannot be read or stored; nothing of them is kept then.
    pub async fn commit(self, parts: &Arc<Parts>, command: String) -> Result<Vec<ImmutableRef>, EngineError> {
        let parts = parts.clone();
        let of_outputs = self.left.into_iter().filter_map(|(_, output, left)| Some((output?, left)));
        let mut outputs: Vec<(usize, Left)> = of_outputs.collect();
        outputs.sort_by_key(|(index, _)| *index);
        parts
            .clone()
            .blocking(move || {
                outputs.into_iter().map(|(_, left)| left.store(&parts, &command)).collect::<Result<Vec<_>, _>>()
            })
            .await
    }

    /// Returns what the `count` mounts of a step that failed are; secrets, cache mounts and sockets are let go.
    pub fn wreck(self, count: usize) -> Vec<Option<Left>> {
        let mut left: Vec<Option<Left>> = (0..count).map(|_| None).collect();
        for (place, _, what) in self.left {
            if let Some(slot) = left.get_mut(place) {
                *slot = Some(what);
            }
        }
        left
    }
}

impl Left {
    /// Returns the layers, made of what was changed. Blocking.
    fn store(self, parts: &Parts, command: &str) -> Result<ImmutableRef, EngineError> {
        let Changes { parent, draft, active, dest } = match self {
            Self::Same(reference) => return Ok(reference),
            Self::Changes(changes) => *changes,
        };
        let manifest = parts.snapshotter.collect(active, &*parent.tree()?, &draft.fs())?;
        let about = format!("mount {dest} from exec {command}");
        let info = layers::info(&parent, about, RecordType::Regular);
        Ok(parent.with_layer(parts.store.commit(draft, manifest, info)?))
    }

    /// Returns the layers, made of what was changed.
    ///
    /// # Errors
    /// The changes cannot be read or stored.
    pub async fn layers(self, parts: &Arc<Parts>, command: &str) -> Result<ImmutableRef, EngineError> {
        let (of, command) = (parts.clone(), command.to_owned());
        parts.clone().blocking(move || self.store(&of, &command)).await
    }
}

fn absolute(cwd: &str, dest: &str) -> String {
    if dest.starts_with('/') {
        return dest.to_owned();
    }
    format!("/{}", crate::paths::clean_relative(&format!("{cwd}/{dest}")))
}
