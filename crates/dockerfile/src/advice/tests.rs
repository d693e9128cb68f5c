//! Advice as it is given, and what is not said of files that are well written.

use super::*;

fn file(text: &str) -> Dockerfile {
    crate::parse("Dockerfile", text.as_bytes()).unwrap()
}

fn context(files: &[(&str, u64)], texts: &[(&str, &str)]) -> ContextView {
    let texts: BTreeMap<String, String> = texts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut all: BTreeMap<String, u64> = files.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
    all.extend(texts.iter().map(|(k, v)| (k.clone(), v.len() as u64)));
    ContextView { files: all, texts, ignore: String::new(), known: true, foreign: false }
}

/// Returns topic and first line of everything that is said.
fn found(text: &str, context: &ContextView) -> Vec<(&'static str, u32)> {
    advise(&file(text), context).iter().map(|a| (a.topic.name, a.lines.first)).collect()
}

fn proposed(text: &str, context: &ContextView) -> String {
    propose(&file(text).source, context).0
}

const NODE: &str = "FROM node:22\nWORKDIR /app\nCOPY . .\nRUN npm ci\nCMD [\"node\", \"main.js\"]\n";

#[test]
fn installing_comes_before_sources() {
    let context = context(&[("main.js", 1), ("package-lock.json", 1)], &[("package.json", "{}")]);
    assert_eq!(found(NODE, &context), [("copy-before-install", 4), ("cache-mount", 4)]);
    let better = proposed(NODE, &context);
    let want = "FROM node:22\nWORKDIR /app\nCOPY package.json package-lock.json ./\n\
                RUN --mount=type=cache,target=/root/.npm npm ci\nCOPY . .\nCMD [\"node\", \"main.js\"]\n";
    assert_eq!(better, want);
    assert!(found(&better, &context).is_empty());
}

#[test]
fn what_is_built_after_installing_stays_behind_the_sources() {
    let text = "FROM node:22\nCOPY . /app/\nWORKDIR /app\nRUN npm ci && npm run build\n";
    let context = context(&[], &[("package.json", "{}")]);
    let advice = advise(&file(text), &context);
    assert!(!advice[0].ready, "the working directory is set in between");
    let text = "FROM node:22\nWORKDIR /app\nCOPY . .\nRUN npm ci && \\\n    npm run build\n";
    let want = "FROM node:22\nWORKDIR /app\nCOPY package.json ./\nRUN --mount=type=cache,target=/root/.npm npm ci\n\
                COPY . .\nRUN npm run build\n";
    assert_eq!(proposed(text, &context), want);
}

#[test]
fn packages_of_the_system_come_before_sources() {
    let text = "FROM golang:1\nCOPY . .\nRUN --mount=type=cache,target=/var/lib/apt apt-get update && apt-get install -y git\nRUN go version\n";
    let none = ContextView::default();
    assert_eq!(found(text, &none), [("copy-before-install", 3)]);
    let want = "FROM golang:1\nRUN --mount=type=cache,target=/var/lib/apt apt-get update && apt-get install -y git\nCOPY . .\nRUN go version\n";
    assert_eq!(proposed(text, &none), want);
    assert_eq!(found(&text.replace("-y git", "-y git && make"), &none), []);
    assert_eq!(found(&text.replace("-y git", "-y ./own.deb"), &none), []);
}

#[test]
fn install_scripts_are_left_to_people() {
    let context = context(&[], &[("package.json", "{\"scripts\": {\"postinstall\": \"node build.js\"}}")]);
    let advice = advise(&file(NODE), &context);
    assert!(!advice[0].ready && advice[0].reason.contains("`postinstall`"), "{:?}", advice[0]);
}

