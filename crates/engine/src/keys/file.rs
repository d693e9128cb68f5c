//! The key of a file op: canonical digest, and per input the paths whose content counts.

use std::collections::{BTreeMap, BTreeSet};

use kiln_llb::pb;
use kiln_oci::{JsonError, to_ordered_json};
use kiln_stdx::Digest;
use serde::Serialize;

use super::canonical::{self, Owner, skip_false, skip_zero, skip_zero32};
use crate::paths::{base, has_wildcard};

/// One set of paths of an input that a file op reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    pub path: String,
    pub wildcard: bool,
    pub follow_links: bool,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub required: Vec<String>,
}

impl Selector {
    fn plain(&self) -> bool {
        !self.wildcard && self.include.is_empty() && self.exclude.is_empty() && self.required.is_empty()
    }
}

/// The key of a file op.
#[derive(Debug)]
pub struct FileKey {
    pub digest: Digest,
    /// By input: what is read of it, for inputs that are only read. An input that is also written to counts whole.
    pub read: BTreeMap<usize, Vec<Selector>>,
}

impl FileKey {
    /// Returns the digest of the selectors of one input, as it enters links between keys.
    pub fn selector(selectors: &[Selector]) -> Digest {
        let mut paths: Vec<&str> = selectors.iter().map(|s| s.path.as_str()).collect();
        paths.sort_unstable();
        paths.reverse();
        Digest::of(paths.join("\0"))
    }

    /// Returns the selectors without those that another one covers, in path order.
    pub fn content_selectors(selectors: &[Selector]) -> Vec<Selector> {
        let mut kept: Vec<Selector> = Vec::new();
        for follow in [false, true] {
            let paths: BTreeSet<&str> =
                selectors.iter().filter(|s| s.plain() && s.follow_links == follow).map(|s| s.path.as_str()).collect();
            let below = |path: &str, other: &str| {
                path != other && path.starts_with(&format!("{}/", other.trim_end_matches('/')))
            };
            for path in paths.iter().filter(|path| !paths.iter().any(|other| below(path, other))) {
                kept.push(Selector {
                    path: (*path).to_owned(),
                    wildcard: false,
                    follow_links: follow,
                    include: Vec::new(),
                    exclude: Vec::new(),
                    required: Vec::new(),
                });
            }
        }
        kept.extend(selectors.iter().filter(|s| !s.plain()).cloned());
        kept.sort_by(|a, b| a.path.cmp(&b.path));
        kept
    }
}

#[derive(Serialize)]
struct Document {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Actions")]
    actions: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    indexes: Vec<[i64; 3]>,
}

/// Returns the key of a file op with `inputs` inputs.
///
/// # Errors
/// Never in practice: every field is plain text or a number.
pub fn key(op: &pb::FileOp, inputs: usize) -> Result<FileKey, JsonError> {
    let mut read = BTreeMap::<usize, Vec<Selector>>::new();
    let mut written = BTreeSet::new();
    let mut actions = Vec::new();
    let (mut indexes, mut from_nothing) = (Vec::new(), false);
    for action in &op.actions {
        let pb::FileAction { input, secondary_input, output, action: kind } = action;
        if let Ok(input) = usize::try_from(*input) {
            written.insert(input);
        }
        let json = match kind {
            Some(pb::file_action::Action::Copy(copy)) => {
                let source = usize::try_from(*secondary_input).ok().filter(|i| *i < inputs);
                if let Some(source) = source {
                    read.entry(source).or_default().push(copy_selector(copy));
                }
                from_nothing |= *secondary_input == -1;
                owner_selectors(copy.owner.as_ref(), &mut read);
                copy_json(copy, source.is_some())?
            }
            Some(pb::file_action::Action::Mkfile(mkfile)) => {
                owner_selectors(mkfile.owner.as_ref(), &mut read);
                mkfile_json(mkfile)?
            }
            Some(pb::file_action::Action::Mkdir(mkdir)) => {
                owner_selectors(mkdir.owner.as_ref(), &mut read);
                mkdir_json(mkdir)?
            }
            Some(pb::file_action::Action::Rm(rm)) => rm_json(rm)?,
            Some(pb::file_action::Action::Symlink(symlink)) => symlink_json(symlink)?,
            None => Vec::new(),
        };
        actions.push(canonical::base64(&json));
        indexes.push([*input, *secondary_input, *output]);
    }
    // A copy of an empty root has an input less than the same copy of something. BuildKit leaves the indexes out of the
    // key of both, by which the result of one can be taken for that of the other.
    if !from_nothing && default_indexes(&indexes) {
        indexes.clear();
    }
    let document = Document { kind: "buildkit.file.v0", actions, indexes };
    read.retain(|input, _| *input < inputs && !written.contains(input));
    Ok(FileKey { digest: Digest::of(to_ordered_json("file key", &document)?), read })
}

