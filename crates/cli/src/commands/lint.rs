//! `kiln lint`.

use crate::args::LintFlags;
use crate::build::context;
use crate::build::flags::BuildFlags;
use crate::build::options::BuildOptions;
use crate::build::question::Subject;
use crate::env::Env;
use crate::error::CliError;
use crate::lint::{self, Format};
use crate::progress::ProgressEnv;

/// Looks at a Dockerfile and its context. The exit code is 1 when something is found.
pub fn run(flags: LintFlags, env: &Env) -> Result<u8, CliError> {
    let format = Format::parse(&flags.format)?;
    let build = BuildFlags {
        context: vec![flags.context],
        file: flags.file,
        target: flags.target,
        build_arg: flags.build_arg,
        platform: flags.platform,
        ..BuildFlags::default()
    };
    let progress = ProgressEnv::read(|_| None, false);
    let options = BuildOptions::new(build, env, &progress)?;
    let inputs = context::resolve(&options, env, std::io::stdin())?;
    let Some(mut subject) = Subject::read(&options, &inputs) else {
        return Err(CliError::user("the Dockerfile is not here, or asks for a frontend of its own")
            .hint("name a local directory, or ask an engine with `kiln build --check`"));
    };
    subject.compiler.all_stages = subject.compiler.target.is_none();
    // A patch is of the file beside the ignore file; people know other files by the name they gave.
    if format != Format::Diff {
        subject.source.name.clone_from(&inputs.dockerfile);
    }
    let report = lint::report(subject.source, &subject.compiler, &inputs, flags.advise || format == Format::Diff)?;
    crate::print(&lint::show(&report, format))?;
    let clean = report.errors.is_empty() && report.warnings.is_empty() && report.advice.is_empty();
    Ok(u8::from(!clean && format != Format::Diff))
}
