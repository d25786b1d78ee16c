"""Who labels a chunk: rules, documents, tables made elsewhere, classifiers; each label with its origin."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.evaluation.logistic import fit_logistic
from steerling_jax.io.corpus.store import MAX_LABELS, CorpusStore
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.annotators import DocumentLabels, TextChunk, annotate
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.label_join import TableLabels, build_table
from steerling_jax.train.corpus.label_table import TableSettings, check_table, read_table_settings
from steerling_jax.train.corpus.learned_labels import hashed_words, learn, model_embeddings
from steerling_jax.train.corpus.ontology import ConceptDefinition, read_concepts
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare


class Fixed:
    """Says the same of every chunk."""

    def __init__(self, *ids: int):
        self.name, self.ids = "fixed", list(ids)

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        return [self.ids for _ in chunks]


def test_what_several_say():
    document = Document("d", "text", "", labels=("B",))
    annotators = [DocumentLabels(["A", "B"]), Fixed(3, 1), Fixed(3, 0)]
    labels, origins = annotate(annotators, document, [TextChunk("x", 0)] * 2)
    assert labels == [[1, 3, 0]] * 2
    assert origins == [[0, 1, 2]] * 2
    labels, origins = annotate([Fixed(*range(10)), Fixed(*range(5, 40))], document, [TextChunk("x", 0)])
    assert labels == [list(range(MAX_LABELS))]
    assert origins == [[0] * 10 + [1] * 6]
    with pytest.raises(UserError, match="unknown concept 'B'"):
        annotate([DocumentLabels(["A"])], document, [])


# Tables made elsewhere

DOCUMENTS = {7: ["Bread is baked here. ", "It needs an oven. "], 8: ["Boats sail. ", "Waves rise high. ", "Wind."]}
INVENTORY = [
    {"concept_id": 500, "concept_type": "content", "name": "Baking", "description": "Bread and cakes."},
    {"concept_id": 501, "concept_type": "content", "name": "Sailing", "description": "Boats and wind."},
    {"concept_id": 900, "concept_type": "tone", "name": "Calm", "description": "At ease."},
    {"concept_id": 901, "concept_type": "tone", "name": "threads", "description": "A name that is there already."},
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
        {"doc_int_id": number, "chunk_id": i, "chunk_text": text, "chunk_status": "ok",
         "content_ids": LABELS.get((number, i), ([], []))[0], "tone_ids": LABELS.get((number, i), ([], []))[1]}
        for number, texts in DOCUMENTS.items() for i, text in enumerate(texts)
    ]  # fmt: skip
    (folder / "chunks").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows[::-1]), folder / "chunks" / "0.parquet")  # in any order
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
    assert names[len(concepts) :] == ["Baking", "Sailing", "Calm"]  # Threads is known
    assert made.concepts[-1]["group"] == "tone"
    assert made.annotators == ["document", "atlas", "rules"]
    found: dict[str, set[str]] = {}
    for number in range(made.chunk_count):
        chunk = made.chunk(number)
        origins = made.read("chunk_origins", number, number + 1)[0]
        text = tokenizer.decode(made.tokens(chunk.start, chunk.end).tolist())
        found[text] = {names[label] for label, origin in zip(chunk.labels, origins) if origin == 1}
    at = {start: labels for start in ("Bread", "It needs", "Boats", "Waves", "Wind")
          for text, labels in found.items() if text.startswith(start)}  # fmt: skip
    assert at["Bread"] == {"Baking", "Calm"}
    assert at["It needs"] == {"Baking", "Threads"}
    assert at["Boats"] == {"Sailing"}
    assert at["Waves"] == {"Sailing", "Calm"}
    assert at.get("Wind", set()) == set()


def test_the_concepts_of_a_table_alone(atlas: Path, tmp_path: Path):
    """As many as a model of that table has, whatever concepts come along with this package."""
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
    build_table(table, {5: 50, 6: 60}, StoragePath(tmp_path / "kept"))
    annotator = TableLabels(table, StoragePath(tmp_path / "kept"))
    chunks = [TextChunk("some ", 0), TextChunk("text", 5)]
    assert annotator.annotate(document, chunks) == [[50, 60], [50, 60]]
    assert annotator.annotate(Document("d", "text", "other text"), chunks) == [[], []]
    with pytest.raises(UserError, match=r"line 1 has the concept 5"):
        build_table(table, {6: 60}, StoragePath(tmp_path / "kept"))


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
def test_columns_that_are_named_must_be_there(
    atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture, given: str, message: str
):
    described = (atlas / "labels.toml").read_text().replace('"chunks', f'"{atlas}/chunks')
    (tmp_path / "l.toml").write_text(described.replace('"concepts.', f'"{atlas}/concepts.') + given)
    source = TextSource((str(atlas / "documents.jsonl"),), id_field="doc")
    inputs = CorpusInputs(sources=[source], tables=read_table_settings(tmp_path / "l.toml"))
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "store", inputs)
    assert [path.name for path in tmp_path.iterdir()] == ["l.toml"]
    assert main(["prepare", "--check", str(tmp_path / "l.toml")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_table_has_labels_somewhere(tmp_path: Path):
    """A field of JSON lines is there when one line has it; of the columns looked for by default, one is enough."""
    (tmp_path / "c.jsonl").write_text('{"concept_id": 5, "name": "Calm"}')
    table = TableSettings("t", (str(tmp_path / "t.jsonl"),), str(tmp_path / "c.jsonl"), document="id")
    rows = [{"id": 1}, {"id": 2, "tone_ids": [5]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check_table(table)
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": 1, "tones": [5]}))
    with pytest.raises(UserError, match=r"no column 'content_ids' or 'tone_ids' or .* the columns are id, tones"):
        check_table(table)


# Learned from examples

SEA = ["The boat sails on the sea.", "Waves rock the boat.", "Sails fill with wind at sea.", "A harbour for the boat.",
       "The sea has high waves today."]  # fmt: skip
LAND = ["The train runs on rails.", "A field of wheat.", "The car is on the road.", "Houses line the road."]


def concept(
    id: int, examples: Sequence[str], counterexamples: Sequence[str] = (), most: float = 0.1
) -> ConceptDefinition:
    return ConceptDefinition(
        id, f"c{id}", "topic", "d", examples=tuple(examples), counterexamples=tuple(counterexamples), most=most
    )


def test_learned_concepts():
    background = [f"The {a} is on the {b} today." for a in ("cat", "dog", "cup", "hat") for b in ("mat", "bed", "box")]
    learned = learn([concept(4, SEA[:4], LAND[:2]), concept(9, LAND[2:] * 2)], background, hashed_words)
    new = [TextChunk(text, 0) for text in ("The boat meets the waves.", "A cup of tea.", "Cars on the road.")]
    document = Document("d", "text", "")
    assert learned.annotate(document, new) == [[4], [], [9]]
    assert learned.annotate(document, []) == []
    again = type(learned).from_bytes(learned.to_bytes(), hashed_words)
    assert again.annotate(document, new) == [[4], [], [9]]


def test_learned_over_a_models_states():
    """The bundled model knows words that are in no example."""
    examples = ["Open a socket and connect to the server.", "The client sends the request to a remote host.",
                "A TCP connection is accepted on this port.", "Bind the address, then listen."]  # fmt: skip
    others = ["Sort the list in ascending order.", "The date is formatted with strftime.", "Compile the pattern."]
    background = ["Returns the name of the file.", "Raise ValueError if it is empty.", "A thread waits for the lock."]
    learned = learn([concept(0, examples, others)], background, model_embeddings("steerling-pydocs"))
    new = ["The server socket is closed.", "Send bytes over the network.", "The matrix of integers.", "Add the hours."]
    found = learned.annotate(Document("d", "text", ""), [TextChunk(text, 0) for text in new])
    assert found == [[0], [0], [], []]


def test_no_more_than_the_share_is_labelled():
    """A corpus full of the concept is labelled sparsely all the same; `most` is a bound, not a guess."""
    background = [f"The boat sails, and number {i} waves." for i in range(100)]
    learned = learn([concept(0, SEA, most=0.05)], background, hashed_words)
    chunks = [TextChunk(text, 0) for text in background]
    assert sum(map(len, learned.annotate(Document("d", "text", ""), chunks))) <= 5


def test_logistic_regression_finds_the_separating_side():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3)).astype(np.float32)
    positive = np.stack([features[:, 0] > 1, features[:, 1] + features[:, 2] < 0], 1)
    used = np.ones_like(positive)
    used[:50, 1] = False
    fitted = fit_logistic(features, positive, used, decay=1e-4)
    assert ((fitted.scores(features) > 0) == positive).mean(axis=0).min() > 0.93
    positive[:50, 1] ^= True  # what is not used teaches nothing
    np.testing.assert_allclose(fit_logistic(features, positive, used, decay=1e-4).weights, fitted.weights, atol=1e-6)


MINE = f"""
[[concept]]
name = "The sea"
group = "topic"
description = "Boats, waves and harbours."
examples = {json.dumps(SEA)}
counterexamples = {json.dumps(LAND)}
most = 0.5

