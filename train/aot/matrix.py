"""Compiles the programs of `matrix.toml` and rewrites the tables of docs/results/compile.md.

    python -m steerling_jax.train.aot.matrix docs/results
    python -m steerling_jax.train.aot.matrix docs/results --only '8 B, training, v5e 16×16'
    python -m steerling_jax.train.aot.matrix docs/results --tables

Each program is compiled in its own process, as a failing compiler may abort the process. Each result is written to
docs/results/compile-matrix.json at once, so that an interrupted run can be continued with `--missing` or `--only`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from steerling_jax.cli.console import note
from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import write_json
from steerling_jax.train.aot.tables import tables

BEGIN, END = "<!-- written by make compile-matrix -->", "<!-- end of what make compile-matrix writes -->"
_FLAGS = frozenset({"without-concepts"})
_NOT_OPTIONS = frozenset({"name", "like"})


def entries() -> list[dict[str, Any]]:
    """The programs of matrix.toml. Keys are options of `steerling compile`, and `name` and `like` (compare with)."""
    text = resources.files("steerling_jax.train.aot").joinpath("matrix.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["program"]


def command(entry: Mapping[str, Any]) -> list[str]:
    """The options of `steerling compile` for an entry."""
    words = []
    for name, value in entry.items():
        if name in _NOT_OPTIONS:
            continue
        words += [f"--{name}"] if name in _FLAGS else [f"--{name}", str(value)]
    return words


def compile_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The report of `steerling compile --json`, with the command and the date. Raises `UserError` with the last line of
    the error output where it fails."""
    words = command(entry)
    done = subprocess.run(
        [sys.executable, "-m", "steerling_jax.cli.main", "compile", *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout.startswith("{"):
        last = (done.stderr.strip().splitlines() or ["no error message"])[-1]
        code = f"exited with code {done.returncode}"
        raise UserError(f"{entry['name']}: steerling compile {' '.join(words)} {code}: {last}")
    report = json.loads(done.stdout)
    return {"command": f"steerling compile {' '.join(words)}", "date": str(datetime.date.today()), **report}


def with_tables(document: str, text: str, where: Path) -> str:
    """The document, with `text` between its two marks. Raises `UserError` where a mark is missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{where} has no lines {BEGIN!r} and {END!r}; put them around the place of the tables.")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path, help="folder with compile.md and compile-matrix.json")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="compile these programs; the others keep their results"
    )
    parser.add_argument("--missing", action="store_true", help="compile only programs without a result")
    parser.add_argument("--tables", action="store_true", help="compile nothing, only write the tables")
    args = parser.parse_args(arguments)
    results_file, document = args.docs / "compile-matrix.json", args.docs / "compile.md"
    results = json.loads(results_file.read_text(encoding="utf-8")) if results_file.is_file() else {}
    all_entries = entries()
    names = [entry["name"] for entry in all_entries]
    for name in args.only or ():
        if name not in names:
            raise UserError(f"matrix.toml has no program {name!r}; it has {'; '.join(names)}.")
    selected = [] if args.tables else [e for e in all_entries if args.only is None or e["name"] in args.only]
    for entry in selected:
        if args.missing and entry["name"] in results:
            continue
        note(f"Compiling {entry['name']}.")
        results[entry["name"]] = compile_entry(entry)
        write_json(results_file, {name: results[name] for name in names if name in results})
    reported = [entry | {"report": results[entry["name"]]} for entry in all_entries if entry["name"] in results]
    written = with_tables(document.read_text(encoding="utf-8"), tables(reported), document)
    with atomic_path(document) as path:
        path.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        note(f"error: {error}")
        sys.exit(2)
