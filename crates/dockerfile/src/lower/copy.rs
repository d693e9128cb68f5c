//! `COPY` and `ADD`.

use kiln_llb::builder::{CopyOptions, FileActions, FileOptions, HttpOptions, Meta, Output, OwnerSpec};
use kiln_llb::op::CopyMode;
use kiln_stdx::{Digest, pattern};

use super::Lowering;
use super::run::shown_text;
use super::stage::Stage;
use crate::ast::{Add, Copy, Transfer};
use crate::diag::{Fault, Outcome};
use crate::git_ref::{self, GitRef};
use crate::lint;
use crate::stage::{Command, NodeId};

/// What `COPY` and `ADD` have in common.
struct Job<'a> {
    transfer: &'a Transfer,
    /// The `ADD`; none for `COPY`.
    add: Option<&'a Add>,
    parents: bool,
    /// Where paths are looked up.
    from: Output,
    /// The paths are in the main context.
    in_context: bool,
    /// Shown name of sources that are fetched.
    name: String,
    options: CopyOptions,
    actions: FileActions,
}

/// What a source of a transfer is.
enum Remote {
    Git(GitRef),
    Http,
    Path,
}

fn classify(source: &str) -> Outcome<Remote> {
    Ok(match git_ref::parse(source).map_err(Fault::new)? {
        Some(git) if !git.looks_local => Remote::Git(git),
        _ if source.starts_with("http://") || source.starts_with("https://") => Remote::Http,
        _ => Remote::Path,
    })
}

