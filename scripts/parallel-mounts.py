#!/usr/bin/env python3
"""Two builds at once that share their cache mounts, under apt, pip, npm and cargo, for each way of sharing.

usage: scripts/parallel-mounts.py [--kiln PATH] [--base LAYOUT] [--rounds N]

Both builds fetch other packages of each manager into the same mounts: with `shared` and `private` at the same time, which
they make sure of by waiting for each other, with `locked` and `private` each alone in its directories, which they check.
Every build has to succeed; afterwards steps look at the mounts without a network: what each manager keeps there has to be
whole, and what every build noted has to be there, with `private` in two directories that were used again. `LAYOUT` is an
OCI layout of a Debian 12 root, tag latest; without it one is made by mmdebstrap and umoci. The package registries have to
be reachable.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent

TOOLS = """FROM base AS tools
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip npm cargo-web gcc libc6-dev ca-certificates \\
 && rm -rf /var/lib/apt/lists/* && rm -f /etc/apt/apt.conf.d/docker-clean
"""
MOUNTS = " ".join(f"--mount=type=cache,id={name}-$SHARING,target={target},sharing=$SHARING" for name, target in [
    ("lists", "/var/lib/apt/lists"), ("debs", "/var/cache/apt"), ("pip", "/root/.cache/pip"), ("npm", "/root/.npm"),
    ("cargo", "/root/.cargo/registry"), ("target", "/target"), ("notes", "/notes")])
MOUNTS += " --mount=type=cache,id=meet,target=/meet"
# Steps wait for those of the other build; not with `locked`, where the other one cannot begin.
MEET = """if [ $SHARING != locked ]; then touch /meet/$SHARING.$ROUND.$WHO; \\
   until [ "$(ls /meet/$SHARING.$ROUND.* | wc -l)" = 2 ]; do sleep 0.1; done; fi"""
# SHARING is an argument, which is in the key of a step: what a cache mount is called and how it is shared are not (nor with
# BuildKit). Without it the steps of the second way of sharing came from the cache of the first and left their mounts empty.
# apt takes its locks itself and gives up at once when another has them.
WORK = TOOLS + """FROM tools
ARG WHO ROUND SHARING
COPY $WHO /work
WORKDIR /work
RUN $MOUNTS set -e; $MEET; if [ $SHARING != shared ]; then mkdir /notes/alone; fi; echo "$WHO $ROUND" >> /notes/$WHO; \\
 until apt-get -o APT::Keep-Downloaded-Packages=true update 2>/tmp/e; do grep -q "get lock" /tmp/e || { cat /tmp/e; exit 1; }; sleep 0.2; done; \\
 until apt-get -o APT::Keep-Downloaded-Packages=true install -y --no-install-recommends $(cat debs) 2>/tmp/e; do \\
   grep -q "get lock" /tmp/e || { cat /tmp/e; exit 1; }; sleep 0.2; done; \\
 pip install -q --break-system-packages --no-build-isolation --use-pep517 --target /out -r pip; \\
 npm install --no-audit --no-fund --prefix /out $(cat npm); \\
 CARGO_TARGET_DIR=/target cargo build -q; CARGO_TARGET_DIR=/target cargo run -q; sort /notes/$WHO | uniq -d | wc -l | grep -qx 0; \\
 if [ $SHARING != shared ]; then rmdir /notes/alone; fi
"""
# Steps that look at once see both directories of a `private` mount.
LOOK = TOOLS + """FROM tools
ARG WHO ROUND SHARING NOTES
RUN --network=none $MOUNTS set -e; cat /notes/* > /meet/seen.$SHARING.$ROUND.$WHO || :; $MEET; \\
 for deb in /var/cache/apt/archives/*.deb; do dpkg-deb --contents $deb > /dev/null; done; \\
 npm cache verify > /tmp/npm; cat /tmp/npm; if grep -iE 'corrupt|missing' /tmp/npm; then exit 1; fi; \\
 python3 -c "import pathlib, zipfile; wheels = list(pathlib.Path('/root/.cache/pip/wheels').rglob('*.whl')); \\
assert any('docopt' in w.name for w in wheels), wheels; assert not any(zipfile.ZipFile(w).testzip() for w in wheels), wheels"; \\
 for c in /root/.cargo/registry/cache/*/*.crate; do tar tzf $c > /dev/null; done; \\
 sort /meet/seen.$SHARING.$ROUND.* | uniq > /tmp/seen; cat /tmp/seen; test "$(wc -l < /tmp/seen)" = "$NOTES"
