"""The training-data index: builds (at once, in parts, after a kill, by two processes), searches, rejected input."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.attribution import faithfulness_command
from steerling_jax.attribution.index import build, reader
from steerling_jax.attribution.index.build import build_index
from steerling_jax.attribution.index.passages import Masking
from steerling_jax.attribution.index.reader import Index, open_index
from steerling_jax.attribution.index.search import best_values, find_evidence
from steerling_jax.attribution.index.settings import IndexSettings
from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.io.index import IndexFolder
from tests.worlds.signalled_command import signalled_command

SETTINGS = IndexSettings(context=16, unit_tokens=400, nulls=12)
OPTIONS = ["--context", "16", "--unit-tokens", "400", "--nulls", "12", "--json"]
MODEL = Path(__file__).parents[2] / "golden" / "base"
SCORES = ("verbatim", "signature", "representation", "influence")


@pytest.fixture(scope="module", autouse=True)
def few_gradients() -> Iterator[None]:
    """Gradients take most of a small index's time: fewer maskings of a query."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "QUERY_MASKING", Masking(0.5, 2))
        yield


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(MODEL)


def make_corpus(folder: Path, bundle: sj.Bundle, documents: Sequence[int]) -> CorpusStore:
    """A store with these documents of random tokens, three chunks each, and a held-out document."""
    described = {"described": [{"name": "source 0", "license": "PSF-2.0"}]}
    with corpus_writer(folder, bundle.tokenizer, concepts=[], source=described) as writer:
        for number in [*documents, -1]:
            draw = random.Random(number)
            chunks = [([draw.randrange(200) for _ in range(draw.randrange(12, 24))], []) for _ in range(3)]
            writer.add(
                name=f"document {number}",
                source=f"source {number % 2}",
                sha256=f"{number}",
                split="heldout" if number < 0 else "train",
                chunks=chunks,
            )
    return CorpusStore(folder)


@pytest.fixture(scope="module")
def corpus(bundle: sj.Bundle, tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "store", bundle, range(24))


