//! `buildctl du` and `buildctl prune`.

use kiln_session::proto::control::{DiskUsageRequest, PruneRequest, UsageRecord};

use super::To;
use super::args::{PruneFlags, UsageFlags};
use super::tabs::{Fill, align};
use super::template::{Field, Template, Value};
use super::times::{json, long, size};
use crate::client::failure::of_status;
use crate::error::CliError;

/// Shows what the engine keeps.
pub async fn du(flags: UsageFlags, to: &To<'_>) -> Result<(), CliError> {
    let template = flags.format.format.as_deref().map(Template::parse).transpose()?;
    let engine = to.engine().await?;
    let request = DiskUsageRequest { filter: flags.shown.filter.clone(), age_limit: 0 };
    let failed = |e: tonic::Status| of_status(&e, "failed to call diskusage");
    let mut records = engine.control().disk_usage(request).await.map_err(failed)?.into_inner().record;
    records.sort_by(|a, b| (a.size, &a.id).cmp(&(b.size, &b.id)));
    if let Some(template) = template {
        let all = Value::List(records.iter().map(value).collect());
        return crate::print(&format!("{}\n", template.fill(&all)?));
    }
    let mut out = match flags.shown.verbose {
        true => align(&records.iter().map(details).collect::<String>(), Fill::Tabs),
        false => align(&format!("{HEAD}{}", records.iter().map(row).collect::<String>()), Fill::Tabs),
    };
    if flags.shown.filter.is_empty() {
        out.push_str(&align(&summary(&records), Fill::Tabs));
    }
    crate::print(&out)
}

/// Removes what the cache keeps, and shows it as it goes.
pub async fn prune(flags: PruneFlags, to: &To<'_>) -> Result<(), CliError> {
    let template = flags.format.format.as_deref().map(Template::parse).transpose()?;
    let engine = to.engine().await?;
    // Megabytes as people write them: what does not fit is as much as there can be.
    let bytes = |mb: f64| (mb * 1e6) as i64;
    let request = PruneRequest {
        filter: flags.filter,
        all: flags.all,
        keep_duration: flags.keep_duration.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)),
        reserved_space: bytes(flags.keep_storage_min),
        max_used_space: bytes(flags.keep_storage),
        min_free_space: bytes(flags.free_storage),
    };
    let failed = |e: tonic::Status| of_status(&e, "failed to call prune");
    let mut stream = engine.control().prune(request).await.map_err(failed)?.into_inner();
    let (mut total, mut first) = (0, true);
    while let Some(record) = stream.message().await.map_err(failed)? {
        total += record.size;
        let text = match (&template, flags.verbose) {
            (Some(template), _) => format!("{}\n", template.fill(&value(&record))?),
            (None, true) => align(&details(&record), Fill::Tabs),
            (None, false) => {
                let head = if std::mem::take(&mut first) { HEAD } else { "" };
                align(&format!("{head}{}", row(&record)), Fill::Tabs)
            }
        };
        crate::print(&text)?;
    }
    match template {
        Some(_) => Ok(()),
        None => crate::print(&align(&format!("Total:\t{}\n", size(total, Some(2))), Fill::Tabs)),
    }
}

const HEAD: &str = "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED\n";

fn row(record: &UsageRecord) -> String {
    let id = format!("{}{}", record.id, if record.mutable { "*" } else { "" });
    let mark = if record.shared { "*" } else { "" };
    format!("{id:<71}\t{:<11}\t{}{mark}\t\n", (!record.in_use).to_string(), size(record.size, Some(2)))
}

fn details(record: &UsageRecord) -> String {
    let mut lines = vec![("ID", record.id.clone())];
    if !record.parents.is_empty() {
        lines.push(("Parents", record.parents.join(";")));
    }
    lines.push(("Created at", record.created_at.as_ref().map(long).unwrap_or_default()));
    lines.push(("Mutable", record.mutable.to_string()));
    lines.push(("Reclaimable", (!record.in_use).to_string()));
    lines.push(("Shared", record.shared.to_string()));
    lines.push(("Size", size(record.size, Some(2))));
    if !record.description.is_empty() {
        lines.push(("Description", record.description.clone()));
    }
    lines.push(("Usage count", record.usage_count.to_string()));
    if let Some(time) = &record.last_used_at {
        lines.push(("Last used", long(time)));
    }
    if !record.record_type.is_empty() {
        lines.push(("Type", record.record_type.clone()));
    }
    lines.iter().map(|(name, value)| format!("{name}:\t{value}\n")).chain(["\n".to_owned()]).collect()
}

fn summary(records: &[UsageRecord]) -> String {
    let sum = |keep: &dyn Fn(&&UsageRecord) -> bool| records.iter().filter(keep).map(|r| r.size).sum::<i64>();
    let (total, shared) = (sum(&|r| r.size > 0), sum(&|r| r.shared));
    let mut out = String::new();
    if shared > 0 {
        out = format!("Shared:\t{}\nPrivate:\t{}\n", size(shared, Some(2)), size(total - shared, Some(2)));
    }
    let free = sum(&|r| r.size > 0 && !r.in_use);
    out + &format!("Reclaimable:\t{}\nTotal:\t{}\n", size(free, Some(2)), size(total, Some(2)))
}

/// Returns a record as templates see it.
fn value(record: &UsageRecord) -> Value {
    let time = |t: &Option<prost_types::Timestamp>| t.as_ref().map_or(Value::Nil, |t| json(t).as_str().into());
    Value::Record(vec![
        Field::new("ID", "id", record.id.as_str().into()),
        Field::new("Mutable", "mutable", record.mutable.into()),
        Field::new("InUse", "inUse", record.in_use.into()),
        Field::new("Size", "size", record.size.into()),
        Field::new("CreatedAt", "createdAt", time(&record.created_at)),
        Field::new("LastUsedAt", "lastUsedAt", time(&record.last_used_at)),
        Field::new("UsageCount", "usageCount", record.usage_count.into()),
        Field::new("Parents", "parents", record.parents.as_slice().into()),
        Field::new("Description", "description", record.description.as_str().into()),
        Field::new("RecordType", "recordType", record.record_type.as_str().into()),
        Field::new("Shared", "shared", record.shared.into()),
    ])
}
