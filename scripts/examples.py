"""Builds, edits, runs and reads back the projects of examples/; called by examples.sh, which says more."""

import argparse
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

NAME = "debian:bookworm-slim"
STEP = re.compile(r"^\[(?P<stage>\S+)\s+\d+/\d+\] (?P<text>(?!FROM )[A-Z]+ .*)$", re.S)

# For each project: the edits, the steps that each makes run again (stage and a part of the instruction; `?` before the
# stage: it depends on what the tools make of the edit), how the result is checked, and what that prints before and after
# the source edit.
PROJECTS = {
    "node": {
        "source": [("src/server.ts", '"node service:"', '"edited node service:"')],
        "source_runs": ["build COPY src", "build npm run build", "runtime --from=build", "runtime COPY package.json"],
        "deps": [
            ("package.json", '"typescript": "5.4.5"', '"typescript": "5.4.4"'),
            ("package-lock.json", '"typescript": "5.4.5"', '"typescript": "5.4.4"'),
            ("package-lock.json", '"version": "5.4.5"', '"version": "5.4.4"'),
            (
                "package-lock.json",
                "sha512-vcI4UpRgg81oIRUFwR0WSIHKt11nJ7SAVlYNIu+QpqeyXP+gpQJy/Z4+F0aGxSE4MqwjyXvW/TzgkLAx2AGHwQ==",
                "sha512-dGE2Vv8cpVvw28v8HCPqyb08EzbBURxDpuhJvTrusShUfGnhHBafDsLdS1EhhxyL6BJQE+2cT3dDPAv+MQ6oLw==",
            ),
        ],
        "deps_runs": [
            "deps COPY package.json", "deps npm ci", "build COPY tsconfig.json", "build COPY src", "build npm run build",
            "prune npm prune", "?runtime --from=prune", "?runtime --from=build", "runtime COPY package.json",
        ],
        "check": ["node", "dist/server.js", "--check"],
        "prints": ("node service: 2 minutes", "edited node service: 2 minutes"),
        "serves": (3000, "/", '"service":"uptime"'),
    },
    "python": {
        "source": [("service/__main__.py", '"python service:"', '"edited python service:"')],
        "source_runs": ["runtime COPY service"],
        "deps": [("requirements.txt", "flask==3.1.2", "flask==3.1.1")],
        "deps_runs": ["wheels COPY requirements.txt", "wheels pip wheel", "runtime pip install", "runtime COPY service"],
        "check": ["python", "-m", "service", "--check"],
        "prints": ("python service: clear with flask 3.1.2", "edited python service: clear with flask 3.1.2"),
        "deps_print": "edited python service: clear with flask 3.1.1",
        "serves": (8000, "/", '"sky":"clear"'),
    },
    "rust": {
        "source": [("src/main.rs", '"rust binary: {}"', '"edited rust binary: {}"')],
        "source_runs": ["build COPY src", "build cargo build", "stage-3 --from=build"],
        "deps": [
            ("Cargo.toml", "=0.3.0", "=0.3.1"),
            ("Cargo.lock", 'name = "lexopt"\nversion = "0.3.0"', 'name = "lexopt"\nversion = "0.3.1"'),
            (
                "Cargo.lock",
                "baff4b617f7df3d896f97fe922b64817f6cd9a756bb81d40f8883f2f66dcb401",
                "9fa0e2a1fcbe2f6be6c42e342259976206b383122fc152e872795338b5a3f3a7",
            ),
        ],
        "deps_runs": [
            "fetch COPY Cargo.toml", "fetch cargo fetch", "build COPY src", "build cargo build", "?stage-3 --from=build",
        ],
        "check": ["/wordcount", "--top", "1"],
        "entrypoint": ["/wordcount"],
        "input": "a b a\n",
        "prints": ('rust binary: [["a",2]]', 'edited rust binary: [["a",2]]'),
    },
    "static": {
        "source": [("content/about.md", "served from another", "served from a second one")],
        "source_runs": ["render COPY content", "render site.py /site", "serve --from=render"],
        "deps": [("requirements.txt", "markdown==3.7", "markdown==3.6")],
        "deps_runs": [
            "render COPY requirements.txt", "render pip install", "render COPY site.py", "render COPY theme",
            "render COPY content", "render site.py /site", "?serve --from=render",
        ],
        "check": ["cat", "/site/about.html"],
        "prints": ("<li>served from another</li>", "<li>served from a second one</li>"),
        "serves": (8080, "/about.html", "served from"),
    },
    "cpp": {
        "source": [("src/main.cpp", "c++ program", "edited c++ program")],
        "source_runs": ["build COPY src", "build cmake", "runtime --from=build"],
        "deps": [("Dockerfile", "libfmt-dev ninja-build", "libfmt-dev ninja-build nlohmann-json3-dev")],
        "deps_runs": [
            "build apt-get install", "build WORKDIR /src", "build COPY CMakeLists.txt", "build COPY src", "build cmake",
            "?runtime --from=build",
        ],
        "check": ["primes", "20"],
        "entrypoint": ["primes"],
        "prints": ("c++ program: 2 3 5 7 11 13 17 19", "edited c++ program: 2 3 5 7 11 13 17 19"),
    },
}

