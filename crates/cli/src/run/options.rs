//! What the flags of `kiln run` ask for; everything that can be wrong with them is found here, before the engine is asked.

use std::path::PathBuf;

use kiln_session::proto::kiln_v1 as pb;

use super::flags::RunFlags;
use crate::build::layout;
use crate::env::Env;
use crate::error::{CliError, io_text};

/// A run about to begin. The wire request lacks what is known only later: reference, session and terminal size.
#[derive(Debug)]
pub struct RunOptions {
    /// The request.
    pub request: pb::RunRequest,
    /// Image directory in OCI layout, by store name.
    pub layout: Option<(String, PathBuf)>,
    /// Give the process a terminal.
    pub tty: bool,
    /// The value of `--progress`.
    pub progress: Option<String>,
}

impl RunOptions {
    /// Gives the flags their meaning.
    pub fn new(flags: RunFlags, env: &Env) -> Result<RunOptions, CliError> {
        let image = flags.image;
        let mut request = pb::RunRequest {
            args: flags.command,
            replace_entrypoint: flags.entrypoint.is_some(),
            entrypoint: flags.entrypoint.filter(|e| !e.is_empty()).into_iter().collect(),
            user: flags.user.unwrap_or_default(),
            hostname: flags.hostname.unwrap_or_default(),
            network: one_of("network", &flags.network, &["auto", "host", "none"])?,
            pull: one_of("pull", &flags.pull, &["missing", "always", "never"])? == "always",
            stdin: flags.interactive,
            readonly: flags.read_only,
            stored_only: flags.pull == "never",
            ..pb::RunRequest::default()
        };
        for file in &flags.env_file {
            request.env.extend(env_file(file, env)?);
        }
        request.env.extend(
            flags.env.iter().filter_map(|text| variable(text, env).transpose()).collect::<Result<Vec<_>, _>>()?,
        );
        if let Some(dir) = flags.workdir {
            if !dir.starts_with('/') {
                return Err(CliError::user(format!(
                    "the working directory '{dir}' is invalid, it needs to be an absolute path"
                )));
            }
            request.cwd = dir;
        }
        request.volumes = flags.volume.iter().map(|text| volume(text, env)).collect::<Result<_, _>>()?;
        request.ports = flags.publish.iter().map(|text| port(text)).collect::<Result<_, _>>()?;
        let layout = name(&mut request, &image, env)?;
        Ok(RunOptions { request, layout, tty: flags.tty, progress: flags.progress })
    }
}

/// Sets the image; returns the layout it lies in.
fn name(request: &mut pb::RunRequest, image: &str, env: &Env) -> Result<Option<(String, PathBuf)>, CliError> {
    if let Some(rest) = image.strip_prefix("oci-layout://") {
        let (dir, digest) = layout::resolve(rest, env)
            .map_err(|e| CliError::user(format!("oci-layout reference \"{image}\" could not be resolved: {e}")))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let base = dir.file_name().and_then(|name| name.to_str()).filter(|name| name.chars().all(plain));
        let store = base.map_or_else(kiln_stdx::rand_id, str::to_owned);
        request.image = format!("{store}@{digest}");
        request.layout.clone_from(&store);
        return Ok(Some((store, dir)));
    }
    let reference = image.strip_prefix("docker-image://").unwrap_or(image);
    if let Err(error) = kiln_oci::Reference::parse(reference) {
        let error = CliError::user(format!("invalid image \"{image}\": {error}"));
        let is_layout = env.cwd().join(image).join("oci-layout").is_file();
        return Err(if is_layout { error.hint(format!("for the directory: oci-layout://{image}")) } else { error });
    }
    reference.clone_into(&mut request.image);
    Ok(None)
}

fn one_of(flag: &str, value: &str, known: &[&str]) -> Result<String, CliError> {
    if known.contains(&value) {
        return Ok(value.to_owned());
    }
    Err(CliError::user(format!("invalid argument \"{value}\" for \"--{flag}\"")).nearest(
        "value",
        value,
        known.iter().copied(),
    ))
}

/// Returns `NAME=value`; a name alone stands for the variable of this environment, and for nothing where there is none.
fn variable(text: &str, env: &Env) -> Result<Option<String>, CliError> {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(CliError::user(format!("invalid environment variable: {text}")));
    }
    match value {
        Some(_) => Ok(Some(text.to_owned())),
        None => Ok(env.var(name).map(|value| format!("{name}={value}"))),
    }
}

/// Reads a file of variables: one a line, as they are; empty lines and lines that begin with `#` are none.
fn env_file(file: &str, env: &Env) -> Result<Vec<String>, CliError> {
    let path = env.cwd().join(file);
    let text = std::fs::read_to_string(&path)
        .map_err(|e| CliError::user(format!("cannot read env file {file}: {}", io_text(&e))))?;
    let mut variables = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let found = variable(line, env);
        let found = found
            .map_err(|_| CliError::user(format!("{file}:{}: invalid environment variable: {line}", number + 1)))?;
        variables.extend(found);
    }
    Ok(variables)
}

