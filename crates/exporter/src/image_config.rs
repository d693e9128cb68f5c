//! The image config on its way out: edited as raw JSON, so that fields nobody here knows survive byte for byte.

use std::collections::BTreeMap;

use kiln_oci::{DiffId, History, ImageConfig, Platform, RootFs, to_ordered_json};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::{ExportError, Result};

/// Comment of history entries that the frontend did not write.
const FILLED_COMMENT: &str = "buildkit.exporter.image.v0";
/// Description of layers that have none.
const FILLED_DESCRIPTION: &str = "created by buildkit";
/// Key of the inline cache; its value is base64.
const INLINE_CACHE_KEY: &str = "moby.buildkit.cache.v0";
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is known of a layer that the history may not tell.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerNote {
    pub(crate) description: String,
    /// Nanoseconds since 1970.
    pub(crate) created: Option<u64>,
}

/// What goes into a config besides the frontend's bytes.
pub(crate) struct ConfigInput<'a> {
    pub(crate) config: Option<&'a [u8]>,
    pub(crate) base: Option<&'a [u8]>,
    /// Bottom first.
    pub(crate) diff_ids: Vec<DiffId>,
    pub(crate) notes: Vec<LayerNote>,
    pub(crate) epoch: Option<i64>,
    pub(crate) inline_cache: Option<&'a [u8]>,
}

/// Returns the config's final bytes: compact, top-level keys sorted.
pub(crate) fn patch(input: &ConfigInput<'_>) -> Result<Vec<u8>> {
    let fallback;
    let bytes = match input.config {
        Some(bytes) if !bytes.is_empty() => bytes,
        _ => {
            fallback = minimal_config()?;
            &fallback
        }
    };
    let parse = |e: serde_json::Error| ExportError::Config(e.to_string());
    if bytes.trim_ascii() == b"null" {
        return Err(ExportError::Config("invalid null image config for export".to_owned()));
    }
    let typed = ImageConfig::from_json(bytes)?;
    if typed.os.is_empty() != typed.architecture.is_empty() {
        return Err(ExportError::Config("os and architecture must be specified together".to_owned()));
    }
    if typed.os.is_empty() {
        return Err(ExportError::Config("missing os".to_owned()));
    }
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(bytes).map_err(parse)?;
    for value in fields.values_mut() {
        *value = compact(value)?;
    }
    let mut history = align(typed.history, &input.notes);
    if let Some(epoch) = input.epoch {
        let base = input.base.map(ImageConfig::from_json).transpose()?.map(|b| b.history).unwrap_or_default();
        clamp_history(&mut history, &base, epoch)?;
    }
    let created = match (typed.created, input.epoch) {
        (Some(created), Some(epoch)) => Some(clamped(&created, epoch)?),
        (Some(created), None) => Some(created),
        (None, _) => history.iter().rev().find_map(|h| h.created.clone()),
    };
    let rootfs = RootFs { diff_ids: input.diff_ids.clone(), ..RootFs::default() };
    fields.insert("rootfs".to_owned(), raw(&rootfs)?);
    fields.insert("history".to_owned(), raw(&history)?);
    fields.insert("created".to_owned(), raw(&created)?);
    if let Some(cache) = input.inline_cache {
        use base64::Engine as _;
        fields.insert(INLINE_CACHE_KEY.to_owned(), raw(&base64::prelude::BASE64_STANDARD.encode(cache))?);
    }
    Ok(to_ordered_json("image config", &fields)?)
}

