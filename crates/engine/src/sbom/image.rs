//! Scanners in images: BuildKit's scanner protocol.
//!
//! The image's command gets the result at one place, read-only, what else is to be scanned below another, and writes
//! in-toto statements into a directory, which is what the run leaves.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_llb::Definition;
use kiln_llb::builder::{Builder, Exec, ExecMount, ImageOptions, Meta, Output};
use kiln_llb::op::SourceOp;
use kiln_oci::{ContainerConfig, Platform, Reference};

use super::{CORE, Target};
use crate::bridge::Bridge;
use crate::error::EngineError;
use crate::provenance::ImageSource;
use crate::source::lookup::{self, ImageQuery, image_config};
use crate::source::resolve::resolve;

/// The scanner that is used where none is named.
const USUAL: &str = "docker.io/docker/buildkit-syft-scanner:stable-1";
/// How long is waited for the usual scanner.
const PATIENCE: Duration = Duration::from_secs(15);
const SCHEME: &str = "docker-image://";
const SOURCE: &str = "/run/src/core/sbom";
const EXTRAS: &str = "/run/src/extras";
const DESTINATION: &str = "/run/out/";

/// A scanner.
pub struct ScannerImage {
    name: String,
    platform: Platform,
    config: ContainerConfig,
    parameters: BTreeMap<String, String>,
}

