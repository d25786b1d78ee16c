"""Preparation in parts: one store whatever the workers, after a kill too; files of all formats; what is told."""

from __future__ import annotations

import filecmp
import gzip
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.reading import read_part
from steerling_jax.train.corpus.sources import TextSource, read_sources
from steerling_jax.train.prepare import duplicates, splitting, vocabulary
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig, RunnerConfig
from steerling_jax.train.prepare.part_plan import plan_parts
from steerling_jax.train.prepare.prepare import prepare

WORDS = [
    "thread", "lock", "socket", "the", "of", "in", "file", "list", "and", "path", "test", "queue", "sorted", "json",
]  # fmt: skip
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=60)) + f". Number {i}.\n" for i in range(120)]
PART = 6000  # bytes: about fifteen documents
CONFIG = PrepareConfig(vocab_size=300, part_bytes=PART, heldout_share=0.2)


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(TEXTS, 300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents as JSON lines, some twice, some in other files."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [json.dumps({"text": text}) for text in TEXTS[:100]]
    (folder / "a.jsonl").write_text("\n".join([*lines, lines[3], lines[50]]) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join([lines[7], json.dumps({"text": TEXTS[100]})]).encode()))
    for i in range(101, 105):
        (folder / f"t{i}.txt").write_text(TEXTS[i])
    return folder


def files(path: Path, tokenizer: SentencePieceTokenizer | None = None) -> CorpusInputs:
    return CorpusInputs(sources=[TextSource((str(path),))], tokenizer=tokenizer)


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    out = tmp_path_factory.mktemp("one") / "store"
    return prepare(out, files(folder), CONFIG)