fn copy_selector(copy: &pb::FileActionCopy) -> Selector {
    Selector {
        path: copy.src.clone(),
        wildcard: copy.allow_wildcard && has_wildcard(&copy.src),
        follow_links: copy.follow_symlink,
        include: copy.include_patterns.clone(),
        exclude: copy.exclude_patterns.clone(),
        required: copy.required_paths.clone(),
    }
}

/// An owner given by name is looked up in a file of an input, so that file's content is part of the key.
fn owner_selectors(owner: Option<&pb::ChownOpt>, read: &mut BTreeMap<usize, Vec<Selector>>) {
    let Some(pb::ChownOpt { user, group }) = owner else { return };
    for (choice, file) in [(user, "/etc/passwd"), (group, "/etc/group")] {
        if let Some(pb::UserOpt { user: Some(pb::user_opt::User::ByName(named)) }) = choice
            && let Ok(input) = usize::try_from(named.input)
        {
            read.entry(input).or_default().push(Selector {
                path: file.to_owned(),
                wildcard: false,
                follow_links: true,
                include: Vec::new(),
                exclude: Vec::new(),
                required: Vec::new(),
            });
        }
    }
}

/// Recognises the plainest chain of actions, each working on the one before, the last giving the only output.
///
/// Indexes entered the key late; this shape is left out so that caches from before stay valid. The base of the
/// expected index is the number of actions (not of inputs): that is what existing caches were made with.
fn default_indexes(indexes: &[[i64; 3]]) -> bool {
    let count = indexes.len() as i64;
    !indexes.is_empty()
        && indexes.iter().zip(0i64..).all(|([input, secondary, output], place)| {
            *input == if place == 0 { 0 } else { count + place - 1 }
                && matches!(secondary, -1 | 1)
                && *output == if place == count - 1 { 0 } else { -1 }
        })
}

/// A copy action as its key has it.
#[derive(Serialize)]
struct Copy<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    src: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    dest: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
    #[serde(skip_serializing_if = "skip_zero32")]
    mode: i32,
    #[serde(rename = "followSymlink", skip_serializing_if = "skip_false")]
    follow_symlink: bool,
    #[serde(rename = "dirCopyContents", skip_serializing_if = "skip_false")]
    dir_copy_contents: bool,
    #[serde(rename = "attemptUnpackDockerCompatibility", skip_serializing_if = "skip_false")]
    attempt_unpack: bool,
    #[serde(rename = "createDestPath", skip_serializing_if = "skip_false")]
    create_dest_path: bool,
    #[serde(rename = "allowWildcard", skip_serializing_if = "skip_false")]
    allow_wildcard: bool,
    #[serde(rename = "allowEmptyWildcard", skip_serializing_if = "skip_false")]
    allow_empty_wildcard: bool,
    #[serde(skip_serializing_if = "skip_zero")]
    timestamp: i64,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    include_patterns: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    exclude_patterns: &'a [String],
    #[serde(rename = "alwaysReplaceExistingDestPaths", skip_serializing_if = "skip_false")]
    always_replace: bool,
    #[serde(rename = "modeStr", skip_serializing_if = "str::is_empty")]
    mode_str: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    required_paths: &'a [String],
}

