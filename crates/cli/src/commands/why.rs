//! `kiln why`.

use jiff::Timestamp;
use kiln_session::progress::ReasonProgress;
use kiln_session::proto::kiln_v1::{BuildSummary, ReasonsRequest, ReasonsResponse};
use tonic::{Code, Status};

use crate::args::{Global, WhyFlags};
use crate::client::failure::of_status;
use crate::env::Env;
use crate::error::CliError;
use crate::launch::{Engine, connect};

/// Prints why the steps of a recorded build ran.
pub async fn run(flags: WhyFlags, global: &Global, env: &Env) -> Result<(), CliError> {
    let json = match flags.format.as_str() {
        "json" => true,
        "text" => false,
        other => return Err(CliError::user(format!("--format: {other:?} is neither text nor json"))),
    };
    let engine = connect(global, env).await?;
    engine.must_be_kiln("kiln why")?;
    let (build, step) = (flags.build.unwrap_or_default(), flags.step);
    let failed = |status: &Status| of_status(status, "failed to read the history");
    let (told, step) = match (ask(&engine, &build).await, step) {
        // One word alone may be a step of the last build.
        (Err(status), None) if status.code() == Code::NotFound && !build.is_empty() => match ask(&engine, "").await {
            Ok(told) if has_step(&told, &build) => (told, Some(build)),
            _ => return Err(failed(&status)),
        },
        (told, step) => (told.map_err(|status| failed(&status))?, step),
    };
    let summary = told.build.unwrap_or_default();
    let reasons: Vec<ReasonProgress> = told.reasons.into_iter().map(Into::into).collect();
    let wanted = |reason: &&ReasonProgress| step.as_ref().is_none_or(|step| reason.name.contains(step.as_str()));
    let shown: Vec<&ReasonProgress> = reasons.iter().filter(wanted).collect();
    if let (Some(step), true) = (&step, shown.is_empty()) {
        let text = format!("no step with {step:?} in its name ran in build {}", summary.r#ref);
        return Err(CliError::user(text).hint("steps that were cached did not run; see all with: kiln why"));
    }
    if json {
        let text = serde_json::to_string_pretty(&shown).map_err(|e| CliError::environment(e.to_string()))?;
        return crate::print(&format!("{text}\n"));
    }
    crate::print(&render(&summary, &shown))
}

fn has_step(told: &ReasonsResponse, step: &str) -> bool {
    told.reasons.iter().any(|reason| reason.name.contains(step))
}

async fn ask(engine: &Engine, build: &str) -> Result<ReasonsResponse, Status> {
    let answer = engine.own().reasons(ReasonsRequest { r#ref: build.to_owned() }).await?;
    Ok(answer.into_inner())
}

fn render(build: &BuildSummary, reasons: &[&ReasonProgress]) -> String {
    let at = Timestamp::from_nanosecond(i128::from(build.created)).unwrap_or_default();
    let mut out = format!("Build {}, {}: ", build.r#ref, at.strftime("%Y-%m-%d %H:%M:%S UTC"));
    out.push_str(&format!("{} steps, {} cached", build.steps, build.cached));
    out.push_str(if build.error.is_empty() { "\n" } else { ", failed\n" });
    if reasons.is_empty() {
        out.push_str("No step ran: all were cached.\n");
    }
    for reason in reasons {
        out.push_str(&format!("\n{}\n    {}\n", reason.name, reason.text));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_told_in_text() {
        let build = BuildSummary { r#ref: "abc".into(), steps: 3, cached: 2, ..BuildSummary::default() };
        let head = "Build abc, 1970-01-01 00:00:00 UTC: 3 steps, 2 cached\n";
        assert_eq!(render(&build, &[]), format!("{head}No step ran: all were cached.\n"));
        let reason = ReasonProgress { name: "[2/2] RUN x".into(), text: "y".into(), ..ReasonProgress::default() };
        assert_eq!(render(&build, &[&reason]), format!("{head}\n[2/2] RUN x\n    y\n"));
    }
}
