"""What `prepare` rejects before it reads or writes much, and the files of others that it leaves unchanged."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.stages.staged_work import RunnerConfig
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare

TEXTS = [f"The thread number {i} waits for a lock. {'It waits on. ' * (i % 9)}" for i in range(60)]
LEARNED = """
[[concept]]
name = "The sea"
group = "topic"
description = "Boats, waves and harbours."
examples = ["The boat sails.", "Waves rise.", "Ships at sea.", "A harbour."]
"""


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(TEXTS, 300))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path / "texts.jsonl"


def stop_at(name: str):
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == (name, 1):
            raise KeyboardInterrupt

    return stop


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_smaller_vocabulary_is_not_refused(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = ["prepare", "--out", str(tmp_path / "store"), "--input", str(texts), "--workers", "1", "--vocab-size"]
    assert main([*line, "9000"]) == 2
    (most,) = re.findall(r"--vocab-size can be at most (\d+); lower it", capsys.readouterr().err)
    assert main([*line, most]) == 0
    assert CorpusStore(tmp_path / "store").vocab_size == int(most)


def test_a_corpus_without_held_out_documents_is_made_with_a_warning(texts: Path, tmp_path: Path, capsys):
    line = ["prepare", "--out", str(tmp_path / "store"), "--input", str(texts), "--vocab-size", "300"]
    assert main([*line, "--heldout-share", "0"]) == 0
    assert "No document is held out, so `steerling train` and `evaluate` will refuse" in capsys.readouterr().err
    assert main([*line[:2], str(tmp_path / "other"), *line[3:], "--heldout-share", "0.5"]) == 0
    assert "held out, so" not in capsys.readouterr().err


@pytest.mark.parametrize("bad", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", "{", '{"text": "\xff"}'])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_mended_line_is_not_refused(texts: Path, tmp_path: Path, bad: str, interrupted: bool, tokenizer):
    """Nothing remains of the preparation that a bad line ended, also if it resumed an interrupted one."""
    good = texts.read_text()
    texts.write_bytes(good.encode() + bad.encode("latin-1"))
    inputs = CorpusInputs([TextSource((str(texts),))], tokenizer=tokenizer)
    out, config = tmp_path / "out", PrepareConfig(part_bytes=1000)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            prepare(out, inputs, config, progress=stop_at("reading"))
        assert StoragePath(f"{out}.work").has("job.json")
    with pytest.raises(UserError, match=r"texts\.jsonl, line "):
        prepare(out, inputs, config)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]
    texts.write_text(good)
    assert prepare(out, inputs, config).manifest["counts"]["train"]["documents"] > 0


def test_an_output_that_is_a_broken_link(texts: Path, tmp_path: Path, tokenizer):
    """Found at the start; a folder cannot be renamed over a link at the end."""
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(UserError, match="out already exists"):
        prepare(tmp_path / "out", CorpusInputs([TextSource((str(texts),))], tokenizer=tokenizer))
    assert not (tmp_path / "out.work").exists()


def test_lone_surrogates(tmp_path: Path, tokenizer):
    """In every field of a line; a store, like every UTF-8 file, cannot hold them."""
    lines = [{"text": text, "source": "s\ud800", "cluster": f"c\udfff{i}", "name": "n\ud800", "module": "m\ud800"}
             for i, text in enumerate(TEXTS)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    inputs = CorpusInputs([TextSource((str(tmp_path / "a.jsonl"),))], tokenizer=tokenizer)
    store = prepare(tmp_path / "out", inputs, PrepareConfig(shares={"s?": 1.0}))
    assert {(document.source, document.name) for document in store.documents} == {("s?", "n?")}


# Stores in a bucket: a local folder, given by its address


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/store"


def interrupted(bucket: str, texts: Path, tokenizer: SentencePieceTokenizer) -> CorpusInputs:
    """The inputs of a preparation that was interrupted while it wrote its store."""
    inputs = CorpusInputs(sources=[TextSource((str(texts),))], tokenizer=tokenizer)
    with pytest.raises(KeyboardInterrupt):
        prepare(bucket, inputs, progress=stop_at("writing"))
    assert StoragePath(bucket).names()
    return inputs


def test_a_store_in_a_bucket_is_not_mixed_with_another(bucket: str, texts: Path, tokenizer, tmp_path: Path):
    inputs = interrupted(bucket, texts, tokenizer)
    StoragePath(f"{bucket}.work").remove()
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=r"bucket/store contains part of another preparation"):
        prepare(bucket, inputs, PrepareConfig(seed=5))
    assert files_of(tmp_path) == before
    shutil.rmtree(tmp_path / "bucket")
    assert prepare(bucket, inputs, PrepareConfig(seed=5)).manifest["source"]["seed"] == 5


def test_a_store_in_a_bucket_is_resumed(bucket: str, texts: Path, tokenizer):
    inputs = interrupted(bucket, texts, tokenizer)
    with pytest.raises(UserError, match=rf"remove it and {bucket} to start again"):
        prepare(bucket, inputs, PrepareConfig(seed=5))
    prepare(bucket, inputs)
    assert StoragePath(f"{bucket}.work").names() == set()


# The working folder


def test_a_folder_with_other_files_is_unchanged(tmp_path: Path, texts: Path, tokenizer):
    (tmp_path / "store.work" / "deep").mkdir(parents=True)
    (tmp_path / "store.work" / "deep" / "thesis.txt").write_text("years of work")
    before = files_of(tmp_path)
    for inputs in (
        CorpusInputs(sources=[TextSource((str(texts),))], tokenizer=tokenizer),
        CorpusInputs(documents=[Document("d", "text", "x")], tokenizer=tokenizer),
    ):
        with pytest.raises(UserError, match=r"store\.work contains deep/thesis\.txt but no preparation"):
            prepare(tmp_path / "store", inputs)
        assert files_of(tmp_path) == before


def test_files_of_a_preparation_killed_before_its_plan_are_replaced(tmp_path: Path, texts: Path, tokenizer):
    (tmp_path / "store.work").mkdir()
    for name in ("documents.new", f"documents-{'0' * 16}.jsonl", "tokenizer.model"):
        (tmp_path / "store.work" / name).write_text("half")
    prepare(tmp_path / "store", CorpusInputs(sources=[TextSource((str(texts),))], tokenizer=tokenizer))
    assert not (tmp_path / "store.work").exists()


def test_documents_in_memory_can_be_changed_and_changed_back(tmp_path: Path, tokenizer):
    documents = [Document(str(i), "text", text) for i, text in enumerate(TEXTS)]
    inputs = CorpusInputs(documents=documents, tokenizer=tokenizer)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "s", inputs, progress=stop_at("tokens and labels"))
    with pytest.raises(UserError, match=r"s\.work contains an interrupted preparation"):
        prepare(tmp_path / "s", CorpusInputs(documents=documents[1:], tokenizer=tokenizer))
    assert len(list((tmp_path / "s.work").glob("documents-*"))) == 1, "documents of a rejected preparation are removed"
    done: list[tuple[str, int, int]] = []
    prepare(tmp_path / "s", inputs, progress=lambda *event: done.append(event))
    assert ("reading", 0, 0) in done


# What is rejected before the text is read


def test_a_bad_model_or_table_is_rejected_before_the_text_is_read(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "mine.toml").write_text(LEARNED)
    table = '[[labels]]\nname = "t"\nfiles = "nowhere.jsonl"\nconcepts = "inventory.jsonl"\n'
    (tmp_path / "labels.toml").write_text(table)
    (tmp_path / "inventory.jsonl").write_text('{"concept_id": 5, "name": "Calm"}')
    line = ["prepare", "--out", str(tmp_path / "store"), "--input", str(texts), "--vocab-size", "300"]
    for options, words in [
        (["--concepts", str(tmp_path / "mine.toml"), "--embeddings", "no-such-model"], "'no-such-model'"),
        (["--concepts", str(tmp_path / "mine.toml"), "--embeddings", str(tmp_path)], "config.json"),
        (["--labels", str(tmp_path / "labels.toml")], "nowhere.jsonl is not a folder or a file"),
    ]:
        assert main([*line, *options]) == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
        assert not (tmp_path / "store.work").exists()


def test_sources_of_several_files_have_different_names(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture):
    source = f'[[source]]\nname = "tales"\ndescription = "d"\nlicense = "CC0-1.0"\nfiles = "{texts}"\n'
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text(source)
    line = ["prepare", "--out", tmp_path / "store", "--source", tmp_path / "a.toml", tmp_path / "b.toml"]
    assert main([str(word) for word in line]) == 2
    assert "b.toml: the source 'tales' is already defined" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("NoRunner", (), r"Beam rejects --runner NoRunner .*Unexpected pipeline runner: NoRunner"),
        ("DirectRunner", ("direct_num_workers=x",), r"--runner-options: argument --direct_num_workers: invalid int"),
        ("DataflowRunner", ("project=p",), r"Beam rejects --runner DataflowRunner .*Missing GCS path option"),
        ("nowhere.Runner", (), r"--runner nowhere\.Runner cannot be loaded, No module named 'nowhere'"),
        (
            "DataflowRunner",
            ("project=my-project", "region=r", "temp_location=gs://bbbb/t"),
            r"--runner DataflowRunner cannot be loaded, .*pip install 'apache-beam\[gcp\]'",
        ),
    ],
)
def test_runners_and_options_that_beam_rejects(
    tmp_path: Path, texts: Path, tokenizer, capsys: pytest.CaptureFixture, runner: str, options: tuple, message: str
):
    if importlib.util.find_spec("apache_beam") is None:
        pytest.skip("needs Apache Beam")
    if runner == "DataflowRunner" and importlib.util.find_spec("apitools") is not None:
        pytest.skip("it would send requests to Google")
    with pytest.raises(UserError, match=f"^{message}"):
        prepare(
            tmp_path / "s",
            CorpusInputs(sources=[TextSource((str(texts),))], tokenizer=tokenizer),
            runner=RunnerConfig(beam_runner=runner, beam_options=options),
        )
    assert "usage" not in capsys.readouterr().err
    assert not (tmp_path / "s.work").exists()
