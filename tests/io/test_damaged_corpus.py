"""Corpus stores that are missing, damaged or of another version: each is reported in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import ARRAYS, CorpusStore
from tests.worlds.small_store import write_store


@pytest.fixture
def store(tmp_path: Path) -> CorpusStore:
    return write_store(tmp_path / "store", [[5, 30, 2], [1], [64] * 9, [200]], ["train", "train", "train", "heldout"])


@pytest.fixture
def folder(store: CorpusStore) -> Path:
    return store.folder


def test_missing_store(tmp_path: Path):
    with pytest.raises(UserError, match="There is no corpus at"):
        CorpusStore(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"', "7"])
def test_damaged_manifest(folder: Path, content: str):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        CorpusStore(folder)


def test_incomplete_manifest(folder: Path):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["special_ids"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json"):
        CorpusStore(folder)


def test_unknown_format(folder: Path):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        CorpusStore(folder)


def test_stores_made_before_labels_had_origins(folder: Path):
    shutil.rmtree(folder / "chunk_origins")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["annotators"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    old = CorpusStore(folder)
    assert old.annotators == []
    assert (old.read("chunk_labels", 0, 9) >= 0).any()


@pytest.mark.parametrize("array", list(ARRAYS))
def test_missing_array(folder: Path, array: str):
    shutil.rmtree(folder / array)
    with pytest.raises(UserError, match="damaged or incomplete"):
        CorpusStore(folder)


def test_damaged_tokens(folder: Path):
    for path in (folder / "tokens" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="Cannot read tokens"):
        CorpusStore(folder).tokens(0, 100)


def test_damaged_documents(folder: Path):
    with (folder / "documents.jsonl").open("a") as lines:
        lines.write("{half a li")
    with pytest.raises(UserError, match=r"documents\.jsonl, line \d+"):
        _ = CorpusStore(folder).documents


def test_beyond_the_end(store: CorpusStore):
    with pytest.raises(UserError, match="shorter than that"):
        store.tokens(0, 10**9)


def test_another_tokenizer(store: CorpusStore):
    with pytest.raises(UserError, match="was made with another tokenizer"):
        store.check_tokenizer("0" * 64)
