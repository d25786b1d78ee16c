"""The catalogue: reading, searching, resolving names, ids and groups; and the tokens that a concept promotes."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import steerling_jax as sj
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.concepts.concept import Concept, NameQuality, unique_names
from steerling_jax.explain.promoted_tokens import promoted_pieces, promoted_tokens
from steerling_jax.io.catalogue import make_catalogue, model_catalogue, read_catalogue, write_catalogue
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig
from steerling_jax.models.steerling.model import init_params
from tests.worlds import small_config

CONCEPT = ConceptConfig(n_concepts=100, n_unknown_concepts=150, concept_dim=32, factorize_rank=16, block_size=32)
SMALL = dataclasses.replace(
    small_config.SMALL, n_layers=1, n_head=2, n_kv_heads=1, block_size=32, intermediate_size=32, concept=CONCEPT
)
ENTRIES = [
    {"id": 0, "name": "Regular expressions", "description": "Patterns that match text.", "group": "topic"},
    {"id": 1, "name": "Text encoding", "description": "Unicode and bytes.", "group": "topic"},
    {"id": 2, "name": "Text", "description": "Strings.", "group": "topic", "flags": ["broad"]},
    {"id": 3, "name": "Expressions and statements", "group": "syntax"},
    {"id": 7, "name": "Twice"},
    {"id": 8, "name": "twice"},
    {"id": 9, "name": "404"},
    {"id": 1, "name": "Brackets", "head": "discovered", "group": "syntax"},
]
CATALOGUE = make_catalogue(ENTRIES, SMALL, "list")


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("text", [2, 1, 0]),  # the name itself, a word of a name, a description
        ("EXPRESS", [0, 3]),
        ("regular expr", [0]),  # those with both words only
        ("unicode", [1]),
        ("topic", [2, 1, 0]),
        ("#7", [7]),
        ("99", [99]),
        ("group:syntax", [3]),
        ("nothing here", []),
    ],
)
def test_find(query: str, ids: list[int]):
    assert sorted([one.id for one in CATALOGUE.find(query)]) == sorted(ids)
    if query != "topic":
        assert [one.id for one in CATALOGUE.find(query)] == ids


def test_an_empty_query_lists_all_concepts_also_those_without_an_entry():
    everything = CATALOGUE.find("", "discovered")
    assert [one.id for one in everything] == list(range(150))
    assert everything[1].name == "Brackets"
    assert everything[5] == Concept(5, "concept 5", head="discovered")


def test_names_ids_and_groups_are_resolved():
    assert CATALOGUE.resolve("  text   ENCODING ") == (1,)
    assert CATALOGUE.resolve(42) == CATALOGUE.resolve("42") == CATALOGUE.resolve("#42") == (42,)
    assert CATALOGUE.resolve("404") == (9,)  # a name comes before a number
    assert CATALOGUE.resolve("group:Topic") == (0, 1, 2)
    assert CATALOGUE.resolve("brackets", "discovered") == (1,)
    assert CATALOGUE.resolve("group: syntax", "discovered") == (1,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("regulr expressions", "no known concept 'regulr expressions'; did you mean 'Regular expressions'"),
        ("expresions", "did you mean .*'Expressions and statements'"),
        ("xyzzy", "`steerling concepts` lists them"),
        ("Twice", "Several known concepts are called 'Twice'; give one of their ids, #7 and #8"),
        ("100", "no known concept 100; the ids are 0 to 99"),
        ("#404", "no known concept 404"),
        pytest.param("9" * 5000, r"no known concept 9{18}\.\.\.; the ids are 0 to 99", id="digits"),
        ("Brackets", "'Brackets' is a discovered concept, but a known one is needed"),
        ("group:topics", "no group 'topics' of known concepts; groups are 'topic'"),
        ("group:", "no group '' of known concepts"),
    ],
)
def test_errors_suggest_what_may_have_been_meant(text: str, words: str):
    with pytest.raises(sj.UserError, match=words):
        CATALOGUE.resolve(text)


def test_without_names_ids_still_work():
    bare = Catalogue((), known=5)
    assert bare.resolve("4") == (4,)
    with pytest.raises(sj.UserError, match="have no names; give an id from 0 to 4"):
        bare.resolve("gardens")
    with pytest.raises(sj.UserError, match="its concepts have no groups"):
        bare.resolve("group:gardens")
    with pytest.raises(sj.UserError, match="has no discovered concepts"):
        bare.resolve("0", "discovered")


def test_json_and_parquet_say_the_same(tmp_path: Path):
    (tmp_path / "c.json").write_text(json.dumps(ENTRIES))
    parquet.write_table(pyarrow.Table.from_pylist(ENTRIES, _schema()), tmp_path / "c.parquet")
    read = read_catalogue(tmp_path / "c.json", SMALL)
    assert read == CATALOGUE == read_catalogue(tmp_path / "c.parquet", SMALL)
    assert read.get(2) == Concept(2, "Text", "Strings.", "known", "topic", ("broad",))
    assert (read.known, read.discovered) == (100, 150)


def _schema() -> pyarrow.Schema:
    text = pyarrow.string()
    fields = dict.fromkeys(("name", "description", "head", "group"), text)
    return pyarrow.schema({"id": pyarrow.int32(), **fields, "flags": pyarrow.list_(text)})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (7, "7 is not a concept"),
        ({"id": 100, "name": "x"}, "an id below 100"),
        ({"id": True, "name": "x"}, "is not a known concept"),
        ({"id": 5, "name": " "}, "is not a known concept"),
        ({"id": 2, "name": "again"}, "the known concept 2 is listed twice"),
        ({"id": 5, "name": "x", "head": "guessed"}, "the head of 'x' is 'guessed'"),
        ({"id": 5, "name": "x", "group": 7}, "group of 'x' is 7"),
        ({"id": 5, "name": "x", "flags": [1]}, "flags of 'x' is 1"),
        ({"id": 5, "name": "x", "words": 3}, "words of 'x' is 3; give a list"),
        ({"id": 5, "name": "x", "quality": {"auc": 0.9}}, "quality of 'x' is .*; give numbers for auc, error"),
        ({"id": 5, "name": "x", "quality": [0.9]}, "quality of 'x' is .*; give numbers for auc, error"),
        ({"id": 5, "name": "x", "amplify": -1}, "the strength of amplify is -1"),
        ({"id": 5, "name": "x", "suppress": "1"}, "suppress of 'x' is '1'; give a number"),
        ({"id": 5, "words": []}, "is not a known concept"),
    ],
)
def test_errors_name_the_invalid_entry(entry: object, words: str):
    with pytest.raises(sj.UserError, match=f"^list: .*{words}"):
        make_catalogue([*ENTRIES, entry], SMALL, "list")


QUALITY = {"auc": 0.9, "error": 0.01, "others": None, "active": 12, "texts": 240}
NAMED = [
    {"id": 4, "name": "self · def", "head": "discovered", "words": ["self", "def"], "quality": QUALITY},
    {"id": 2, "head": "discovered", "words": ["import"], "quality": QUALITY | {"auc": 0.6}, "examples": ["a", "b"]},
]


def test_found_names_are_looked_up_and_written_as_they_were_read(tmp_path: Path):
    catalogue = make_catalogue([*NAMED, *ENTRIES[:3], {"id": 3, "name": "T", "amplify": 0.5}], SMALL, "list")
    found, without = catalogue.get(4, "discovered"), catalogue.get(2, "discovered")
    assert found.quality == NameQuality(0.9, 0.01, None, 12, 240)
    assert (without.name, without.is_named) == ("unnamed #2 “import”", False)
    assert catalogue.resolve("SELF def", "discovered") == catalogue.resolve("self · def", "discovered") == (4,)
    assert catalogue.find("import", "discovered") == [without]
    # Traces on disk have this hash, so it must not change with how a concept without a name is displayed.
    assert Catalogue((without, Concept(0, "Tides")), 3, 5).fingerprint == "5326cd36c0c15466"
    write_catalogue(tmp_path / "concepts.json", catalogue)
    again = read_catalogue(tmp_path / "concepts.json", SMALL)
    assert set(again.concepts) == set(catalogue.concepts)
    assert [(one.head, one.id) for one in again.concepts] == [
        *(("known", i) for i in range(4)),
        ("discovered", 2),
        ("discovered", 4),
    ]
    assert "name" not in json.loads((tmp_path / "concepts.json").read_text())[-2]


def test_names_that_occur_twice_are_numbered():
    names = ["self · def", "Self def", "import", "self · def"]
    assert unique_names(names, ["Import"]) == ["self · def", "Self def (2)", "import (2)", "self · def (3)"]


def test_errors_name_the_invalid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(sj.UserError, match=r"no file .*none\.parquet"):
        read_catalogue(tmp_path / "none.parquet", SMALL)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(sj.UserError, match=r"bad\.parquet is not a valid Parquet file"):
        read_catalogue(tmp_path / "bad.parquet", SMALL)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(sj.UserError, match=r"bad\.parquet requires pyarrow"):
        read_catalogue(tmp_path / "bad.parquet", SMALL)


def test_the_catalogue_of_a_model_folder(tmp_path: Path):
    bundle = sj.load()
    assert bundle.concepts.resolve("regular expressions") == (0,)
    assert model_catalogue(tmp_path, bundle.config).concepts == ()
    parquet.write_table(pyarrow.Table.from_pylist(ENTRIES, _schema()), tmp_path / "concepts.parquet")
    assert model_catalogue(tmp_path, bundle.config).resolve("regular expressions") == (0,)


def test_a_bundle_without_a_catalogue_has_concepts_without_names():
    bundle = dataclasses.replace(sj.load(), catalogue=None)
    assert (bundle.concepts.concepts, bundle.concepts.known) == ((), sj.load().concepts.known)
    with pytest.raises(sj.UserError, match="bare backbone"):
        dataclasses.replace(bundle, config=dataclasses.replace(SMALL, interpretable=False, concept=None)).concepts  # noqa: B018


@pytest.mark.parametrize("factorised", [True, False])
@pytest.mark.parametrize("head", ["known", "discovered"])
def test_promoted_tokens_are_those_that_the_embedding_points_to(head, factorised: bool):
    config = dataclasses.replace(SMALL, concept=dataclasses.replace(CONCEPT, factorize_unknown=factorised))
    params = init_params(config, jax.random.key(0))
    table = params["known_head" if head == "known" else "unknown_head"]
    if "embedding_coef" in table:
        E_CD = np.asarray(table["embedding_coef"]["weight"] @ table["embedding_basis"]["weight"].T)
    else:
        E_CD = np.asarray(table["concept_embedding"]["weight"])
    ids = [99, *range(80), 3]  # more than one batch
    tokens, logits = promoted_tokens(params, ids, 5, head=head, config=config, compute=Compute())
    wanted = E_CD[ids] @ np.asarray(params["tok_emb"]["weight"]).T
    wanted[:, [59, 60, 63]] = -np.inf  # eos, pad and mask are never written
    np.testing.assert_array_equal(tokens, np.argsort(-wanted, axis=1)[:, :5])
    np.testing.assert_allclose(logits, np.sort(wanted, axis=1)[:, ::-1][:, :5], rtol=1e-4, atol=1e-6)


def test_promoted_pieces_of_the_bundled_model():
    bundle = sj.load()
    ids = bundle.concepts.resolve("Email and MIME")
    assert any("mail" in piece.lower() for piece in promoted_pieces(bundle, ids, 32)[0])
    assert promoted_pieces(bundle, [], 8) == []
    with pytest.raises(sj.UserError, match="no discovered concept 100000"):
        promoted_pieces(bundle, [100_000], 8, "discovered")


def test_names_that_have_no_utf8_form(tmp_path: Path):
    """Lone surrogates of JSON are replaced; Parquet text that is not UTF-8 is refused. Suffixes have any case."""
    (tmp_path / "c.json").write_text('[{"id": 0, "name": "a \\ud800"}]')
    assert read_catalogue(tmp_path / "c.json", SMALL).get(0).name == "a ?"
    names = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(struct.pack("<2i", 0, 2)), pyarrow.py_buffer(b"a\xff")]
    )
    parquet.write_table(pyarrow.table({"id": [0], "name": names}), tmp_path / "c.PARQUET")
    with pytest.raises(sj.UserError, match=r"c\.PARQUET is not a valid Parquet file"):
        read_catalogue(tmp_path / "c.PARQUET", SMALL)