fn copy_json(copy: &pb::FileActionCopy, from_input: bool) -> Result<Vec<u8>, JsonError> {
    let pb::FileActionCopy {
        src,
        dest,
        owner,
        mode,
        follow_symlink,
        dir_copy_contents,
        attempt_unpack_docker_compatibility,
        create_dest_path,
        allow_wildcard,
        allow_empty_wildcard,
        timestamp,
        include_patterns,
        exclude_patterns,
        always_replace_existing_dest_paths,
        mode_str,
        required_paths,
    } = copy;
    to_ordered_json(
        "copy key",
        &Copy {
            src: if from_input { base(src) } else { src },
            dest,
            owner: canonical::owner(owner.as_ref()),
            mode: *mode,
            follow_symlink: *follow_symlink,
            dir_copy_contents: *dir_copy_contents,
            attempt_unpack: *attempt_unpack_docker_compatibility,
            create_dest_path: *create_dest_path,
            allow_wildcard: *allow_wildcard,
            allow_empty_wildcard: *allow_empty_wildcard,
            timestamp: *timestamp,
            include_patterns,
            exclude_patterns,
            always_replace: *always_replace_existing_dest_paths,
            mode_str,
            required_paths,
        },
    )
}

fn mkfile_json(mkfile: &pb::FileActionMkFile) -> Result<Vec<u8>, JsonError> {
    #[derive(Serialize)]
    struct MkFile<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        path: &'a str,
        #[serde(skip_serializing_if = "skip_zero32")]
        mode: i32,
        #[serde(skip_serializing_if = "String::is_empty")]
        data: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        owner: Option<Owner>,
        #[serde(skip_serializing_if = "skip_zero")]
        timestamp: i64,
    }
    let pb::FileActionMkFile { path, mode, data, owner, timestamp } = mkfile;
    let data = canonical::base64(data);
    let owner = canonical::owner(owner.as_ref());
    to_ordered_json("mkfile key", &MkFile { path, mode: *mode, data, owner, timestamp: *timestamp })
}

fn mkdir_json(mkdir: &pb::FileActionMkDir) -> Result<Vec<u8>, JsonError> {
    #[derive(Serialize)]
    struct MkDir<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        path: &'a str,
        #[serde(skip_serializing_if = "skip_zero32")]
        mode: i32,
        #[serde(rename = "makeParents", skip_serializing_if = "skip_false")]
        make_parents: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        owner: Option<Owner>,
        #[serde(skip_serializing_if = "skip_zero")]
        timestamp: i64,
    }
    let pb::FileActionMkDir { path, mode, make_parents, owner, timestamp } = mkdir;
    let owner = canonical::owner(owner.as_ref());
    to_ordered_json(
        "mkdir key",
        &MkDir { path, mode: *mode, make_parents: *make_parents, owner, timestamp: *timestamp },
    )
}

fn rm_json(rm: &pb::FileActionRm) -> Result<Vec<u8>, JsonError> {
    #[derive(Serialize)]
    struct Rm<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        path: &'a str,
        #[serde(rename = "allowNotFound", skip_serializing_if = "skip_false")]
        allow_not_found: bool,
        #[serde(rename = "allowWildcard", skip_serializing_if = "skip_false")]
        allow_wildcard: bool,
    }
    let pb::FileActionRm { path, allow_not_found, allow_wildcard } = rm;
    to_ordered_json("rm key", &Rm { path, allow_not_found: *allow_not_found, allow_wildcard: *allow_wildcard })
}

fn symlink_json(symlink: &pb::FileActionSymlink) -> Result<Vec<u8>, JsonError> {
    #[derive(Serialize)]
    struct Symlink<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        oldpath: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        newpath: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        owner: Option<Owner>,
        #[serde(skip_serializing_if = "skip_zero")]
        timestamp: i64,
    }
    let pb::FileActionSymlink { oldpath, newpath, owner, timestamp } = symlink;
    let owner = canonical::owner(owner.as_ref());
    to_ordered_json("symlink key", &Symlink { oldpath, newpath, owner, timestamp: *timestamp })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_nothing_is_another_than_that_of_something() {
        let copy = pb::FileActionCopy { src: "/".to_owned(), dest: "/x/".to_owned(), ..Default::default() };
        let digest = |secondary_input: i64, inputs: usize| {
            let action = Some(pb::file_action::Action::Copy(copy.clone()));
            let action = pb::FileAction { input: 0, secondary_input, output: 0, action };
            key(&pb::FileOp { actions: vec![action] }, inputs).map(|key| key.digest).ok()
        };
        assert!(digest(1, 2).is_some());
        assert_ne!(digest(-1, 1), digest(1, 2));
    }
}
