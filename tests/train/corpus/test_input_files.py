"""Which files are read, which are left out, and which names are refused; compressed files."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import struct
from pathlib import Path

import pytest
import zstandard

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.train.corpus.input_files import left_out_files
from steerling_jax.train.corpus.reading import read_part
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.corpus.toml_files import toml_files
from steerling_jax.train.prepare.part_plan import plan_parts


def read(*names: Path | str) -> list[str]:
    """The texts of all documents, sorted."""
    source = TextSource(tuple(map(str, names)))
    return sorted(document.text for part in plan_parts([source]) for document in read_part(part, source))


def left_out(*names: Path | str) -> list[str]:
    return [Path(file).name for file in left_out_files([TextSource(tuple(map(str, names)))])]


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def compress_zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", compress_zstd)],
)
def test_formats_and_compressions(tmp_path: Path, suffix: str, compress):
    """Suffixes in any case."""
    contents = {"a.jsonl": lines("one"), "b.NDJSON": lines("two"), "c.Txt": b"three", "d.JSONL": lines("four")}
    for name, content in contents.items():
        (tmp_path / f"{name}{suffix if name != 'd.JSONL' else suffix.upper()}").write_bytes(compress(content))
    expected = ["four", "one", "three", "two"]
    assert read(tmp_path) == read(*tmp_path.iterdir()) == read(tmp_path / "*") == expected
    assert left_out(tmp_path, tmp_path / "*") == []


def test_zstandard_files_of_several_frames(tmp_path: Path):
    """As `cat a.zst b.zst`, `pzstd` and `zstd --long` write them: nothing after the first frame is lost."""
    texts = [f"{i} {os.urandom(200).hex()}" for i in range(2000)]
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"extra"
    parts = [lines(*texts[:700]), lines(*texts[700:701]), b"", lines(*texts[701:])]
    content = skippable.join(compress_zstd(part) for part in parts)
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(content)
    assert read(path) == sorted(texts)
    window = zstandard.ZstdCompressionParameters(window_log=28)
    path.write_bytes(zstandard.ZstdCompressor(compression_params=window).compress(lines(*texts)))
    assert read(path) == sorted(texts)


def test_damaged_compressed_files_are_refused(tmp_path: Path):
    path = tmp_path / "x.jsonl.zst"
    whole = compress_zstd(lines(*(os.urandom(50).hex() for _ in range(100))))
    for content, words in [
        (whole[: len(whole) // 2], "it is truncated"),
        (whole[:-1], "it is truncated"),
        (whole + whole[:3], "it is truncated"),
        (b"no compressed data", "it is not valid Zstandard data"),
        (whole + b"no compressed data", "it is not valid Zstandard data"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"Cannot read .*x\.jsonl\.zst: {words}"):
            read(path)
    gz = tmp_path / "y.jsonl.gz"
    gz.write_bytes(gzip.compress(lines("one" * 1000))[:-9])
    with pytest.raises(UserError, match=r"Cannot read .*y\.jsonl\.gz"):
        read(gz)


def test_named_files_that_cannot_be_read_are_refused(tmp_path: Path):
    good = tmp_path / "good.jsonl"
    good.write_bytes(lines("one"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "more.json").write_text("[]")
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to("pipe.txt")
    for name, words in [
        ("more.json", r"more\.json cannot be read as documents: give \.txt, \.jsonl"),
        ("pipe.txt", r"pipe\.txt is not a regular file, but input is read more than once"),
        ("link.txt", r"link\.txt is not a regular file"),
        ("/dev/null", "/dev/null is not a regular file"),
        ("absent.txt", r"absent\.txt is not a folder or a file"),
        ("*.csv", r"\*\.csv contains no documents"),
        ("*.json", r"\*\.json contains no documents"),
        ("empty", "empty contains no documents"),
        ("folder.txt", r"folder\.txt contains no documents"),
    ]:
        with pytest.raises(UserError, match=words):
            read(good, tmp_path / name)
    assert read(good) == ["one"]


def test_others_of_a_folder_are_left_out_and_named(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "sub/b.txt", "c[1].txt"):
        (tmp_path / name).write_text(name)
    for name in ("README.md", "sub/data.json", "x.jsonl.lz4", "noname"):
        (tmp_path / name).write_text("not this")
    os.mkfifo(tmp_path / "pipe.txt")
    assert read(tmp_path) == ["a.txt", "c[1].txt", "sub/b.txt"]
    assert left_out(tmp_path) == ["README.md", "noname", "pipe.txt", "data.json", "x.jsonl.lz4"]
    # A pattern does not enter the folders that it matches, unless it has `**`.
    assert read(tmp_path / "*") == ["a.txt", "c[1].txt"]
    assert left_out(tmp_path / "*") == ["README.md", "noname", "pipe.txt", "sub", "x.jsonl.lz4"]
    assert left_out(tmp_path / "**") == left_out(tmp_path)
    assert left_out(tmp_path / "a.txt") == []
    assert read(tmp_path / "c[1].txt") == ["c[1].txt"]  # a name, although it could be a pattern


def test_hidden_files_are_skipped(tmp_path: Path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    for name in ("._a.txt", ".DS_Store", ".hidden.jsonl"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07\xff")
    assert read(tmp_path) == read(tmp_path / "*") == read(tmp_path / "**") == ["one"]
    assert left_out(tmp_path) == left_out(tmp_path / "*") == []
    # Named themselves they are read.
    assert read(tmp_path / ".work") == read(tmp_path / ".work/*.txt") == read(tmp_path / ".work/b.txt") == ["two"]
    assert read(tmp_path / ".wo*/*.txt") == ["two"]
    for name in ("._c.toml", "c.toml"):
        (tmp_path / name).touch()
    assert toml_files([tmp_path]) == [tmp_path / "c.toml"]


def test_the_command_names_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ndjson").write_bytes(lines(*(f"The thread {i} waits for its lock." for i in range(200))))
    for i in range(10):
        (tmp_path / "in" / f"{i}.md").touch()
    options = ["--out", str(tmp_path / "out"), "--vocab-size", "300", "--input", str(tmp_path / "in")]
    assert main(["prepare", *options]) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "their format is not supported: 10 files: " in error
    assert "/in/0.md, " in error
    assert "/in/7.md and 2 more." in error
    (tmp_path / "more.json").write_text("[]")
    assert main(["prepare", *options, str(tmp_path / "more.json"), "--out", str(tmp_path / "new")]) == 2
    assert "more.json cannot be read as documents" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.work").exists()
