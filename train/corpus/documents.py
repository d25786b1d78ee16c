"""Documents, and the first place they come from: the Python that is running this.

Every Python carries its documentation: the language reference (`pydoc_data.topics`), the docstrings of the standard
library, and its source. All is read here, nothing is downloaded, and no module is run that is not already needed:
docstrings are taken from the source's syntax tree, or from modules written in C.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import itertools
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# Left out: tests, programs, copies of other projects, this machine's build settings, tables written as code.
_LEFT_OUT = {
    "test", "tests", "idlelib", "turtledemo", "lib2to3", "pydoc_data", "site-packages", "__phello__", "_bundled",
    "entities.py",
}  # fmt: skip
_LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata", "lib-dynload", "__hello__")
_TABLE = "decoding_table = ("  # the character sets in `encodings`, tables too

# Modules written in C that are safe to import: no side effects, on every platform.
_C_MODULES = (
    "_codecs",
    "_collections",
    "_csv",
    "_datetime",
    "_functools",
    "_io",
    "_json",
    "_operator",
    "_random",
    "_struct",
    "_thread",
    "_weakref",
    "array",
    "atexit",
    "binascii",
    "builtins",
    "cmath",
    "errno",
    "faulthandler",
    "gc",
    "itertools",
    "marshal",
    "math",
    "select",
    "sys",
    "time",
    "unicodedata",
    "zlib",
)
_MIN_CHARACTERS = 24  # shorter texts say nothing
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Document:
    """A text and where it is from.

    labels: names of known concepts that the author gave it. id: what a table of labels may know it by. cluster: a name
    that is the same for documents which must not be parted by the split, such as versions of one text.
    """

    name: str
    source: str
    text: str
    module: str = ""
    labels: tuple[str, ...] = ()
    id: str = ""
    cluster: str = ""

    @cached_property
    def sha256(self) -> str:
        """Hash of the text: what a document is known by, whatever Python or folder it came from."""
        return hashlib.sha256(self.text.encode("utf-8", errors="replace")).hexdigest()


def python_documents(stdlib: str | Path | None = None) -> Iterator[Document]:
    """Reference, docstrings and code of this Python (or of a library folder), in a fixed order, no text twice."""
    folder = Path(stdlib or sysconfig.get_paths()["stdlib"])
    modules = list(_modules(folder))
    code = (document for module, source, tree in modules for document in _code(module, source, tree))
    documents = itertools.chain(reference_documents(), _docstrings(modules), code)
    yield from unique(document for document in documents if len(document.text) >= _MIN_CHARACTERS)


def unique(documents: Iterable[Document]) -> Iterator[Document]:
    """Leaves out documents whose text has been seen."""
    seen = set()
    for document in documents:
        if document.sha256 not in seen:
            seen.add(document.sha256)
            yield document


def reference_documents() -> Iterator[Document]:
    """The language reference, a document a topic."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(name, "reference", topics[name].strip() + "\n")


