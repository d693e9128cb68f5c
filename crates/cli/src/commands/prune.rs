//! `kiln prune`.

use std::io::{BufRead, IsTerminal, Write};

use kiln_session::proto::control::PruneRequest;

use super::record::{details, filters, size, table};
use crate::args::{Global, PruneFlags};
use crate::client::failure::of_status;
use crate::env::Env;
use crate::error::CliError;
use crate::launch::connect;
use crate::progress::event::Stamp;
use crate::units::human_size;

/// Removes what the cache keeps, and prints what was removed.
pub async fn run(flags: PruneFlags, global: &Global, env: &Env) -> Result<(), CliError> {
    let filters = filters(&flags.filter)?;
    if !flags.force && !confirm(flags.all)? {
        return Ok(());
    }
    let engine = connect(global, env).await?;
    let bytes = |n: Option<u64>| n.map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let request = PruneRequest {
        filter: filters.records,
        all: flags.all,
        keep_duration: filters.unused_for.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)),
        reserved_space: bytes(flags.reserved_space),
        max_used_space: bytes(flags.max_used_space),
        min_free_space: bytes(flags.min_free_space),
    };
    let failed = |e: tonic::Status| of_status(&e, "failed to prune");
    let mut stream = engine.control().prune(request).await.map_err(failed)?.into_inner();
    let mut records = Vec::new();
    while let Some(record) = stream.message().await.map_err(failed)? {
        records.push(record);
    }
    let now = Stamp::now();
    let mut out = String::new();
    if !records.is_empty() {
        out = if flags.verbose { details(&records, now) } else { table(&records, now) };
    }
    out.push_str(&format!("Total:  {}\n", human_size(records.iter().map(size).sum())));
    crate::print(&out)
}

fn confirm(all: bool) -> Result<bool, CliError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(CliError::user("will not prune without a confirmation").hint("add --force"));
    }
    let what = if all { "all build cache" } else { "all dangling build cache" };
    let mut err = std::io::stderr();
    // A prompt that cannot be shown is not answered either.
    let _ = write!(err, "WARNING! This will remove {what}. Are you sure you want to continue? [y/N] ");
    let _ = err.flush();
    let mut line = String::new();
    stdin.lock().read_line(&mut line).map_err(|e| CliError::environment(e.to_string()))?;
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}
