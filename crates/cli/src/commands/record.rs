//! Usage records as tables, for `kiln du` and `kiln prune`; filters as people write them.

use std::time::Duration;

use kiln_session::proto::control::UsageRecord;

use crate::error::CliError;
use crate::progress::event::Stamp;
use crate::units::human_size;

/// Filters of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Filters in the engine's grammar; a record must match all parts of one of them.
    pub records: Vec<String>,
    /// Only what has not been used for this long.
    pub unused_for: Option<Duration>,
}

/// Translates `name=value` filters: `until` and `unused-for` are ages, an `id` matches in part, others are equal.
pub fn filters(values: &[String]) -> Result<Filters, CliError> {
    let mut parts = Vec::new();
    let mut unused_for = None;
    for value in values.iter().flat_map(|v| v.split(',')).filter(|v| !v.is_empty()) {
        let bad = || {
            CliError::user(format!("invalid filter \"{value}\""))
                .hint("write a filter as name=value, for example type=regular")
        };
        let at = value.find('=').ok_or_else(bad)?;
        let (name, text) = (&value[..at], &value[at + 1..]);
        match name {
            "" => return Err(bad()),
            "until" | "unused-for" => {
                if unused_for.is_some() {
                    return Err(CliError::user("conflicting filters: until and unused-for are the same"));
                }
                let age = kiln_stdx::duration::parse(text)
                    .ok_or_else(|| CliError::user(format!("invalid duration \"{text}\" in filter {name}")))?;
                unused_for = Some(age);
            }
            _ if name.ends_with(['!', '~']) => parts.push(value.to_owned()),
            "id" => parts.push(format!("id~={text}")),
            _ => parts.push(format!("{name}=={}", text.strip_prefix('=').unwrap_or(text))),
        }
    }
    let records = if parts.is_empty() { Vec::new() } else { vec![parts.join(",")] };
    Ok(Filters { records, unused_for })
}

/// Renders records as a table, with a row of headings.
pub fn table(records: &[UsageRecord], now: Stamp) -> String {
    let mut rows = vec![["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"].map(str::to_owned)];
    for record in records {
        let mark = if record.mutable { "*" } else { "" };
        let shared = if record.shared { "*" } else { "" };
        rows.push([
            format!("{}{mark}", record.id),
            (!record.in_use).to_string(),
            format!("{}{shared}", human_size(size(record))),
            record.last_used_at.as_ref().map_or_else(String::new, |t| ago(t.seconds, now)),
        ]);
    }
    columns(&rows)
}

/// Renders all that is known of records, a block each.
pub fn details(records: &[UsageRecord], now: Stamp) -> String {
    let mut out = String::new();
    for record in records {
        let mut rows = vec![["ID:".to_owned(), record.id.clone()]];
        let parents = match record.parents.as_slice() {
            [] => record.parent.clone(),
            many => many.join(", "),
        };
        if !parents.is_empty() {
            rows.push(["Parents:".to_owned(), parents]);
        }
        let time = |t: &Option<prost_types::Timestamp>| t.as_ref().map_or_else(String::new, |t| ago(t.seconds, now));
        for (name, value) in [
            ("Created at:", time(&record.created_at)),
            ("Mutable:", record.mutable.to_string()),
            ("Reclaimable:", (!record.in_use).to_string()),
            ("Shared:", record.shared.to_string()),
            ("Size:", human_size(size(record))),
            ("Description:", record.description.clone()),
            ("Usage count:", record.usage_count.to_string()),
            ("Last used:", time(&record.last_used_at)),
            ("Type:", record.record_type.clone()),
        ] {
            if !value.is_empty() {
                rows.push([name.to_owned(), value]);
            }
        }
        out.push_str(&columns(&rows));
        out.push('\n');
    }
    out
}

/// Returns the bytes of a record.
pub fn size(record: &UsageRecord) -> u64 {
    u64::try_from(record.size).unwrap_or(0)
}

/// Aligns cells in columns, two spaces apart; the last column is not padded.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Words how long ago a moment was.
pub fn ago(seconds: i64, now: Stamp) -> String {
    let past = (now.0 / 1_000_000_000).saturating_sub(seconds).max(0);
    let (n, unit) = match past {
        0..60 => return "less than a minute ago".to_owned(),
        60..3600 => (past / 60, "minute"),
        3600..86_400 => (past / 3600, "hour"),
        86_400..1_209_600 => (past / 86_400, "day"),
        _ => (past / 604_800, "week"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_translated() {
        let run = |values: &[&str]| {
            let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
            filters(&values).map_err(|e| e.message().to_owned())
        };
        let records = |text: &str| Ok(Filters { records: vec![text.to_owned()], unused_for: None });
        assert_eq!(run(&[]), Ok(Filters::default()));
        assert_eq!(run(&["type=regular", "id=abc"]), records("type==regular,id~=abc"));
        assert_eq!(run(&["type!=regular", "description~=RUN"]), records("type!=regular,description~=RUN"));
        assert_eq!(run(&["type==regular"]), records("type==regular"));
        assert_eq!(run(&["until=24h"]).map(|f| f.unused_for), Ok(Some(Duration::from_secs(86_400))));
        assert!(run(&["until=24h", "unused-for=1h"]).is_err());
        assert!(run(&["until=soon"]).is_err());
        assert!(run(&["type"]).is_err());
    }

    #[test]
    fn a_table() {
        let record = UsageRecord {
            id: "abc".into(),
            size: 1_234_567,
            in_use: true,
            mutable: true,
            last_used_at: Some(prost_types::Timestamp { seconds: 1000, nanos: 0 }),
            ..UsageRecord::default()
        };
        let got = table(&[record], Stamp(8300 * 1_000_000_000));
        assert_eq!(got, "ID    RECLAIMABLE  SIZE     LAST ACCESSED\nabc*  false        1.235MB  2 hours ago\n");
    }
}
