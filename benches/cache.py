#!/usr/bin/env python3
"""Times what the cache costs: lookups, reasons, remote caches.

usage: benches/cache.py [--runs N] [--kiln PATH]

Printed are median seconds and the range. A rebuild of 300 steps that changes nothing; the same with `--why`, in turn; a
rebuild of a step in the midst of 300 with and without `--why`; a build of 200 layers with nothing to do, with and without
an export of its cache to a registry on loopback that has all of it; and the time on an empty state root until the first
step runs of a build whose 200 steps before it are in that registry (the engine's start, the layers' way here and the
mount of them are in it). Needs busybox, umoci and docker-registry on PATH.
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

from bench import HERE, Kiln, busybox_layout
from outputs import Registry

LOOKUPS, LAYERS = 300, 200


def said(name, times):
    print(f"{name:52} {statistics.median(times):.3f} s ({min(times):.3f}..{max(times):.3f})", flush=True)


def in_turn(runs, first, second):
    """Runs two things in turn, each first every other time, after one turn to warm up, and returns the times of each."""
    times = ([], [])
    for turn in range(runs + 1):
        for place in (0, 1) if turn % 2 else (1, 0):
            seconds = (first, second)[place]()
            if turn > 0:
                times[place].append(seconds)
    return times


def until_line(command, env, line):
    """Returns the seconds until a command prints a line that ends so; it may then go on to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    seconds, output = None, []
    for text in process.stdout:
        output.append(text)
        if seconds is None and text.rstrip().endswith(line):
            seconds = time.perf_counter() - start
    if process.wait() != 0 or seconds is None:
        sys.exit("".join(output))
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kiln", default=str(HERE.parent / "target/release/kiln"))
    options = parser.parse_args()
    work = pathlib.Path(tempfile.gettempdir()) / f"kiln-bench-cache-{os.getpid()}"
    work.mkdir()
    kiln = Kiln(options.kiln, work, busybox_layout(work))
    registry = Registry(work)
    roots = [kiln.env["KILN_ROOT"]]
    try:
        lookups(kiln, work, options.runs)
        remote(kiln, work, registry, options.runs, roots)
    finally:
        for root in {*roots, kiln.env["KILN_ROOT"]}:
            subprocess.run([options.kiln, "daemon", "stop"], env=dict(kiln.env, KILN_ROOT=root), stdout=subprocess.DEVNULL)
        registry.process.kill()
        shutil.rmtree(work, ignore_errors=True)


def lookups(kiln, work, runs):
    context = work / "lookups"
    context.mkdir()
    dockerfile = context / "Dockerfile"
    steps = [f"RUN true {n}\n" for n in range(LOOKUPS)]
    dockerfile.write_text("FROM base\n" + "".join(steps))
    plain, why = in_turn(runs, lambda: kiln.build(str(context)), lambda: kiln.build(str(context), ["--why"]))
    said(f"no-op, {LOOKUPS} steps", plain)
    said(f"no-op, {LOOKUPS} steps, --why", why)
    edits = iter(range(10**6))

    def edited(extra=()):
        steps[LOOKUPS // 2] = f"RUN true edit {next(edits)} {time.time_ns()}\n"
        dockerfile.write_text("FROM base\n" + "".join(steps))
        return kiln.build(str(context), extra)

    plain, why = in_turn(runs, edited, lambda: edited(["--why"]))
    said(f"{LOOKUPS // 2} of {LOOKUPS} steps again", plain)
    said(f"{LOOKUPS // 2} of {LOOKUPS} steps again, --why", why)
    print(f"{'  --why of it':52} {100 * (statistics.median(why) / statistics.median(plain) - 1):+.1f} %")


def remote(kiln, work, registry, runs, roots):
    context = work / "remote"
    context.mkdir()
    steps = "FROM base\n" + "".join(f"RUN echo {n} > /f{n}\n" for n in range(LAYERS))
    (context / "Dockerfile").write_text(steps)
    cache = f"type=registry,ref={registry.host}/cache:latest"
    plain, export = in_turn(runs, lambda: kiln.build(str(context)),
                            lambda: kiln.build(str(context), ["--cache-to", f"{cache},mode=max"]))
    said(f"no-op, {LAYERS} layers", plain)
    said(f"no-op, {LAYERS} layers, exported cache unchanged", export)
    (context / "Dockerfile").write_text(steps + "RUN echo reached\n")
    # The line that shows the step has it, too, but it ends otherwise.
    taken = []
    for turn in range(runs):
        env = dict(kiln.env, KILN_ROOT=str(work / f"empty{turn}"))
        roots.append(env["KILN_ROOT"])
        command = [kiln.binary, "build", "--progress=plain", "--build-context", f"base=oci-layout://{kiln.layout}", "-o",
                   "type=cacheonly", "--cache-from", cache, str(context)]
        taken.append(until_line(command, env, " reached"))
        subprocess.run([kiln.binary, "daemon", "stop"], env=env, stdout=subprocess.DEVNULL)
    said(f"first step after {LAYERS} imported layers, empty root", taken)


if __name__ == "__main__":
    main()
