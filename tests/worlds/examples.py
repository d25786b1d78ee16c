"""Python examples of pages, with what they print.

A block without a language that directly follows a Python block shows what that one prints. `python -m
tests.worlds.examples PAGE …` runs the examples of pages and writes these blocks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"^```python\n(?P<source>.+?)^```\n(?:\n?```\n(?P<output>.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?: %)?")
_RUN = """\
import contextlib, io, json, sys
namespace, printed = {"__name__": "__main__"}, []
pages = json.loads(sys.stdin.read())
for page, sources in pages.items():
    namespace = {"__name__": "__main__"}
    printed = []
    for number, source in enumerate(sources, 1):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(source, f"{page}, example {number}", "exec"), namespace)
        printed.append(out.getvalue())
    pages[page] = printed
print(json.dumps(pages))
"""


class Example(NamedTuple):
    """A Python block and the output shown below it; None where there is none."""

    source: str
    output: str | None


def examples_of(page: Path) -> list[Example]:
    """The Python blocks of a page, in order."""
    return [Example(found["source"], found["output"]) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def printed_by(pages: dict[str, list[str]], folder: Path, environment: dict[str, str]) -> dict[str, list[str]]:
    """What each Python source of each page prints; the sources of a page run one after the other in one namespace, all
    in a process of their own in `folder`, in which warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _RUN],
        input=json.dumps(pages),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def difference(shown: str, printed: str) -> str | None:
    """The first line in which what is shown and what was printed differ, or None.

    Words have to be equal, and whole numbers, which count or identify things. Other numbers may differ by two percent,
    by one and a half of the last digit shown, or by 0.0001: sums of float32 differ between processors, and what
    measures rounding differs in size.
    """
    for mine, other in zip_longest(_lines(shown), _lines(printed), fillvalue="(nothing)"):
        if _words(mine) != _words(other) or not all(map(_near, NUMBER.findall(mine), NUMBER.findall(other))):
            return f"it shows {mine!r} and prints {other!r}"
    return None


def _words(line: str) -> list[str]:
    """The words of a line, without the spaces with which NumPy aligns numbers in brackets."""
    return NUMBER.sub("0", re.sub(r"\s*([\[\]])\s*", r"\1", line)).split()


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip("\n").split("\n")]


def _near(shown: str, printed: str) -> bool:
    percent = shown.endswith(" %")
    shown, printed = (text.removesuffix(" %").replace("−", "-") for text in (shown, printed))
    if not percent and not re.search(r"[.eE]", shown + printed):
        return shown == printed
    digits = re.search(r"\.(\d*)", shown)
    unit = 0.0 if "e" in shown else 10.0 ** -len(digits[1]) if digits else 1.0
    return abs(float(shown) - float(printed)) <= max(0.02 * abs(float(shown)), 1.5 * unit, 1e-4)


def write_outputs(paths: list[Path], folder: Path) -> None:
    """Runs the examples of pages and writes what they print below them."""
    sources = {str(path): [example.source for example in examples_of(path)] for path in paths}
    printed = printed_by(sources, folder, os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"})
    for path in paths:
        outputs = iter(printed[str(path)])

        def block(found: re.Match[str], outputs=outputs) -> str:
            output = next(outputs)
            return f"```python\n{found['source']}```\n" + (f"\n```\n{output.rstrip()}\n```\n" if output.strip() else "")

        path.write_text(BLOCK.sub(block, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        write_outputs([Path(name).resolve() for name in sys.argv[1:]], Path(scratch))
