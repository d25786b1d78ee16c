"""How many wrong lines do the tests notice? Changes lines drawn at random, one at a time, and runs the module's tests.

    git worktree add --detach ../mutated
    make -C ../mutated .venv/.installed-dev
    ../mutated/.venv/bin/python benchmarks/mutations.py ../mutated --seed 0 --out docs/results/mutations.json

The checkout must be one of its own: its files are changed and restored. A line is drawn uniformly from all lines of the
core and the programs in which an operator, a comparison, a number, a condition, the order of two arguments or a whole
statement can be changed; then one of the changes. Annotations, texts and assertions are left alone. A changed line runs
the test files that import its module, those that mirror its folder, and then those that import what imports it, up to
`--files`, without the slow ones; the first failure ends it. Where the tests take more than `--seconds` of processor
time, or ten times as long, the line is recorded as "too long": its loop may no longer end. Results are written after
each line, and a repeated command goes on with the lines that are left; `--again` runs those once more that no test
noticed. `--tests RESULTS` takes the tests of a line from a results file in place of whole test files: those that a
reader of the line expects to notice it, so that a wrong choice can only make a line live. At the end, the tests that
noticed a line run on the unchanged code, where all of them must pass.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import random
import re
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from structure import imports, modules

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.MatMult: ast.Mult,
}  # fmt: skip
SKIPPED = (ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)
Change = tuple[ast.AST, str]  # the new node and the kind of change


def changes(node: ast.AST) -> Iterator[Change]:
    """All changes of one node."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            new.ops = [COMPARISONS[type(op)]()]
            yield new, "comparison"
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            new.op = OPERATORS[type(op)]()
            yield new, "operator"
        case ast.BoolOp(op=op):
            new.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield new, "and/or"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand, "not or minus dropped"
        case ast.Constant(value=bool(value)):
            new.value = not value
            yield new, "constant"
        case ast.Constant(value=int() | float() as value):
            new.value = value + 1 if isinstance(value, int) else value * 2 + 1
            yield new, "constant"
        case ast.Call(args=[first, second, *rest]) if not any(isinstance(one, ast.Starred) for one in new.args):
            new.args = [second, first, *rest]
            yield new, "arguments swapped"
        case ast.IfExp(body=body, orelse=orelse):
            new.body, new.orelse = orelse, body
            yield new, "branches swapped"
        case ast.If(test=test) if not (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"):
            yield ast.UnaryOp(ast.Not(), test), "condition"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass(), "statement dropped"


def sites(source: str) -> Iterator[tuple[ast.expr | ast.stmt, Change]]:
    """What can be changed in a module: the node whose text is replaced, and the change."""

    def visit(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, Change]]:
        for change in changes(node):
            yield node.test if isinstance(node, ast.If) else node, change  # type: ignore[misc]
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, SKIPPED):
                    yield from visit(child)

    yield from visit(ast.parse(source))


