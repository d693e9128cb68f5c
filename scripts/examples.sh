#!/usr/bin/env bash
# Builds the projects of examples/ as people do over a day: cold, again, after a source edit, after a dependency edit and
# with --no-cache. Checks which steps were cached, runs each result with `kiln run`, and reads it back with other tools.
#
# Needs Debian 12, git, gcc, a Rust toolchain and the package registries; takes ten minutes or more. Names of examples as
# arguments build only those. EXAMPLES_DIR keeps everything it makes, KILN is a program to use instead of building one,
# EXAMPLES_BASE an OCI layout of a Debian root (with ca-certificates) to use instead of making one.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh
work=${EXAMPLES_DIR:-$PWD/target/examples}
mkdir -p "$work"

packages=(mmdebstrap skopeo umoci runc ca-certificates python3)
mapfile -t missing < <(missing_packages "${packages[@]}")
if [ "${#missing[@]}" -gt 0 ]; then
    echo "== installing ${missing[*]}"
    install_packages "${missing[@]}"
fi

if [ -z "${KILN:-}" ]; then
    echo "== building kiln"
    cargo build --locked --release -p kiln
    KILN=$PWD/target/release/kiln
fi

base=${EXAMPLES_BASE:-$work/debian}
if [ ! -f "$base/oci-layout" ]; then
    echo "== a Debian root from packages, as an OCI layout"
    mkdir -p "$work/base"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$work/base/debian.tar.part"
    mv "$work/base/debian.tar.part" "$work/base/debian.tar"
    printf 'FROM scratch\nADD debian.tar /\nCMD ["bash"]\n' > "$work/base/Dockerfile"
    KILN_ROOT=$work/root "$KILN" build -t debian:bookworm-slim -o "type=oci,dest=$base,tar=false" "$work/base"
fi

exec python3 scripts/examples.py --kiln "$KILN" --base "$base" --work "$work" "$@"