#[test]
fn other_tools_fetch_first() {
    let go = "FROM golang:1.24\nWORKDIR /src\nCOPY . .\nRUN go build -o /app\n";
    let want = "FROM golang:1.24\nWORKDIR /src\nCOPY go.mod go.sum ./\n\
                RUN --mount=type=cache,target=/go/pkg/mod \\\n    --mount=type=cache,target=/root/.cache/go-build \\\n    go mod download\n\
                COPY . .\n\
                RUN --mount=type=cache,target=/go/pkg/mod \\\n    --mount=type=cache,target=/root/.cache/go-build \\\n    go build -o /app\n";
    let context_go = context(&[("go.sum", 1)], &[("go.mod", "module x")]);
    assert_eq!(proposed(go, &context_go), want);
    let pip = "FROM python:3.13\nCOPY . .\nRUN pip install --no-cache-dir -r requirements.txt\n";
    let want = "FROM python:3.13\nCOPY requirements.txt ./\n\
                RUN --mount=type=cache,target=/root/.cache/pip pip install -r requirements.txt\nCOPY . .\n";
    assert_eq!(proposed(pip, &context(&[], &[("requirements.txt", "flask")])), want);
    let cargo = "FROM rust:1\nCOPY . .\nRUN --mount=type=cache,target=/usr/local/cargo/registry cargo build\n";
    let advice = advise(&file(cargo), &ContextView::default());
    assert_eq!((advice.len(), advice[0].topic.name, advice[0].ready), (1, "copy-before-install", false));
}

#[test]
fn a_cargo_package_is_built_without_its_sources_first() {
    let text = "FROM rust:1\nWORKDIR /src\nCOPY . .\nRUN cargo build --release --locked\n";
    let files = [("Cargo.lock", 1), ("src/main.rs", 1), ("src/lib.rs", 1)];
    let manifest = "[package]\nname = \"x\"\n[dependencies]\nserde = \"1\"\n";
    let view = context(&files, &[("Cargo.toml", manifest)]);
    let mounts = "--mount=type=cache,target=/usr/local/cargo/registry \\\n    \
                  --mount=type=cache,target=/usr/local/cargo/git \\\n    ";
    let want = format!(
        "FROM rust:1\nWORKDIR /src\nCOPY Cargo.toml Cargo.lock ./\n\
         RUN {mounts}mkdir src && echo 'fn main() {{}}' > src/main.rs && touch src/lib.rs && cargo build --release --locked\n\
         COPY . .\nRUN {mounts}touch src/main.rs src/lib.rs && cargo build --release --locked\n"
    );
    let better = proposed(text, &view);
    assert_eq!(better, want);
    assert_eq!(found(&better, &view), []);
    // Other targets would be missing, or be built from nothing.
    for (file, more) in [("build.rs", ""), ("src/bin/tool.rs", ""), ("x", "[workspace]\n"), ("x", "[[bin]]\n")] {
        let view = context(&[&files[..], &[(file, 1)]].concat(), &[("Cargo.toml", &format!("{manifest}{more}"))]);
        let advice = advise(&self::file(text), &view);
        assert!(!advice[0].ready && advice[0].edits.is_empty(), "{file} {more}: {:?}", advice[0]);
    }
}

#[test]
fn dotnet_restores_from_project_files() {
    let text = "FROM sdk:9\nWORKDIR /src\nCOPY . .\nRUN dotnet publish -o /app\n";
    let before = |files: &[(&str, u64)]| {
        let better = proposed(text, &context(files, &[]));
        better.lines().nth(2).unwrap_or_default().to_owned()
    };
    assert_eq!(before(&[("web.csproj", 1), ("NuGet.config", 1), ("Program.cs", 1)]), "COPY web.csproj NuGet.config ./");
    let solution = [("all.sln", 1), ("a/a.csproj", 1), ("b/b.fsproj", 1)];
    assert_eq!(before(&solution), "COPY --parents all.sln a/a.csproj b/b.fsproj ./");
    assert_eq!(before(&[("a.csproj", 1), ("b.csproj", 1)]), "COPY . .", "which of the two is not known");
    let better = proposed(text, &context(&solution, &[]));
    assert!(better.contains("target=/root/.nuget/packages dotnet restore\nCOPY . .\n"), "{better}");
    assert_eq!(found(&better, &context(&solution, &[])), []);
}

