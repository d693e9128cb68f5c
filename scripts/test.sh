#!/usr/bin/env bash
# Installs what the tests need and runs all of them: format, lints, repository rules, unit, end-to-end.
# On a fresh Debian 12 with git, gcc and a Rust toolchain this is all the set-up there is.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh

# Programs that some tests use as peers; a test whose peer is missing says so and is skipped.
packages=(busybox-static skopeo umoci runc crun docker-registry mmdebstrap xz-utils bzip2 xfsprogs
          openssh-client git ca-certificates python3 buildah podman)
mapfile -t missing < <(missing_packages "${packages[@]}")
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        install_packages "${missing[@]}"
    else
        echo "not installed, their tests will be skipped: ${missing[*]}" >&2
    fi
fi

# Stores of objects that others wrote, where there is npm; without them the test kit's own servers have to do.
peers=$PWD/target/peers
if command -v npm >/dev/null; then
    mkdir -p "$peers"
    [ -e "$peers/node_modules/.bin/azurite-blob" ] ||
        npm install --prefix "$peers" --silent --no-audit --no-fund azurite@3 s3rver@3 >&2 ||
        echo "azurite and s3rver cannot be had, their tests will be skipped" >&2
fi
export PATH=$PATH:$peers/node_modules/.bin

step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

step "format"
cargo fmt --all --check
step "clippy"
cargo clippy --locked --workspace --all-targets --release -- -D warnings
step "build"
cargo build --locked --release --workspace --all-targets
step "tests"
# The release profile: end-to-end tests drive the program that users get. Compiled once for everything.
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --release --workspace --no-fail-fast
else
    cargo test --locked --release --workspace --no-fail-fast
fi
step "done"