/// Makes the history tell of exactly the layers there are, each with a time.
fn align(mut history: Vec<History>, notes: &[LayerNote]) -> Vec<History> {
    let mut layers = 0;
    for entry in &mut history {
        // More entries than layers: the surplus ones cannot have made any.
        entry.empty_layer |= layers >= notes.len();
        layers += usize::from(!entry.empty_layer);
    }
    for note in &notes[layers..] {
        let created_by = if note.description.is_empty() { FILLED_DESCRIPTION } else { &note.description };
        history.push(History {
            created: note.created.map(format_time),
            created_by: created_by.to_owned(),
            comment: FILLED_COMMENT.to_owned(),
            ..History::default()
        });
    }
    let mut notes = notes.iter();
    for entry in history.iter_mut().filter(|e| !e.empty_layer) {
        let created = notes.next().and_then(|note| note.created);
        if entry.created.is_none() {
            entry.created = created.map(format_time);
        }
    }
    fill_times(&mut history);
    history
}

/// Gives entries without a time that of the next new layer, or else of the one before.
fn fill_times(history: &mut [History]) {
    let first_gap = history.iter().position(|h| h.created.is_none());
    let Some(gap) = first_gap else { return };
    let after = history[gap..].iter().find_map(|h| h.created.clone());
    let before = history[..gap].iter().rev().find_map(|h| h.created.clone());
    let mut current = after.or(before);
    for entry in &mut history[gap..] {
        match &entry.created {
            Some(created) => current = Some(created.clone()),
            None => entry.created.clone_from(&current),
        }
    }
}

/// Cuts times to `epoch`, but not those of the leading entries that the base image has too.
fn clamp_history(history: &mut [History], base: &[History], epoch: i64) -> Result<()> {
    let inherited = history.iter().zip(base).take_while(|(ours, theirs)| ours == theirs).count();
    for entry in &mut history[inherited..] {
        entry.created = Some(match &entry.created {
            Some(created) => clamped(created, epoch)?,
            None => format_seconds(epoch),
        });
    }
    Ok(())
}

/// Returns `time` as it is, or `epoch` if it is later.
fn clamped(time: &str, epoch: i64) -> Result<String> {
    let parsed: jiff::Timestamp =
        time.parse().map_err(|_| ExportError::Config(format!("`{time}` is no RFC 3339 time")))?;
    let late = parsed.as_nanosecond() > i128::from(epoch) * 1_000_000_000;
    Ok(if late { format_seconds(epoch) } else { time.to_owned() })
}

fn format_time(nanoseconds: u64) -> String {
    format_nanoseconds(nanoseconds.into())
}

/// Returns a time without what comes after the whole second; a text that is no time stays as it is.
pub(crate) fn whole_seconds(time: &str) -> String {
    time.parse::<jiff::Timestamp>().map_or_else(|_| time.to_owned(), |time| format_seconds(time.as_second()))
}

/// Formats nanoseconds since 1970 as RFC 3339 in UTC, with as many digits as it takes; what no calendar has becomes 1970.
pub(crate) fn format_nanoseconds(nanoseconds: i128) -> String {
    jiff::Timestamp::from_nanosecond(nanoseconds).unwrap_or_default().to_string()
}

/// Formats whole seconds since 1970 as RFC 3339 in UTC; what no calendar has becomes 1970.
pub(crate) fn format_seconds(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// The config of a result whose frontend gave none.
fn minimal_config() -> Result<Vec<u8>> {
    let Platform { os, architecture, variant, os_version, os_features } = Platform::host();
    let mut config = ImageConfig { os, architecture, variant, os_version, os_features, ..ImageConfig::default() };
    config.config.working_dir = "/".to_owned();
    config.config.env = vec![DEFAULT_PATH.to_owned()];
    Ok(config.to_config_json()?)
}

fn raw<T: Serialize>(value: &T) -> Result<Box<RawValue>> {
    serde_json::value::to_raw_value(value).map_err(|e| ExportError::Config(e.to_string()))
}

/// Removes white space between tokens and changes nothing else.
pub(crate) fn compact(value: &RawValue) -> Result<Box<RawValue>> {
    let text = value.get();
    let mut out = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            quoted = c == '"';
        }
        out.push(c);
    }
    RawValue::from_string(out).map_err(|e| ExportError::Config(e.to_string()))
}

#[cfg(test)]
mod tests;