#[test]
fn every_installer_is_to_have_a_cache() {
    for (command, target) in [
        ("apt-get update && apt-get install -y x", "/var/lib/apt"),
        ("apk add --no-cache x", "/etc/apk/cache"),
        ("dnf install -y x && dnf clean all", "/var/cache/dnf"),
        ("pip install x", "/root/.cache/pip"),
        ("uv sync", "/root/.cache/uv"),
        ("poetry install", "/root/.cache/pypoetry"),
        ("npm ci", "/root/.npm"),
        ("pnpm install", "/root/.local/share/pnpm/store"),
        ("yarn install", "/usr/local/share/.cache/yarn"),
        ("cargo build", "/usr/local/cargo/registry"),
        ("go build ./...", "/go/pkg/mod"),
        ("mvn package", "/root/.m2"),
        ("gradle build", "/root/.gradle"),
        ("composer install", "/root/.cache/composer"),
        ("bundle install", "/usr/local/bundle/cache"),
        ("dotnet restore", "/root/.nuget/packages"),
    ] {
        let text = format!("FROM base:1\nRUN {command}\n");
        let none = ContextView::default();
        assert_eq!(found(&text, &none), [("cache-mount", 2)], "{command}");
        let better = proposed(&text, &none);
        assert!(better.contains(&format!("target={target}")), "{better}");
        assert_eq!(found(&better, &none), [], "{better}");
    }
    let apt = "FROM debian:13\nRUN apt-get update \\\n && apt-get install -y x \\\n && rm -rf /var/lib/apt/lists/*\n";
    let want = "FROM debian:13\nRUN --mount=type=cache,target=/var/cache/apt,sharing=locked \\\n    \
                --mount=type=cache,target=/var/lib/apt,sharing=locked \\\n    \
                rm -f /etc/apt/apt.conf.d/docker-clean && apt-get update \\\n && apt-get install -y x\n";
    assert_eq!(proposed(apt, &ContextView::default()), want);
}

#[test]
fn lists_are_updated_where_packages_are_installed() {
    let text = "FROM debian:13\nRUN apt-get update\nRUN --mount=type=cache,target=/var/lib/apt apt-get install -y x\n";
    let none = ContextView::default();
    assert_eq!(found(text, &none), [("update-alone", 2)]);
    let want = "FROM debian:13\nRUN --mount=type=cache,target=/var/lib/apt apt-get update && apt-get install -y x\n";
    assert_eq!(proposed(text, &none), want);
}

#[test]
fn what_only_builds_is_not_shipped() {
    let none = ContextView::default();
    let gcc = "FROM debian:13\nRUN --mount=type=cache,target=/var/lib/apt apt-get install -y gcc libc6-dev curl\nCMD [\"x\"]\n";
    assert_eq!(found(gcc, &none), [("build-tools", 2)]);
    let go = "FROM golang:1.24\nRUN --mount=type=cache,target=/go/pkg/mod go build -o /x .\nCMD [\"/x\"]\n";
    let advice = advise(&file(go), &none);
    assert_eq!((advice.len(), advice[0].topic.name), (1, "build-tools"));
    let new = apply(go, &advice[0].edits, Target::Dockerfile);
    assert!(new.starts_with("FROM golang:1.24 AS build\n") && new.contains("COPY --from=build "), "{new}");
    let purged =
        "FROM alpine:3\nRUN --mount=type=cache,target=/etc/apk/cache apk add gcc && make && apk del gcc\nCMD [\"x\"]\n";
    assert_eq!(found(purged, &none), []);
}

#[test]
fn secrets_are_mounted() {
    let text = "FROM a:1\nARG API_TOKEN\nRUN fetch --token=$API_TOKEN\nENV KEY_FILE=/k\n";
    let advice = advise(&file(text), &ContextView::default());
    assert_eq!((advice.len(), advice[0].topic.name), (1, "secret-in-image"));
    let want =
        "FROM a:1\nRUN --mount=type=secret,id=api_token,env=API_TOKEN fetch --token=$API_TOKEN\nENV KEY_FILE=/k\n";
    assert_eq!(apply(text, &advice[0].edits, Target::Dockerfile), want);
}

#[test]
fn add_is_for_what_copy_cannot() {
    let text = "FROM a:1\nADD --chown=1:1 src /src\nADD x.tar.gz /\nADD --checksum=sha256:00 https://e.org/x /\n";
    let none = ContextView::default();
    assert_eq!(found(text, &none), [("add-for-copy", 2)]);
    assert!(proposed(text, &none).contains("\nCOPY --chown=1:1 src /src\nADD x.tar.gz /\n"));
}

