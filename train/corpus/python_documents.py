"""The default corpus: the documentation and the source code of the Python installation that runs this program.

Every Python installation contains its language reference (`pydoc_data.topics`), the docstrings of the standard library
and its source. Nothing is downloaded. Docstrings are read from syntax trees, without running a module, and from the
modules written in C.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from steerling_jax.train.corpus.documents import Document, unique

# Excluded: tests, programs, bundled copies of other projects, settings of this machine's build, tables as code.
_EXCLUDED = {
    "_bundled",
    "__phello__",
    "entities.py",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_EXCLUDED_PREFIXES = ("config-", "_sysconfigdata", "lib-dynload", "__hello__")
_CHARACTER_TABLE = "decoding_table = ("  # marks the modules of `encodings` that are tables, also excluded

# Modules written in C that can be imported without side effects on every platform.
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
_MIN_CHARACTERS = 24  # shorter texts are left out
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class _Module(NamedTuple):
    name: str
    source: str
    tree: ast.Module


class _Docstring(NamedTuple):
    """name: dotted name of what is documented. heading: its signature. module: the module it is in."""

    name: str
    heading: str
    text: str
    module: str


def python_documents(stdlib: str | Path | None = None) -> Iterator[Document]:
    """The language reference, docstrings and code of this Python, in a fixed order and without repeated texts.

    stdlib: another folder of modules to read instead of this Python's standard library.
    """
    folder = Path(stdlib or sysconfig.get_paths()["stdlib"])
    modules = list(_modules(folder))
    code = (document for module in modules for document in _code_documents(module))
    documents = itertools.chain(reference_documents(), _docstring_documents(modules), code)
    yield from unique(document for document in documents if len(document.text) >= _MIN_CHARACTERS)


def reference_documents() -> Iterator[Document]:
    """The language reference, one document per topic."""
    from pydoc_data.topics import topics  # 700 kB of text, needed here only

    for name in sorted(topics):
        yield Document(name, "reference", topics[name].strip() + "\n")


def _modules(folder: Path) -> Iterator[_Module]:
    """The modules of a library folder that are not excluded and can be parsed, in order of path."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if _EXCLUDED.intersection(parts) or parts[0].startswith(_EXCLUDED_PREFIXES):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escape sequences in old files
                tree = ast.parse(source)
        except (OSError, ValueError, SyntaxError):
            continue  # a file in another encoding or for another version of Python
        if _CHARACTER_TABLE not in source:
            names = [*parts[:-1], path.stem] if path.stem != "__init__" else parts[:-1]
            yield _Module(".".join(names), source, tree)


# Docstrings --------------------------------------------------------------------------------------------------------


def _docstring_documents(modules: Iterable[_Module]) -> Iterator[Document]:
    """A document per docstring, below a line with the signature; equal docstrings once."""
    seen = set()
    for docstring in [*_python_docstrings(modules), *_c_docstrings()]:
        text = inspect.cleandoc(docstring.text)
        # Compared without the heading: an inherited docstring has another heading in each class.
        if len(text) >= _MIN_CHARACTERS and text not in seen:
            seen.add(text)
            yield Document(docstring.name, "docstring", f"{docstring.heading}\n\n{text}\n", docstring.module)


def _python_docstrings(modules: Iterable[_Module]) -> Iterator[_Docstring]:
    for module in modules:
        if text := ast.get_docstring(module.tree, clean=False):
            yield _Docstring(module.name, f"module {module.name}", text, module.name)
        for name, node in _definitions(module.tree, module.name):
            if text := ast.get_docstring(node, clean=False):
                yield _Docstring(name, _heading(name, node), text, module.name)


def _definitions(tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, _Definition]]:
    """(dotted name, node) of the functions, classes and methods of a module."""
    for node in tree.body:
        if isinstance(node, _Definition):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{prefix}.{node.name}")


def _heading(name: str, node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    return f"{name}({ast.unparse(node.args)})"


def _c_docstrings() -> Iterator[_Docstring]:
    for module in _C_MODULES:
        try:
            content = importlib.import_module(module)
        except ImportError:
            continue  # this Python was built without it
        public = module.lstrip("_")
        if content.__doc__:
            yield _Docstring(public, f"module {public}", content.__doc__, public)
        for name, value in sorted(vars(content).items()):
            yield from _c_docstring(f"{public}.{name}", value, public)
            if isinstance(value, type) and value.__module__ in (module, public):
                for method, function in sorted(vars(value).items()):
                    yield from _c_docstring(f"{public}.{name}.{method}", function, public)


def _c_docstring(name: str, value: Any, module: str) -> Iterator[_Docstring]:
    # Other libraries replace hooks such as `sys.excepthook` by Python functions, whose docstrings are not Python's:
    # only what is written in C is taken, so that the corpus does not depend on what has been imported.
    written_in_c = inspect.isroutine(value) and not inspect.isfunction(value)
    text = getattr(value, "__doc__", None)
    if isinstance(text, str) and (isinstance(value, type) or written_in_c or inspect.isdatadescriptor(value)):
        try:
            heading = f"{name}{inspect.signature(value)}" if callable(value) else name
        except Exception:  # inspect evaluates the signature's text, which may raise anything
            heading = name
        yield _Docstring(name, heading, text, module)


# Code --------------------------------------------------------------------------------------------------------------


def _code_documents(module: _Module) -> Iterator[Document]:
    """A document per top-level function and class, with the comments above it, and one for the rest of the module."""
    # Not splitlines(): it also splits at form feeds, which do not end a line for Python, so that the line numbers of
    # the syntax tree would not fit.
    lines = [f"{line}\n" for line in module.source.split("\n")]
    for node in (module.tree, *(node for _, node in _definitions(module.tree, module.name))):
        _remove_docstring(lines, node)
    rest: list[str] = []
    done = 0
    for node in module.tree.body:
        if isinstance(node, _Definition):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
            while first > done and lines[first - 1].startswith("#"):
                first -= 1
            rest += lines[done:first]
            done = node.end_lineno or first
            yield Document(f"{module.name}.{node.name}", "code", _tidy(lines[first:done]), module.name)
    yield Document(module.name, "code", _tidy(rest + lines[done:]), module.name)


def _remove_docstring(lines: list[str], node: ast.Module | _Definition) -> None:
    """Empties the lines of a docstring, which is a document of its own; a body without other content becomes `...`."""
    # The lines become "" and stay in the list, so that the line numbers of other nodes remain valid.
    if ast.get_docstring(node, clean=False) is None:
        return
    text = node.body[0]
    first, last = text.lineno - 1, text.end_lineno or text.lineno
    # Column offsets of the syntax tree count UTF-8 bytes, hence `encode`.
    if lines[first][: text.col_offset].strip() or lines[last - 1].encode()[text.end_col_offset or 0 :].strip():
        return  # the docstring shares a line with code
    while last < len(lines) and not lines[last].strip():
        last += 1
    lines[first:last] = [""] * (last - first)
    if len(node.body) == 1 and not isinstance(node, ast.Module):
        lines[first] = f"{' ' * text.col_offset}...\n\n"


def _tidy(lines: Iterable[str]) -> str:
    """The lines without trailing spaces, removed lines, and more than two blank lines in succession."""
    tidy, blank = [], 0
    for line in lines:
        if line:
            blank = 0 if line.strip() else blank + 1
            if blank <= 2:
                tidy.append(line.rstrip() + "\n")
    return "".join(tidy).strip("\n") + "\n"