def _modules(folder: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """(module name, source, syntax tree) of each file that is worth reading."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if _LEFT_OUT.intersection(parts) or parts[0].startswith(_LEFT_OUT_PREFIXES):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd escapes in old files
                tree = ast.parse(source)
        except (OSError, ValueError, SyntaxError):
            continue  # a file of another encoding or another Python
        if _TABLE not in source:
            names = [*parts[:-1], path.stem] if path.stem != "__init__" else parts[:-1]
            yield ".".join(names), source, tree


# Docstrings --------------------------------------------------------------------------------------------------------


def _docstrings(modules: Iterable[tuple[str, str, ast.Module]]) -> Iterator[Document]:
    """Docstrings under a line that says whose they are, the same docstring once."""
    seen = set()
    for name, head, text, module in [*_written_docstrings(modules), *_c_docstrings()]:
        text = inspect.cleandoc(text)
        if len(text) >= _MIN_CHARACTERS and text not in seen:
            seen.add(text)
            yield Document(name, "docstring", f"{head}\n\n{text}\n", module)


def _written_docstrings(modules: Iterable[tuple[str, str, ast.Module]]) -> Iterator[tuple[str, str, str, str]]:
    for module, _, tree in modules:
        if text := ast.get_docstring(tree, clean=False):
            yield module, f"module {module}", text, module
        for name, node in _definitions(tree, module):
            if text := ast.get_docstring(node, clean=False):
                yield name, _head(name, node), text, module


def _definitions(tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, _Definition]]:
    """Functions and classes of a module, methods too, with their dotted names."""
    for node in tree.body:
        if isinstance(node, _Definition):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{prefix}.{node.name}")


def _head(name: str, node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    return f"{name}({ast.unparse(node.args)})"


def _c_docstrings() -> Iterator[tuple[str, str, str, str]]:
    for module in _C_MODULES:
        try:
            content = importlib.import_module(module)
        except ImportError:
            continue  # this Python was built without it
        public = module.lstrip("_")
        if content.__doc__:
            yield public, f"module {public}", content.__doc__, public
        for name, value in sorted(vars(content).items()):
            yield from _c_docstring(f"{public}.{name}", value, public)
            if isinstance(value, type) and value.__module__ in (module, public):
                for method, function in sorted(vars(value).items()):
                    yield from _c_docstring(f"{public}.{name}.{method}", function, public)


def _c_docstring(name: str, value: Any, module: str) -> Iterator[tuple[str, str, str, str]]:
    written_in_c = inspect.isroutine(value) and not inspect.isfunction(value)  # a hook may be set to anything
    text = getattr(value, "__doc__", None)
    if isinstance(text, str) and (isinstance(value, type) or written_in_c or inspect.isdatadescriptor(value)):
        try:
            head = f"{name}{inspect.signature(value)}" if callable(value) else name
        except Exception:  # a signature that inspect cannot read: it evaluates what is written there
            head = name
        yield name, head, text, module


# Code --------------------------------------------------------------------------------------------------------------


def _code(module: str, source: str, tree: ast.Module) -> Iterator[Document]:
    """A document for each function and class at the top of a module, with its comments, and one for the rest."""
    lines = [f"{line}\n" for line in source.split("\n")]  # not splitlines: a form feed ends no line in Python
    for node in (tree, *(node for _, node in _definitions(tree, module))):
        _strip_docstring(lines, node)
    rest: list[str] = []
    done = 0
    for node in tree.body:
        if isinstance(node, _Definition):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            while first > done and lines[first - 1].startswith("#"):
                first -= 1
            rest += lines[done:first]
            done = node.end_lineno or first
            yield Document(f"{module}.{node.name}", "code", _tidy(lines[first:done]), module)
    yield Document(module, "code", _tidy(rest + lines[done:]), module)


def _strip_docstring(lines: list[str], node: ast.Module | _Definition) -> None:
    """Empties the lines of a docstring, which is a document of its own. A body that was nothing else becomes `...`."""
    if ast.get_docstring(node, clean=False) is None:
        return
    text = node.body[0]
    first, last = text.lineno - 1, text.end_lineno or text.lineno
    if lines[first][: text.col_offset].strip() or lines[last - 1].encode()[text.end_col_offset or 0 :].strip():
        return  # shares its line with code
    while last < len(lines) and not lines[last].strip():
        last += 1
    lines[first:last] = [""] * (last - first)
    if len(node.body) == 1 and not isinstance(node, ast.Module):
        lines[first] = f"{' ' * text.col_offset}...\n\n"


def _tidy(lines: Iterable[str]) -> str:
    """No trailing spaces, never more than two blank lines."""
    tidy, blank = [], 0
    for line in lines:
        if line:
            blank = 0 if line.strip() else blank + 1
            if blank <= 2:
                tidy.append(line.rstrip() + "\n")
    return "".join(tidy).strip("\n") + "\n"