"""
# The packages for pip are sources alone: it keeps the wheels that it makes of them, but answers only if the registry lets it.
PACKAGES = {
    "one": {"debs": "tree file", "pip": "docopt==0.6.2\ntermcolor==1.1.0\n", "npm": "is-number@7.0.0 lodash@4.17.21",
            "crates": 'itoa = "=1.0.9"\nryu = "=1.0.15"\n'},
    "two": {"debs": "less jq", "pip": "docopt==0.6.2\npyperclip==1.8.2\n", "npm": "is-number@7.0.0 chalk@4.1.2",
            "crates": 'itoa = "=1.0.9"\nfastrand = "=2.0.0"\n'},
}


def layout(work):
    """Makes the base image."""
    tar = work / "root.tar"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", tar], check=True)
    made = work / "layout"
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    subprocess.run(["umoci", "init", "--layout", made], **quiet)
    subprocess.run(["umoci", "new", "--image", f"{made}:latest"], **quiet)
    subprocess.run(["umoci", "raw", "add-layer", "--image", f"{made}:latest", tar], **quiet)
    return made


def context(work):
    """Writes what each of the two builds installs."""
    made = work / "context"
    for who, packages in PACKAGES.items():
        folder = made / who
        (folder / "src").mkdir(parents=True)
        for name in ("debs", "pip", "npm"):
            (folder / name).write_text(packages[name])
        (folder / "Cargo.toml").write_text(f'[package]\nname = "{who}"\nversion = "0.1.0"\n[dependencies]\n{packages["crates"]}')
        (folder / "src/main.rs").write_text('fn main() { println!("{}", itoa::Buffer::new().format(7u8)); }\n')
    return made


class Builder:
    def __init__(self, options, work):
        self.kiln, self.work, self.context = options.kiln, work, context(work)
        self.base = options.base or layout(work)
        self.env = dict(os.environ, KILN_ROOT=str(work / "root"))

    def start(self, name, dockerfile, sharing, **arguments):
        """Starts a build and returns it with the file of its output."""
        path = self.work / f"Dockerfile.{name}"
        path.write_text(dockerfile.replace("$MOUNTS", MOUNTS).replace("$MEET", MEET))
        log = open(self.work / f"{name}.log", "w+")
        given = [f"--build-arg={key}={value}" for key, value in (arguments | {"SHARING": sharing}).items()]
        command = [self.kiln, "build", "--progress=plain", "--build-ca=auto", "-o", "type=cacheonly", "--build-context",
                   f"base=oci-layout://{self.base}", *given, "-f", path, self.context]
        return subprocess.Popen(command, env=self.env, stdout=log, stderr=subprocess.STDOUT), log

    def wait(self, process, log):
        """Ends everything with the output of a build that fails or hangs."""
        try:
            code = process.wait(timeout=1500)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "nothing for 25 minutes"
        if code != 0:
            log.seek(0)
            sys.exit(f"{log.read()[-6000:]}\n{log.name}: {code}")
        log.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", default=str(HERE.parent / "target/release/kiln"))
    parser.add_argument("--base", default="")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="kiln-mounts-"))
    builder = Builder(options, work)
    try:
        builder.wait(*builder.start("tools", TOOLS, "shared"))
        for sharing in ("locked", "shared", "private"):
            start = time.monotonic()
            for number in range(options.rounds):
                both = [builder.start(who, WORK, sharing, WHO=who, ROUND=number) for who in PACKAGES]
                for one in both:
                    builder.wait(*one)
            looks = ["a"] if sharing == "locked" else ["a", "b"]
            now, notes = f"look{time.time_ns()}", 2 * options.rounds
            both = [builder.start(f"look-{who}", LOOK, sharing, WHO=who, ROUND=now, NOTES=notes) for who in looks]
            for one in both:
                builder.wait(*one)
            print(f"{sharing:8} {options.rounds} pairs of builds: whole, {time.monotonic() - start:.0f} s", flush=True)
    finally:
        subprocess.run([options.kiln, "daemon", "stop"], env=builder.env, stdout=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