impl Lowering<'_> {
    pub(super) fn add(&mut self, stage: &mut Stage, command: &Command, add: &Add) -> Outcome<()> {
        let job = Job { add: Some(add), ..self.job(&add.transfer, self.context, true)? };
        self.transfer(stage, command, job)?;
        for source in &add.transfer.sources {
            if matches!(classify(source), Ok(Remote::Path)) {
                self.context_paths.insert(super::rooted(source));
            }
        }
        Ok(())
    }

    pub(super) fn copy(&mut self, stage: &mut Stage, command: &Command, copy: &Copy) -> Outcome<()> {
        let source: Option<NodeId> = command.sources.first().copied().flatten();
        let from = match source {
            None => self.context,
            Some(id) => self.stages[id].as_ref().map(|s| s.output).ok_or_else(|| {
                let from = copy.from.as_deref().unwrap_or_default();
                let stage = &self.plan.graph.nodes[stage.id].display;
                Fault::new(format!(
                    "cannot copy from stage {from:?}, it needs to be defined before current stage {stage:?}"
                ))
            })?,
        };
        let job = Job { parents: copy.parents, ..self.job(&copy.transfer, from, source.is_none())? };
        self.transfer(stage, command, job)?;
        for path in &copy.transfer.sources {
            match source {
                Some(id) => self.mark_used(id, path),
                None => {
                    self.context_paths.insert(super::rooted(path));
                }
            }
        }
        Ok(())
    }

    fn job<'j>(&self, transfer: &'j Transfer, from: Output, in_context: bool) -> Outcome<Job<'j>> {
        let options = CopyOptions {
            owner: (!transfer.chown.is_empty()).then(|| OwnerSpec::parse(&transfer.chown)),
            mode: mode(&transfer.chmod)?,
            exclude_patterns: transfer.exclude.clone(),
            create_dest_path: true,
            ..CopyOptions::default()
        };
        let (name, actions) = (String::new(), FileActions::new());
        Ok(Job { transfer, add: None, parents: false, from, in_context, name, options, actions })
    }

    fn transfer(&mut self, stage: &mut Stage, command: &Command, mut job: Job<'_>) -> Outcome<()> {
        let instruction = &command.instruction;
        let history = history_text(&job);
        check_checksum(&job)?;
        let shown = shown_text(self.lexer(), instruction, &stage.env);
        let env = stage.env.clone();
        job.name = self.step_name(stage, &shown, command.onbuild, &env);
        // A destination that is the working directory itself is a directory for sure.
        let dest = match job.transfer.dest.as_str() {
            "" | "." => "./",
            other => other,
        }
        .to_owned();
        job.actions = job.actions.cwd(&stage.cwd);
        for source in &job.transfer.sources {
            match classify(source)? {
                Remote::Git(git) => self.add_git(&mut job, &git, &dest)?,
                Remote::Http => self.add_http(&mut job, source, &dest)?,
                Remote::Path => {
                    if job.in_context {
                        lint::copy_ignored_file::check(instruction, source, &self.ignored, &mut self.linter);
                    }
                    copy_path(&mut job, source, &dest);
                }
            }
        }
        for doc in &job.transfer.inline {
            let actions =
                FileActions::new().mkfile(&doc.name, 0o644, doc.content.clone().into_bytes(), FileOptions::default());
            let meta = Meta::named("[internal] preparing inline document").platform(stage.platform.clone());
            let file = self.builder.file(Output::SCRATCH, actions, meta);
            job.actions = job.actions.copy(file, &doc.name, &dest, job.options.clone());
        }
        let no_cache = self.plan.graph.nodes[stage.id].no_cache;
        let meta = Meta::named(job.name.clone()).ignore_cache(no_cache).location(self.map, instruction.lines.ranges());
        if job.transfer.link && job.transfer.chmod.is_empty() && self.options.merge_op {
            // The layer does not depend on what is below: it is made alone and put on top.
            let step = stage.step;
            stage.step = step.saturating_sub(1);
            let link = self.step_name(stage, &format!("LINK {shown}"), command.onbuild, &env);
            let group = self.group_id(stage, command);
            let part = meta.clone().platform(stage.platform.clone()).progress_group(&group, &job.name, true);
            let layer = self.builder.file(Output::SCRATCH, job.actions, part);
            let whole = meta.name(link).progress_group(&group, &job.name, false);
            stage.output = self.builder.merge(&[stage.output, layer], whole);
        } else {
            stage.output = self.builder.file(stage.output, job.actions, meta);
        }
        stage.history(history, true, self.plan.epoch);
        Ok(())
    }

    /// Returns the id of a progress group: the same for the same step, so that a definition is reproducible.
    fn group_id(&self, stage: &Stage, command: &Command) -> String {
        let text = format!(
            "{}\0{}\0{}\0{}",
            self.digest.hex(),
            crate::names::format_platform(&stage.platform),
            stage.id,
            command.instruction.lines.first
        );
        Digest::of(format!("{text}\0{}", stage.step)).hex()[..25].to_owned()
    }

    fn add_git(&mut self, job: &mut Job<'_>, git: &GitRef, dest: &str) -> Outcome<()> {
        let Some(add) = job.add else { return Err(Fault::new("source can't be a git ref for COPY").hint("use ADD")) };
        let mut options = git.options();
        options.keep_git_dir = match (add.keep_git_dir, git.keep_git_dir) {
            (Some(flag), Some(query)) if flag != query => {
                return Err(Fault::new("inconsistent keep-git-dir configuration"));
            }
            (flag, query) => query.or(flag).unwrap_or(false),
        };
        if !add.checksum.is_empty() {
            if !git.checksum.is_empty() && git.checksum != add.checksum {
                return Err(Fault::new(format!("checksum mismatch {:?} != {:?}", add.checksum, git.checksum)));
            }
            options.checksum = Some(add.checksum.clone());
        }
        let meta = Meta::named(job.name.clone());
        let tree = self.builder.git(&git.remote, "", &options, meta).map_err(|e| Fault::new(e.to_string()))?;
        let actions = std::mem::take(&mut job.actions);
        job.actions = actions.copy(tree, "/", dest, job.options.clone());
        Ok(())
    }

    fn add_http(&mut self, job: &mut Job<'_>, url: &str, dest: &str) -> Outcome<()> {
        let Some(add) = job.add else { return Err(Fault::new("source can't be a URL for COPY").hint("use ADD")) };
        let checksum = match add.checksum.as_str() {
            "" => None,
            text => Some(text.parse::<Digest>().map_err(|_| {
                Fault::new("invalid checksum digest format").word(text).hint("write sha256: and 64 hex digits")
            })?),
        };
        let filename = url_file_name(url);
        let options = HttpOptions { checksum, filename: Some(filename.clone()), ..HttpOptions::default() };
        let file = self.builder.http(url, &options, Meta::named(job.name.clone()));
        let options = CopyOptions { unpack: add.unpack.unwrap_or(false), ..job.options.clone() };
        let actions = std::mem::take(&mut job.actions);
        job.actions = actions.copy(file, &filename, dest, options);
        Ok(())
    }
}

fn copy_path(job: &mut Job<'_>, source: &str, dest: &str) {
    let mut options = CopyOptions {
        follow_symlinks: true,
        dir_contents_only: true,
        unpack: job.add.is_some_and(|add| add.unpack.unwrap_or(true)),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..job.options.clone()
    };
    let mut path = source.to_owned();
    if job.parents {
        // What is before `/./` is not kept in the destination.
        let (parent, kept) = source.split_once("/./").unwrap_or(("/", source));
        let kept = absolute(kept);
        options.include_patterns = vec![kept.strip_prefix('/').unwrap_or(&kept).to_owned()];
        if !pattern::has_wildcards(parent.as_bytes()) && !pattern::has_wildcards(kept.as_bytes()) {
            options.required_paths = vec![absolute(&clean(&format!("{parent}/{kept}")))];
        }
        path = parent.to_owned();
    }
    let actions = std::mem::take(&mut job.actions);
    job.actions = actions.copy(job.from, &absolute(&path), dest, options);
}

