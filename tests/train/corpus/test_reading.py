"""Documents from files: formats, folders, patterns, addresses and links; ranges of lines; invalid files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import fsspec
import pytest

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.reading import read_part
from steerling_jax.train.corpus.sources import TextSource
from steerling_jax.train.prepare.part_plan import plan_parts

TEXTS = [f"Number {i} of some texts, \u00e9 too. " * 12 + "\n" for i in range(50)]


def read(address: str | Path, part_bytes: int = 0) -> list[Document]:
    source = TextSource((str(address),))
    return [document for part in plan_parts([source], part_bytes) for document in read_part(part, source)]


def test_folder(tmp_path: Path):
    (tmp_path / "b.txt").write_bytes("\ufeff한국어 글".encode())
    lines = [{"text": "one", "name": "n", "source": "s", "labels": ["Threads"]}, {"text": "two\u2028three"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n\n")
    (tmp_path / "ignored.md").write_text("not this")
    assert read(tmp_path) == [
        Document("b.txt", "text", "한국어 글"),
        Document("n", "s", "one", labels=("Threads",)),
        Document("a.jsonl:2", "text", "two\u2028three"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", r"a\.txt is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n' + b"[" * 100_000, r"a\.jsonl, line 2 is not JSON: it is nested too deeply"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", r"a\.jsonl, line 1 is not JSON: .*4300 digits"),
        ("a.jsonl", b'{"words": "x"}', r"a\.jsonl, line 1 has no text"),
        ("a.jsonl", b"[1]", "line 1 has no text"),
        ("a.jsonl", b'{"text": "x", "labels": "Threads"}', "line 1: labels must be a list"),
        ("a.jsonl", b'{"text": "x", "name": 3}', "line 1: name must be a string"),
        ("a.md", b"text", "contains no documents"),
    ],
)
def test_bad_folder(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        assert read(tmp_path)


def test_lone_surrogates_in_json_become_question_marks(tmp_path: Path):
    """As in `text` and `name`, which are encoded the same way; a pair of surrogates is one character."""
    line = {key: f"{key} \ud800 \U0001f600" for key in ("text", "name", "source", "cluster", "module", "id")}
    (tmp_path / "a.jsonl").write_text(json.dumps(line | {"labels": ["one \udc00"]}))
    (document,) = read(tmp_path)
    values = {key: value.replace("\ud800", "?") for key, value in line.items()}
    assert document == Document(**values, labels=("one ?",))


@pytest.mark.parametrize("column", ["text", "source", "labels"])
def test_parquet_text_that_is_not_utf8(tmp_path: Path, column: str):
    """Arrow writes and reads such columns without an error."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    offsets, data = [0], b""
    for value in [b"good"] * 1500 + [b"bad \xff"] + [b"good"] * 10:
        data += value
        offsets.append(len(data))
    buffers = [None, pa.py_buffer(struct.pack(f"<{len(offsets)}i", *offsets)), pa.py_buffer(data)]
    values = pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)
    columns = {"text": pa.array(["text"] * len(values)), column: values}
    if column == "labels":
        columns[column] = pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values)
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet, row 1501 has text that is not UTF-8 \(byte 4\)"):
        read(tmp_path)


def test_links_to_files_are_read(tmp_path: Path):
    """As in the Hub's cache, where a snapshot consists of links to files with other names."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    blob, link = tmp_path / "blobs" / "0a1b", tmp_path / "snapshot" / "a.txt"
    blob.write_text("some text")
    link.symlink_to("../blobs/0a1b")
    (tmp_path / "snapshot" / "README.md").symlink_to("nowhere")
    for name in ("snapshot", "snapshot/*", "snapshot/a.txt"):
        assert [(d.name, d.text) for d in read(tmp_path / name)] == [("a.txt", "some text")]
    (part,) = plan_parts([TextSource((str(tmp_path / "snapshot"),))])
    assert (part.files[0].size, part.files[0].stamp) == (9, str(blob.stat().st_mtime))
    (tmp_path / "snapshot" / "b.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"b\.txt is a broken link"):
        read(tmp_path / "snapshot")


def test_links_to_folders_are_rejected(tmp_path: Path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "more").symlink_to(tmp_path)
    with pytest.raises(UserError, match="more is a link to a folder"):
        read(tmp_path)
    assert len(read(tmp_path / "*.txt")) == 1


def test_no_folder(tmp_path: Path):
    with pytest.raises(UserError, match="is not a folder"):
        read(tmp_path / "nowhere")


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
        read(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"x\.parquet is not a Parquet file"):
        read(tmp_path)


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
            assert len(read(tmp_path, part_bytes)) == 40, (end, part_bytes)
