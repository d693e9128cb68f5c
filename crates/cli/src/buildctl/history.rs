//! Records of past builds: `prune-histories`, `debug histories|ctl|monitor|logs|get`.

use std::io::IsTerminal;

use kiln_session::progress::Progress;
use kiln_session::proto::content::ReadContentRequest;
use kiln_session::proto::content::content_client::ContentClient;
use kiln_session::proto::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, Descriptor, StatusRequest,
    UpdateBuildHistoryRequest,
};

use super::To;
use super::args::{CtlFlags, FormatFlag, GetFlags, LogsFlags, MonitorFlags};
use super::tabs::{Fill, align};
use super::template::{Field, Template, Value};
use super::times::local;
use crate::client::failure::of_status;
use crate::error::CliError;
use crate::launch::Engine;
use crate::progress::{Mode, ProgressEnv, display};

fn failed(status: &tonic::Status) -> CliError {
    of_status(status, "failed to read build history")
}

/// Reads the records that are there.
async fn records(engine: &Engine) -> Result<Vec<BuildHistoryEvent>, CliError> {
    let request = BuildHistoryRequest { early_exit: true, ..Default::default() };
    let answer = engine.control().listen_build_history(request).await;
    let mut stream = answer.map_err(|e| failed(&e))?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.map_err(|e| failed(&e))? {
        events.push(event);
    }
    Ok(events)
}

/// Lists the records.
pub async fn list(flags: FormatFlag, to: &To<'_>) -> Result<(), CliError> {
    let template = flags.format.as_deref().map(Template::parse).transpose()?;
    let engine = to.engine().await?;
    let events = records(&engine).await?;
    if let Some(template) = template {
        return events.iter().try_for_each(|event| crate::print(&format!("{}\n", template.fill(&value(event))?)));
    }
    // Each record is shown as it comes, so a row is aligned by itself.
    let mut out = String::from("TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION\tPINNED\n");
    for event in &events {
        let record = event.record.clone().unwrap_or_default();
        let pinned = if record.pinned { "*" } else { "" };
        out.push_str(&format!("{}\t{pinned}\n", row(event, &record)));
    }
    crate::print(&in_turn(&out))
}

/// Removes all records that are not pinned.
pub async fn prune(flags: FormatFlag, to: &To<'_>) -> Result<(), CliError> {
    let template = flags.format.as_deref().map(Template::parse).transpose()?;
    let engine = to.engine().await?;
    let mut out = String::from("TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION\n");
    let mut errors = Vec::new();
    for event in records(&engine).await? {
        let Some(record) = event.record.as_ref().filter(|r| !r.pinned) else { continue };
        let request = UpdateBuildHistoryRequest { r#ref: record.r#ref.clone(), delete: true, ..Default::default() };
        match (engine.control().update_build_history(request).await, &template) {
            (Err(status), _) => errors.push(status.message().to_owned()),
            (Ok(_), Some(template)) => crate::print(&format!("{}\n", template.fill(&value(&event))?))?,
            (Ok(_), None) => out.push_str(&format!("{}\n", row(&event, record))),
        }
    }
    if template.is_none() {
        crate::print(&in_turn(&out))?;
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(CliError::environment(errors.join("\n"))),
    }
}

/// Aligns heading and first row together and every further row by itself, as rows that come one by one are.
fn in_turn(text: &str) -> String {
    let mut lines = text.split_inclusive('\n');
    let first: String = lines.by_ref().take(2).collect();
    lines.fold(align(&first, Fill::Tabs), |out, line| out + &align(line, Fill::Tabs))
}

fn row(event: &BuildHistoryEvent, record: &BuildHistoryRecord) -> String {
    let time = |t: &Option<prost_types::Timestamp>| t.as_ref().map(local).unwrap_or_default();
    let (began, ended) = (time(&record.created_at), time(&record.completed_at));
    format!("{}\t{}\t{began}\t{ended}\t{}", kind(event), record.r#ref, record.generation)
}

fn kind(event: &BuildHistoryEvent) -> &'static str {
    match event.r#type() {
        BuildHistoryEventType::Started => "STARTED",
        BuildHistoryEventType::Complete => "COMPLETE",
        BuildHistoryEventType::Deleted => "DELETED",
    }
}

