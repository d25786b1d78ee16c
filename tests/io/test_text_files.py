"""Text files of users: byte order marks, encodings, and JSON and TOML of absurd structure."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.infer.batch.request_file import parse_line
from steerling_jax.infer.batch.result_file import repair
from steerling_jax.infer.server.errors import ApiError
from steerling_jax.infer.server.json_body import parse_json
from steerling_jax.io.json_files import read_json_array, read_json_object, write_json
from steerling_jax.io.steering_policy import read_policy
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.text_files import load_json, read_text, read_toml
from steerling_jax.io.trace_file import read_trace
from steerling_jax.io.weights.safetensors_format import read_header
from steerling_jax.train.corpus.ontology import read_concepts
from steerling_jax.train.corpus.sources import read_sources
from steerling_jax.train.data.conversations import read_conversations

BOM = b"\xef\xbb\xbf"
# Nested just as deep as Python's own parser reads, far deeper, and a number that Python refuses to convert.
DEPTHS = (101, sys.getrecursionlimit() - 150, 100_000)
ABSURD = [*("[" * depth + "]" * depth for depth in DEPTHS), *('{"a":' * depth + "1" + "}" * depth for depth in DEPTHS)]
ABSURD.append("9" * 5000)
IDS = [f"{text[0]}{len(text)}" for text in ABSURD]

POLICY = b"[[rule]]\naction = 'suppress'\nconcept = 'Email'\nstrength = 1\n"
CONCEPTS = b"[[concept]]\nname = 'The sea'\ngroup = 'topic'\ndescription = 'Boats.'\nwords = ['sea']\n"
SOURCE = b"[[source]]\nname = 'mine'\nfiles = 'x.txt'\nlicense = 'CC0'\ndescription = 'Texts.'\n"
TALK = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


def test_depths_that_are_not_absurd():
    for depth in (1, 99, 100):
        assert json.dumps(load_json("[" * depth + "]" * depth)) == "[" * depth + "]" * depth
    wide = [[i] for i in range(1000)]
    assert load_json(json.dumps(wide)) == load_json(json.dumps(wide).encode()) == wide


@pytest.mark.parametrize("text", ABSURD, ids=IDS)
def test_absurd_json_is_reported_like_other_invalid_json(tmp_path: Path, text: str):
    for content in (text, text.encode()):
        with pytest.raises(ValueError, match=r"nested too deeply|4300 digits"):
            load_json(content)
    path = tmp_path / "x.json"
    path.write_text(f"{TALK.decode()}{text}\n")
    with pytest.raises(UserError, match=r"x\.json, line 2 is not JSON \(.*\): write one conversation per line"):
        list(read_conversations(path))
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.json is not valid JSON \(.*\); restore the file"):
        read_json_array(path)
    with pytest.raises(UserError, match=r"x\.json is not a trace, or it is truncated \(.*\); make it again"):
        read_trace(path)
    with pytest.raises(UserError, match=r"this is not JSON \(.*\); write one object on one line"):
        parse_line(b'{"id": 1, "prompt": "a", "steering": %s}' % text.encode())
    with pytest.raises(ApiError, match=r"The body is not JSON \(.*\): send one JSON object"):
        parse_json(text.encode())
    path.write_text(f'{{"id": 1, "text": "", "trace": {text}}}\n')
    with pytest.raises(UserError, match="line 1 is not a result"):
        repair(path)
    with pytest.raises(UserError, match="has no result with the id 1"):
        read_trace(path, 1)


@pytest.mark.parametrize("text", ABSURD, ids=IDS)
def test_absurd_toml(tmp_path: Path, text: str):
    path = tmp_path / "x.toml"
    path.write_text(f"concept = {text.replace(':', ' = ').replace(chr(34), '')}\n")
    with pytest.raises(UserError, match=r"x\.toml is not valid TOML: .*(nested too deeply|4300 digits)"):
        read_toml(path)
    with pytest.raises(UserError, match=r"x\.toml is not valid TOML"):
        read_policy(path)
    with pytest.raises(UserError, match=r"x\.toml is not valid TOML"):
        read_concepts([str(path)])


def header_file(path: Path, header: str, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
    return path


@pytest.mark.parametrize("text", ABSURD, ids=IDS)
def test_absurd_safetensors_headers(tmp_path: Path, text: str):
    for header in (text, f'{{"x": {text}}}', f'{{"x": {{"dtype": "F32", "shape": [{text}], "data_offsets": [0, 0]}}}}'):
        path = header_file(tmp_path / "model.safetensors", header)
        with pytest.raises(UserError, match=r"model\.safetensors is truncated or corrupt \(its header is not JSON"):
            read_header(path)


@pytest.mark.parametrize(
    "shape",
    [[10**4200], [10**2500, 10**2500], [1 << 63], [(1 << 63) - 1] * 1000, [1] * 65, "12", {"2": 1}, [True], None, 3],
    ids=lambda value: str(value)[:12],
)
def test_absurd_shapes(tmp_path: Path, shape: Any):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}
    path = header_file(tmp_path / "model.safetensors", json.dumps({"x": entry}), bytes(4))
    with pytest.raises(UserError, match=r"its entry for tensor 'x' is malformed"):
        read_header(path)
    entry = {"dtype": "F32", "shape": [(1 << 63) - 1] * 64, "data_offsets": [0, 4]}
    with pytest.raises(UserError, match=r"tensor 'x' has 4 bytes where its shape needs \d+\)"):
        read_header(header_file(path, json.dumps({"x": entry}), bytes(4)))


def test_a_byte_order_mark_is_accepted_everywhere(tmp_path: Path, text_model: Path):
    path = tmp_path / "file"

    def both(content: bytes, read: Any) -> None:
        path.write_bytes(content)
        expected = read(path)
        path.write_bytes(BOM + content)
        assert read(path) == expected

    both(b"text\r\nmore", read_text)
    assert read_text(path) == "text\nmore"
    both(POLICY, read_policy)
    both(CONCEPTS, lambda path: read_concepts([str(path)]))
    both(SOURCE, read_sources)
    both(TALK * 2, lambda path: list(read_conversations(path)))
    both(b'{"a": 1}', read_json_object)
    both(b'{"id": 1}\n', lambda path: parse_line(path.read_bytes()))
    trace = tmp_path / "trace.json"
    arguments = ["generate", "The", "--model", str(text_model), "--max-new-tokens", "16", "--trace", str(trace)]
    assert main(arguments) == 0
    both(trace.read_bytes(), lambda path: read_trace(path).text)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (read_text, r"file is not UTF-8 text \(byte 5\): convert it"),
        (read_policy, r"The policy .*file is not UTF-8 text \(byte 5\)"),
        (read_sources, r"file is not UTF-8 text \(byte 5\)"),
        (lambda path: list(read_conversations(path)), r"file, line 1 is not UTF-8 text \(byte 5\)"),
        (read_trace, r"The trace .*file is not UTF-8 text \(byte 5\)"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, read: Any, words: str):
    (tmp_path / "file").write_bytes("{ [ \u00e9 caf\u00e9".encode("latin-1").replace(b"[ \xe9", b"[  \xe9"))
    with pytest.raises(UserError, match=words):
        read(tmp_path / "file")


def test_lone_surrogates_survive_in_json_files(tmp_path: Path):
    value = ["\ud800", {"\udfff": "é"}]
    write_json(tmp_path / "a.json", value)
    StoragePath(tmp_path).write_json("b.json", value)
    assert read_json_array(tmp_path / "a.json") == read_json_array(tmp_path / "b.json") == value
