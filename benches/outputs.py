#!/usr/bin/env python3
"""Times what leaves and enters the builder: archives, directories, pushes, pulls, copies between stages, runs.

usage: benches/outputs.py [--runs N] [--only NAME] [--megabytes N] [--kiln PATH] [--buildkit SOCKET]

The image is one layer of files of this host's /usr. Before each timed output a file in it changes and the build runs
without an output, so that the layer exists and nothing of it is compressed yet. Pulls go into an empty state root and
unpack. Printed are median seconds, the range, and the ratio to kiln; at the end the memory of kiln's engine and its
helpers at their peaks. BuildKit takes part when `--buildkit` names a daemon's socket and `buildctl` is on PATH.
"""

import argparse
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from bench import BuildKit, HERE, Kiln, busybox_layout, measure, run, show, write_files


def write_root(directory, megabytes):
    """Copies files of /usr until they have the given size; returns it in bytes."""
    left, seen = megabytes * 1_000_000, set()
    for top in ("bin", "lib", "share"):
        for path, _, names in os.walk(f"/usr/{top}"):
            for name in names:
                file = pathlib.Path(path, name)
                found = file.lstat()
                if file.is_symlink() or not file.is_file() or found.st_ino in seen or found.st_size > left:
                    continue
                seen.add(found.st_ino)
                left -= found.st_size
                goal = directory / file.relative_to("/")
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, goal)
    return megabytes * 1_000_000 - left


class Registry:
    """Debian's docker-registry on loopback, with its state in a directory of its own."""

    def __init__(self, work):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.host = f"127.0.0.1:{port}"
        config = work / "registry.yml"
        config.write_text(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {work}/registry}}}}\n"
                          f"http: {{addr: {self.host}}}\n")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(["docker-registry", "serve", str(config)], **quiet)
        deadline = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            if time.monotonic() > deadline:
                sys.exit("the registry does not start")
            time.sleep(0.05)


def output(builder, context, attributes, extra=()):
    """Builds with one output and returns the seconds."""
    if isinstance(builder, Kiln):
        return run([builder.binary, "build", "--progress=quiet", "--build-context",
                    f"base=oci-layout://{builder.layout}", "-o", attributes, *extra, context], builder.env)
    flags = [part for argument in extra for part in ("--opt", argument.removeprefix("--").replace("build-arg=", "build-arg:"))]
    # Its insecure registries have to be said so at each push.
    insecure = ",registry.insecure=true" if "push=true" in attributes else ""
    return run([*builder.command, "build", "--progress=plain", "--frontend=dockerfile.v0", "--local", f"context={context}",
                "--local", f"dockerfile={context}", "--oci-layout", f"base={builder.layout}", "--opt",
                f"context:base=oci-layout://base@{builder.digest}", "--output", attributes + insecure, *flags])


def outputs(builders, options, work, registry):
    """Times every output of the root."""
    context = work / "root"
    size = write_root(context, options.megabytes)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    count = iter(range(10**6))
    for name, attributes in [
        ("archive, gzip", "type=oci,dest={out},compression=gzip"),
        ("archive, zstd", "type=oci,dest={out},compression=zstd"),
        ("archive, uncompressed", "type=oci,dest={out},compression=uncompressed"),
        ("local directory", "type=local,dest={out}"),
        ("push, gzip", f"type=image,name={registry.host}/bench/{{n}},push=true,compression=gzip"),
    ]:
        if options.only not in name:
            continue

        def timed(builder):
            n = next(count)
            (context / "usr/changed").write_text(f"{n} {time.time_ns()}")
            builder.build(str(context))
            out = work / f"out{n}"
            seconds = output(builder, str(context), attributes.format(out=out, n=f"{builder.name}{n}"))
            if out.is_dir():
                shutil.rmtree(out)
            elif out.exists():
                out.unlink()
            return seconds

        show(f"{name} of {size / 1e6:.0f} MB", measure(builders, options.runs, timed))