/// Pins, unpins or removes a record.
pub async fn control(flags: CtlFlags, to: &To<'_>) -> Result<(), CliError> {
    let reference = flags.reference.ok_or_else(|| CliError::user("build ref must be specified"))?;
    if !flags.pin && !flags.unpin && !flags.delete {
        return Err(CliError::user("must specify one of --pin, --unpin, --delete"));
    }
    if flags.pin && flags.unpin {
        return Err(CliError::user("cannot specify both --pin and --unpin"));
    }
    if flags.delete && (flags.pin || flags.unpin) {
        return Err(CliError::user("cannot specify --delete with --pin or --unpin"));
    }
    let engine = to.engine().await?;
    let request =
        UpdateBuildHistoryRequest { r#ref: reference, pinned: flags.pin, delete: flags.delete, ..Default::default() };
    engine.control().update_build_history(request).await.map_err(|e| of_status(&e, "failed to change the record"))?;
    Ok(())
}

/// Shows builds as they begin and end, until the engine or the reader goes away.
pub async fn monitor(flags: MonitorFlags, to: &To<'_>) -> Result<(), CliError> {
    let engine = to.engine().await?;
    let request = BuildHistoryRequest { active_only: !flags.completed, r#ref: flags.reference, ..Default::default() };
    let answer = engine.control().listen_build_history(request).await;
    let mut stream = answer.map_err(|e| failed(&e))?.into_inner();
    while let Some(event) = stream.message().await.map_err(|e| failed(&e))? {
        crate::print(&describe(&event))?;
    }
    Ok(())
}

fn describe(event: &BuildHistoryEvent) -> String {
    let record = event.record.clone().unwrap_or_default();
    let mut out = format!("event: {} ref:{}\n", kind(event), record.r#ref);
    if record.num_total_steps != 0 {
        out.push_str(&format!("  cache: {}/{}\n", record.num_cached_steps, record.num_total_steps));
    }
    if record.num_warnings != 0 {
        out.push_str(&format!("  warnings: {}\n", record.num_warnings));
    }
    let show = |d: &Descriptor| format!("media_type:{:?} digest:{:?} size:{}", d.media_type, d.digest, d.size);
    let mut line = |name: &str, d: &Descriptor| out.push_str(&format!("  {name}: {}\n", show(d)));
    record.logs.iter().for_each(|d| line("logs", d));
    record.trace.iter().for_each(|d| line("trace", d));
    for result in record.result.iter().chain(record.results.values()) {
        result.results.values().for_each(|d| line("descriptor", d));
        result.attestations.iter().for_each(|d| line("attestation", d));
    }
    out
}

/// Shows the log of a build, or writes its trace.
pub async fn logs(flags: LogsFlags, to: &To<'_>) -> Result<(), CliError> {
    let reference = flags.reference.ok_or_else(|| CliError::user("build ref must be specified"))?;
    let env = to.env;
    let progress = ProgressEnv::read(|name| env.var(name).map(str::to_owned), std::io::stderr().is_terminal());
    let mode = Mode::choose(Some(&flags.progress), false, &progress)?;
    let engine = to.engine().await?;
    if flags.trace {
        let events = records(&engine).await?;
        let found = events.into_iter().filter_map(|event| event.record).find(|record| record.r#ref == reference);
        let record = found.ok_or_else(|| CliError::user(format!("ref {reference} not found")))?;
        let trace = record.trace.ok_or_else(|| CliError::user(format!("ref {reference} does not have trace")))?;
        return blob(&engine, trace.digest).await;
    }
    let request = StatusRequest { r#ref: reference };
    let failed = |e: &tonic::Status| of_status(e, "failed to read the log");
    let mut stream = engine.control().status(request).await.map_err(|e| failed(&e))?.into_inner();
    let (feed, outcome) = display::start_at(display::Place::Stdout, mode, &progress, "");
    let result = loop {
        match stream.message().await {
            Ok(Some(message)) => feed.send(Progress::from(message)).await,
            Ok(None) => break Ok(()),
            Err(status) => break Err(failed(&status)),
        }
    };
    drop(feed);
    // The display ends with the feed.
    let _ = outcome.await;
    result
}

/// Writes a blob to standard output.
pub async fn get(flags: GetFlags, to: &To<'_>) -> Result<(), CliError> {
    let digest = flags.digest.ok_or_else(|| CliError::user("blob digest must be specified"))?;
    digest.parse::<kiln_stdx::Digest>().map_err(|e| CliError::user(format!("{digest:?}: {e}")))?;
    blob(&to.engine().await?, digest).await
}

async fn blob(engine: &Engine, digest: String) -> Result<(), CliError> {
    use tokio::io::AsyncWriteExt;
    let failed = |e: &tonic::Status| of_status(e, "failed to read the blob");
    let request = ReadContentRequest { digest, offset: 0, size: 0 };
    let mut client =
        ContentClient::new(engine.channel.clone()).max_decoding_message_size(kiln_stdx::limits::GRPC_MESSAGE);
    let mut stream = client.read(request).await.map_err(|e| failed(&e))?.into_inner();
    let mut out = tokio::io::stdout();
    let broken = |e: std::io::Error| CliError::environment(format!("cannot write to standard output: {e}"));
    while let Some(part) = stream.message().await.map_err(|e| failed(&e))? {
        out.write_all(&part.data).await.map_err(broken)?;
    }
    out.flush().await.map_err(broken)
}

/// Returns an event as templates see it.
fn value(event: &BuildHistoryEvent) -> Value {
    let number = |n: i32| Value::Int(i64::from(n));
    let time = |t: &Option<prost_types::Timestamp>| {
        t.as_ref().map_or(Value::Nil, |t| {
            Value::Record(vec![
                Field::optional("Seconds", "seconds", t.seconds.into()),
                Field::optional("Nanos", "nanos", number(t.nanos)),
            ])
        })
    };
    let record = event.record.as_ref().map_or(Value::Nil, |r| {
        let attributes = |map: &std::collections::BTreeMap<String, String>| Value::from(map);
        Value::Record(vec![
            Field::optional("Ref", "Ref", r.r#ref.as_str().into()),
            Field::optional("Frontend", "Frontend", r.frontend.as_str().into()),
            Field::optional("FrontendAttrs", "FrontendAttrs", attributes(&r.frontend_attrs)),
            Field::optional("Error", "error", error_value(r)),
            Field::optional("CreatedAt", "CreatedAt", time(&r.created_at)),
            Field::optional("CompletedAt", "CompletedAt", time(&r.completed_at)),
            Field::optional("Logs", "logs", r.logs.as_ref().map_or(Value::Nil, descriptor)),
            Field::optional("ExporterResponse", "ExporterResponse", attributes(&r.exporter_response)),
            Field::optional("Generation", "Generation", number(r.generation)),
            Field::optional("Trace", "trace", r.trace.as_ref().map_or(Value::Nil, descriptor)),
            Field::optional("Pinned", "pinned", r.pinned.into()),
            Field::optional("NumCachedSteps", "numCachedSteps", number(r.num_cached_steps)),
            Field::optional("NumTotalSteps", "numTotalSteps", number(r.num_total_steps)),
            Field::optional("NumCompletedSteps", "numCompletedSteps", number(r.num_completed_steps)),
            Field::optional("NumWarnings", "numWarnings", number(r.num_warnings)),
        ])
    });
    Value::Record(vec![
        Field::optional("Type", "type", number(event.r#type)),
        Field::optional("Record", "record", record),
    ])
}

fn error_value(record: &BuildHistoryRecord) -> Value {
    record.error.as_ref().map_or(Value::Nil, |e| {
        Value::Record(vec![
            Field::optional("Code", "code", i64::from(e.code).into()),
            Field::optional("Message", "message", e.message.as_str().into()),
        ])
    })
}

fn descriptor(of: &Descriptor) -> Value {
    Value::Record(vec![
        Field::optional("MediaType", "media_type", of.media_type.as_str().into()),
        Field::optional("Digest", "digest", of.digest.as_str().into()),
        Field::optional("Size", "size", of.size.into()),
    ])
}
