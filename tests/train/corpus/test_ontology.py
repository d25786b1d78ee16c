"""Definitions of known concepts: the bundled file is valid, its rules match, invalid files are rejected."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.ontology import read_concepts
from steerling_jax.train.corpus.rules import RuleLabels, check_examples
from steerling_jax.train.corpus.sources import read_sources

CONCEPTS = read_concepts()
RULES = RuleLabels(CONCEPTS)
NAMES = [concept.name for concept in CONCEPTS]


def labels(text: str, source: str = "docstring", module: str = "") -> set[str]:
    (found,) = RULES.annotate(Document("name", source, text, module), [TextChunk(text, 0)])
    return {NAMES[i] for i in found}


def test_concepts_are_named_described_and_have_rules():
    concepts = CONCEPTS
    assert 60 <= len(concepts) <= 200
    assert [c.id for c in concepts] == list(range(len(concepts)))
    assert {c.group for c in concepts} == {"topic", "form", "syntax"}
    for concept in concepts:
        assert concept.description.endswith(".")
        assert concept.modules or concept.words or concept.pattern
        assert all(re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)?", word) for word in concept.words), concept.words
        assert set(concept.sources) <= {"reference", "docstring", "code", "text"}
    check_examples(concepts)


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
        (
            "class A(B):\n    @property\n    def x(self):\n",
            "code",
            "",
            {"Class definition", "Decorator", "Property and class method", "Method definition"},
        ),
        ("    async with lock:\n", "code", "", {"Asynchronous code", "With statement"}),
        ("    x = [i for i in y]\n", "code", "", {"Comprehension"}),
    ],
)
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


# Concepts in files of their own

KNITTING = """
[[concept]]
name = "Knitting"
group = "topic"
description = "Making cloth with needles."
words = ["knit", "purl stitch"]
examples = ["Knit two rows."]
counterexamples = ["Knights of the table."]
contributor = "A. Nonymous"
"""


def test_added_concepts_are_numbered_after_the_bundled_ones(tmp_path: Path):
    (tmp_path / "b.toml").write_text(KNITTING.replace("Knitting", "Weaving"))
    (tmp_path / "a.toml").write_text(KNITTING)
    found = read_concepts(["bundled", tmp_path])
    assert [c.name for c in found[len(CONCEPTS) :]] == ["Knitting", "Weaving"]
    assert [c.id for c in found] == list(range(len(CONCEPTS) + 2))
    assert [c.id for c in read_concepts([tmp_path / "a.toml"])] == [0]
    assert found[-1].about() == {
        "id": len(CONCEPTS) + 1,
        "name": "Weaving",
        "group": "topic",
        "description": "Making cloth with needles.",
    }
    check_examples(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[concept]]", "[[concept]", "not valid TOML"),
        ("[[concept]]", "[concept]", "with two brackets"),
        ('["knit", "purl stitch"]', '"knit"', "concept 'Knitting': words is 'knit'; give a list"),
        ('"purl stitch"', '"Purl-stitch!"', "words contains 'Purl-stitch!'"),
        ("contributor", "colour", "colour is not a field of a concept"),
        ('group = "topic"', "", "'Knitting' has no group"),
        ('name = "Knitting"', "", "concept 1 has no name"),
        ("words = [", "pattern = '('\nwords = [", "'Knitting'.*unterminated"),
        ('words = ["knit", "purl stitch"]', "", "has no rule and 1 examples"),
        ('"Knitting"', '"threads"', "'threads' is already defined in .*ontology.toml"),
        ("contributor =", 'most = "all"\ncontributor =', "most is 'all'"),
    ],
)
def test_bad_concepts(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "mine.toml"
    assert old in KNITTING
    path.write_text(KNITTING.replace(old, new))
    with pytest.raises(UserError, match=rf"mine\.toml.*{message}"):
        read_concepts(["bundled", path])


def test_rules_must_agree_with_their_examples(tmp_path: Path):
    for old, new, message in [
        ("Knit two rows.", "Cast on.", "do not match its example 'Cast on.'"),
        ("Knights of", "Knit at", "match its counterexample 'Knit at the table.'"),
    ]:
        (tmp_path / "mine.toml").write_text(KNITTING.replace(old, new))
        with pytest.raises(UserError, match=message):
            check_examples(read_concepts([tmp_path / "mine.toml"]))


def test_the_concepts_in_the_documentation_are_right(tmp_path: Path):
    for number, page in enumerate(("docs/guide/corpus.md", "CONTRIBUTING.md")):
        text = textwrap.dedent((Path(__file__).parents[3] / page).read_text(encoding="utf-8"))
        blocks = [textwrap.dedent(b) for b in re.findall(r"^ *```toml\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)]
        (mine,) = [block for block in blocks if "[[concept]]" in block]
        (tmp_path / f"{number}.toml").write_text(mine)
        check_examples(read_concepts([tmp_path / f"{number}.toml"]))
        (source,) = [block for block in blocks if "[[source]]" in block]
        (tmp_path / "source.toml").write_text(source)
        assert read_sources(tmp_path / "source.toml")[0].name == "tales"


def test_missing_concepts(tmp_path: Path):
    with pytest.raises(UserError, match="Cannot read"):
        read_concepts([tmp_path / "nowhere.toml"])
    with pytest.raises(UserError, match=r"contains no \.toml files"):
        read_concepts([tmp_path])