def replaced(source: str, node: ast.expr | ast.stmt, new: ast.AST) -> str:
    """The source with the node's text replaced; the rest of the file stays as it is."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    assert node.end_lineno is not None
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + (node.end_col_offset or 0)
    text = ast.unparse(ast.fix_missing_locations(new))
    text = text if isinstance(new, ast.stmt) else f"({text})"
    whole = b"".join(lines)
    return (whole[:start] + text.encode() + whole[end:]).decode()


def draw(root: Path, count: int, seed: int) -> list[dict]:
    """`count` different lines and one change of each."""
    lines = []
    for name, path in modules(root).items():
        source = path.read_text(encoding="utf-8")
        found: dict[int, list] = {}
        for node, change in sites(source):
            found.setdefault(node.lineno, []).append((node, change))
        lines += [(name, path, source, number, found[number]) for number in sorted(found)]
    random_lines = random.Random(seed).sample(lines, count)
    drawn = []
    for index, (name, path, source, number, options) in enumerate(random_lines):
        node, (new, kind) = random.Random(f"{seed} {index}").choice(options)
        text = replaced(source, node, new)
        # A line that is laid out over several ones is shown as one.
        old = ast.get_source_segment(source, node) or ""
        drawn.append(
            {
                "module": name,
                "file": path.relative_to(root).as_posix(),
                "line": number,
                "kind": kind,
                "old": " ".join(old.split()),
                "new": ast.unparse(new),
                "text": text,
            }
        )
    print(f"{len(lines)} lines can be changed; {count} of them are.", file=sys.stderr)
    return drawn


class Tests:
    """The quick test files, by what they import; without those that cannot be imported here."""

    def __init__(self, root: Path):
        self.root = root
        self.modules = modules(root)
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "tests"]
        found = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False).stdout
        broken = {root / name for name in re.findall(r"^ERROR (\S+)", found, re.MULTILINE)}
        for path in sorted(broken):
            print(f"{path} cannot be imported and is left out.", file=sys.stderr)
        self.files = sorted(set(root.glob("tests/**/test_*.py")) - broken)
        self.texts = {file: file.read_text(encoding="utf-8") for file in self.files}
        self.importers: dict[str, set[str]] = {}
        for name, path in self.modules.items():
            for other in imports(name, path, self.modules):
                self.importers.setdefault(other, set()).add(name)

    def of(self, module: str, limit: int) -> list[str]:
        """The test files for a module, the closest ones first."""
        direct = self._importing({module})
        words = module.removeprefix("steerling_jax.").split(".")
        mirrored = [file for file in self.files if (self.root / "tests").joinpath(*words[:-1]) == file.parent]
        mirrored.sort(key=lambda file: words[-1] not in file.name)
        chosen = [file for file in direct if file in mirrored] + mirrored[:3] + direct
        level = {module}
        for _ in range(3):
            level = {name for one in level for name in self.importers.get(one, ())}
            chosen += self._importing(level)
        return [file.relative_to(self.root).as_posix() for file in list(dict.fromkeys(chosen))[:limit]]

    def _importing(self, names: set[str]) -> list[Path]:
        """Test files that import any of the modules; those that import most of them first."""
        words = [re.compile(rf"\b{re.escape(name)}\b(?!\.)") for name in sorted(names)]
        count = {file: sum(bool(word.search(text)) for word in words) for file, text in self.texts.items()}
        # The command module of a program is run by its name.
        commands = [name.rsplit(".", 1)[-1].removesuffix("_command") for name in names if name.endswith("_command")]
        for file, text in self.texts.items():
            count[file] += sum(f'"{command}"' in text for command in commands)
        return sorted((file for file in self.files if count[file]), key=lambda file: -count[file])


# Imported once, before the first line is changed: a child process that is forked has them at once. What pytest's
# plugins import is not here, because pytest warns of it.
LIBRARIES = ("jax.numpy", "flax", "optax", "orbax.checkpoint", "tensorstore", "scipy.stats", "pytest", "rich.progress")


def read_lines(path: Path | None) -> dict[tuple[str, int], dict]:
    """The lines of a results file by file and number; none where there is no file yet."""
    lines = json.loads(path.read_text())["lines"] if path is not None and path.exists() else []
    return {(one["file"], one["line"]): one for one in lines}


def run(root: Path, one: dict, cpu_seconds: int) -> dict:
    """Runs the tests with the line changed; its outcome."""
    path, log = root / one["file"], root / "build" / "mutation.log"
    before, began = path.read_text(encoding="utf-8"), time.monotonic()
    try:
        path.write_text(one["text"], encoding="utf-8")
        child = os.fork()
        if child == 0:
            os.setsid()
            run_tests(root, one["tests"], log, cpu_seconds)
        status, outcome = 0, ""
        while not outcome:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                outcome = {0: "lived", 1: "noticed", 2: "noticed", -signal.SIGXCPU: "too long"}.get(
                    code, f"code {code}"
                )
            elif time.monotonic() - began > 10 * cpu_seconds:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                outcome = "too long"
            time.sleep(0.05)
    finally:
        path.write_text(before, encoding="utf-8")
    printed = log.read_text(errors="replace")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE)
    if outcome == "code 4" and failed:  # a test that was asked for by name, in a file that can no longer be imported
        outcome = "noticed"
    by = failed[0] if failed else ""
    return {"outcome": outcome, "by": by, "seconds": round(time.monotonic() - began, 1)}


def run_tests(root: Path, tests: list[str], log: Path, cpu_seconds: int) -> None:
    """Ends this process with pytest's exit code, or by a signal after so much processor time."""
    code = 3
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(root)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        import pytest

        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-m", "not slow", *tests])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(int(code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th line, for several checkouts at a time")
    parser.add_argument("--again", action="store_true")
    parser.add_argument(
        "--tests", type=Path, metavar="RESULTS", help="a results file that names the tests of each line"
    )
    parser.add_argument("--list", action="store_true", help="show what would be changed")
    args = parser.parse_args()
    root = args.checkout.resolve()
    drawn = draw(root, args.count, args.seed)
    chosen = read_lines(args.tests)
    tests = None if all((one["file"], one["line"]) in chosen for one in drawn) else Tests(root)
    for one in drawn:
        key = (one["file"], one["line"])
        one["tests"] = chosen[key]["tests"] if tests is None or key in chosen else tests.of(one["module"], args.files)
        if args.list:
            print(f"{one['file']}:{one['line']}  {one['old']}  ->  {one['new']}   {one['tests']}")
    if args.list:
        return
    known = read_lines(args.out)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(root / "build" / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    (root / "build").mkdir(exist_ok=True)
    sys.path.insert(0, str(root))
    runpy.run_path(str(root / "tests" / "conftest.py"))  # sets JAX's environment
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        importlib.import_module(name)
    part, parts = map(int, args.part.split("/"))
    for number, one in list(enumerate(drawn))[part - 1 :: parts]:
        key = (one["file"], one["line"])
        if key in known and not (args.again and known[key]["outcome"] != "noticed"):
            continue
        shown = {name: value for name, value in one.items() if name != "text"}
        known[key] = shown | run(root, one, args.seconds)
        print(f"{number + 1}/{len(drawn)} {known[key]['outcome']}: {key} {one['old']} -> {one['new']}", file=sys.stderr)
        result = {"count": args.count, "seed": args.seed, "lines": list(known.values())}
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    by = sorted({one["by"].partition("[")[0] for one in known.values()} - {""})
    unchanged = {"file": drawn[0]["file"], "text": (root / drawn[0]["file"]).read_text(encoding="utf-8"), "tests": by}
    outcome = run(root, unchanged, args.seconds * len(by))["outcome"]
    print(f"Unchanged, the {len(by)} tests that noticed a line {'pass' if outcome == 'lived' else outcome}.")


if __name__ == "__main__":
    main()
