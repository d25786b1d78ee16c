"""Documents from a library folder, from this Python and from the user's files; chunks; near-copies and the split."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.chunking import chunks
from steerling_jax.train.corpus.documents import Document, unique
from steerling_jax.train.corpus.python_documents import python_documents, reference_documents
from steerling_jax.train.corpus.reading import read_part
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.corpus.split import in_sample, near_duplicates, split_of_key
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.part_plan import plan_parts
from steerling_jax.train.prepare.prepare import prepare

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


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece([MODULE] * 5, 400))


def test_docstrings_have_a_head(documents: dict[tuple[str, str], Document]):
    text = documents["docstring", "things.first"].text
    assert text == "things.first(a, *, b=1)\n\nAdds two numbers that are given to it.\n"
    assert documents["docstring", "things.Thing"].text.startswith("class things.Thing(Base)\n\n")
    assert documents["docstring", "things.Thing.method"].module == "things"
    assert documents["docstring", "zoo"].text.startswith("module zoo\n\n")
    assert ("docstring", "zoo.copy_of_first.copied") not in documents  # the same docstring as things.first


def test_docstrings_of_c_modules_are_there(documents: dict[tuple[str, str], Document]):
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
    """Docstrings aside, the documents of real files together are the same program. smtplib has form feeds."""
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


def test_nothing_depends_on_this_run():
    """No memory addresses, and no docstrings of what a tool has put in place of a hook."""
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


# The user's own files


def read(path: Path, part_bytes: int = 0, **settings) -> list[Document]:
    source = TextSource((str(path),), **settings)
    return [document for part in plan_parts([source], part_bytes) for document in read_part(part, source)]


def test_folder(tmp_path: Path):
    (tmp_path / "b.txt").write_bytes("\ufeff한국어 글".encode())
    lines = [{"text": "one", "name": "n", "source": "s", "labels": ["Threads"]}, {"text": "two\u2028three"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n\n")
    (tmp_path / "ignored.md").write_text("not this")
    assert read(tmp_path) == [
        Document("b.txt", "text", "한국어 글"),
        Document("n", "s", "one", labels=("Threads",)),
        Document("a.jsonl:2", "text", "two\u2028three"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", r"a\.txt is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"words": "x"}', r"a\.jsonl, line 1 has no text"),
        ("a.jsonl", b"[1]", "line 1 has no text"),
        ("a.jsonl", b'{"text": "x", "labels": "Threads"}', "line 1: labels must be a list"),
        ("a.jsonl", b'{"text": "x", "name": 3}', "line 1: name must be a string"),
        ("a.md", b"text", "holds no documents"),
    ],
)
def test_bad_folder(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        assert read(tmp_path)


def test_links_to_files_are_read(tmp_path: Path):
    """As in the Hub's cache, where a snapshot is links to files of other names."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    blob, link = tmp_path / "blobs" / "0a1b", tmp_path / "snapshot" / "a.txt"
    blob.write_text("some text")
    link.symlink_to("../blobs/0a1b")
    (tmp_path / "snapshot" / "README.md").symlink_to("nowhere")
    for name in ("snapshot", "snapshot/*", "snapshot/a.txt"):
        assert [(d.name, d.text) for d in read(tmp_path / name)] == [("a.txt", "some text")]
    (part,) = plan_parts([TextSource((str(tmp_path / "snapshot"),))])
    assert (part.files[0].size, part.files[0].stamp) == (9, str(blob.stat().st_mtime))
    (tmp_path / "snapshot" / "b.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"b\.txt is a broken link"):
        read(tmp_path / "snapshot")


def test_links_to_folders_are_told(tmp_path: Path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "more").symlink_to(tmp_path)
    with pytest.raises(UserError, match="more is a link to a folder"):
        read(tmp_path)
    assert len(read(tmp_path / "*.txt")) == 1


def test_no_folder(tmp_path: Path):
    with pytest.raises(UserError, match="is not a folder"):
        read(tmp_path / "nowhere")


# Chunks


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab. \n\t>>>가。😀#"), max_size=400), st.booleans(), st.integers(1, 40))
def test_chunks_join_to_the_document(tokenizer: SentencePieceTokenizer, text: str, code: bool, target: int):
    found = list(chunks(text, tokenizer, target, code=code))
    assert "".join(part for part, _ in found) == text
    assert all(part and tokenizer.decode(ids) == part for part, ids in found)


def test_chunks_are_near_the_target(tokenizer: SentencePieceTokenizer):
    text = "A sentence of some words goes here. Another follows it there!\n" * 50
    sizes = [len(ids) for _, ids in chunks(text, tokenizer, 64)]
    assert max(sizes) <= 70
    assert min(sizes[:-1]) >= 32


def test_cuts_fall_where_a_reader_would_pause(tokenizer: SentencePieceTokenizer):
    prose = "One short sentence is here. A second\ngoes over a line. A third is the last of them all.\n"
    parts = [part for part, _ in chunks(prose, tokenizer, 40)]
    assert all(part.rstrip().endswith(".") for part in parts)
    code_parts = [part for part, _ in chunks(MODULE, tokenizer, 60, code=True)]
    assert len(code_parts) > 2
    assert all(part.endswith("\n") for part in code_parts)


def test_what_has_no_pause_is_cut_all_the_same(tokenizer: SentencePieceTokenizer):
    assert max(len(ids) for _, ids in chunks("가나다라" * 200 + "x" * 3000, tokenizer, 32)) <= 48


# The split


def words(start: int, count: int) -> str:
    return " ".join(f"word{i}" for i in range(start, start + count))


def test_near_copies_are_one_cluster():
    texts = [words(0, 100), words(5, 95), words(1000, 100), words(1000, 70) + " " + words(2000, 300), "other", "other"]
    assert near_duplicates(texts) == [0, 0, 2, 2, 4, 4]


def test_boilerplate_joins_nothing():
    texts = [words(0, 20) + words(1000 * (i + 1), 25) for i in range(60)]
    assert near_duplicates(texts) == list(range(60))


def test_many_versions_of_one_text_are_one_cluster():
    texts = [words(0, 60) + " " + words(1000 * (i + 1), 10) for i in range(60)]
    others = [words(100_000 + 1000 * i, 60) for i in range(5)]
    assert near_duplicates([*texts[:30], *others, *texts[30:]]) == [0] * 30 + list(range(30, 35)) + [0] * 30


def test_texts_of_one_name_are_one_cluster():
    texts = [words(0, 100), words(1000, 50), words(5, 95), words(2000, 50), words(3000, 50)]
    assert near_duplicates(texts, ["", "x", "x", "y", ""]) == [0, 0, 0, 3, 4]


def test_a_named_cluster_stays_with_its_near_duplicates(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    texts = [f"{words(100 * (i // 2), 60)} end{i}" for i in range(160)]  # pairs; a name joins two of them
    documents = [Document(str(i), "text", text, cluster=f"c{i // 4}" * (i % 2)) for i, text in enumerate(texts)]
    inputs = CorpusInputs(documents=documents, tokenizer=tokenizer)
    made = prepare(tmp_path / "s", inputs, PrepareConfig(heldout_share=0.3))
    sides = {int(document.name): document.split for document in made.documents}
    assert all(len({sides[4 * i + j] for j in range(4)}) == 1 for i in range(40))
    assert 0.1 < list(sides.values()).count("heldout") / 160 < 0.5


def test_no_texts():
    assert near_duplicates([]) == []


def test_the_split_is_by_key():
    sides = [split_of_key(str(i), 0.04) for i in range(2000)]
    assert sides == [split_of_key(str(i), 0.04) for i in range(2000)]
    assert 0.02 < sides.count("heldout") / len(sides) < 0.06


def test_samples_are_nested():
    documents = [Document(str(i), "text", words(i, 10)) for i in range(500)]
    tenth, half = ({d.name for d in documents if in_sample(d, share)} for share in (0.1, 0.5))
    assert tenth < half
    assert 200 < len(half) < 300
