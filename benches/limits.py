#!/usr/bin/env python3
"""Checks Dockerfiles far larger than anybody writes, and times each: `./benches/limits.py [path of kiln]`.

Every one ends in a result or an error. None needs a base image, so no engine is started.
"""

import pathlib
import subprocess
import sys
import tempfile
import time


def repeated(count, line, head="FROM scratch\n"):
    return head + "".join(line.format(i=i, next=i + 1, before=i - 1) for i in range(1, count))


def files():
    yield "100,000 RUN", repeated(100_000, "RUN true\n")
    yield "100,000 ENV", repeated(100_000, "ENV V{i}=x{i}\n")
    yield "100,000 ARG", repeated(100_000, "ARG V{i}=x{i}\n")
    yield "50,000 ENV and RUN", repeated(50_000, "ENV V{i}=x{i}\nRUN true\n")
    yield "100,000 LABEL", repeated(100_000, "LABEL V{i}=x{i}\n")
    yield "90,000 COPY", repeated(90_000, "COPY a{i} /b{i}\n")
    yield "100,000 comments", repeated(100_000, "# c\n") + "RUN true\n"
    yield "100,000 continuations", "FROM scratch\nRUN a \\\n" + " b \\\n" * 100_000 + " c\n"
    yield "33,000 heredocs", repeated(33_000, "RUN <<EOF\nx\nEOF\n")
    yield "heredoc of 100,000 lines", "FROM scratch\nRUN <<EOF\n" + "x\n" * 100_000 + "EOF\n"
    yield "100,000 misspelt words", "COPI a\n" * 100_000
    yield "20,000 undefined variables", repeated(20_000, "ENV A{i}=$VV{i}\n")
    yield "10,000 stages", repeated(10_000, "FROM scratch AS s{i}\nCOPY a /\n", "")
    yield "chain of 10,000 stages", repeated(10_000, "FROM s{before} AS s{i}\n", "FROM scratch AS s0\n")
    yield "cycle of 10,000 stages", repeated(10_000, "FROM scratch AS s{i}\nCOPY --from=s{next} / /\n", "") + (
        "FROM scratch AS s10000\nCOPY --from=s1 / /\n"
    )
    yield "line of 64 KiB", "FROM scratch\nRUN " + "x" * 65_000 + "\n"
    yield "4,000 words in a line", "FROM scratch\nENV " + " ".join(f"a{i}=$b{i}" for i in range(4000)) + "\n"
    yield "argument of itself", "ARG A=xx\n" + "ARG A=$A$A\n" * 60 + "FROM scratch\n"
    yield "variable of itself", "FROM scratch\nENV A=xx\n" + "ENV A=$A$A\n" * 60
    yield "nest of replacements", "FROM scratch\nENV a=" + "x" * 1000 + "\nENV b=${a//?/${a//?/${a//?/$a}}}\n"
    yield "nest of 13,000 defaults", "FROM scratch\nENV b=" + "${a:-" * 13_000 + "\n"
    yield "growing directory", "FROM scratch\n" + "WORKDIR a\n" * 100_000
    yield "all ports 100 times", "FROM scratch\n" + "EXPOSE 1-65535\n" * 100


def main():
    kiln = sys.argv[1] if len(sys.argv) > 1 else "target/release/kiln"
    kiln = str(pathlib.Path(kiln).resolve())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "Dockerfile")
        for name, text in files():
            path.write_text(text)
            env = {"HOME": folder, "KILN_ROOT": folder + "/root", "PATH": "/usr/bin:/bin"}
            start = time.monotonic()
            done = subprocess.run([kiln, "build", "--check", folder], env=env, capture_output=True, timeout=120)
            seconds = time.monotonic() - start
            said = done.stderr.decode(errors="replace").strip().splitlines()
            said = next((line for line in said if line.startswith("ERROR")), "")
            print(f"{seconds:7.3f} s  {name:32} {said[:90]}")


if __name__ == "__main__":
    main()
