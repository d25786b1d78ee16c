"""The default corpus: documents from a library folder and from this Python; repeated texts."""

from __future__ import annotations

import ast
import json
import shutil
import smtplib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from steerling_jax.train.corpus.documents import Document, unique
from steerling_jax.train.corpus.python_documents import python_documents, reference_documents

MODULE = '''"""Tools for small things, and notes on them."""

import os

LIMIT = 10


# Comments above belong to it.
@decorated
def first(a, *, b=1):
    """Adds two numbers that are given to it."""
    return a + b


class Thing(Base):
    """Holds a thing and looks after it well."""

    def method(self):
        """Gives the thing back to whoever asked."""

        return self.thing

    def plain(self): return 1


class Failure(Exception):
    """Says that looking after it has failed."""


if LIMIT:
    LIMIT += 1
'''


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder laid out as a standard library."""
    folder = tmp_path_factory.mktemp("lib")
    files = {
        "things.py": MODULE,
        "zoo/__init__.py": '"""A package of things that go together."""\n',
        "zoo/copy_of_first.py": "def copied():\n    'Adds two numbers that are given to it.'\n    return [1]\n",
        "test/test_things.py": "def test_it():\n    assert 'this must not be seen by anyone'\n",
        "cp1.py": "decoding_table = (\n    'a'\n    'b'\n    'c and more of these')\n",
        "broken.py": "def broken(:\n    pass  # not for this Python, maybe for another\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def documents(library: Path) -> dict[tuple[str, str], Document]:
    return {(d.source, d.name): d for d in python_documents(library)}


def test_docstrings_have_a_heading(documents: dict[tuple[str, str], Document]):
    text = documents["docstring", "things.first"].text
    assert text == "things.first(a, *, b=1)\n\nAdds two numbers that are given to it.\n"
    assert documents["docstring", "things.Thing"].text.startswith("class things.Thing(Base)\n\n")
    assert documents["docstring", "things.Thing.method"].module == "things"
    assert documents["docstring", "zoo"].text.startswith("module zoo\n\n")
    assert ("docstring", "zoo.copy_of_first.copied") not in documents  # the same docstring as things.first


def test_docstrings_of_c_modules_are_included(documents: dict[tuple[str, str], Document]):
    assert documents["docstring", "math.sqrt"].text.startswith("math.sqrt(")
    assert documents["docstring", "itertools.chain"].module == "itertools"


def test_code_has_no_docstrings_and_parses(documents: dict[tuple[str, str], Document]):
    code = {name: d.text for (source, name), d in documents.items() if source == "code"}
    assert set(code) == {"things.first", "things.Thing", "things.Failure", "things", "zoo.copy_of_first.copied"}
    assert code["things.first"] == (
        "# Comments above belong to it.\n@decorated\ndef first(a, *, b=1):\n    return a + b\n"
    )
    assert code["things.Failure"] == "class Failure(Exception):\n    ...\n"
    assert " ".join(code["things"].split()) == "import os LIMIT = 10 if LIMIT: LIMIT += 1"
    for text in code.values():
        ast.parse(text)
        assert "Gives the thing" not in text


def test_real_modules_keep_their_meaning(tmp_path: Path):
    """Except for docstrings, the documents of a real file together are the same program. smtplib has form feeds."""
    for module in (json.decoder, smtplib, textwrap):
        path = Path(module.__file__ or "")
        shutil.copy(path, tmp_path / path.name)
        code = [d.text for d in python_documents(tmp_path) if d.source == "code"]
        (tmp_path / path.name).unlink()
        found = {ast.unparse(node) for text in code for node in ast.parse(text).body}
        for node in without_docstrings(ast.parse(path.read_text(encoding="utf-8"))).body:
            assert ast.unparse(node) in found


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in [tree, *tree.body, *(n for c in tree.body if isinstance(c, ast.ClassDef) for n in c.body)]:
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body[:1] = [ast.Expr(ast.Constant(...))] if len(node.body) == 1 else []
    return tree


def test_nothing_depends_on_the_process():
    """No memory addresses, and no docstrings of functions that replace a hook."""
    for document in python_documents(Path(json.__file__).parent):
        assert " at 0x" not in document.text.splitlines()[0]


def test_order_and_hashes_are_fixed(library: Path):
    listing = "import sys; from steerling_jax.train.corpus.python_documents import python_documents as p\n"
    listing += "print(*(d.sha256 for d in p(sys.argv[1])), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", listing, str(library)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [d.sha256 for d in python_documents(library)]


def test_reference_topics():
    names = [d.name for d in reference_documents()]
    assert "assert" in names
    assert names == sorted(names)


def test_no_text_twice():
    texts = ["a text that is long enough", "another text, long enough", "a text that is long enough", "short"]
    found = list(unique(Document(str(i), "text", text) for i, text in enumerate(texts)))
    assert [d.name for d in found] == ["0", "1", "3"]
