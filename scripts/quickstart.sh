#!/usr/bin/env bash
# From nothing to a running image: builds kiln, makes a Debian base image from packages, builds a small Python service
# on it (its step installs from a package registry), and shows the result.
#
# Needs Debian 12, git, gcc and a Rust toolchain; installs the rest. Everything it makes lies below QUICKSTART_DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/packages.sh
work=${QUICKSTART_DIR:-$PWD/target/quickstart}

packages=(mmdebstrap skopeo umoci runc ca-certificates)
mapfile -t missing < <(missing_packages "${packages[@]}")
if [ "${#missing[@]}" -gt 0 ]; then
    echo "== installing ${missing[*]}"
    install_packages "${missing[@]}"
fi

echo "== building kiln"
cargo build --locked --release -p kiln
kiln=$PWD/target/release/kiln

mkdir -p "$work/base" "$work/app"
export KILN_ROOT=$work/root
if [ ! -f "$work/base/debian.tar" ]; then
    echo "== a Debian root from packages"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-pip bookworm "$work/base/debian.tar.part"
    mv "$work/base/debian.tar.part" "$work/base/debian.tar"
fi

echo "== the base image: an archive becomes an OCI layout"
cat > "$work/base/Dockerfile" <<'DOCKERFILE'
FROM scratch
ADD debian.tar /
CMD ["bash"]
DOCKERFILE
rm -rf "$work/debian"
"$kiln" build -t debian:bookworm -o "type=oci,dest=$work/debian,tar=false" "$work/base"

echo "== the application image: FROM debian:bookworm, with packages from a registry"
cat > "$work/app/Dockerfile" <<'DOCKERFILE'
FROM debian:bookworm AS deps
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    pip install --break-system-packages --root-user-action=ignore --target /deps humanize

FROM debian:bookworm
COPY --from=deps /deps /app
COPY hello.py /app/
WORKDIR /app
CMD ["python3", "hello.py"]
DOCKERFILE
cat > "$work/app/hello.py" <<'PYTHON'
import os
import humanize

layers = sum(f.stat().st_size for f in os.scandir("/app") if f.is_file())
print("hello from an image built by kiln;", humanize.naturalsize(layers), "of it is this program")
PYTHON
"$kiln" build -t hello:latest --build-ca=auto \
    --build-context "debian:bookworm=oci-layout://$work/debian" \
    -o "type=oci,dest=$work/hello.tar" "$work/app"

echo "== what was built"
skopeo inspect --format '{{.Digest}} {{.Architecture}} {{len .Layers}} layers' "oci-archive:$work/hello.tar"

echo "== and it runs"
rm -rf "$work/run" "$work/hello"
skopeo copy --quiet "oci-archive:$work/hello.tar" "oci:$work/hello:latest"
umoci unpack --image "$work/hello:latest" "$work/run" >/dev/null 2>&1
sed -i 's/"terminal": true/"terminal": false/' "$work/run/config.json"
runc run --bundle "$work/run" "kiln-quickstart-$$"
