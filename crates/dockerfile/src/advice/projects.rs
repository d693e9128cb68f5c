//! Projects whose tool cannot install dependencies by itself before the sources are there: what to copy and to run for
//! Cargo packages and .NET projects, where their layout is one that a rule can answer for.

use super::ContextView;

/// What comes before the sources.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Before {
    /// What is copied, with flags of its own.
    pub files: Vec<String>,
    /// What installs.
    pub command: String,
    /// What the step does first, once the sources are there.
    pub prepare: Option<String>,
}

/// Tables and keys of a `Cargo.toml` that say that the package is more than `src/main.rs` and `src/lib.rs`.
const CARGO_OTHERS: [&str; 8] = ["[workspace", "[[bin", "[lib", "[[example", "[[test", "[[bench", "path =", "build ="];
/// What Cargo makes targets of without being told, beside the two.
const CARGO_FOUND: [&str; 5] = ["build.rs", "src/bin/", "examples/", "tests/", "benches/"];
const CARGO_FLAGS: [&str; 4] = ["--release", "--locked", "--offline", "--frozen"];

/// Builds the dependencies of a Cargo package with a program that does nothing. None when the package has other targets
/// than the usual, or the command says more than how to build.
pub(super) fn cargo(context: &ContextView, words: &[String]) -> Option<Before> {
    let manifest = context.texts.get("Cargo.toml")?;
    let sources: Vec<&str> = ["src/main.rs", "src/lib.rs"].into_iter().filter(|f| context.has(f)).collect();
    let usual = !CARGO_OTHERS.iter().any(|other| manifest.contains(other))
        && !context.files.keys().any(|f| CARGO_FOUND.iter().any(|other| f.starts_with(other)));
    let plain = words.get(1).is_some_and(|verb| verb == "build")
        && words.iter().skip(2).all(|w| CARGO_FLAGS.contains(&w.as_str()));
    if sources.is_empty() || !usual || !plain {
        return None;
    }
    let mut files = vec!["Cargo.toml".to_owned()];
    files.extend(
        ["Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml"]
            .iter()
            .filter(|f| context.has(f))
            .map(|f| (*f).to_owned()),
    );
    // A file below a directory would lose it.
    if files.iter().any(|f| f.contains('/')) {
        return None;
    }
    let empty: Vec<String> = sources
        .iter()
        .map(|f| if *f == "src/main.rs" { format!("echo 'fn main() {{}}' > {f}") } else { format!("touch {f}") })
        .collect();
    Some(Before {
        files,
        command: format!("mkdir src && {} && {}", empty.join(" && "), words.join(" ")),
        // Cargo goes by times, and those of the sources may be older than what was just built.
        prepare: Some(format!("touch {}", sources.join(" "))),
    })
}

/// Restores packages from the project files alone. None when there are none.
pub(super) fn dotnet(context: &ContextView) -> Option<Before> {
    let project = |f: &&String| [".csproj", ".fsproj", ".vbproj"].iter().any(|end| f.ends_with(end));
    let solution = |f: &&String| !f.contains('/') && (f.ends_with(".sln") || f.ends_with(".slnx"));
    let projects: Vec<&String> = context.files.keys().filter(project).collect();
    let solutions: Vec<&String> = context.files.keys().filter(solution).collect();
    let nested = projects.iter().any(|f| f.contains('/'));
    // Without a solution `dotnet restore` takes the one project beside it.
    if projects.is_empty() || solutions.len() > 1 || solutions.is_empty() && (nested || projects.len() > 1) {
        return None;
    }
    let settings = [
        "Directory.Build.props",
        "Directory.Build.targets",
        "Directory.Packages.props",
        "NuGet.Config",
        "NuGet.config",
        "nuget.config",
        "global.json",
        "packages.lock.json",
    ];
    let mut files: Vec<String> = nested.then(|| "--parents".to_owned()).into_iter().collect();
    files.extend(solutions.into_iter().chain(projects).cloned());
    files.extend(settings.iter().filter(|f| context.has(f)).map(|f| (*f).to_owned()));
    Some(Before { files, command: "dotnet restore".to_owned(), prepare: None })
}
