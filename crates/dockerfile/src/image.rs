//! The image config while it is made.

use std::collections::HashMap;

use kiln_oci::{ContainerConfig, History, ImageConfig, Platform, RootFs};

/// Where programs are looked for when an image does not say.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const COMMENT: &str = "buildkit.dockerfile.v0";

/// Returns the config of `FROM scratch`.
pub(crate) fn empty(platform: &Platform) -> ImageConfig {
    let mut out = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
        variant: platform.variant.clone(),
        rootfs: RootFs::default(),
        config: ContainerConfig { working_dir: "/".into(), ..ContainerConfig::default() },
        ..ImageConfig::default()
    };
    ensure_path(&mut out, &platform.os);
    out
}

/// Sets `PATH` where it is missing, except on Windows, which has its own.
pub(crate) fn ensure_path(image: &mut ImageConfig, os: &str) {
    let has = image.config.env.iter().any(|e| e.split('=').next() == Some("PATH"));
    if !has && os != "windows" {
        image.config.env.push(format!("PATH={DEFAULT_PATH}"));
    }
}

/// Sets a variable in its place, or at the end.
///
/// `places` tells where each variable is.
pub(crate) fn set_env(env: &mut Vec<String>, places: &mut HashMap<String, usize>, name: &str, value: &str) {
    let text = format!("{name}={value}");
    match places.get(name).and_then(|&at| env.get_mut(at)) {
        Some(slot) => *slot = text,
        None => {
            places.insert(name.to_owned(), env.len());
            env.push(text);
        }
    }
}

/// Adds a line of history. `layer` tells whether the step changed files.
pub(crate) fn add_history(image: &mut ImageConfig, text: String, layer: bool, epoch: Option<i64>) {
    image.history.push(History {
        created: epoch.and_then(crate::gofmt::format_time),
        created_by: text,
        comment: COMMENT.into(),
        empty_layer: !layer,
        ..History::default()
    });
}

/// Returns the words that run a shell-form command.
pub(crate) fn with_shell(image: &ImageConfig, args: &[String]) -> Vec<String> {
    let mut out = match (image.config.shell.as_slice(), image.os.as_str()) {
        ([], "windows") => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
        ([], _) => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        (shell, _) => shell.to_vec(),
    };
    out.push(args.join(" "));
    out
}
