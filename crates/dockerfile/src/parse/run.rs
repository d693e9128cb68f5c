//! `RUN [--mount=…] [--network=…] [--security=…] [--device=…] command`.

use super::{Request, run_mount};
use crate::ast::{Network, Run, RunDevice, Security};
use crate::diag::{Fault, Outcome};
use crate::gofmt::{parse_bool, quote};
use crate::lex::csv;

pub(super) fn parse(request: &Request<'_>) -> Outcome<Run> {
    let (mut mounts, mut devices, mut network, mut security) = (Vec::new(), Vec::new(), None, None);
    request
        .flags()
        .list("mount", &mut mounts)
        .list("device", &mut devices)
        .text("network", &mut network)
        .text("security", &mut security)
        .parse()?;
    let command = request.command(request.rest)?;
    let network = match network.as_deref() {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => {
            return Err(Fault::new(format!("invalid network mode {}", quote(other)))
                .did_you_mean(other, ["default", "none", "host"])
                .word(other));
        }
    };
    let security = match security.as_deref() {
        None | Some("sandbox") => Security::Sandbox,
        Some("insecure") => Security::Insecure,
        Some(other) => {
            return Err(Fault::new(format!("security {} is not valid", quote(other)))
                .did_you_mean(other, ["sandbox", "insecure"])
                .word(other));
        }
    };
    let mounts = mounts.iter().map(|text| run_mount::scan(text)).collect::<Outcome<_>>()?;
    let devices = devices.iter().map(|text| device(text)).collect::<Outcome<_>>()?;
    Ok(Run { command, mounts, network, security, devices, max_age: request.logical.max_age })
}

fn device(text: &str) -> Outcome<RunDevice> {
    let mut out = RunDevice::default();
    let fields = csv::fields(text).map_err(|e| Fault::new(format!("failed to parse csv devices: {e}")).word(text))?;
    for field in &fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => out.required = true,
            ("required", Some(value)) => {
                out.required = parse_bool(value)
                    .ok_or_else(|| Fault::new(format!("invalid value for required: {value}")).word(field))?;
            }
            ("name", Some(_)) if !out.name.is_empty() => {
                return Err(Fault::new(format!("device name already set to {}", out.name)).word(field));
            }
            ("name", Some(value)) => value.clone_into(&mut out.name),
            _ if out.name.is_empty() => out.name.clone_from(field),
            (_, None) => {
                return Err(Fault::new(format!("invalid field '{field}' must be a key=value pair")).word(field));
            }
            (key, Some(_)) => {
                return Err(Fault::new(format!("unexpected key '{key}' in '{field}'"))
                    .did_you_mean(key, ["name", "required"])
                    .word(field));
            }
        }
    }
    Ok(out)
}
