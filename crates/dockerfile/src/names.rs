//! Shown names and platform texts.

use kiln_oci::Platform;

/// Returns the platform with its OS version, `windows(10.0.17763)/amd64`, not normalised.
pub(crate) fn format_platform(platform: &Platform) -> String {
    let os = match platform.os_version.as_str() {
        "" => platform.os.clone(),
        version => format!("{}({version})", platform.os),
    };
    let mut text = format!("{os}/{}", platform.architecture);
    if !platform.variant.is_empty() {
        text.push('/');
        text.push_str(&platform.variant);
    }
    text
}

/// Returns what follows the platform in the name of a cross-building step: `->arm64`.
pub(crate) fn cross_suffix(base: &Platform, target: Option<Platform>) -> String {
    let Some(mut target) = target else { return String::new() };
    if target.os.is_empty() {
        target.os.clone_from(&base.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&base.architecture);
    }
    let target = target.normalize();
    if target.os != base.os {
        return format!("->{}", format_platform(&target));
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    match target.variant.as_str() {
        "" => format!("->{}", target.architecture),
        variant => format!("->{}/{variant}", target.architecture),
    }
}

/// Returns the first line of a heredoc, with `...` when there are more.
pub(crate) fn summarize(heredoc: &str) -> String {
    let text = heredoc.trim();
    match text.split_once('\n') {
        Some((first, _)) => format!("{}...", first.trim_end_matches('\r')),
        None => text.to_owned(),
    }
}

/// Puts the first word into upper case.
pub(crate) fn uppercase_keyword(text: &str) -> String {
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}
