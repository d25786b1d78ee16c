"""The notebooks: runs their cells as a notebook server does, compares what they print with what is stored, stores it.

    python -m tests.worlds.notebooks                 runs them and compares
    python -m tests.worlds.notebooks --write         runs them and stores what they print
    python -m tests.worlds.notebooks train --write   the same for one of them
    python -m tests.worlds.notebooks --repository https://github.com/NAME/steerling-jax
                                                     sets the address in badges and installation cells

The cell with the tag "install" is not run. What a cell prints is compared line by line (`tests.worlds.examples`). The
output of cells with the tag "varies" depends on the machine or on Python's version, and only has to be there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.worlds.examples import difference
from tests.worlds.paths import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "tpu_scripts" / "notebooks").glob("*.ipynb"))
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
# Displays the last expression of a cell, and collects what was printed, as a notebook server does. `IPython`, which it
# has and the tests' environment lacks, is replaced by the one name that the notebooks use.
_RUN = """\
import ast, contextlib, io, json, sys, types
try:
    import IPython.display
except ImportError:
    class HTML:
        def __init__(self, data): self.data = data
        def _repr_html_(self): return self.data
        def __repr__(self): return "<IPython.core.display.HTML object>"
    sys.modules["IPython"] = types.ModuleType("IPython")
    sys.modules["IPython.display"] = types.ModuleType("IPython.display")
    sys.modules["IPython.display"].HTML = HTML
namespace, results = {"__name__": "__main__"}, []
for number, source in enumerate(json.loads(sys.stdin.read()), 1):
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        value = None if last is None else eval(compile(last, f"cell {number}", "eval"), namespace)
    data = {}
    if value is not None:
        data["text/plain"] = repr(value)
        page = value._repr_html_() if hasattr(value, "_repr_html_") else None
        if page is not None:
            data["text/html"] = page
    results.append([out.getvalue(), data])
print(json.dumps(results))
"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, book: dict[str, Any]) -> None:
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def code_cells(book: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def tags_of(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def has_outputs(book: dict[str, Any]) -> bool:
    return any(cell["outputs"] for cell in code_cells(book))


def run_cells(
    book: dict[str, Any], folder: Path, environment: dict[str, str], parameters: str | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The outputs of each code cell, by the cell's id, from a process of its own in `folder`. parameters: in place of
    the source of the cell with the tag "parameters"."""
    cells = [cell for cell in code_cells(book) if "install" not in tags_of(cell)]
    sources = [
        parameters if parameters is not None and "parameters" in tags_of(cell) else "".join(cell["source"])
        for cell in cells
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps(sources),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    outputs = (_outputs(printed, data, number) for number, (printed, data) in enumerate(results, 1))
    return {cell["id"]: output for cell, output in zip(cells, outputs, strict=True)}


def _outputs(printed: str, data: dict[str, str], number: int) -> list[dict[str, Any]]:
    """Outputs in the notebook format, version 4.5."""
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append({"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)})
    if data:
        lines = {kind: text.splitlines(keepends=True) for kind, text in data.items()}
        outputs.append({"data": lines, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    return outputs


def text_of(outputs: list[dict[str, Any]]) -> str:
    """What outputs show as text."""
    parts = ("".join(one.get("text") or one["data"].get("text/plain", [])) for one in outputs)
    return "\n".join(part.rstrip("\n") for part in parts)


def differences(book: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Sentences about cells whose stored outputs are not what was printed."""
    wrong = []
    for cell in code_cells(book):
        stored, printed = text_of(cell["outputs"]), text_of(found.get(cell["id"], []))
        if "varies" in tags_of(cell):
            what = None if bool(stored) == bool(printed) else "one of the stored and the printed output is empty"
        else:
            what = difference(stored, printed)
        wrong += [] if what is None else [f"{cell['id']}: {what}"]
    return wrong


def store(book: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> None:
    """Puts outputs into the notebook, with execution counts in their order."""
    for number, cell in enumerate((cell for cell in code_cells(book) if "install" not in tags_of(cell)), 1):
        cell["outputs"], cell["execution_count"] = found[cell["id"]], number


def set_repository(path: Path, address: str) -> None:
    """Writes the repository's address into the notebook's badge and installation cell."""
    book = read(path)
    for cell in book["cells"][:2]:
        cell["source"] = [
            re.sub(r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+", rf"\1{address.split('/', 3)[3]}", line)
            if "colab.research" in line
            else ADDRESS.sub(address, line)
            for line in cell["source"]
        ]
    write(path, book)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a notebook, as in `train`; all of them if none is given"
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--repository", metavar="ADDRESS")
    args = parser.parse_args()
    stems = [path.stem for path in NOTEBOOKS]
    if unknown := [name for name in args.names if name not in stems]:
        parser.error(f"there is no notebook {unknown[0]!r}; give one of {', '.join(stems)}.")
    if args.repository is not None:
        if not ADDRESS.fullmatch(args.repository):
            parser.error(
                f"--repository is {args.repository!r}; give an address such as https://github.com/NAME/PROJECT."
            )
        for path in NOTEBOOKS:
            set_repository(path, args.repository)
        return 0
    wrong = []
    for path in (path for path in NOTEBOOKS if path.stem in (args.names or stems)):
        book = read(path)
        with tempfile.TemporaryDirectory() as folder:
            found = run_cells(book, Path(folder), os.environ | {"JAX_PLATFORMS": "cpu"})
        if args.write:
            store(book, found)
            write(path, book)
        wrong += [f"{path.name}, {one}" for one in differences(book, found)]
    print("\n".join(wrong) or "All outputs are as stored.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