def pulls(builders, options, work, registry):
    """Times pulling and unpacking the root, beside what the plain tools take."""
    context = work / "root"
    if not (context / "usr/changed").exists():
        (context / "usr/changed").write_text("0")
    for kind, tool in (("gzip", "gzip"), ("zstd", "zstd")):
        name = f"pull and unpack, {kind}"
        if options.only not in name:
            continue
        image = f"{registry.host}/bench/pull-{kind}"
        output(builders[0], str(context), f"type=image,name={image},push=true,compression={kind},force-compression=true")
        pulling = work / f"pull-{kind}"
        pulling.mkdir()
        # One small file of it: a mount of the whole would have its content hashed once more, for the cache.
        (pulling / "Dockerfile").write_text(f"FROM {image} AS pulled\nFROM base\nCOPY --from=pulled /usr/changed /\n")

        def timed(builder):
            builder.reset()
            return builder.build(str(pulling))

        times = measure(builders, options.runs, timed)
        show(name, times)
        blobs = sorted((work / "registry").rglob("data"), key=lambda path: path.stat().st_mtime)
        blob = max(blobs[-4:], key=lambda path: path.stat().st_size)
        seconds = []
        for turn in range(options.runs + 1):
            out = work / f"unpacked-{kind}-{turn}"
            out.mkdir()
            seconds.append(run(["sh", "-c", f"{tool} -dc < {blob} | tar x -C {out}"]))
        print(f"{'':32} {tool} -d and tar x: {sorted(seconds[1:])[len(seconds[1:]) // 2]:.3f} s", flush=True)


def copies(builders, options, work):
    """Times a copy of 20,000 files from another stage."""
    name = "COPY --from, 20,000 files"
    if options.only not in name:
        return
    context = work / "copies"
    write_files(context / "src", 20_000)
    (context / "Dockerfile").write_text("FROM base AS files\nCOPY src /src\nFROM base\nARG N\nCOPY --from=files /src /to/$N\n")
    count = iter(range(10**6))
    show(name, measure(builders, options.runs,
                       lambda b: output(b, str(context), "type=cacheonly" if b.name == "kiln" else
                                        f"type=image,name=copied,unpack=false", (f"--build-arg=N={next(count)}",))))


def memory(kiln):
    """Prints the peaks of the engine and what it started, from /proc."""
    root = kiln.env["KILN_ROOT"].encode()
    total = 0
    for entry in pathlib.Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if root in words or words[0] == b"kiln-sandbox-init":
            peak, now = (int(status[key].split()[0]) / 1024 for key in ("VmHWM", "VmRSS"))
            total += peak
            print(f"memory of process {entry.name} ({words[0].decode()}): peak {peak:.0f} MiB, now {now:.0f} MiB")
    print(f"memory at the peaks together: {total:.0f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--megabytes", type=int, default=477)
    parser.add_argument("--kiln", default=str(HERE.parent / "target/release/kiln"))
    parser.add_argument("--buildkit", default="")
    options = parser.parse_args()
    # What was started and written goes away also when time is up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    work = pathlib.Path(tempfile.gettempdir()) / f"kiln-outputs-{os.getpid()}"
    work.mkdir()
    registry = Registry(work)
    layout = busybox_layout(work)
    builders = [Kiln(options.kiln, work, layout)]
    if options.buildkit and shutil.which("buildctl"):
        builders.append(BuildKit(options.buildkit, layout))
    try:
        copies(builders, options, work)
        outputs(builders, options, work, registry)
        memory(builders[0])
        pulls(builders, options, work, registry)
        name = "kiln run true"
        if options.only in name:
            kiln = builders[0]
            context = work / "run"
            context.mkdir()
            (context / "Dockerfile").write_text("FROM base\n")
            output(kiln, str(context), "type=image,name=bench-run")
            show(name, measure([kiln], options.runs, lambda k: run([k.binary, "run", "--rm", "bench-run", "true"], k.env)))
    finally:
        registry.process.kill()
        subprocess.run([options.kiln, "daemon", "stop"], env=builders[0].env, stdout=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
