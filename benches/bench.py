#!/usr/bin/env python3
"""Times kiln against other builders, scenario by scenario, in one run on one machine.

usage: benches/bench.py [--runs N] [--only NAME] [--kiln PATH] [--buildkit SOCKET] [--without-buildah]

Each scenario is run once to warm up and then N times per builder, in turn, so that a machine that slows down slows
all of them. Printed are median seconds, the range, and the ratio to kiln. `buildah` is used when it is on PATH;
BuildKit when `--buildkit` names a daemon's socket and `buildctl` is on PATH. The numbers are for reading, never
asserted: counters in the tests guard the behaviour behind them.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent


def run(command, env=None):
    """Runs a command silently and returns the seconds it took; a failure ends the benchmark with its output."""
    start = time.perf_counter()
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout.decode(errors='replace')}")
    return seconds


def write_files(directory, count, size=2048):
    """Makes `count` files of `size` bytes of text in directories of 100."""
    for number in range(count):
        path = directory / f"d{number // 100:04}" / f"f{number:06}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((f"{number} " * size)[:size])


def busybox_layout(work):
    """Makes an OCI layout of a static busybox root and returns its path."""
    root, layout = work / "bb", work / "layout"
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for name in ("sh", "true", "cat", "ls", "sleep", "echo", "mkdir"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    subprocess.run(["tar", "-C", root, "-cf", work / "bb.tar", "."], check=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["umoci", "init", "--layout", layout], check=True, **quiet)
    subprocess.run(["umoci", "new", "--image", f"{layout}:latest"], check=True, **quiet)
    subprocess.run(["umoci", "raw", "add-layer", "--image", f"{layout}:latest", work / "bb.tar"], check=True, **quiet)
    subprocess.run(["umoci", "config", "--image", f"{layout}:latest", "--config.env", "PATH=/bin"], check=True, **quiet)
    return layout


class Kiln:
    name = "kiln"

    def __init__(self, binary, work, layout):
        self.binary, self.work, self.layout, self.roots = binary, work, layout, 0
        self.env = dict(os.environ, KILN_ROOT=str(work / "kiln-root"))

    def build(self, context, extra=()):
        return run([self.binary, "build", "--progress=quiet", "--build-context", f"base=oci-layout://{self.layout}",
                    "-o", "type=cacheonly", *extra, context], self.env)

    def reset(self):
        subprocess.run([self.binary, "daemon", "stop"], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Another root, and the old one kept until the end: ext4 is slow to make files where many were just deleted.
        self.roots += 1
        self.env["KILN_ROOT"] = str(self.work / f"kiln-root{self.roots}")
        run([self.binary, "build", "--progress=quiet", "-o", "type=cacheonly", "--build-context",
             f"base=oci-layout://{self.layout}", str(HERE / "warm")], self.env)


class Buildah:
    name = "buildah"

    def __init__(self, work, layout):
        self.storage = ["--root", str(work / "buildah-root"), "--runroot", str(work / "buildah-run")]
        self.layout = layout
        self.base = None

    def build(self, context, extra=()):
        extra = [a for a in extra if a == "--no-cache"]
        if self.base is None:
            self.pull()
        return run(["buildah", *self.storage, "build", "--layers", "--isolation=chroot", "--pull-never",
                    "--build-context", f"base=docker-image://{self.base}", *extra, context])

    def reset(self):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["buildah", *self.storage, "rmi", "-a", "-f"], **quiet)
        self.pull()

    def pull(self):
        pulled = subprocess.run(["buildah", *self.storage, "pull", "-q", f"oci:{self.layout}:latest"],
                                check=True, stdout=subprocess.PIPE, text=True)
        self.base = pulled.stdout.split()[-1]


class BuildKit:
    name = "buildkit"

    def __init__(self, socket, layout):
        self.command = ["buildctl", "--addr", f"unix://{socket}"]
        self.layout = layout
        index = __import__("json").loads((layout / "index.json").read_text())
        self.digest = index["manifests"][0]["digest"]

    def build(self, context, extra=()):
        extra = ["--no-cache"] if "--no-cache" in extra else []
        return run([*self.command, "build", "--progress=plain", "--frontend=dockerfile.v0", "--local", f"context={context}",
                    "--local", f"dockerfile={context}", "--oci-layout", f"base={self.layout}",
                    "--opt", f"context:base=oci-layout://base@{self.digest}", *extra])

    def reset(self):
        run([*self.command, "prune", "--all"])


def scenarios(work):
    """Yields name, context directory, arguments, and what to do before each timed build."""
    noop = work / "noop"
    write_files(noop / "src", 10_000)
    (noop / "Dockerfile").write_text("FROM base\nCOPY src /src\nRUN true\n")
    yield "no-op, 10,000-file context", noop, (), None

    edited = work / "edited"
    write_files(edited / "src", 10_000)
    (edited / "Dockerfile").write_text("FROM base\nCOPY . /src\n")
    counter = iter(range(10**6))
    yield "one of 10,000 files changed", edited, (), lambda: (edited / "src/d0000/f000000.txt").write_text(
        f"edit {next(counter)} {time.time_ns()}")

    steps = work / "steps"
    steps.mkdir()
    (steps / "Dockerfile").write_text("FROM base\n" + "RUN true\n" * 50)
    yield "50 x RUN true, uncached", steps, ("--no-cache",), None

    trivial = work / "trivial"
    trivial.mkdir()
    (trivial / "Dockerfile").write_text("FROM base\nRUN true\n")
    yield "trivial, cached", trivial, (), None

    sleepers = work / "sleepers"
    sleepers.mkdir()
    stages = "".join(f"FROM base AS s{n}\nRUN sleep 1 && echo {n} > /out{n}\n" for n in range(8))
    copies = "".join(f"COPY --from=s{n} /out{n} /\n" for n in range(8))
    (sleepers / "Dockerfile").write_text(f"{stages}FROM base\n{copies}")
    yield "8 stages of sleep 1", sleepers, ("--no-cache",), None


def first_context(work):
    """A context of 20,000 files that the builder has never seen: a copy with new inodes for each build."""
    original = work / "first"
    write_files(original / "src", 20_000)
    (original / "Dockerfile").write_text("FROM base\nCOPY src /src\n")
    return original


def measure(builders, runs, build):
    times = {builder.name: [] for builder in builders}
    for turn in range(runs + 1):
        for builder in builders:
            seconds = build(builder)
            if turn > 0:
                times[builder.name].append(seconds)
    return times


def show(name, times):
    base = statistics.median(times["kiln"])
    parts = [f"{n} {statistics.median(t):.3f} s ({min(t):.3f}..{max(t):.3f})" + ("" if n == "kiln" else
             f" = {statistics.median(t) / base:.1f}x") for n, t in times.items()]
    print(f"{name:32} {'  '.join(parts)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--kiln", default=str(HERE.parent / "target/release/kiln"))
    parser.add_argument("--buildkit", default="")
    parser.add_argument("--without-buildah", action="store_true")
    options = parser.parse_args()
    # buildah makes an image name of the path, which some random names are not fit for.
    work = pathlib.Path(tempfile.gettempdir()) / f"kiln-bench-{os.getpid()}"
    work.mkdir()
    builders = []
    try:
        compare(options, work, builders)
    finally:
        for builder in builders[:1]:
            subprocess.run([options.kiln, "daemon", "stop"], env=builder.env, stdout=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)


def compare(options, work, builders):
    layout = busybox_layout(work)
    builders.append(Kiln(options.kiln, work, layout))
    if shutil.which("buildah") and not options.without_buildah:
        builders.append(Buildah(work, layout))
    if options.buildkit and shutil.which("buildctl"):
        builders.append(BuildKit(options.buildkit, layout))
    for name, context, extra, before in scenarios(work):
        if options.only not in name:
            continue
        def build(builder):
            if before:
                before()
            return builder.build(str(context), extra)
        show(name, measure(builders, options.runs, build))
    if options.only in "first context of 20,000 files":
        original = first_context(work)
        copies = iter(range(10**6))
        def fresh(builder):
            builder.reset()
            copy = work / f"first-copy{next(copies)}"
            shutil.copytree(original, copy)
            return builder.build(str(copy))
        show("first context of 20,000 files", measure(builders, min(options.runs, 3), fresh))


if __name__ == "__main__":
    main()
