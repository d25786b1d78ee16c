"""The checked-in matrix of programs: compiles those of `matrix.toml` and rewrites the tables of docs/compile.md.

    python -m steerling_jax.train.aot.matrix docs
    python -m steerling_jax.train.aot.matrix docs --only '8 B, training, v5e 16×16'
    python -m steerling_jax.train.aot.matrix docs --tables

Each program has a process of its own: the compiler may take the process with it when it gives up. Results are kept in
docs/compile-matrix.json as they come, so that what was interrupted goes on with `--only`, or `--missing`.
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
from steerling_jax.io.atomic import atomic_path, write_json
from steerling_jax.train.aot.tables import tables

BEGIN, END = "<!-- written by make compile-matrix -->", "<!-- end of what make compile-matrix writes -->"
_FLAGS = frozenset({"without-concepts"})
_NOT_OPTIONS = frozenset({"name", "like"})


def entries() -> list[dict[str, Any]]:
    """The programs of matrix.toml, as tables."""
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
    """What `steerling compile --json` says, with the command and the day. `UserError` with the last line of what went
    wrong."""
    words = command(entry)
    done = subprocess.run(
        [sys.executable, "-m", "steerling_jax.cli.main", "compile", *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout.startswith("{"):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{entry['name']}: steerling compile {' '.join(words)} ended with {done.returncode}: {last}")
    report = json.loads(done.stdout)
    return {"command": f"steerling compile {' '.join(words)}", "date": str(datetime.date.today()), **report}


def with_tables(document: str, text: str, where: Path) -> str:
    """The document with `text` between its two marks. `UserError` where they are missing."""
    before, found, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise UserError(
            f"{where} lacks the lines {BEGIN!r} and {END!r}, between which the tables belong: put them back."
        )
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path, help="the folder with compile.md and compile-matrix.json")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these entries; the others keep their results")
    parser.add_argument("--missing", action="store_true", help="those without a result")
    parser.add_argument("--tables", action="store_true", help="compile nothing, write the tables")
    args = parser.parse_args(arguments)
    results_file, document = args.docs / "compile-matrix.json", args.docs / "compile.md"
    known = json.loads(results_file.read_text(encoding="utf-8")) if results_file.is_file() else {}
    all_entries = entries()
    names = [entry["name"] for entry in all_entries]
    for name in args.only or ():
        if name not in names:
            raise UserError(f"The matrix has no {name!r}; it has {'; '.join(names)}.")
    wanted = [] if args.tables else [e for e in all_entries if args.only is None or e["name"] in args.only]
    for entry in wanted:
        if args.missing and entry["name"] in known:
            continue
        note(f"{entry['name']} …")
        known[entry["name"]] = compile_entry(entry)
        kept = {name: known[name] for name in names if name in known}
        write_json(results_file, kept)
    present = [entry | {"report": known[entry["name"]]} for entry in all_entries if entry["name"] in known]
    written = with_tables(document.read_text(encoding="utf-8"), tables(present), document)
    with atomic_path(document) as path:
        path.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        note(f"error: {error}")
        sys.exit(2)
