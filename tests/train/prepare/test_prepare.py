"""`prepare`: the same store with any workers and after a kill; duplicates and splits; bad options."""

from __future__ import annotations

import filecmp
import gzip
import importlib.util
import json
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.stages.staged_work import RunnerConfig
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.prepare import duplicates, splitting, vocabulary
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare
from tests.worlds.signalled_command import signalled_command

WORDS = [
    "thread",
    "lock",
    "socket",
    "the",
    "of",
    "in",
    "file",
    "list",
    "and",
    "path",
    "test",
    "queue",
    "sorted",
    "json",
]
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=60)) + f". Number {i}.\n" for i in range(120)]
PART = 6000  # bytes: about fifteen documents
CONFIG = PrepareConfig(vocab_size=300, part_bytes=PART, heldout_share=0.2)


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(TEXTS, 300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents in several formats, some of them twice."""
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


def test_each_text_is_in_the_store_once(store: CorpusStore, folder: Path):
    assert sorted(texts(store)) == sorted(TEXTS[:105])
    assert not Path(f"{store.folder}.work").exists()
    assert store.manifest["source"]["parts"] > 5
    names = {text: document.name for text, document in zip(texts(store), store.documents)}
    # Lines are numbered from the start of the file, not of the part.
    assert (names[TEXTS[0]], names[TEXTS[99]]) == ("a.jsonl:1", "a.jsonl:100")
    assert (names[TEXTS[100]], names[TEXTS[101]]) == ("b.jsonl.gz:2", "t101.txt")


def test_the_order_is_shuffled_within_parts_and_among_them(store: CorpusStore):
    train = [int(text.split()[-1][:-1]) for text, d in zip(texts(store), store.documents) if d.split == "train"]
    assert train != sorted(train)
    jumps = np.abs(np.diff(train))
    assert 1 < np.median(jumps) < 15  # consecutive documents are mostly from one part
    assert (jumps > 30).sum() >= 2  # parts are not in input order


def test_the_number_of_workers_does_not_change_the_store(store: CorpusStore, folder: Path, tmp_path: Path):
    for workers in (2, 3):
        line = ["prepare", "--out", str(tmp_path / f"{workers}"), "--input", str(folder), "--vocab-size", "300"]
        options = ["--part-bytes", str(PART), "--heldout-share", "0.2", "--workers", str(workers)]
        assert main([*line, *options]) == 0
        assert same(store.folder, tmp_path / f"{workers}")


def test_resumes_after_kills(store: CorpusStore, folder: Path, tmp_path: Path):
    """SIGKILL when the third part of a stage has all but its name, twice; the third run does the other tasks."""
    out, work = tmp_path / "store", tmp_path / "store.work"
    line = ["prepare", "--out", str(out), "--input", str(folder)]
    line += ["--vocab-size", "300", "--part-bytes", str(PART), "--heldout-share", "0.2"]
    for last_file in ("survey/000002.json", "parts/000002.json"):
        killed = signalled_command(signal.SIGKILL, 1, f"{last_file}$")
        done = subprocess.run([*killed, *line], stderr=subprocess.PIPE, text=True, timeout=600)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists()
        assert not (work / last_file).exists()
        assert (work / last_file.replace("2.json", "1.json")).exists()
    events: list[tuple[str, int, int]] = []
    prepare(out, files(folder), CONFIG, progress=lambda *event: events.append(event))
    assert same(store.folder, out)
    tasks = {stage: total for stage, done, total in events if done == 0}
    assert tasks["reading"] == tasks["making the vocabulary"] == 0
    assert 0 < tasks["tokens and labels"] < store.manifest["source"]["parts"]
    assert not work.exists()


def test_beam_makes_the_same_store(store: CorpusStore, folder: Path, tmp_path: Path):
    if importlib.util.find_spec("apache_beam") is None:
        pytest.skip("needs Apache Beam")
    line = ["prepare", "--out", tmp_path / "store", "--input", folder, "--vocab-size", 300, "--part-bytes", PART]
    line += ["--heldout-share", 0.2, "--runner", "FnApiRunner", "--runner-options", "direct_num_workers=1"]
    done = subprocess.run(
        [sys.executable, "-m", "steerling_jax.cli.main", *map(str, line)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert same(store.folder, tmp_path / "store")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1 is not JSON"):
        prepare(tmp_path / "new", files(tmp_path / "bad.jsonl"), runner=RunnerConfig(beam_runner="FnApiRunner"))


def test_is_not_resumed_with_other_settings(folder: Path, tmp_path: Path, tokenizer: SentencePieceTokenizer):
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("tokens and labels", 2):
            raise KeyboardInterrupt

    inputs = files(folder, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "store", inputs, CONFIG, progress=stop)
    with pytest.raises(UserError, match=r"store\.work contains an interrupted preparation with different settings"):
        prepare(tmp_path / "store", inputs, replace(CONFIG, seed=5))
    other = SentencePieceTokenizer(train_sentencepiece([text[::-1] for text in TEXTS], 300))
    with pytest.raises(UserError, match="with different token ids"):
        prepare(tmp_path / "store", files(folder, other), CONFIG)
    prepare(tmp_path / "store", inputs, CONFIG)


def test_shards_that_are_written_are_not_written_again(folder: Path, tmp_path: Path, tokenizer: SentencePieceTokenizer):
    inputs, written = files(folder, tokenizer), 0
    again: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal written
        if (stage, done) == ("writing", total):
            written = total
            raise KeyboardInterrupt

    def follow(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            again.append(total)

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "store", inputs, CONFIG, progress=stop)
    prepare(tmp_path / "store", inputs, CONFIG, progress=follow)
    assert written > 3
    assert max(again) <= 1  # a shard of zeros has no file


def test_an_interrupted_preparation_survives_later_errors(folder: Path, tmp_path: Path, tokenizer):
    """Also if it was interrupted while reading, before any part is complete."""

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


def test_truncated_compressed_file(tmp_path: Path):
    whole = gzip.compress(json.dumps({"text": "some words " * 100}).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"Cannot read .*a\.jsonl\.gz: Compressed file ended"):
        prepare(tmp_path / "store", files(tmp_path / "a.jsonl.gz"), CONFIG)
    assert not (tmp_path / "store.work").exists()


def test_shards_of_zeros(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    """A corpus of one document and twenty empty parts: some arrays contain only zeros and have no file."""
    for i in range(20):
        (tmp_path / f"{i}.jsonl").write_text("\n")
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "one"}))
    made = prepare(tmp_path / "store", files(tmp_path / "*.jsonl", tokenizer))
    assert texts(made) == ["one"]


def test_hashes_are_compared_in_ranges(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, tokenizer):
    monkeypatch.setattr(duplicates, "_RANGE_DOCUMENTS", 20)
    made = prepare(tmp_path / "s", files(folder, tokenizer), CONFIG)
    assert sorted(texts(made)) == sorted(TEXTS[:105])


def test_a_vocabulary_is_trained_on_a_sample(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    used: list[str] = []

    def train(texts, vocab_size: int) -> bytes:
        used.extend(texts)
        return train_sentencepiece(TEXTS, vocab_size)

    monkeypatch.setattr(vocabulary, "train_sentencepiece", train)
    monkeypatch.setattr(vocabulary, "_CHARACTERS", 4000)
    prepare(tmp_path / "s", files(folder), replace(CONFIG, heldout_share=0.04))
    assert 2000 < sum(map(len, used)) <= 4000
    assert len(used) >= 5  # from all parts


def near_copies() -> list[Document]:
    return [Document(str(i), "text", TEXTS[i // 2] + f" end {i % 2}") for i in range(160)]


def test_near_duplicates_are_in_one_split(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    inputs = CorpusInputs(documents=near_copies(), tokenizer=tokenizer)
    made = prepare(tmp_path / "s", inputs, PrepareConfig(heldout_share=0.3, part_bytes=PART))
    sides = {int(document.name): document.split for document in made.documents}
    assert [sides[i] for i in range(0, 160, 2)] == [sides[i] for i in range(1, 160, 2)]
    assert 0.1 < list(sides.values()).count("heldout") / 160 < 0.5


def test_a_large_corpus_is_split_by_hash_or_named_cluster(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch):
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


# Bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": ', r"x\.jsonl, line 2 is not JSON"),
        ('{"text": "a"}\n' * 30 + "{}", r"x\.jsonl, line \d+ after byte \d+ has no text"),
        ('{"text": "a", "labels": ["Knitting"]}', r"labelled with the unknown concept 'Knitting'"),
        ("\n\n", "No documents are left"),
    ],
)
def test_bad_input_is_found_before_expensive_stages(tmp_path: Path, content: str, message: str, tokenizer):
    (tmp_path / "x.jsonl").write_text(content)
    started = []
    with pytest.raises(UserError, match=message):
        prepare(
            tmp_path / "out",
            files(tmp_path / "*.jsonl", tokenizer),
            PrepareConfig(part_bytes=200),
            progress=lambda stage, done, total: started.append(stage),
        )
    assert "splitting" not in started
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for options, words in [
        (["--out", "there"], "choose another --out"),
        (["--heldout-share", "1"], "--heldout-share is 1.0"),
        (["--chunk-tokens", "0"], "--chunk-tokens is 0"),
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
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["there"]
