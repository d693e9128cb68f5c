//! Which variables are visible where: global arguments, the predefined ones, build arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kiln_llb::builder::EnvList;
use kiln_llb::op::ProxyEnv;
use kiln_oci::Platform;

use crate::ast::{ArgDef, Dockerfile, Instruction, Kind};
use crate::diag::{Fault, Outcome};
use crate::lex::{Vars, WordLexer};
use crate::names::format_platform;
use crate::options::BuildOptions;
use crate::source::Lines;

/// Arguments that steer attestations and never become variables of a step.
pub(crate) const NOT_ENV: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// An argument as outlines show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgInfo {
    pub name: String,
    pub description: Option<String>,
    /// The value it has in this build.
    pub value: Option<String>,
    pub lines: Lines,
    /// Arguments that the default is made of.
    pub(crate) made_of: BTreeSet<String>,
}

/// Returns the arguments every file has: platforms of builder and target, and the name of the target stage.
pub(crate) fn predefined(options: &BuildOptions, target: &str) -> EnvList {
    let (build, wanted) = (options.build_platform(), options.platform());
    let short = |p: &Platform| p.short();
    let target = if target.is_empty() { "default" } else { target };
    let pairs = [
        ("BUILDPLATFORM", short(&build)),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", build.os_version.clone()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", build.variant.clone()),
        ("TARGETPLATFORM", format_platform(&wanted)),
        ("TARGETOS", wanted.os.clone()),
        ("TARGETOSVERSION", wanted.os_version.clone()),
        ("TARGETARCH", wanted.architecture.clone()),
        ("TARGETVARIANT", wanted.variant.clone()),
        ("TARGETSTAGE", target.to_owned()),
    ];
    pairs.into_iter().map(|(k, v)| (k, options.build_args.get(k).cloned().unwrap_or(v))).collect()
}

/// Adds the file's global arguments to `args`; build arguments win over defaults.
pub(crate) fn add_global(
    mut args: EnvList,
    file: &Dockerfile,
    build_args: &BTreeMap<String, String>,
) -> Outcome<(EnvList, Vec<ArgInfo>)> {
    let lexer = WordLexer::new(file.escape);
    let mut infos: Vec<ArgInfo> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (instruction, arg) in definitions(&file.global_args) {
        let mut made_of = BTreeSet::new();
        let value = match (build_args.get(&arg.name), &arg.default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => {
                let expanded = lexer.expand(default, &args).map_err(|e| Fault::new(e).at(instruction.lines))?;
                made_of = expanded.matched;
                Some(expanded.text)
            }
            (None, None) => None,
        };
        if let Some(value) = &value {
            args.set(arg.name.clone(), value.clone());
        }
        let mut info = ArgInfo {
            name: arg.name.clone(),
            description: arg.description.clone(),
            value,
            lines: instruction.lines,
            made_of,
        };
        match places.get(&arg.name) {
            Some(&at) => {
                // What an earlier definition was made of may still be in the later one.
                let earlier: &ArgInfo = &infos[at];
                info.made_of.extend(earlier.made_of.iter().cloned());
                infos[at] = info;
            }
            None => {
                places.insert(arg.name.clone(), infos.len());
                infos.push(info);
            }
        }
    }
    Ok((args, infos))
}

pub(crate) fn definitions(list: &[Arc<Instruction>]) -> impl Iterator<Item = (&Instruction, &ArgDef)> {
    list.iter().flat_map(|i| match &i.kind {
        Kind::Arg(args) => args.iter().map(|a| (i.as_ref(), a)).collect::<Vec<_>>(),
        _ => Vec::new(),
    })
}

/// Returns every name a FROM may use.
pub(crate) fn known_names(args: &EnvList, infos: &[ArgInfo]) -> BTreeSet<String> {
    args.names().into_iter().chain(infos.iter().map(|i| i.name.clone())).collect()
}

/// Returns the proxy settings among the build arguments, which every step gets.
pub(crate) fn proxy_env(build_args: &BTreeMap<String, String>) -> Option<ProxyEnv> {
    let mut proxy = ProxyEnv::default();
    let mut any = false;
    for (name, value) in build_args {
        let slot = match name.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut proxy.http,
            "https_proxy" => &mut proxy.https,
            "ftp_proxy" => &mut proxy.ftp,
            "no_proxy" => &mut proxy.no,
            "all_proxy" => &mut proxy.all,
            _ => continue,
        };
        slot.clone_from(value);
        any = true;
    }
    any.then_some(proxy)
}

/// Tells whether a value such as `true` or `stage-a,stage-b` names the stage.
pub(crate) fn enabled_for(stage: &str, value: &str) -> bool {
    crate::gofmt::parse_bool(value).unwrap_or_else(|| value.split(',').any(|name| name == stage))
}