/// Makes a relative path absolute and clean; an absolute one stays as it is.
fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { super::rooted(path) }
}

fn clean(path: &str) -> String {
    String::from_utf8_lossy(&pattern::clean(path.as_bytes())).into_owned()
}

fn check_checksum(job: &Job<'_>) -> Outcome<()> {
    if job.add.is_none_or(|add| add.checksum.is_empty()) {
        return Ok(());
    }
    let [source] = job.transfer.sources.as_slice() else {
        return Err(Fault::new("checksum can't be specified for multiple sources"));
    };
    match classify(source) {
        Ok(Remote::Path) => Err(Fault::new("checksum requires HTTP(S) or Git sources")),
        _ => Ok(()),
    }
}

fn history_text(job: &Job<'_>) -> String {
    let mut words = vec![if job.add.is_some() { "ADD" } else { "COPY" }.to_owned()];
    if job.parents {
        words.push("--parents".into());
    }
    if !job.transfer.chown.is_empty() {
        words.push(format!("--chown={}", job.transfer.chown));
    }
    if !job.transfer.chmod.is_empty() {
        words.push(format!("--chmod={}", job.transfer.chmod));
    }
    words.extend(job.transfer.sources.iter().cloned());
    words.extend(job.transfer.inline.iter().map(|doc| format!("<<{}", doc.name)));
    words.push(job.transfer.dest.clone());
    format!("{} # buildkit", words.join(" "))
}

/// Reads `--chmod`: octal up to 07777, or symbolic clauses.
fn mode(text: &str) -> Outcome<Option<CopyMode>> {
    if text.is_empty() {
        return Ok(None);
    }
    let octal = || {
        Fault::new(format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"))
            .word(text)
    };
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let bits = u32::from_str_radix(text, 8).map_err(|_| octal())?;
        return if bits <= 0o7777 { Ok(Some(CopyMode::Bits(bits))) } else { Err(octal()) };
    }
    if text.split(',').all(symbolic_clause) {
        return Ok(Some(CopyMode::Symbolic(text.to_owned())));
    }
    Err(octal().hint("or symbolic, for example u=rwX,go=rX"))
}

/// `[ugoa]*` and one or more of `[+-=][rwxXst…]`, or `[+-=]` with one of `ugo`.
fn symbolic_clause(clause: &str) -> bool {
    let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    if !rest.starts_with(['+', '-', '=']) {
        return false;
    }
    rest.split(['+', '-', '='])
        .skip(1)
        .all(|permissions| matches!(permissions, "u" | "g" | "o") || permissions.chars().all(|c| "rwxXst".contains(c)))
}

/// Returns the name of a downloaded file: the last part of the address's path.
pub(crate) fn url_file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let decoded = percent_decode(path);
    let name = decoded.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match name {
        "" | "." => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

/// Resolves `%xx`; a text with a broken escape stays as it is.
fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = bytes.next().zip(bytes.next()).map(|(a, b)| [a, b]);
        let value = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(&d).ok()?, 16).ok());
        match value {
            Some(value) => out.push(value),
            None => return text.to_owned(),
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        assert_eq!(mode("755").unwrap(), Some(CopyMode::Bits(0o755)));
        assert_eq!(mode("07777").unwrap(), Some(CopyMode::Bits(0o7777)));
        for good in ["u+x", "u=rwX,go=rX", "a=", "=r", "go-w+x", "g=u"] {
            assert_eq!(mode(good).unwrap(), Some(CopyMode::Symbolic(good.into())), "{good}");
        }
        for bad in ["10000", "888", "x", "u+q", "u", "", "u+x,"] {
            assert!(bad.is_empty() || mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_downloads() {
        for (url, name) in [
            ("https://h.test/a/b.tgz?x=/y#z", "b.tgz"),
            ("https://h.test/a/", "a"),
            ("https://h.test", "__unnamed__"),
            ("https://h.test/?q", "__unnamed__"),
            ("http://h.test/a%20b", "a b"),
            ("http://h.test/a%zz", "a%zz"),
        ] {
            assert_eq!(url_file_name(url), name, "{url}");
        }
    }
}
