//! Installers of dependencies: how they are called, where they keep what they downloaded, what they read.

use super::shell::base;

/// A tool that downloads dependencies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tool {
    pub name: &'static str,
    /// Cache mounts, with options after the path. `~` is the user's home.
    pub caches: &'static [&'static str],
    /// Files it reads: those that must be there, and those that are taken when they are.
    pub manifests: &'static [&'static str],
    pub optional: &'static [&'static str],
    /// How a step is split: see [`First`].
    pub first: First,
}

/// What can be done before the sources are there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum First {
    /// It installs packages of the system, and does not care about sources.
    Never,
    /// The step itself needs nothing but its manifests.
    Itself,
    /// A step of its own, after which the other finds everything in place.
    Fetch(&'static str),
    /// It can be done, but not by a rule: what to do, in words.
    ByHand(&'static str),
}

const fn system(name: &'static str, caches: &'static [&'static str]) -> Tool {
    Tool { name, caches, manifests: &[], optional: &[], first: First::Never }
}

pub(super) static APT: Tool = system("apt", &["/var/cache/apt,sharing=locked", "/var/lib/apt,sharing=locked"]);
pub(super) static APK: Tool = system("apk", &["/etc/apk/cache,sharing=locked"]);
pub(super) static DNF: Tool = system("dnf", &["/var/cache/dnf,sharing=locked"]);
pub(super) static YUM: Tool = system("yum", &["/var/cache/yum,sharing=locked"]);
static PIP: Tool = Tool { name: "pip", caches: &["~/.cache/pip"], manifests: &[], optional: &[], first: First::Itself };
static UV: Tool = Tool {
    name: "uv",
    caches: &["~/.cache/uv"],
    manifests: &["pyproject.toml", "uv.lock"],
    optional: &[],
    first: First::Fetch("uv sync --locked --no-install-project"),
};
static POETRY: Tool = Tool {
    name: "poetry",
    caches: &["~/.cache/pypoetry"],
    manifests: &["pyproject.toml"],
    optional: &["poetry.lock"],
    first: First::Fetch("poetry install --no-root"),
};
static NPM: Tool = Tool {
    name: "npm",
    caches: &["~/.npm"],
    manifests: &["package.json"],
    optional: &["package-lock.json", "npm-shrinkwrap.json", ".npmrc"],
    first: First::Itself,
};
static PNPM: Tool = Tool {
    name: "pnpm",
    caches: &["~/.local/share/pnpm/store"],
    manifests: &["package.json", "pnpm-lock.yaml"],
    optional: &["pnpm-workspace.yaml", ".npmrc"],
    first: First::Itself,
};
static YARN: Tool = Tool {
    name: "yarn",
    caches: &["/usr/local/share/.cache/yarn"],
    manifests: &["package.json", "yarn.lock"],
    optional: &[".yarnrc", ".yarnrc.yml"],
    first: First::Itself,
};
static CARGO: Tool = Tool {
    name: "cargo",
    caches: &["/usr/local/cargo/registry", "/usr/local/cargo/git"],
    manifests: &["Cargo.toml", "Cargo.lock"],
    optional: &[],
    first: First::ByHand(
        "copy Cargo.toml and Cargo.lock, build a program that does nothing, then copy the sources and build again",
    ),
};
static GO: Tool = Tool {
    name: "go",
    caches: &["/go/pkg/mod", "~/.cache/go-build"],
    manifests: &["go.mod"],
    optional: &["go.sum"],
    first: First::Fetch("go mod download"),
};
static MAVEN: Tool = Tool {
    name: "maven",
    caches: &["~/.m2"],
    manifests: &["pom.xml"],
    optional: &[],
    first: First::Fetch("mvn -B dependency:go-offline"),
};
static GRADLE: Tool = Tool {
    name: "gradle",
    caches: &["~/.gradle"],
    manifests: &[],
    optional: &["build.gradle", "build.gradle.kts", "settings.gradle", "settings.gradle.kts", "gradle.properties"],
    first: First::Fetch("gradle --no-daemon dependencies"),
};
static COMPOSER: Tool = Tool {
    name: "composer",
    caches: &["~/.cache/composer"],
    manifests: &["composer.json"],
    optional: &["composer.lock"],
    first: First::Fetch("composer install --no-scripts --no-autoloader"),
};
static BUNDLER: Tool = Tool {
    name: "bundler",
    caches: &["/usr/local/bundle/cache"],
    manifests: &["Gemfile"],
    optional: &["Gemfile.lock"],
    first: First::Itself,
};
static NUGET: Tool = Tool {
    name: "nuget",
    caches: &["~/.nuget/packages"],
    manifests: &[],
    optional: &[],
    first: First::ByHand("copy the project files alone, run `dotnet restore`, then copy the sources"),
};

/// All tools.
pub(super) static TOOLS: [&Tool; 17] = [
    &APT, &APK, &DNF, &YUM, &PIP, &UV, &POETRY, &NPM, &PNPM, &YARN, &CARGO, &GO, &MAVEN, &GRADLE, &COMPOSER, &BUNDLER,
    &NUGET,
];

/// Returns the first word after the command's name that is no flag.
pub(super) fn verb(words: &[String]) -> &str {
    words.iter().skip(1).find(|w| !w.starts_with('-')).map_or("", String::as_str)
}

/// Returns the tool that a command downloads with, if it does.
pub(super) fn of(words: &[String]) -> Option<&'static Tool> {
    let name = base(words.first()?);
    let verb = verb(words);
    let is = |verbs: &[&str]| verbs.contains(&verb);
    match name {
        "apt-get" | "apt" | "aptitude" if is(&["install", "upgrade", "dist-upgrade", "build-dep"]) => Some(&APT),
        "apk" if is(&["add", "upgrade"]) => Some(&APK),
        "dnf" | "microdnf" | "dnf5" if is(&["install", "update", "upgrade"]) => Some(&DNF),
        "yum" if is(&["install", "update", "upgrade"]) => Some(&YUM),
        "uv" if is(&["sync", "pip", "add"]) => Some(&UV),
        "poetry" if is(&["install", "sync"]) => Some(&POETRY),
        "npm" if is(&["ci", "install", "i", "clean-install"]) => Some(&NPM),
        "pnpm" if is(&["install", "i"]) => Some(&PNPM),
        "yarn" if is(&["", "install"]) && !words.iter().any(|w| matches!(w.as_str(), "--version" | "-v")) => {
            Some(&YARN)
        }
        "cargo" if is(&["build", "install", "fetch", "test", "b"]) => Some(&CARGO),
        "go" if is(&["build", "install", "test", "get"]) => Some(&GO),
        "go" if verb == "mod" && words.iter().any(|w| w == "download") => Some(&GO),
        "mvn" | "mvnw" if !verb.is_empty() => Some(&MAVEN),
        "gradle" | "gradlew" if !verb.is_empty() => Some(&GRADLE),
        "composer" if is(&["install", "update"]) => Some(&COMPOSER),
        "bundle" if is(&["install"]) => Some(&BUNDLER),
        "dotnet" if is(&["restore", "build", "publish"]) => Some(&NUGET),
        _ if is_pip(name, words) => Some(&PIP),
        _ => None,
    }
}

fn is_pip(name: &str, words: &[String]) -> bool {
    let text = |n: usize| words.get(n).map_or("", String::as_str);
    match name {
        "pip" | "pip3" => verb(words) == "install",
        _ if name.starts_with("python") => text(1) == "-m" && text(2) == "pip" && text(3) == "install",
        _ => name.starts_with("pip3.") && verb(words) == "install",
    }
}

/// Returns the requirement files that a `pip install` reads.
pub(super) fn requirements(words: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let file = match word.as_str() {
            "-r" | "--requirement" | "-c" | "--constraint" => words.next().cloned(),
            other => other.strip_prefix("--requirement=").map(str::to_owned),
        };
        out.extend(file);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_known() {
        for (text, want) in [
            ("apt-get install -y x", "apt"),
            ("apt-get -y --no-install-recommends install x", "apt"),
            ("apk add x", "apk"),
            ("microdnf install x", "dnf"),
            ("yum -y install x", "yum"),
            ("pip install x", "pip"),
            ("python3 -m pip install x", "pip"),
            ("pip3.12 install x", "pip"),
            ("uv sync --locked", "uv"),
            ("poetry install", "poetry"),
            ("npm ci", "npm"),
            ("pnpm i", "pnpm"),
            ("yarn", "yarn"),
            ("yarn --frozen-lockfile", "yarn"),
            ("/root/.cargo/bin/cargo build --release", "cargo"),
            ("go mod download", "go"),
            ("./mvnw package", "maven"),
            ("./gradlew build", "gradle"),
            ("composer install", "composer"),
            ("bundle install", "bundler"),
            ("dotnet publish -o out", "nuget"),
            ("npm run build", ""),
            ("apt-get update", ""),
            ("yarn build", ""),
            ("go vet", ""),
            ("pip --version", ""),
        ] {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            assert_eq!(of(&words).map_or("", |t| t.name), want, "{text}");
        }
    }
}