fn volume(text: &str, env: &Env) -> Result<pb::Volume, CliError> {
    let bad = |why: &str| CliError::user(format!("invalid volume \"{text}\": {why}")).hint("it is SOURCE:DEST[:ro]");
    let parts: Vec<&str> = text.split(':').collect();
    let (source, dest, mode) = match parts.as_slice() {
        [source, dest] => (*source, *dest, "rw"),
        [source, dest, mode] => (*source, *dest, *mode),
        _ => return Err(bad("it has not two or three parts")),
    };
    if !dest.starts_with('/') {
        return Err(bad("the path in the image is not absolute"));
    }
    let mut readonly = false;
    for word in mode.split(',') {
        match word {
            "ro" => readonly = true,
            // How other hosts label or spread mounts has no meaning here.
            "rw" | "z" | "Z" | "rprivate" | "private" | "rslave" | "slave" => {}
            other => return Err(bad(&format!("unknown mode {other}"))),
        }
    }
    if !source.contains('/') && source != "." && source != ".." {
        return Err(bad("named volumes are unknown").hint(format!("for a directory: ./{source}:{dest}")));
    }
    let path = env.cwd().join(source);
    let path = path.canonicalize().map_err(|e| bad(&format!("{source}: {}", io_text(&e))))?;
    let source = path.into_os_string().into_string().map_err(|_| bad("the path is not valid UTF-8"))?;
    Ok(pb::Volume { source, dest: dest.to_owned(), readonly })
}

fn port(text: &str) -> Result<pb::PublishedPort, CliError> {
    let bad =
        |why: &str| CliError::user(format!("invalid port \"{text}\": {why}")).hint("it is [[127.0.0.1:]HOSTPORT:]PORT");
    let number = |n: &str| match n.parse::<u16>() {
        Ok(n) if n > 0 => Ok(u32::from(n)),
        _ => Err(bad(&format!("{n:?} is no port"))),
    };
    let wanted = match text.rsplit_once('/') {
        None => text,
        Some((rest, "tcp")) => rest,
        Some((_, other)) => return Err(bad(&format!("{other} is not supported, only tcp"))),
    };
    let (rest, port) = wanted.rsplit_once(':').unwrap_or(("", wanted));
    let (address, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    if !matches!(address, "" | "127.0.0.1" | "localhost") {
        return Err(bad("ports are published on 127.0.0.1 alone"));
    }
    let host = if matches!(host, "" | "0") { 0 } else { number(host)? };
    Ok(pb::PublishedPort { host, port: number(port)? })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn options(line: &str, env: &Env) -> Result<RunOptions, String> {
        let args: Vec<std::ffi::OsString> =
            ["kiln", "run"].into_iter().chain(line.split(' ')).map(Into::into).collect();
        let parsed = crate::parse::parse(&args).map_err(|e| e.message().to_owned())?;
        let crate::parse::Parsed::Run(cli) = parsed else { return Err("help".to_owned()) };
        let crate::args::Command::Run(flags) = cli.command else { return Err("another command".to_owned()) };
        RunOptions::new(*flags, env).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn what_follows_the_image_is_the_commands() {
        let env = Env::of(&[("HERE", "1")], Path::new("/"));
        let options = options("-e A=b -eHERE -e GONE --rm app ls -e x --help", &env).expect("options");
        let request = options.request;
        assert_eq!((request.image.as_str(), request.env), ("app", vec!["A=b".to_owned(), "HERE=1".to_owned()]));
        assert_eq!(request.args, ["ls", "-e", "x", "--help"]);
        assert!(!request.replace_entrypoint && !options.tty && !request.stdin);
    }

    #[test]
    fn flags_may_be_joined() {
        let env = Env::of(&[], Path::new("/"));
        let options =
            options("-it --entrypoint= -p80 -p 127.0.0.1:8080:80/tcp -p 1:2 -v /tmp:/a:ro -w /x app sh", &env);
        let options = options.expect("options");
        let ports: Vec<(u32, u32)> = options.request.ports.iter().map(|p| (p.host, p.port)).collect();
        assert_eq!(ports, [(0, 80), (8080, 80), (1, 2)]);
        assert!(options.tty && options.request.stdin && options.request.replace_entrypoint);
        assert!(options.request.entrypoint.is_empty());
        let volume = &options.request.volumes[0];
        assert_eq!((volume.dest.as_str(), volume.readonly), ("/a", true));
    }

    #[test]
    fn what_is_wrong_is_told_before_anything_runs() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let env = Env::of(&[], dir.path());
        std::fs::write(dir.path().join("vars"), "# none\n\nA=1\n B = 2\n").expect("write");
        for (line, word) in [
            ("--wurkdir /x app", "unknown flag: --wurkdir"),
            ("-w here app", "absolute"),
            ("-v /tmp:here app", "not absolute"),
            ("-v data:/data app", "named volumes"),
            ("-v ./none:/data app", "no such file"),
            ("-v /tmp:/x:upside app", "unknown mode upside"),
            ("-p 0.0.0.0:80:80 app", "127.0.0.1 alone"),
            ("-p 80/udp app", "only tcp"),
            ("-p 99999 app", "no port"),
            ("-e =x app", "invalid environment variable"),
            ("--env-file vars app", "vars:4: invalid environment variable"),
            ("--env-file none app", "cannot read env file none"),
            ("--network bridge app", "invalid argument \"bridge\" for \"--network\""),
            ("--pull sometimes app", "--pull"),
            ("oci-layout://none", "could not be resolved"),
            ("UPPER", "invalid image"),
        ] {
            let error = options(line, &env).expect_err(line);
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
