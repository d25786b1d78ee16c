"""Tables of labels: published and other columns, joins by id and hash, invalid descriptions and columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.label_join import TableLabels, build_table
from steerling_jax.train.corpus.label_table import TableSettings, check_table, read_table_settings
from steerling_jax.train.corpus.ontology import read_concepts
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare

DOCUMENTS = {7: ["Bread is baked here. ", "It needs an oven. "], 8: ["Boats sail. ", "Waves rise high. ", "Wind."]}
INVENTORY = [
    {"concept_id": 500, "concept_type": "content", "name": "Baking", "description": "Bread and cakes."},
    {"concept_id": 501, "concept_type": "content", "name": "Sailing", "description": "Boats and wind."},
    {"concept_id": 900, "concept_type": "tone", "name": "Calm", "description": "At ease."},
    {"concept_id": 901, "concept_type": "tone", "name": "threads", "description": "Has the name of a bundled concept."},
]
LABELS = {(7, 0): ([500], [900]), (7, 1): ([500], [901]), (8, 0): ([501], []), (8, 1): ([501], [900])}
SETTINGS = """
[[labels]]
name = "atlas"
files = "chunks/*.parquet"
concepts = "concepts.parquet"
"""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents, and labels of their chunks under the published column names."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("atlas")
    rows = [
        {
            "doc_int_id": number,
            "chunk_id": i,
            "chunk_text": text,
            "chunk_status": "ok",
            "content_ids": LABELS.get((number, i), ([], []))[0],
            "tone_ids": LABELS.get((number, i), ([], []))[1],
        }
        for number, texts in DOCUMENTS.items()
        for i, text in enumerate(texts)
    ]
    (folder / "chunks").mkdir()
    # Reversed: the order of a table's rows does not matter.
    parquet.write_table(pa.Table.from_pylist(rows[::-1]), folder / "chunks" / "0.parquet")
    parquet.write_table(pa.Table.from_pylist(INVENTORY), folder / "concepts.parquet")
    (folder / "labels.toml").write_text(SETTINGS)
    lines = [json.dumps({"text": "".join(texts), "doc": number}) for number, texts in DOCUMENTS.items()]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    return folder


def test_a_table_in_the_published_columns(atlas: Path, tmp_path: Path):
    tokenizer = SentencePieceTokenizer(train_sentencepiece(["".join(t) for t in DOCUMENTS.values()] * 9, 300))
    concepts = read_concepts()
    inputs = CorpusInputs(
        sources=[TextSource((str(atlas / "documents.jsonl"),), id_field="doc")],
        tables=read_table_settings(atlas / "labels.toml"),
        tokenizer=tokenizer,
    )
    made = prepare(tmp_path / "store", inputs, PrepareConfig(heldout_share=0.0, chunk_tokens=10))
    names = [concept["name"] for concept in made.concepts]
    assert names[len(concepts) :] == ["Baking", "Sailing", "Calm"]  # "threads" is a bundled concept
    assert made.concepts[-1]["group"] == "tone"
    assert made.annotators == ["document", "atlas", "rules"]
    found: dict[str, set[str]] = {}
    for number in range(made.chunk_count):
        chunk = made.chunk(number)
        origins = made.read("chunk_origins", number, number + 1)[0]
        text = tokenizer.decode(made.tokens(chunk.start, chunk.end).tolist())
        found[text] = {names[label] for label, origin in zip(chunk.labels, origins) if origin == 1}
    at = {
        start: labels
        for start in ("Bread", "It needs", "Boats", "Waves", "Wind")
        for text, labels in found.items()
        if text.startswith(start)
    }
    assert at["Bread"] == {"Baking", "Calm"}
    assert at["It needs"] == {"Baking", "Threads"}
    assert at["Boats"] == {"Sailing"}
    assert at["Waves"] == {"Sailing", "Calm"}
    assert at.get("Wind", set()) == set()


def test_the_concepts_of_a_table_alone(atlas: Path, tmp_path: Path):
    """Without the bundled ones: as many as a model trained on that table has."""
    pytest.importorskip("pyarrow")
    out, documents = tmp_path / "store", tmp_path / "documents.jsonl"
    documents.write_text("\n".join(json.dumps({"text": f"{i} of " + "".join(DOCUMENTS[7]) * 9}) for i in range(9)))
    line = ["prepare", "--out", out, "--input", documents, "--labels", atlas / "labels.toml", "--vocab-size", "300"]
    assert main([str(word) for word in [*line, "--concepts"]]) == 0
    assert [concept["name"] for concept in CorpusStore(out).concepts] == [one["name"] for one in INVENTORY]


def test_tables_by_hash_and_of_whole_documents(tmp_path: Path):
    document = Document("d", "text", "some text")
    rows = [{"hash": document.sha256, "ids": [5, 6]}, {"hash": Document("", "", "else").sha256, "ids": [6]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = TableSettings("t", (str(tmp_path / "t.jsonl"),), "", document="hash", by="sha256", labels=("ids",))
    build_table(table, {5: 50, 6: 60}, StoragePath(tmp_path / "joined"))
    annotator = TableLabels(table, StoragePath(tmp_path / "joined"))
    chunks = [TextChunk("some ", 0), TextChunk("text", 5)]
    assert annotator.annotate(document, chunks) == [[50, 60], [50, 60]]
    assert annotator.annotate(Document("d", "text", "other text"), chunks) == [[], []]
    with pytest.raises(UserError, match=r"line 1 has the concept 5"):
        build_table(table, {6: 60}, StoragePath(tmp_path / "joined"))


@pytest.mark.parametrize(
    "row",
    [
        '{"doc_int_id": 1, "chunk_id": Infinity}',
        '{"doc_int_id": 1, "chunk_id": NaN}',
        f'{{"doc_int_id": 1, "chunk_id": {10**400}}}',
        f'{{"doc_int_id": 1, "chunk_id": {1 << 63}}}',
        '{"doc_int_id": 1, "chunk_id": [1]}',
        '{"doc_int_id": 1, "chunk_text": 5}',
        '{"doc_int_id": 1, "content_ids": [[5]]}',
        '{"doc_int_id": 1, "content_ids": [{"id": 5}]}',
        '{"doc_int_id": 1, "content_ids": 5}',
    ],
)
def test_absurd_rows_of_tables_are_named(tmp_path: Path, row: str):
    (tmp_path / "t.jsonl").write_text(f'{{"doc_int_id": 1, "content_ids": [5]}}\n{row}')
    table = TableSettings("t", (str(tmp_path / "t.jsonl"),), "")
    with pytest.raises(UserError, match=r"t\.jsonl, line 2: chunk_id must be an integer, chunk_text a string"):
        build_table(table, {5: 50}, StoragePath(tmp_path / "joined"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[labels]]", "[[label]]", "describes no table of labels"),
        ("concepts =", "inventory =", "labels 'atlas': inventory is not a field"),
        ('files = "chunks/*.parquet"', "", "labels 'atlas' has no files"),
        ('name = "atlas"', 'name = "atlas"\nby = "name"', "by is 'name'; give id or sha256"),
        ('name = "atlas"', 'name = "atlas"\nlabels = "ids"', "labels is 'ids'; give a list of strings"),
        ('name = "atlas"', 'name = "atlas"\nlabels = ["ids", 1]', r"labels is \['ids', 1\]; give a list of strings"),
        ('"chunks/*.parquet"', "[1]", r"labels 'atlas': files is \[1\]; give a list of strings"),
    ],
)
def test_bad_tables(tmp_path: Path, old: str, new: str, message: str):
    (tmp_path / "labels.toml").write_text(SETTINGS.replace(old, new))
    with pytest.raises(UserError, match=rf"labels\.toml.*{message}"):
        read_table_settings(tmp_path / "labels.toml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('labels = ["content_ids", "topic_ids"]', r"no column 'topic_ids' in .*0\.parquet: .* table of labels 'atlas'"),
        ('text = "body"', r"no column 'body' in .*0\.parquet: .* the columns are doc_int_id, chunk_id"),
        ('document = "id"', r"no column 'id' in .*0\.parquet"),
        ('concept_description = "about"', r"no column 'about' in .*concepts\.parquet"),
    ],
)
def test_named_columns_must_exist(atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture, given: str, message: str):
    described = (atlas / "labels.toml").read_text().replace('"chunks', f'"{atlas}/chunks')
    (tmp_path / "l.toml").write_text(described.replace('"concepts.', f'"{atlas}/concepts.') + given)
    source = TextSource((str(atlas / "documents.jsonl"),), id_field="doc")
    inputs = CorpusInputs(sources=[source], tables=read_table_settings(tmp_path / "l.toml"))
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "store", inputs)
    assert [path.name for path in tmp_path.iterdir()] == ["l.toml"]
    assert main(["prepare", "--check", str(tmp_path / "l.toml")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_json_lines_may_lack_label_columns(tmp_path: Path):
    """One line with a field is enough, and one of the default columns of labels."""
    (tmp_path / "c.jsonl").write_text('{"concept_id": 5, "name": "Calm"}')
    table = TableSettings("t", (str(tmp_path / "t.jsonl"),), str(tmp_path / "c.jsonl"), document="id")
    rows = [{"id": 1}, {"id": 2, "tone_ids": [5]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check_table(table)
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": 1, "tones": [5]}))
    with pytest.raises(UserError, match=r"no column 'content_ids' or 'tone_ids' or .* the columns are id, tones"):
        check_table(table)
