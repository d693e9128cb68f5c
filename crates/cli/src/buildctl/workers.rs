//! `buildctl debug workers` and `buildctl debug info`.

use kiln_llb::pb;
use kiln_session::proto::control::types::{BuildkitVersion, GcPolicy, WorkerRecord};
use kiln_session::proto::control::{InfoRequest, ListWorkersRequest};

use super::To;
use super::args::{FormatFlag, WorkersFlags};
use super::tabs::{Fill, align};
use super::template::{Field, Template, Value};
use super::times::{size, span};
use crate::client::failure::of_status;
use crate::error::CliError;

/// Lists the workers.
pub async fn list(flags: WorkersFlags, to: &To<'_>) -> Result<(), CliError> {
    let template = flags.format.format.as_deref().map(Template::parse).transpose()?;
    let engine = to.engine().await?;
    let request = ListWorkersRequest { filter: flags.filter };
    let failed = |e: tonic::Status| of_status(&e, "failed to list workers");
    let workers = engine.control().list_workers(request).await.map_err(failed)?.into_inner().record;
    if let Some(template) = template {
        let all = Value::List(workers.iter().map(value).collect());
        return crate::print(&format!("{}\n", template.fill(&all)?));
    }
    let text = match flags.verbose {
        true => workers.iter().map(details).collect::<String>(),
        false => {
            let row = |w: &WorkerRecord| format!("{}\t{}\n", w.id, platforms(&w.platforms));
            format!("ID\tPLATFORMS\n{}", workers.iter().map(row).collect::<String>())
        }
    };
    crate::print(&align(&text, Fill::Tabs))
}

/// Shows what the engine is.
pub async fn info(flags: FormatFlag, to: &To<'_>) -> Result<(), CliError> {
    let template = flags.format.as_deref().map(Template::parse).transpose()?;
    let engine = to.engine().await?;
    let failed = |e: tonic::Status| of_status(&e, "failed to call info");
    let answer = engine.control().info(InfoRequest {}).await.map_err(failed)?.into_inner();
    let version = answer.buildkit_version.unwrap_or_default();
    if let Some(template) = template {
        let info = Value::Record(vec![Field::new("BuildkitVersion", "buildkitVersion", version_value(&version))]);
        return crate::print(&format!("{}\n", template.fill(&info)?));
    }
    crate::print(&align(&version_lines(&version), Fill::Spaces))
}

fn version_lines(version: &BuildkitVersion) -> String {
    let mut lines = format!("BuildKit:\t{} {} {}\n", version.package, version.version, version.revision);
    if !version.dockerfile_version.is_empty() {
        lines.push_str(&format!("Dockerfile:\t{}\n", version.dockerfile_version));
    }
    lines
}

fn details(worker: &WorkerRecord) -> String {
    let mut out = format!("ID:\t{}\nPlatforms:\t{}\n", worker.id, platforms(&worker.platforms));
    out.push_str(&version_lines(&worker.buildkit_version.clone().unwrap_or_default()));
    out.push_str("Labels:\n");
    for (key, value) in &worker.labels {
        out.push_str(&format!("\t{key}:\t{value}\n"));
    }
    for (number, rule) in worker.gc_policy.iter().enumerate() {
        out.push_str(&format!("GC Policy rule#{number}:\n\tAll:\t{}\n", rule.all));
        if !rule.filters.is_empty() {
            out.push_str(&format!("\tFilters:\t{}\n", rule.filters.join(" ")));
        }
        if rule.keep_duration > 0 {
            out.push_str(&format!("\tKeep duration:\t{}\n", span(rule.keep_duration)));
        }
        for (name, bytes) in [
            ("Reserved space", rule.reserved_space),
            ("Minimum free space", rule.min_free_space),
            ("Maximum used space", rule.max_used_space),
        ] {
            if bytes > 0 {
                out.push_str(&format!("\t{name}:\t{}\n", size(bytes, None)));
            }
        }
    }
    out.push('\n');
    out
}

fn platforms(list: &[pb::Platform]) -> String {
    let one = |p: &pb::Platform| {
        let parts = [p.os.as_str(), &p.architecture, &p.variant];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    };
    list.iter().map(one).collect::<Vec<_>>().join(",")
}

fn version_value(version: &BuildkitVersion) -> Value {
    Value::Record(vec![
        Field::new("Package", "package", version.package.as_str().into()),
        Field::new("Version", "version", version.version.as_str().into()),
        Field::new("Revision", "revision", version.revision.as_str().into()),
        Field::optional("DockerfileVersion", "dockerfileVersion", version.dockerfile_version.as_str().into()),
    ])
}

fn policy_value(rule: &GcPolicy) -> Value {
    Value::Record(vec![
        Field::new("All", "all", rule.all.into()),
        Field::new("Filter", "filter", rule.filters.as_slice().into()),
        Field::new("KeepDuration", "keepDuration", rule.keep_duration.into()),
        Field::new("ReservedSpace", "reservedSpace", rule.reserved_space.into()),
        Field::new("MaxUsedSpace", "maxUsedSpace", rule.max_used_space.into()),
        Field::new("MinFreeSpace", "minFreeSpace", rule.min_free_space.into()),
    ])
}

fn platform_value(platform: &pb::Platform) -> Value {
    Value::Record(vec![
        Field::new("Architecture", "architecture", platform.architecture.as_str().into()),
        Field::new("OS", "os", platform.os.as_str().into()),
        Field::optional("OSVersion", "os.version", platform.os_version.as_str().into()),
        Field::optional("OSFeatures", "os.features", platform.os_features.as_slice().into()),
        Field::optional("Variant", "variant", platform.variant.as_str().into()),
    ])
}

fn value(worker: &WorkerRecord) -> Value {
    let list = |values: Vec<Value>| if values.is_empty() { Value::Nil } else { Value::List(values) };
    Value::Record(vec![
        Field::new("ID", "id", worker.id.as_str().into()),
        Field::new("Labels", "labels", (&worker.labels).into()),
        Field::new("Platforms", "platforms", list(worker.platforms.iter().map(platform_value).collect())),
        Field::new("GCPolicy", "gcPolicy", Value::List(worker.gc_policy.iter().map(policy_value).collect())),
        Field::new(
            "BuildkitVersion",
            "buildkitVersion",
            version_value(&worker.buildkit_version.clone().unwrap_or_default()),
        ),
        Field::new("CDIDevices", "cdiDevices", Value::Nil),
    ])
}
