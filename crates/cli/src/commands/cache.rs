//! `kiln cache`: the choice of its commands, and `verify`.

use kiln_session::proto::kiln_v1::{VerifyRequest, VerifyResponse};

use super::cache_mounts;
use super::record::columns;
use crate::args::{CacheCommand, CacheVerifyFlags, Global};
use crate::client::failure::of_status;
use crate::env::Env;
use crate::error::CliError;
use crate::launch::{Engine, connect};
use crate::units::human_size;

/// Runs a command of `kiln cache`.
pub async fn run(command: CacheCommand, global: &Global, env: &Env) -> Result<(), CliError> {
    let engine = connect(global, env).await?;
    engine.must_be_kiln("kiln cache")?;
    match command {
        CacheCommand::Ls(flags) => cache_mounts::ls(flags, &engine).await,
        CacheCommand::Inspect(flags) => cache_mounts::inspect(flags, &engine).await,
        CacheCommand::Rm(flags) => cache_mounts::rm(flags, &engine).await,
        CacheCommand::Cat(flags) => cache_mounts::cat(flags, &engine).await,
        CacheCommand::Verify(flags) => verify(flags, &engine).await,
    }
}

/// Has the engine check everything it keeps; prints what was wrong. Damage that was left alone is an error.
async fn verify(flags: CacheVerifyFlags, engine: &Engine) -> Result<(), CliError> {
    let answer = engine.own().verify(VerifyRequest { check_only: !flags.repair }).await;
    let report = answer.map_err(|e| of_status(&e, "failed to verify"))?.into_inner();
    crate::print(&render(&report))?;
    let left = report.problems.iter().filter(|p| p.action.is_empty()).count();
    if left > 0 {
        return Err(CliError::environment(format!("{left} things are damaged"))
            .hint("repair or drop them with: kiln cache verify --repair"));
    }
    Ok(())
}

fn render(report: &VerifyResponse) -> String {
    let mut out = String::new();
    if !report.problems.is_empty() {
        let mut rows = vec![["SUBJECT", "PROBLEM", "ACTION"].map(str::to_owned)];
        rows.extend(report.problems.iter().map(|p| [p.subject.clone(), p.what.clone(), p.action.clone()]));
        out = columns(&rows);
    }
    let size = human_size(report.bytes);
    out.push_str(&format!(
        "Checked {} blobs, {} layers ({size}), {} cache mounts and {} rows of metadata: {}\n",
        report.blobs,
        report.layers,
        report.mounts,
        report.rows,
        match report.problems.len() {
            0 => "all well".to_owned(),
            1 => "1 problem".to_owned(),
            n => format!("{n} problems"),
        }
    ));
    out
}

#[cfg(test)]
mod tests {
    use kiln_session::proto::kiln_v1::Problem;

    use super::*;

    #[test]
    fn reports() {
        let mut report = VerifyResponse { blobs: 2, layers: 3, rows: 4, bytes: 5000, mounts: 1, problems: Vec::new() };
        assert_eq!(
            render(&report),
            "Checked 2 blobs, 3 layers (5kB), 1 cache mounts and 4 rows of metadata: all well\n"
        );
        report.problems.push(Problem { subject: "layer 7".into(), what: "file gone".into(), action: "dropped".into() });
        assert_eq!(
            render(&report),
            "SUBJECT  PROBLEM    ACTION\nlayer 7  file gone  dropped\nChecked 2 blobs, 3 layers (5kB), 1 cache mounts and 4 rows of metadata: 1 problem\n"
        );
    }
}