@pytest.fixture(scope="module")
def built(bundle: sj.Bundle, corpus: CorpusStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "index"
    reported: list[tuple[str, int, int]] = []
    report = build_index(corpus, bundle, folder, SETTINGS, progress=lambda *event: reported.append(event))
    assert report["finished"]
    assert report["units_made_now"] == report["units"] > 2
    units = [(done, total) for stage, done, total in reported if stage == "units"]
    assert units == [(done, report["units"]) for done in range(report["units"] + 1)]
    assert report["chunks"] == 72
    assert report["bytes_a_chunk"]["ids"] + report["bytes_a_chunk"]["codes"] <= 512
    return folder


@pytest.fixture(scope="module")
def index(bundle: sj.Bundle, corpus: CorpusStore, built: Path) -> Index:
    return open_index(built, corpus, bundle)


def test_an_index_for_verbatim_search_alone(bundle: sj.Bundle, corpus: CorpusStore, index: Index, tmp_path: Path):
    """It has the hits and the threshold of the whole index, and says of other scores nothing."""
    settings = replace(SETTINGS, verbatim=True)
    report = build_index(corpus, bundle, tmp_path / "verbatim", settings)
    assert report["finished"]
    assert not {"ids", "codes", "rows"} & set(report["bytes_a_chunk"])
    only = open_index(tmp_path / "verbatim", corpus, bundle)
    assert only.thresholds == {"verbatim": index.thresholds["verbatim"]}
    record = corpus.documents[3]
    tokens = corpus.tokens(record.start, record.start + 12)
    found, whole = (find_evidence(bundle, one, tokens, 0, len(tokens)) for one in (only, index))
    assert found.hits
    assert found.hits == tuple(hit for hit in whole.hits if hit.score == "verbatim")
    with pytest.raises(UserError, match="another settings"):
        build_index(corpus, bundle, tmp_path / "verbatim", SETTINGS)
    assert not {"verbatim", "influence"} & set(IndexFolder(index.folder.folder).metadata["settings"]), (
        "as in indexes that exist"
    )


def test_an_index_without_influence(bundle: sj.Bundle, corpus: CorpusStore, index: Index, tmp_path: Path):
    settings = replace(SETTINGS, influence=False)
    build_index(corpus, bundle, tmp_path / "quick", settings)
    quick = open_index(tmp_path / "quick", corpus, bundle)
    assert quick.thresholds == {name: table for name, table in index.thresholds.items() if name != "influence"}
    with pytest.raises(UserError, match="without influence has no gradients"):
        replace(settings, gradient_side=4)


def contents(folder: Path) -> dict:
    """The contents of an index: every array of every unit by name, and the finished state."""
    index = IndexFolder(folder)
    units = {
        name: {a: index.unit(name).read(a) for a in index.unit(name).metadata["bytes"]} for name in index.unit_names()
    }
    return {"units": units, "current": index.current(), "about": index.metadata}


def assert_same(first: dict, second: dict) -> None:
    assert first["current"] == second["current"]
    assert first["about"] == second["about"]
    assert first["units"].keys() == second["units"].keys()
    for name, arrays in first["units"].items():
        for array, values in arrays.items():
            assert np.array_equal(values, second["units"][name][array]), (name, array)


# Searching ------------------------------------------------------------------------------------------------------------


def chunk_tokens(corpus: CorpusStore, number: int) -> np.ndarray:
    chunk = corpus.chunk(number)
    return corpus.tokens(chunk.start, chunk.end).astype(np.int32)


def test_a_copied_chunk_is_found_by_every_score(bundle: sj.Bundle, corpus: CorpusStore, index: Index):
    number = 31  # the second of its document: read after the same context, it is the same passage
    chunk = corpus.chunk(number)
    document = corpus.documents[chunk.document]
    text = corpus.tokens(document.start, chunk.end).astype(np.int32)
    start = chunk.start - document.start
    evidence = find_evidence(bundle, index, text, start, len(text))
    assert set(evidence.thresholds) == set(SCORES)
    for score in SCORES:
        best = evidence.of(score)[0]
        assert (best.chunk, best.document, best.name) == (number, chunk.document, document.name), score
        assert (best.start, best.end, best.offset) == (chunk.start, chunk.end, start)
        assert (best.source, best.sha256, best.query) == (document.source, document.sha256, (start, len(text)))
        assert best.license == ("PSF-2.0" if document.source == "source 0" else "")
    assert evidence.of("verbatim")[0].value == chunk.end - chunk.start
    assert evidence.of("representation")[0].value == pytest.approx(1, abs=2e-3)
    assert evidence.of("influence")[0].value > 0.5  # masked in another way than the chunk was
    assert sum(evidence.sources("verbatim").values()) == pytest.approx(1)
    best = best_values(index, text, start, len(text))
    assert {score: limit for score, (_, limit) in best.items()} == evidence.thresholds
    for score, (value, _) in best.items():
        assert value == pytest.approx(evidence.of(score)[0].value, abs=1e-5)


def test_verbatim_spans_cross_chunk_ends_and_not_document_ends(bundle: sj.Bundle, corpus: CorpusStore, index: Index):
    first, second, third = (chunk_tokens(corpus, n) for n in (1, 2, 3))  # 0, 1, 2 are one document, 3 another
    text = np.concatenate([first[-8:], second, third])
    evidence = find_evidence(bundle, index, text, 0, len(text), ["verbatim"])
    values = {hit.query: hit for hit in evidence.hits}
    across = values[0, 8 + len(second)]
    assert (across.start, across.end) == (corpus.chunk(1).end - 8, corpus.chunk(2).end)
    assert across.value == 8 + len(second)  # the boundary between them does not count as a token
    assert values[8 + len(second), len(text)].chunk == 3
    assert across.occurrences == 1
    # Boundaries elsewhere in the query make no difference, and masks are ignored.
    special = corpus.special
    with_ends = np.concatenate([first[-8:], [special.mask_id], second[:3], [special.endofchunk_id], second[3:]])
    again = find_evidence(bundle, index, with_ends, 0, len(with_ends), ["verbatim"]).hits[0]
    assert (again.start, again.end, again.query) == (across.start, across.end, (0, len(with_ends)))


def test_random_text_has_nothing_close(bundle: sj.Bundle, index: Index):
    draw = np.random.default_rng(5)
    close = dict.fromkeys(SCORES, 0)
    for _ in range(6):
        evidence = find_evidence(bundle, index, draw.integers(200, 280, 40), 20, 40, k=2)
        for score in SCORES:
            close[score] += bool(evidence.of(score))
        assert "verbatim" in evidence.nothing_close
        assert set(evidence.nothing_close) == {s for s in SCORES if not evidence.of(s)}
        assert all(evidence.best[s] <= evidence.thresholds[s] for s in evidence.nothing_close)
        assert all(evidence.best[hit.score] >= hit.value for hit in evidence.hits)
        assert evidence.best["verbatim"] == 0, "tokens that no document has"
    assert max(close.values()) <= 2, close


def test_thresholds_are_those_of_the_spans_length_wherever_it_stands(bundle: sj.Bundle, index: Index):
    text = np.random.default_rng(5).integers(0, 200, 60)
    by_length = {end: index.threshold("signature", end) for end in (12, 48)}
    assert by_length[12] != by_length[48]
    for start, end in ((0, 12), (48, 60), (12, 60)):
        evidence = find_evidence(bundle, index, text, start, end, ["signature"])
        assert evidence.thresholds == {"signature": by_length[end - start]}


def test_stored_gradients_rank_as_computed_ones(bundle: sj.Bundle, corpus: CorpusStore, tmp_path: Path):
    small = make_corpus(tmp_path / "corpus", bundle, range(4))
    folder = tmp_path / "index"
    build_index(small, bundle, folder, replace(SETTINGS, gradient_side=64))
    stored = open_index(folder, small, bundle)
    text = small.tokens(0, 40).astype(np.int32)
    found = find_evidence(bundle, stored, text, 1, 20, ["influence"]).hits
    build_index(small, bundle, tmp_path / "other", SETTINGS)
    computed = find_evidence(bundle, open_index(tmp_path / "other", small, bundle), text, 1, 20, ["influence"]).hits
    assert [hit.chunk for hit in found[:2]] == [hit.chunk for hit in computed[:2]]
    np.testing.assert_allclose([h.value for h in found[:2]], [h.value for h in computed[:2]], atol=2e-3)


@pytest.mark.parametrize(
    ("start", "end", "scores", "sentence"),
    [
        (5, 5, SCORES, "not inside"),
        (0, 99, SCORES, "not inside"),
        (0, 9, ["bm25"], "unknown scores"),
        (9, 10, SCORES, "no token other than masks"),
    ],
)
def test_invalid_queries(bundle: sj.Bundle, index: Index, start: int, end: int, scores: list, sentence: str):
    tokens = np.append(np.arange(9), bundle.config.mask_token_id)
    with pytest.raises(UserError, match=sentence):
        find_evidence(bundle, index, tokens, start, end, scores)


# Building ----------------------------------------------------------------------------------------------------------


def command(*words: object) -> list[str]:
    return [str(word) for word in words]


@pytest.mark.slow
def test_a_build_continues_after_a_kill(corpus: CorpusStore, built: Path, tmp_path: Path):
    """After SIGKILL at the end of the second unit and a leftover folder, the finished index has the same bytes."""
    folder = tmp_path / "index"
    killed = signalled_command(signal.SIGKILL, 2, r"/units/[^./]+$")
    line = command(*killed, "index", corpus.folder, folder, "--model", MODEL)
    process = subprocess.run(line + OPTIONS, capture_output=True, text=True, timeout=600)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(list(folder.glob("units/*/unit.json"))) == 1 < len(IndexFolder(built).unit_names())
    (folder / "units" / ".left.behind").mkdir()
    assert main(command("index", corpus.folder, folder, "--model", MODEL) + OPTIONS) == 0
    assert_same(contents(folder), contents(built))
    assert not list(folder.glob("units/.*"))


def test_a_unit_that_another_process_has_built_meanwhile_is_no_error(
    bundle: sj.Bundle, corpus: CorpusStore, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(target: Path, *_: object) -> None:
        raise UserError(f"Cannot write {target}: it exists.")

    def built_by_another(target: Path, *_: object) -> None:
        shutil.copytree(built / "units" / target.name, target)
        refused(target)

    monkeypatch.setattr(build, "write_unit", built_by_another)
    assert build_index(corpus, bundle, tmp_path / "index", SETTINGS)["finished"]
    assert_same(contents(tmp_path / "index"), contents(built))
    monkeypatch.setattr(build, "write_unit", refused)
    with pytest.raises(UserError, match="it exists"):
        build_index(corpus, bundle, tmp_path / "other", SETTINGS)


@pytest.mark.slow
def test_two_processes_build_the_index_of_one(
    corpus: CorpusStore, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder, reports = tmp_path / "index", []
    for number in (1, 0):
        words = command("index", corpus.folder, folder, "--model", MODEL, "--process-index", number)
        assert main([*words, "--process-count", "2", *OPTIONS]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert [report["finished"] for report in reports] == [False, True]
    assert sum(report["units_made_now"] for report in reports) == reports[1]["units"]
    assert_same(contents(folder), contents(built))


@pytest.mark.slow
def test_only_new_documents_of_a_grown_and_shuffled_corpus_are_indexed(bundle: sj.Bundle, built: Path, tmp_path: Path):
    """The evidence equals that of an index from scratch, which has other units."""
    order = list(range(30))
    random.Random(0).shuffle(order)
    grown = make_corpus(tmp_path / "grown", bundle, order)
    folder, scratch = tmp_path / "index", tmp_path / "scratch"
    shutil.copytree(built, folder)
    after = build_index(grown, bundle, folder, SETTINGS)
    assert 0 < after["units_made_now"] < len(IndexFolder(built).unit_names())
    whole = build_index(grown, bundle, scratch, SETTINGS)
    assert after["documents"] == whole["documents"] == 30
    assert after["chunks"] == whole["chunks"]
    for score, table in whole["thresholds"].items():
        np.testing.assert_allclose(after["thresholds"][score]["values"], table["values"], rtol=1e-3)
    indexes = [open_index(path, grown, bundle) for path in (folder, scratch)]
    for document in (0, 12, 29):
        text = grown.tokens(grown.documents[document].start, grown.documents[document].end).astype(np.int32)
        one, two = (find_evidence(bundle, index, text, 3, 30) for index in indexes)
        assert [replace(hit, value=0) for hit in one.hits] == [replace(hit, value=0) for hit in two.hits]
        np.testing.assert_allclose([h.value for h in one.hits], [h.value for h in two.hits], rtol=1e-3)
    shrunk = make_corpus(tmp_path / "shrunk", bundle, order[:20])
    report = build_index(shrunk, bundle, folder, SETTINGS)
    assert report["documents"] == 20
    assert open_index(folder, shrunk, bundle).units


def test_coverage_lists_absent_documents(bundle: sj.Bundle, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    listed = [("0", "document 0", "train"), ("9", "document 9", "train"), ("-1", "document -1", "heldout")]
    entries = [{"sha256": sha256, "name": name, "split": split} for sha256, name, split in listed]
    (model / "documents.json").write_text(json.dumps({"documents": entries}))
    corpus = make_corpus(tmp_path / "corpus", bundle, range(3))
    report = build_index(corpus, sj.load(model), tmp_path / "index", SETTINGS, process_count=2)  # half of the units
    assert report["coverage"] == {
        "trained_on": 2,
        "indexed": 1,
        "absent": 1,
        "absent_names": ["document 9"],
        "not_trained_on": 2,
    }


# Rejected input ------------------------------------------------------------------------------------------------------


def test_another_checkpoint_is_rejected(bundle: sj.Bundle, corpus: CorpusStore, built: Path):
    params = jax.tree.map(lambda leaf: leaf * 1.01, bundle.params)
    other = replace(bundle, params=params)
    with pytest.raises(UserError, match="another checkpoint"):
        open_index(built, corpus, other)
    with pytest.raises(UserError, match="another fingerprint"):
        build_index(corpus, other, built, SETTINGS)


def test_another_corpus_and_other_settings_are_rejected(
    bundle: sj.Bundle, corpus: CorpusStore, built: Path, tmp_path: Path
):
    other = make_corpus(tmp_path / "other", bundle, range(5))
    with pytest.raises(UserError, match="another corpus"):
        open_index(built, other, bundle)
    with pytest.raises(UserError, match="another settings"):
        build_index(corpus, bundle, built, replace(SETTINGS, context=8))
    with pytest.raises(UserError, match="process 2 of 2"):
        build_index(corpus, bundle, built, SETTINGS, process_index=2, process_count=2)


def test_an_unfinished_index_is_rejected(bundle: sj.Bundle, corpus: CorpusStore, tmp_path: Path):
    with pytest.raises(UserError, match="missing"):
        open_index(tmp_path, corpus, bundle)
    build_index(corpus, bundle, tmp_path, SETTINGS, process_index=0, process_count=4)
    with pytest.raises(UserError, match="not finished"):
        open_index(tmp_path, corpus, bundle)


def test_an_index_of_an_old_format_is_rejected(bundle: sj.Bundle, corpus: CorpusStore, tmp_path: Path):
    (tmp_path / "index.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(UserError, match=r"has format 1, .*: remove it and make it again"):
        build_index(corpus, bundle, tmp_path, SETTINGS)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match=f"cannot be read: remove {tmp_path} and run"):
        build_index(corpus, bundle, tmp_path, SETTINGS)


def test_a_short_split_is_indexed(bundle: sj.Bundle, corpus: CorpusStore, tmp_path: Path):
    """At the end of the store, and shorter than a random text of the thresholds."""
    start, end = corpus.split("heldout")
    assert end - start < 96
    report = build_index(corpus, bundle, tmp_path, replace(SETTINGS, splits=("heldout",)))
    assert report["finished"]


def test_a_corpus_without_such_documents_is_rejected(bundle: sj.Bundle, tmp_path: Path):
    small = make_corpus(tmp_path / "corpus", bundle, [])  # a held-out document alone
    with pytest.raises(UserError, match=r"corpus has no documents in train to index"):
        build_index(small, bundle, tmp_path / "index", SETTINGS)


def test_faithfulness_rejects_an_index_of_heldout_documents(bundle: sj.Bundle, corpus: CorpusStore, tmp_path: Path):
    build_index(corpus, bundle, tmp_path, replace(SETTINGS, splits=("heldout",)))
    with pytest.raises(UserError, match="contains held-out documents, which would find themselves"):
        faithfulness_command.open_train_index(tmp_path, corpus, bundle)


@pytest.mark.parametrize("damage", ["a unit", "an array", "a shard", "unit.json", "NaN"])
def test_a_damaged_index_is_rejected(bundle: sj.Bundle, corpus: CorpusStore, built: Path, tmp_path: Path, damage: str):
    folder = tmp_path / "index"
    shutil.copytree(built, folder)
    unit = next(folder.glob("units/*"))
    if damage == "a unit":
        shutil.rmtree(unit)
    elif damage == "an array":
        shutil.rmtree(unit / "suffixes")
    elif damage == "a shard":
        shard = next(path for path in (unit / "suffixes").rglob("*") if path.is_file() and path.name != "zarr.json")
        shard.unlink()
    elif damage == "unit.json":
        (unit / "unit.json").write_text("{")
    else:
        _write_nan_rows(unit)

    def search() -> None:
        index = open_index(folder, corpus, bundle)
        find_evidence(bundle, index, np.arange(20), 0, 20, ["verbatim", "representation"])

    with pytest.raises(UserError, match=unit.name):
        search()


def _write_nan_rows(unit: Path) -> None:
    import steerling_jax.io.index as storage

    rows = storage.Unit(unit).read("rows").copy()
    rows[0, 0] = np.nan
    shutil.rmtree(unit / "rows")
    storage._write_array(unit / "rows", rows)
    about = json.loads((unit / "unit.json").read_text())
    about["checksums"]["rows"] = storage._checksum(rows)
    (unit / "unit.json").write_text(json.dumps(about))


def test_a_model_with_nan_is_rejected(bundle: sj.Bundle, corpus: CorpusStore, tmp_path: Path):
    params = {**bundle.params, "ln_f": {"weight": jnp.full_like(bundle.params["ln_f"]["weight"], jnp.nan)}}
    with pytest.raises(UserError, match="NaN"):
        build_index(corpus, replace(bundle, params=params), tmp_path / "index", SETTINGS)
    assert not list((tmp_path / "index" / "units").glob("*"))


# The commands ------------------------------------------------------------------------------------------------------


def test_search_command(corpus: CorpusStore, built: Path, capsys: pytest.CaptureFixture):
    text = " ".join(map(str, chunk_tokens(corpus, 4)))
    words = command("search", built, text, "--corpus", corpus.folder, "--model", MODEL, "--scores", "verbatim")
    assert main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["hits"][0]["chunk"] == 4
    assert found["nothing_close"] == []
    assert main(words) == 0
    first = capsys.readouterr().out.splitlines()[2]
    hit = found["hits"][0]
    assert re.match(rf"verbatim +{hit['value']:.0f}\S* .*{re.escape(hit['name'])}.* {hit['offset']} ", first), first
    assert main([*command("search", built, "7 7 7 7 7 7"), *words[3:]]) == 0
    assert "nothing close" in capsys.readouterr().out