#[test]
fn versions_are_named() {
    let text = "FROM debian\nFROM busybox:latest AS b\nFROM b\nFROM scratch\nFROM a:1\nADD https://e.org/x /\nADD https://e.org/x.git#main /\n\
                COPY --from=tools /x /\nCOPY --from=b /x /\n";
    let lines: Vec<u32> = advise(&file(text), &ContextView::default()).iter().map(|a| a.lines.first).collect();
    assert_eq!(lines, [1, 2, 6, 7, 8]);
}

#[test]
fn the_context_is_looked_at() {
    let text = "FROM a:1\nCOPY . /src\n";
    let view = context(
        &[
            ("node_modules/x/y.js", 3 << 20),
            (".git/objects/a", 2 << 20),
            ("target/small", 9),
            ("cache/index.json", 1),
            ("cache/blobs/sha256/aa", 1),
            ("deploy/.env", 1),
            (".env.example", 1),
        ],
        &[],
    );
    let advice = advise(&file(text), &view);
    let topics: Vec<&str> = advice.iter().map(|a| a.topic.name).collect();
    assert_eq!(topics, ["ignored-worthy", "ignored-worthy", "secret-in-context", "secret-in-context"]);
    let (same, ignore) = propose(&file(text).source, &view);
    assert_eq!((same.as_str(), ignore.as_str()), (text, ".git\nnode_modules\ncache\ndeploy/.env\n"));
    assert_eq!(found("FROM a:1\nCOPY src /src\n", &view), []);
}

#[test]
fn development_dependencies_are_left_out() {
    let view = context(&[], &[("package.json", "{\"devDependencies\": {\"jest\": \"1\"}}")]);
    let text =
        "FROM node:22\nCOPY package.json ./\nRUN --mount=type=cache,target=/root/.npm npm ci\nCMD [\"node\", \"x\"]\n";
    assert_eq!(found(text, &view), [("dev-dependencies", 3)]);
    let better = proposed(text, &view);
    assert!(better.contains("npm ci --omit=dev\n"), "{better}");
    assert_eq!(found(&better, &view), []);
    assert_eq!(found(&text.replace("RUN", "ENV NODE_ENV=production\nRUN"), &view), []);
    assert_eq!(found(&text.replace("npm ci", "npm ci && npm run build"), &view), []);
    let pip = "FROM python:3\nRUN --mount=type=cache,target=/root/.cache/pip pip install -r a.txt -r requirements-dev.txt\nCMD [\"x\"]\n";
    assert_eq!(found(pip, &view), [("dev-dependencies", 2)]);
}

#[test]
fn platforms_are_thought_of() {
    let text = "FROM golang:1 AS build\nRUN --mount=type=cache,target=/go/pkg/mod go build -o /x .\nFROM scratch\nCOPY --from=build /x /\n";
    assert_eq!(found(text, &ContextView::default()), []);
    let foreign = ContextView { foreign: true, ..ContextView::default() };
    let advice = advise(&file(text), &foreign);
    assert_eq!((advice.len(), advice[0].topic.name), (1, "emulated"));
    let better = apply(text, &advice[0].edits, Target::Dockerfile);
    assert!(
        better.starts_with("FROM --platform=$BUILDPLATFORM golang:1 AS build\nARG TARGETOS TARGETARCH\nRUN"),
        "{better}"
    );
    assert_eq!(found(&better, &foreign), []);
    let native = text.replace("FROM golang", "FROM --platform=$BUILDPLATFORM golang");
    assert_eq!(found(&native, &ContextView::default()), [("native-output", 2)]);
}

#[test]
fn well_written_files_are_left_alone() {
    let text = "# syntax=docker/dockerfile:1\nFROM node:22 AS build\nWORKDIR /app\n\
                COPY package.json package-lock.json ./\nRUN --mount=type=cache,target=/root/.npm npm ci\nCOPY . .\n\
                RUN npm run build\nFROM node:22\nWORKDIR /app\nCOPY package.json package-lock.json ./\n\
                RUN --mount=type=cache,target=/root/.npm npm ci --omit=dev\nCOPY --from=build /app/dist dist\nUSER node\n\
                CMD [\"node\", \"dist/main.js\"]\n";
    let view =
        context(&[("package-lock.json", 1)], &[("package.json", "{\"devDependencies\": {\"typescript\": \"5\"}}")]);
    assert_eq!(found(text, &view), []);
}