impl ScannerImage {
    /// Looks a scanner up.
    ///
    /// # Errors
    /// It cannot be had, is forbidden, or has no command.
    pub async fn named(
        bridge: &Bridge,
        name: &str,
        platform: &Platform,
        pull: bool,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Self, EngineError> {
        let name = policed(bridge, name, platform).await?;
        let query = ImageQuery { name: &name, platform: Some(platform.clone()), layout: None, pull, log_name: "" };
        let found = image_config(bridge, query).await?;
        Self::new(name, platform, found.config.config, parameters)
    }

    /// Looks the usual scanner up; none if it cannot be had, which is no error.
    pub async fn usual(
        bridge: &Bridge,
        platform: &Platform,
        pull: bool,
        parameters: &BTreeMap<String, String>,
    ) -> Option<Self> {
        let vertex = bridge.build().start(&format!("[internal] looking for the SBOM scanner {USUAL}"));
        let found = tokio::time::timeout(PATIENCE, Self::try_usual(bridge, platform, pull, parameters)).await;
        let why = match found {
            Ok(Ok(image)) => {
                vertex.end(None);
                return Some(image);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        let text = format!("{why}\nscanning with the built-in scanner instead\n");
        // What cannot be shown is no reason to fail.
        let _ = bridge.build().log.log(vertex.digest(), 2, std::time::SystemTime::now(), text.as_bytes());
        vertex.end(None);
        None
    }

    async fn try_usual(
        bridge: &Bridge,
        platform: &Platform,
        pull: bool,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Self, EngineError> {
        let name = policed(bridge, USUAL, platform).await?;
        let parts = bridge.parts();
        let session = parts.sessions.try_get(&bridge.build().settings.session);
        let reference = Reference::parse(&name).map_err(|e| EngineError::user(e.to_string()))?;
        let asking = lookup::Asking { pull, offline: bridge.build().settings.offline };
        let origin = lookup::named(parts, &reference, asking, session).await?;
        let found = resolve(origin.as_ref(), platform, None).await?;
        let seen = ImageSource {
            name: name.clone(),
            platform: Some(platform.clone()),
            digest: Some(found.root),
            local: false,
        };
        bridge.scope().looked_up(seen);
        let config = found.config.config.clone();
        bridge.build().images.lock().insert((origin.name(), platform.clone()), found);
        Self::new(name, platform, config, parameters)
    }

    fn new(
        name: String,
        platform: &Platform,
        config: ContainerConfig,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Self, EngineError> {
        let this = Self { name, platform: platform.clone(), config, parameters: parameters.clone() };
        if this.command().is_empty() {
            return Err(EngineError::user(format!("scanner {} does not have cmd", this.name)));
        }
        Ok(this)
    }

    fn command(&self) -> Vec<String> {
        let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        [words(&self.config.entrypoint), words(&self.config.cmd)].concat()
    }

    /// Returns the graph of a scan, whose result is the directory of statements.
    ///
    /// # Errors
    /// A graph that cannot be loaded.
    pub fn graph(&self, target: &Target) -> Result<Definition, EngineError> {
        let mut builder = Builder::new(self.platform.clone());
        let image = builder.image(&self.name, &ImageOptions::default(), Meta::default())?;
        let mut exec = Exec::new(image, self.command());
        if !self.config.working_dir.is_empty() {
            exec.cwd.clone_from(&self.config.working_dir);
        }
        for variable in &self.config.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            exec.env.set(name, value);
        }
        exec.env.set("BUILDKIT_SCAN_DESTINATION", DESTINATION);
        exec.env.set("BUILDKIT_SCAN_SOURCE", SOURCE);
        if !target.extras.is_empty() {
            exec.env.set("BUILDKIT_SCAN_SOURCE_EXTRAS", EXTRAS);
        }
        for (name, value) in &self.parameters {
            exec.env.set(format!("BUILDKIT_SCAN_{name}"), value.clone());
        }
        exec.mounts.push(ExecMount::tmpfs("/tmp", 0));
        exec.mounts.push(ExecMount::readonly(SOURCE, builder.import(&target.core)?));
        for (name, definition) in &target.extras {
            let extra = builder.import(definition)?;
            exec.mounts.push(ExecMount::readonly(format!("{EXTRAS}/{CORE}-{name}"), extra));
        }
        exec.mounts.push(ExecMount::bind(DESTINATION, Output::SCRATCH));
        let name = format!("[{}] generating sbom using {}", target.id, self.name);
        let outputs = builder.exec(exec, Meta::named(name).ignore_cache(target.no_cache))?;
        let statements = outputs.mount(DESTINATION).unwrap_or(Output::SCRATCH);
        Ok(builder.definition(statements)?)
    }
}

/// Returns the name of the image that the build's policies want in place of one.
async fn policed(bridge: &Bridge, name: &str, platform: &Platform) -> Result<String, EngineError> {
    let source = SourceOp { identifier: format!("{SCHEME}{name}"), attrs: BTreeMap::new() };
    let source = bridge.policed_source(source, Some(platform.clone())).await?;
    Ok(source.identifier.strip_prefix(SCHEME).unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use kiln_llb::op::MountKind;
    use kiln_llb::{Graph, LoadOptions, Op};

    use super::*;

    #[test]
    fn a_scan_is_a_run_of_the_image_over_what_is_scanned() {
        let config = ContainerConfig {
            entrypoint: Some(vec!["/scan".into()]),
            cmd: Some(vec!["--all".into()]),
            env: vec!["PATH=/x".into()],
            ..ContainerConfig::default()
        };
        let platform = Platform::new("linux", "amd64", "");
        let parameters = BTreeMap::from([("LEVEL".to_owned(), "2".to_owned())]);
        let image = ScannerImage::new("docker.io/me/scan:1".into(), &platform, config, &parameters).unwrap();
        let mut builder = Builder::new(platform);
        let base = builder.image("docker.io/library/base:1", &ImageOptions::default(), Meta::default()).unwrap();
        let core = builder.definition(base).unwrap();
        let extras = BTreeMap::from([("build".to_owned(), core.clone())]);
        let target = Target { id: "linux/amd64".into(), core, extras, no_cache: true, epoch: None };
        let graph = Graph::load(&image.graph(&target).unwrap(), &LoadOptions::default()).unwrap();
        let vertex = graph.vertices().iter().find(|v| matches!(v.op, Op::Exec(_))).unwrap();
        let Op::Exec(exec) = &vertex.op else { panic!("no process") };
        assert_eq!(vertex.name, "[linux/amd64] generating sbom using docker.io/me/scan:1");
        assert!(vertex.ignore_cache());
        assert_eq!(exec.meta.args, ["/scan", "--all"]);
        let wanted = [
            "PATH=/x",
            "BUILDKIT_SCAN_DESTINATION=/run/out/",
            "BUILDKIT_SCAN_SOURCE=/run/src/core/sbom",
            "BUILDKIT_SCAN_SOURCE_EXTRAS=/run/src/extras",
            "BUILDKIT_SCAN_LEVEL=2",
        ];
        assert_eq!(exec.meta.env, wanted);
        let mounts: Vec<_> = exec.mounts.iter().map(|m| (m.dest.as_str(), m.readonly)).collect();
        let wanted = [
            ("/", false),
            ("/run/out/", false),
            ("/run/src/core/sbom", true),
            ("/run/src/extras/sbom-build", true),
            ("/tmp", false),
        ];
        assert_eq!(mounts, wanted);
        assert!(matches!(exec.mounts[4].kind, MountKind::Tmpfs { .. }));
        assert_eq!(exec.mounts[1].output, usize::try_from(graph.result().index).ok());
    }

    #[test]
    fn an_image_without_a_command_is_no_scanner() {
        let made = ScannerImage::new("x".into(), &Platform::host(), ContainerConfig::default(), &BTreeMap::new()).err();
        assert!(made.unwrap().to_string().contains("does not have cmd"));
    }
}
