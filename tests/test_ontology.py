"""The known concepts: a well-formed file, and rules that find what a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.corpus import MAX_LABELS
from steerling_jax.train.documents import Document
from steerling_jax.train.ontology import bundled_ontology, label_chunk, load_ontology

NAMES = [concept.name for concept in bundled_ontology().concepts]


def labels(text: str, source: str = "docstring", module: str = "", own: tuple[str, ...] = ()) -> set[str]:
    return {NAMES[i] for i in label_chunk(text, Document("name", source, text, module, own))}


def test_concepts_are_named_described_and_have_rules():
    concepts = bundled_ontology().concepts
    assert 60 <= len(concepts) <= 200
    assert [c.id for c in concepts] == list(range(len(concepts)))
    assert {c.group for c in concepts} == {"topic", "form", "syntax"}
    for concept in concepts:
        assert concept.description.endswith(".")
        assert concept.modules or concept.words or concept.pattern
        assert all(re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)?", word) for word in concept.words), concept.words
        assert set(concept.sources) <= {"reference", "docstring", "code", "text"}


@pytest.mark.parametrize(
    ("text", "source", "module", "expected"),
    [
        ("Compile a regular expression.", "docstring", "", {"Regular expressions"}),
        ("Anything at all.", "docstring", "re", {"Regular expressions"}),
        ("Anything at all.", "docstring", "xml.dom.minidom", {"XML and HTML"}),
        ("Wait until the thread terminates, or the timeout.", "docstring", "", {"Threads", "Timeouts and delays"}),
        ("Returns the file's path.", "docstring", "", {"Return value description", "Files", "Paths and directories"}),
        (">>> sorted([3, 1])\n[1, 3]", "docstring", "", {"Code example", "Sorting and searching"}),
        ("Raises ValueError if it is not found.", "docstring", "", {"Error description"}),
        ("Deprecated since version 3.4.", "reference", "", {"Deprecation", "Version note"}),
        ("New in version 3.5.", "reference", "", {"Version note"}),
        ("if_stmt ::= 'if' assignment_expression", "reference", "", {"Grammar rule"}),
        ("    try:\n        x = 1\n    except KeyError:\n", "code", "", {"Exception handling"}),
        ("    for i in x:\n        yield i\n", "code", "", {"For loop", "Generator"}),
        ("class A(B):\n    @property\n    def x(self):\n", "code", "",
         {"Class definition", "Decorator", "Property and class method", "Method definition"}),
        ("    async with lock:\n", "code", "", {"Asynchronous code", "With statement"}),
        ("    x = [i for i in y]\n", "code", "", {"Comprehension"}),
    ],
)  # fmt: skip
def test_finds(text: str, source: str, module: str, expected: set[str]):
    assert expected <= labels(text, source, module)


@pytest.mark.parametrize(
    ("text", "source", "absent"),
    [
        ("The class of threads for which it is raised.", "docstring", "Class definition"),
        ("This means that the result is kept.", "docstring", "Statistics"),
        ("from __future__ import annotations", "code", "Event loops"),
        ("Really refreshing.", "docstring", "Regular expressions"),
        ("setup the thing", "docstring", "Sets"),
    ],
)
def test_does_not_find(text: str, source: str, absent: str):
    assert absent not in labels(text, source)


def test_never_more_labels_than_fit():
    text = " ".join(word for concept in bundled_ontology().concepts for word in concept.words)
    found = label_chunk(text, Document("all", "docstring", text, labels=("Grammar rule",)))
    assert len(found) == len(set(found)) == MAX_LABELS
    assert NAMES[found[0]] == "Grammar rule"


def test_own_labels():
    assert "Threads" in labels("Nothing of note.", own=("Threads",))
    with pytest.raises(UserError, match="unknown concept 'Knitting'"):
        labels("Nothing of note.", own=("Knitting",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[concept]\n", "not valid TOML"),
        ('[[concept]]\nname = "A"\ngroup = "t"\ndescription = "d"\nwords = "tree"\n', "'A'.*words.*list"),
        ('[[concept]]\nname = "A"\ngroup = "topic"\ndescription = "d."\ncolour = "red"\n', "'A'.*colour"),
        ('[[concept]]\nname = "A"\n', "'A'.*group"),
        ('[[concept]]\nname = "A"\ngroup = "t"\ndescription = "d"\n' * 2, "the same name"),
        ('[[concept]]\nname = "A"\ngroup = "t"\ndescription = "d"\npattern = "("\n', "'A'.*unterminated"),
    ],
)
def test_bad_ontology(tmp_path: Path, content: str, message: str):
    path = tmp_path / "ontology.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_ontology(path)
    with pytest.raises(UserError, match="Cannot read"):
        load_ontology(tmp_path / "nowhere.toml")