def same(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    return filecmp.cmpfiles(first, second, names, shallow=False)[0] == names


def texts(store: CorpusStore) -> list[str]:
    tokenizer = SentencePieceTokenizer(store.folder / "tokenizer.model")
    return [tokenizer.decode(store.tokens(d.start, d.end).tolist()) for d in store.documents]


def test_each_text_is_there_once(store: CorpusStore, folder: Path):
    assert sorted(texts(store)) == sorted(TEXTS[:105])
    assert not Path(f"{store.folder}.work").exists()
    assert store.manifest["source"]["parts"] > 5
    names = {text: document.name for text, document in zip(texts(store), store.documents)}
    assert (names[TEXTS[0]], names[TEXTS[99]]) == ("a.jsonl:1", "a.jsonl:100")  # whichever part they are in
    assert (names[TEXTS[100]], names[TEXTS[101]]) == ("b.jsonl.gz:2", "t101.txt")


def test_the_order_is_shuffled_within_parts_and_among_them(store: CorpusStore):
    train = [int(text.split()[-1][:-1]) for text, d in zip(texts(store), store.documents) if d.split == "train"]
    assert train != sorted(train)
    jumps = np.abs(np.diff(train))
    assert 1 < np.median(jumps) < 15  # neighbours are mostly from one part
    assert (jumps > 30).sum() >= 2  # parts are not in their order


def test_workers_make_no_difference(store: CorpusStore, folder: Path, tmp_path: Path):
    for workers in (2, 3):
        line = ["prepare", "--out", str(tmp_path / f"{workers}"), "--input", str(folder), "--vocab-size", "300"]
        options = ["--part-bytes", str(PART), "--heldout-share", "0.2", "--workers", str(workers)]
        assert main([*line, *options]) == 0
        assert same(store.folder, tmp_path / f"{workers}")


def test_killed_and_begun_again(store: CorpusStore, folder: Path, tmp_path: Path):
    """SIGKILL as soon as some parts are done, twice; then only what is left is done."""
    out, work = tmp_path / "store", tmp_path / "store.work"
    line = [sys.executable, "-m", "steerling_jax.cli.main", "prepare", "--out", str(out), "--input", str(folder)]
    line += ["--vocab-size", "300", "--part-bytes", str(PART), "--heldout-share", "0.2"]
    for enough in ("survey/000002.json", "parts/000002.json"):
        process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
        while not (work / enough).exists():
            assert process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
    again: list[tuple[str, int, int]] = []
    prepare(out, files(folder), CONFIG, progress=lambda *event: again.append(event))
    assert same(store.folder, out)
    first = {stage: total for stage, done, total in again if done == 0}
    assert first["reading"] == first["making the vocabulary"] == 0
    assert 0 < first["tokens and labels"] < store.manifest["source"]["parts"]
    assert not work.exists()


def test_beam_makes_the_same_store(store: CorpusStore, folder: Path, tmp_path: Path):
    if importlib.util.find_spec("apache_beam") is None:
        pytest.skip("needs Apache Beam")
    line = ["prepare", "--out", tmp_path / "store", "--input", folder, "--vocab-size", 300, "--part-bytes", PART]
    line += ["--heldout-share", 0.2, "--runner", "FnApiRunner", "--runner-options", "direct_num_workers=1"]
    done = subprocess.run(
        [sys.executable, "-m", "steerling_jax.cli.main", *map(str, line)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert same(store.folder, tmp_path / "store")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1 is not JSON"):
        prepare(tmp_path / "new", files(tmp_path / "bad.jsonl"), runner=RunnerConfig(beam_runner="FnApiRunner"))


def test_another_preparation_is_not_taken_up(folder: Path, tmp_path: Path, tokenizer: SentencePieceTokenizer):
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("tokens and labels", 2):
            raise KeyboardInterrupt

    inputs = files(folder, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "store", inputs, CONFIG, progress=stop)
    with pytest.raises(UserError, match=r"store\.work contains an interrupted preparation with different settings"):
        prepare(tmp_path / "store", inputs, replace(CONFIG, seed=5))
    other = SentencePieceTokenizer(train_sentencepiece([text[::-1] for text in TEXTS], 300))
    with pytest.raises(UserError, match="with different tokens"):
        prepare(tmp_path / "store", files(folder, other), CONFIG)
    prepare(tmp_path / "store", inputs, CONFIG)


def test_what_was_begun_is_kept_whatever_goes_wrong_afterwards(folder: Path, tmp_path: Path, tokenizer):
    """While it reads, too, when no part is there yet."""

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("reading", 2):
            raise KeyboardInterrupt

    inputs = files(folder, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "store", inputs, CONFIG, progress=stop)
    with pytest.raises(UserError, match="with different settings"):
        prepare(tmp_path / "store", inputs, replace(CONFIG, seed=5))
    with pytest.raises(UserError):
        prepare(tmp_path / "store", files(tmp_path / "absent", tokenizer), CONFIG)
    assert (tmp_path / "store.work/survey/000000.json").is_file()
    prepare(tmp_path / "store", inputs, CONFIG)


def test_a_packed_file_that_is_cut_off_is_told(tmp_path: Path):
    whole = gzip.compress(json.dumps({"text": "some words " * 100}).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"Cannot read .*a\.jsonl\.gz: Compressed file ended"):
        prepare(tmp_path / "store", files(tmp_path / "a.jsonl.gz"), CONFIG)
    assert not (tmp_path / "store.work").exists()


def test_shards_without_data_are_no_obstacle(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    """A corpus of one document: some arrays hold zeros alone, and have no file. Twenty empty parts beside it."""
    for i in range(20):
        (tmp_path / f"{i}.jsonl").write_text("\n")
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "one"}))
    made = prepare(tmp_path / "store", files(tmp_path / "*.jsonl", tokenizer))
    assert texts(made) == ["one"]


def test_hashes_are_compared_in_ranges(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, tokenizer):
    monkeypatch.setattr(duplicates, "_RANGE_DOCUMENTS", 20)
    made = prepare(tmp_path / "s", files(folder, tokenizer), CONFIG)
    assert sorted(texts(made)) == sorted(TEXTS[:105])


def test_a_vocabulary_of_a_part_of_the_text(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[str] = []

    def train(texts, vocab_size: int) -> bytes:
        taken.extend(texts)
        return train_sentencepiece(TEXTS, vocab_size)

    monkeypatch.setattr(vocabulary, "train_sentencepiece", train)
    monkeypatch.setattr(vocabulary, "_CHARACTERS", 4000)
    prepare(tmp_path / "s", files(folder), replace(CONFIG, heldout_share=0.04))
    assert 2000 < sum(map(len, taken)) <= 4000
    assert len(taken) >= 5  # from all parts


def near_copies() -> list[Document]:
    return [Document(str(i), "text", TEXTS[i // 2] + f" end {i % 2}") for i in range(160)]


def test_near_duplicates_are_on_one_side(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    inputs = CorpusInputs(documents=near_copies(), tokenizer=tokenizer)
    made = prepare(tmp_path / "s", inputs, PrepareConfig(heldout_share=0.3, part_bytes=PART))
    sides = {int(document.name): document.split for document in made.documents}
    assert [sides[i] for i in range(0, 160, 2)] == [sides[i] for i in range(1, 160, 2)]
    assert 0.1 < list(sides.values()).count("heldout") / 160 < 0.5


def test_beyond_memory_a_hash_or_a_cluster_decides(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(splitting, "_CLUSTERED_CHARACTERS", 1000)
    config = PrepareConfig(heldout_share=0.3)
    alone = prepare(tmp_path / "a", CorpusInputs(documents=near_copies(), tokenizer=tokenizer), config)
    sides = {int(document.name): document.split for document in alone.documents}
    assert [sides[i] for i in range(0, 160, 2)] != [sides[i] for i in range(1, 160, 2)]
    assert alone.manifest["source"]["near_duplicates"] == "not looked for"
    named = [Document(d.name, d.source, d.text, cluster=str(int(d.name) // 2)) for d in near_copies()]
    together = prepare(tmp_path / "b", CorpusInputs(documents=named, tokenizer=tokenizer), config)
    sides = {int(document.name): document.split for document in together.documents}
    assert [sides[i] for i in range(0, 160, 2)] == [sides[i] for i in range(1, 160, 2)]


# Formats and places


def read(address: str, part_bytes: int = 0, **settings) -> list[Document]:
    source = TextSource((address,), **settings)
    return [document for part in plan_parts([source], part_bytes) for document in read_part(part, source)]


def test_parquet(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"body": TEXTS[:50], "key": list(range(50)), "other": [[1.0]] * 50})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=8)
    source = TextSource((str(tmp_path),), name="mine", text_field="body", id_field="key")
    parts = plan_parts([source], 4000)
    assert len(parts) > 3
    found = [document for part in parts for document in read_part(part, source)]
    assert [d.text for d in found] == TEXTS[:50]
    assert (found[9].name, found[9].id, found[9].source) == ("x.parquet:10", "9", "mine")
    with pytest.raises(UserError, match=r"x\.parquet has no column 'text'.* its columns are body, key, other"):
        read(str(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"x\.parquet is not a Parquet file"):
        read(str(tmp_path))


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_addresses(scheme: str, tmp_path: Path):
    base = f"memory://{tmp_path.name}" if scheme == "memory" else f"file://{tmp_path}"
    for number in range(3):
        with fsspec.open(f"{base}/deep/{number}.jsonl", "w", auto_mkdir=True) as file:
            file.write(json.dumps({"text": TEXTS[number]}) + "\n")  # type: ignore[union-attr]
    for pattern in (base, f"{base}/deep/*.jsonl", f"{base}/**/*.jsonl"):
        assert [d.text for d in read(pattern)] == TEXTS[:3]
    assert [d.name for d in read(base)] == ["deep/0.jsonl:1", "deep/1.jsonl:1", "deep/2.jsonl:1"]
    assert [d.text for d in read(f"{base}/deep/1.jsonl")] == TEXTS[1:2]
    with pytest.raises(UserError, match="is not a folder or a file"):
        read(f"{base}/nowhere")


def test_lines_are_read_once_however_the_bytes_are_cut(tmp_path: Path):
    lines = [json.dumps({"text": "é" * (i % 7) + str(i)}, ensure_ascii=False) for i in range(40)]
    for end, content in (("\n", "\n".join(lines) + "\n"), ("none", "\n".join(lines)), ("crlf", "\r\n".join(lines))):
        (tmp_path / "x.jsonl").write_text(content, newline="")
        for part_bytes in (1, 7, 16, 100, 10_000):
            assert len(read(str(tmp_path), part_bytes)) == 40, (end, part_bytes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": ', r"x\.jsonl, line 2 is not JSON"),
        ('{"text": "a"}\n' * 30 + "{}", r"x\.jsonl, line \d+ after byte \d+ has no text"),
        ('{"text": "a", "labels": ["Knitting"]}', r"labelled with the unknown concept 'Knitting'"),
        ("\n\n", "No documents are left"),
    ],
)
def test_bad_input_is_told_before_the_work(tmp_path: Path, content: str, message: str, tokenizer):
    (tmp_path / "x.jsonl").write_text(content)
    begun = []
    with pytest.raises(UserError, match=message):
        prepare(
            tmp_path / "out",
            files(tmp_path / "*.jsonl", tokenizer),
            PrepareConfig(part_bytes=200),
            progress=lambda stage, done, total: begun.append(stage),
        )
    assert "splitting" not in begun
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for options, words in [
        (["--workers", "0"], "--workers is 0"),
        (["--part-bytes", "-1"], "--part-bytes is -1"),
        (["--workers", "2", "--runner", "DirectRunner"], "--workers counts local processes"),
        (["--runner-options", "a=b"], "--runner-options need a --runner"),
        (["--input", "no-such-place"], "no-such-place is not a folder or a file"),
        (["--input", "nope://x/y"], "nope"),
        (["--source", "none.toml"], "Cannot read none.toml"),
        (["--labels", "none.toml"], "Cannot read none.toml"),
    ]:
        assert main(["prepare", "--out", "new", *options]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


# Sources that users describe

SOURCE = """
[[source]]
name = "poems"
description = "Poems of our own."
license = "CC0-1.0"
files = "poems/*.jsonl"
text_field = "verse"
kind = "code"
chunk_tokens = 16
"""


def test_a_described_source(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "p.jsonl").write_text("\n".join(json.dumps({"verse": text}) for text in TEXTS[:20]))
    (tmp_path / "source.toml").write_text(SOURCE)
    made = prepare(
        tmp_path / "store", CorpusInputs(sources=read_sources(tmp_path / "source.toml"), tokenizer=tokenizer)
    )
    assert {document.source for document in made.documents} == {"poems"}
    spans = made.read("chunk_spans", 0, made.chunk_count)
    assert (spans[:, 1] - spans[:, 0]).max() <= 24
    (described,) = made.manifest["source"]["described"]
    assert described["license"] == "CC0-1.0"


def test_settings_of_a_source_are_for_its_own_documents(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    (tmp_path / "p.jsonl").write_text(json.dumps({"verse": TEXTS[0], "text": TEXTS[1], "source": "poems"}))
    (tmp_path / "source.toml").write_text(SOURCE.replace("poems/*", "p"))
    plain = TextSource((str(tmp_path / "p.jsonl"),))
    inputs = CorpusInputs(sources=[*read_sources(tmp_path / "source.toml"), plain], tokenizer=tokenizer)
    made = prepare(tmp_path / "store", inputs, PrepareConfig(heldout_share=0.0))
    long = [0, 0]
    for chunk in (made.chunk(number) for number in range(made.chunk_count)):
        long[chunk.document] = max(long[chunk.document], chunk.end - chunk.start)
    sizes = dict(zip(texts(made), long))
    assert sizes[TEXTS[0]] <= 24 < sizes[TEXTS[1]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[source]]", "", "describes no source"),
        ('license = "CC0-1.0"', "", "source 'poems' has no license"),
        ('kind = "code"', 'kind = "prosa"', "kind is 'prosa'; give prose or code"),
        ("chunk_tokens = 16", 'chunk_tokens = "16"', "chunk_tokens is '16'; give an integer"),
        ("chunk_tokens = 16", "chunk_tokens = -1", "chunk_tokens is -1"),
        ("text_field", "textfield", "textfield is not a field of a source"),
        ('"poems"', '"po ems"', "name is 'po ems'"),
        ('"poems/*.jsonl"', "[1]", "files is .1.; give a list of strings"),
        ('"poems/*.jsonl"', "7", "files is 7; give a list of strings"),
    ],
)
def test_bad_sources(tmp_path: Path, old: str, new: str, message: str):
    assert old in SOURCE
    (tmp_path / "source.toml").write_text(SOURCE.replace(old, new))
    with pytest.raises(UserError, match=rf"source\.toml.*{message}"):
        read_sources(tmp_path / "source.toml")
