//! `kiln lint`: build checks and advice, without an engine.

mod context;
mod show;

use kiln_dockerfile::advice::{self, ContextView};
use kiln_dockerfile::source::SourceFile;
use kiln_dockerfile::{
    BuildOptions as Compiler, Diagnostic, DockerfileError, Resolved, ResolvedImage, Wanted, lower, parse, plan,
};
use kiln_oci::Platform;

use crate::build::context::Inputs;
use crate::error::CliError;

pub use context::view;
pub use show::{Format, show};

/// Rules that cannot be judged without the base images.
const NEED_BASES: [&str; 2] = ["InvalidBaseImagePlatform", "UndefinedVar"];
/// How often a plan may ask for more.
const ROUNDS: usize = 64;

/// Everything that is found.
pub struct Report {
    pub source: SourceFile,
    pub context: ContextView,
    pub errors: Vec<Diagnostic>,
    pub warnings: Vec<Diagnostic>,
    pub advice: Vec<advice::Advice>,
    /// Base images were not looked at, so [`NEED_BASES`] say nothing.
    pub without_bases: bool,
}

/// Looks at a Dockerfile. `advise` also at the build context.
pub fn report(source: SourceFile, compiler: &Compiler, inputs: &Inputs, advise: bool) -> Result<Report, CliError> {
    let mut out = Report {
        context: ContextView::default(),
        errors: Vec::new(),
        warnings: Vec::new(),
        advice: Vec::new(),
        without_bases: false,
        source,
    };
    let file = match parse(&out.source.name, &out.source.data) {
        Ok(file) => file,
        Err(error) => {
            out.take(error);
            return Ok(out);
        }
    };
    if advise {
        out.context = view(inputs, &compiler.ignore_patterns)?;
        out.context.foreign =
            compiler.target_platform.as_ref().is_some_and(|p| p.architecture != Platform::host().architecture);
        out.advice = advice::advise(&file, &out.context);
    }
    let mut resolved = Resolved::default();
    for _ in 0..ROUNDS {
        let plan = match plan(&file, compiler, &resolved) {
            Ok(plan) => plan,
            Err(error) => {
                out.take(error);
                break;
            }
        };
        if plan.wanted.is_empty() {
            match lower(&file, &plan, compiler, &resolved) {
                Ok(lowered) => out.warnings = lowered.warnings,
                Err(error) => out.take(error),
            }
            break;
        }
        for wanted in &plan.wanted {
            out.without_bases |= matches!(wanted, Wanted::Image(_));
            stand_in(wanted, &mut resolved);
        }
    }
    if out.without_bases {
        out.warnings.retain(|w| !NEED_BASES.contains(&w.rule));
    }
    out.warnings.extend(kiln_dockerfile::lint::unknown_names(&file));
    out.warnings.sort_by_key(Diagnostic::line);
    Ok(out)
}

impl Report {
    fn take(&mut self, error: DockerfileError) {
        self.errors = error.diagnostics;
        self.warnings = error.warnings;
    }
}

/// Answers what a plan wants with something that has the right form and says nothing.
fn stand_in(wanted: &Wanted, resolved: &mut Resolved) {
    match wanted {
        Wanted::Image(image) => {
            let config = serde_json::json!({
                "os": image.platform.os, "architecture": image.platform.architecture, "variant": image.platform.variant,
                "rootfs": {"type": "layers", "diff_ids": [kiln_stdx::Digest::of(b"").to_string()]},
            });
            let found = ResolvedImage {
                reference: image.reference.clone(),
                digest: None,
                config: config.to_string().into_bytes(),
            };
            resolved.add_image(image, found);
        }
        Wanted::IgnoreFile(file) => resolved.add_ignore_file(file, Vec::new()),
        Wanted::Time(time) => resolved.add_time(time, None),
    }
}