[[concept]]
name = "Houses"
group = "topic"
description = "Where people live."
words = ["house"]
examples = ["Two houses."]

[[source]]
name = "tales"
description = "Short tales."
license = "CC0-1.0"
files = "tales.txt"
"""


def test_contributed_files_from_check_to_corpus(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "tales.txt").write_text(" ".join(SEA + LAND * 5) * 6)
    (tmp_path / "mine.toml").write_text(MINE)
    assert main(["prepare", "--check", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("concept", "The sea"), ("concept", "Houses"), ("source", "tales"),
    ]  # fmt: skip
    assert "of 9 are right" in rows[0]["found"]
    assert rows[1]["found"] == "by rule (1 words), right for 1 examples"
    assert "1 files, " in rows[2]["found"]
    line = ["prepare", "--out", tmp_path / "store", "--source", tmp_path / "mine.toml", "--vocab-size", 300]
    line += ["--concepts", tmp_path / "mine.toml", "--chunk-tokens", 40, "--heldout-share", 0]
    assert main([str(word) for word in line]) == 0
    store = CorpusStore(tmp_path / "store")
    assert [concept["name"] for concept in store.concepts] == ["The sea", "Houses"]
    assert store.annotators == ["document", "rules", "examples"]
    tokenizer = SentencePieceTokenizer(store.folder / "tokenizer.model")
    given, true = [], []
    for number in range(store.chunk_count):
        chunk = store.chunk(number)
        words = tokenizer.decode(store.tokens(chunk.start, chunk.end).tolist())
        assert (1 in chunk.labels) == ("Houses" in words)
        given.append(0 in chunk.labels)
        true.append(any(word in words for word in ("boat", "sea", "Waves", "waves")))
    both = sum(a and b for a, b in zip(given, true))
    assert both / sum(given) > 0.9
    assert both / sum(true) > 0.8


def test_bad_contributions_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "tales.txt").write_text("x")
    for old, new, words in [
        ('"Two houses."', '"Two homes."', "'Houses' do not match its example 'Two homes.'"),
        ("tales.txt", "nowhere.txt", "nowhere.txt is not a folder or a file"),
        ('name = "Houses"', 'name = "Threads"', "'Threads' is already defined"),
        (MINE, "x = 1", "has no [[concept]], [[source]] or [[labels]]"),
        ("[[source]]", "[[sources]]", "mine.toml: sources is none of concept, source, labels"),
    ]:
        (tmp_path / "mine.toml").write_text(MINE.replace(old, new))
        assert main(["prepare", "--check", str(tmp_path / "mine.toml")]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1


def test_a_file_for_concepts_has_some(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(MINE.replace("[[concept]]", "[[concepts]]"))
    for path in (tmp_path / "mine.toml", tmp_path):
        with pytest.raises(UserError, match=f"^{path} describes no concept: add a"):
            read_concepts(["bundled", path])
