"""The structure of a checkout in numbers: files, functions, comments, the import graph, and repeated computations.

    python benchmarks/structure.py [CHECKOUT]

Reads Python's syntax trees and runs nothing of the checkout, so that two checkouts compare: the one given, or this one.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = {
    "steerling_jax": "steerling_jax",
    "train": "steerling_jax.train",
    "infer": "steerling_jax.infer",
    "attribution": "steerling_jax.attribution",
    "configs": "steerling_jax.configs",
}


def modules(root: Path) -> dict[str, Path]:
    """Installed names of all modules, and their files."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def imports(name: str, path: Path, names: dict[str, Path]) -> set[str]:
    """Modules of the project that a module imports, also inside functions and under TYPE_CHECKING."""
    found = set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {full if (full := f"{base}.{alias.name}") in names else base for alias in node.names}
    return {other for other in found if other in names and other != name}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return groups


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def calls(function: ast.FunctionDef) -> set[str]:
    """Names of the functions that are called, without their modules."""
    targets = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "") for target in targets}


def measure(root: Path) -> dict[str, object]:
    names = modules(root)
    texts = {path: path.read_text(encoding="utf-8").splitlines() for path in names.values()}
    lines = [line for text in texts.values() for line in text]
    every = [(path, function) for path in names.values() for function in functions(path)]
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for _, f in every]
    graph = {name: imports(name, path, names) for name, path in names.items() if name != "steerling_jax"}
    graph = {name: {other for other in found if other in graph} for name, found in graph.items()}
    folders = [path.parent for path in names.values()]
    called = [(path, f.name, calls(f)) for path, f in every]
    return {
        "modules": len(names),
        "lines": len(lines),
        "modules over 260 lines": sum(len(text) > 260 for text in texts.values()),
        "most modules in a folder": max(folders.count(folder) for folder in set(folders)),
        "longest function, lines": max(lengths),
        "functions over 60 lines": sum(length > 60 for length in lengths),
        "comment lines": sum(line.lstrip().startswith("#") for line in lines),
        "fmt: skip": sum("fmt: skip" in line for line in lines),
        "modules with TYPE_CHECKING": sum(any("TYPE_CHECKING" in line for line in text) for text in texts.values()),
        "import edges": sum(map(len, graph.values())),
        "import cycles": len(cycles(graph)),
        # log Σ exp minus a picked logit: the cross-entropy of a token.
        "definitions of cross-entropy": sum(
            {"logsumexp", "take_along_axis"} <= used or {"log_softmax", "take_along_axis"} <= used
            for _, _, used in called
        ),
        # A decomposition runs a concept head.
        "functions that run a concept head": sum("run_head" in used for _, _, used in called),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1]), indent=1))