class Failure(Exception):
    """A project does not do what it should."""


def edit(path, old, new):
    """Replaces one text in a file, which must be there."""
    text = path.read_text()
    if old not in text:
        raise Failure(f"{path} has no {old!r} to edit")
    path.write_text(text.replace(old, new))


class Project:
    """A working copy of one example."""

    def __init__(self, name, options):
        self.name, self.options, self.about = name, options, PROJECTS[name]
        self.image = f"examples/{name}"
        self.dir = Path(options.work) / name
        self.times = {}
        shutil.rmtree(self.dir, ignore_errors=True)
        shutil.copytree(Path("examples") / name, self.dir)

    def kiln(self, *args):
        return [self.options.kiln, *map(str, args)]

    def build(self, *flags, output=()):
        """Builds and returns, by step, whether it was cached; and the time it took."""
        command = self.kiln(
            "build", "--progress=rawjson", "--build-ca=auto", "-t", self.image, *flags, *output,
            "--build-context", f"{NAME}=oci-layout://{self.options.base}", self.dir,
        )
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
        took = time.monotonic() - begin
        steps, logs = {}, []
        for line in done.stderr.splitlines():
            if not line.startswith("{"):
                logs.append(line)
                continue
            news = json.loads(line)
            logs += [base64.b64decode(log["data"]).decode(errors="replace").rstrip() for log in news.get("logs", [])]
            for vertex in news.get("vertexes", []):
                match = STEP.match(vertex.get("name", ""))
                if match and vertex.get("completed"):
                    text = re.sub(r"--mount=\S+\s+", "", match["text"])
                    steps[f"{match['stage']} {text}"] = vertex.get("cached", False)
        if done.returncode != 0:
            raise Failure(f"{self.name}: the build failed\n" + "\n".join(logs[-40:]))
        return steps, took

    def round(self, title, runs, *flags):
        """Builds and checks which steps ran: those of `runs` and no others; none of them when it is empty."""
        steps, took = self.build(*flags)
        self.times[title] = took
        ran = {step for step, cached in steps.items() if not cached}
        if runs is None:
            wrong = [f"was cached: {step}" for step in steps if step not in ran]
        else:
            wrong = []
            for wanted in runs:
                stage, part = wanted.lstrip("?").split(" ", 1)
                found = [step for step in steps if step.startswith(stage + " ") and part in step]
                if not found:
                    wrong.append(f"is not there: {wanted}")
                elif not wanted.startswith("?") and not any(step in ran for step in found):
                    wrong.append(f"was cached: {wanted}")
                ran -= set(found)
            wrong += [f"ran again: {step}" for step in ran]
        if wrong:
            raise Failure(f"{self.name}, {title}:\n  " + "\n  ".join(wrong))

    def run(self, expected):
        """Runs the result and checks what it prints."""
        command = self.about["check"]
        if "entrypoint" in self.about:
            command = command[len(self.about["entrypoint"]):]
        given = self.about.get("input")
        flags = ["--pull=never", "--network=none"] + (["-i"] if given else [])
        begin = time.monotonic()
        done = subprocess.run(
            self.kiln("run", *flags, self.image, *command), input=given, capture_output=True, text=True, timeout=120
        )
        self.times["run"] = time.monotonic() - begin
        if done.returncode != 0 or expected not in done.stdout.splitlines():
            raise Failure(f"{self.name}: exit code {done.returncode}\n{done.stdout}{done.stderr}instead of {expected}")

    def serve(self):
        """Runs the service in a network of its own, asks it over a published port, and ends it by a signal."""
        if "serves" not in self.about:
            return
        port, path, expected = self.about["serves"]
        command = self.kiln("run", "--pull=never", "--network=none", "-p", port, self.image)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            told = process.stderr.readline()
            match = re.search(r"published on (\S+)", told)
            if not match:
                raise Failure(f"{self.name} does not serve: {told}{process.stderr.read()}")
            with urllib.request.urlopen(f"http://{match[1]}{path}", timeout=30) as answer:
                body = answer.read().decode()
            if expected not in body:
                raise Failure(f"{self.name} answers {body!r}")
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=30)
            if code not in (0, 143):
                raise Failure(f"{self.name} ends with {code} after SIGTERM: {process.stderr.read()}")
        finally:
            process.kill()
            process.wait()

    def read_back(self, expected):
        """Reads the image with skopeo, unpacks it with umoci and runs it with runc, as far as they are there."""
        archive, layout, bundle = (self.dir.with_suffix(s) for s in (".tar", ".oci", ".bundle"))
        for path in (layout, bundle):
            shutil.rmtree(path, ignore_errors=True)
        self.build(output=("-o", f"type=oci,dest={archive}"))
        if not shutil.which("skopeo"):
            return "no skopeo"
        inspected = subprocess.run(
            ["skopeo", "inspect", f"oci-archive:{archive}"], capture_output=True, text=True, check=True
        )
        layers = len(json.loads(inspected.stdout)["Layers"])
        subprocess.run(["skopeo", "copy", "--quiet", f"oci-archive:{archive}", f"oci:{layout}:latest"], check=True)
        if not shutil.which("umoci") or not shutil.which("runc"):
            return f"{layers} layers; no umoci or no runc"
        subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", bundle], check=True, capture_output=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=self.about["check"])
        (bundle / "config.json").write_text(json.dumps(config))
        done = subprocess.run(
            ["runc", "run", "--bundle", bundle, f"kiln-example-{os.getpid()}"],
            input=self.about.get("input", ""), capture_output=True, text=True, timeout=120,
        )
        if done.returncode != 0 or expected not in done.stdout.splitlines():
            raise Failure(f"{self.name} in runc: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        for path in (layout, bundle):
            shutil.rmtree(path)
        archive.unlink()
        return f"{layers} layers"

    def day(self):
        """Everything that is done with one project."""
        before, after = self.about["prints"]
        steps, took = self.build()
        self.times["cold"] = took
        self.run(before)
        self.round("again", [])
        for name, old, new in self.about["source"]:
            edit(self.dir / name, old, new)
        self.round("source edit", self.about["source_runs"])
        self.run(after)
        for name, old, new in self.about["deps"]:
            edit(self.dir / name, old, new)
        self.round("dependency edit", self.about["deps_runs"])
        after = self.about.get("deps_print", after)
        self.run(after)
        self.round("no cache", None, "--no-cache")
        self.run(after)
        self.serve()
        read = self.read_back(after)
        times = ", ".join(f"{title} {seconds:.1f} s" for title, seconds in self.times.items())
        print(f"{self.name}: {len(steps)} steps, {read}; {times}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--kiln", "--base", "--work"):
        parser.add_argument(name, required=True)
    parser.add_argument("names", nargs="*", choices=[*PROJECTS, []])
    options = parser.parse_args()
    # A new store: what an earlier call of this script has built must not count as cached.
    root = Path(options.work) / "store"
    shutil.rmtree(root, ignore_errors=True)
    os.environ["KILN_ROOT"] = str(root)
    try:
        for name in options.names or PROJECTS:
            Project(name, options).day()
    except Failure as failure:
        sys.exit(f"FAILED: {failure}")
    finally:
        subprocess.run([options.kiln, "daemon", "stop"], capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


main()
