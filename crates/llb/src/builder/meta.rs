//! What can be said about an operation without changing its digest, and where it was written.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_oci::Platform;
use kiln_stdx::Digest;

use crate::attr;
use crate::definition::Definition;
use crate::pb;

/// Settings of one operation. Platform and filters enter its digest, everything else does not.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// The platform, where it differs from the builder's.
    pub platform: Option<Platform>,
    /// Worker filters.
    pub filters: Vec<String>,
    pub ignore_cache: bool,
    pub description: BTreeMap<String, String>,
    pub export_cache: Option<bool>,
    pub progress_group: Option<pb::ProgressGroup>,
    pub linux_resources: Option<pb::LinuxResources>,
    /// Capabilities needed beyond those the operation itself implies.
    pub caps: Vec<String>,
    /// Where the operation was written.
    pub locations: Vec<(SourceMapId, Vec<pb::Range>)>,
}

impl Meta {
    /// Returns metadata that shows the operation by `name`.
    pub fn named(name: impl Into<String>) -> Self {
        Self::default().name(name)
    }

    /// Sets the shown name.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        self.describe(attr::CUSTOM_NAME, name)
    }

    /// Sets a description entry.
    #[must_use]
    pub fn describe(mut self, key: &str, value: impl Into<String>) -> Self {
        self.description.insert(key.to_owned(), value.into());
        self
    }

    /// Sets the platform.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// Sets whether cached results are ignored.
    #[must_use]
    pub fn ignore_cache(mut self, ignore: bool) -> Self {
        self.ignore_cache = ignore;
        self
    }

    /// Puts the operation into a progress group.
    #[must_use]
    pub fn progress_group(mut self, id: impl Into<String>, name: impl Into<String>, weak: bool) -> Self {
        self.progress_group = Some(pb::ProgressGroup { id: id.into(), name: name.into(), weak });
        self
    }

    /// Adds a place where the operation was written.
    #[must_use]
    pub fn location(mut self, map: SourceMapId, ranges: Vec<pb::Range>) -> Self {
        self.locations.push((map, ranges));
        self
    }
}

/// Names a source file in a builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceMapId(pub(super) usize);

/// A source file that operations point into.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceMap {
    pub filename: String,
    /// As GitHub's linguist names it, for example `Dockerfile`.
    pub language: String,
    pub data: Bytes,
    /// The graph that the file was read from.
    pub definition: Option<Definition>,
}

impl SourceMap {
    pub(super) fn from_info(info: &pb::SourceInfo) -> Self {
        Self {
            filename: info.filename.clone(),
            language: info.language.clone(),
            data: info.data.clone(),
            definition: info.definition.clone().map(Into::into),
        }
    }

    pub(super) fn to_info(&self) -> pb::SourceInfo {
        pb::SourceInfo {
            filename: self.filename.clone(),
            data: self.data.clone(),
            definition: self.definition.as_ref().map(Definition::to_pb),
            language: self.language.clone(),
        }
    }
}

/// Makes a range of whole lines, counted from one.
pub fn range(first_line: i32, last_line: i32) -> pb::Range {
    range_at((first_line, 0), (last_line, 0))
}

fn range_at(start: (i32, i32), end: (i32, i32)) -> pb::Range {
    let position = |(line, character)| Some(pb::Position { line, character });
    pb::Range { start: position(start), end: position(end) }
}

/// Returns the locations an imported operation had, pointing into maps that were registered from `first_map` on.
pub(super) fn imported_locations(
    source: Option<&pb::Source>,
    digest: &Digest,
    first_map: usize,
) -> Vec<(SourceMapId, Vec<pb::Range>)> {
    let Some(source) = source else { return Vec::new() };
    let Some(list) = source.locations.get(&digest.to_string()) else { return Vec::new() };
    let known = |l: &pb::Location| usize::try_from(l.source_index).ok().filter(|&i| i < source.infos.len());
    list.locations.iter().filter_map(|l| known(l).map(|i| (SourceMapId(first_map + i), l.ranges.clone()))).collect()
}
