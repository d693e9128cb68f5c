//! `kiln du`.

use kiln_session::proto::control::DiskUsageRequest;

use super::record::{details, filters, size, table};
use crate::args::{DuFlags, Global};
use crate::client::failure::of_status;
use crate::env::Env;
use crate::error::CliError;
use crate::launch::connect;
use crate::progress::event::Stamp;
use crate::units::human_size;

/// Prints what the engine keeps, the largest first.
pub async fn run(flags: DuFlags, global: &Global, env: &Env) -> Result<(), CliError> {
    let filters = filters(&flags.filter)?;
    let engine = connect(global, env).await?;
    let age = filters.unused_for.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
    let request = DiskUsageRequest { filter: filters.records, age_limit: age };
    let answer = engine.control().disk_usage(request).await.map_err(|e| of_status(&e, "failed to read disk usage"))?;
    let mut records = answer.into_inner().record;
    records.sort_by(|a, b| (b.size, &a.id).cmp(&(a.size, &b.id)));
    let now = Stamp::now();
    let mut out = if flags.verbose { details(&records, now) } else { table(&records, now) };
    let sum = |keep: &dyn Fn(&&_) -> bool| human_size(records.iter().filter(keep).map(size).sum());
    let shared = sum(&|r| r.shared);
    if shared != "0B" {
        out.push_str(&format!("Shared:         {shared}\nPrivate:        {}\n", sum(&|r| !r.shared)));
    }
    out.push_str(&format!("Reclaimable:    {}\nTotal:          {}\n", sum(&|r| !r.in_use), sum(&|_| true)));
    crate::print(&out)
}
