"""Models in a bucket: read by ranges, tensor by tensor into their shardings, by one process and by several."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import steerling_jax as sj
from steerling_jax.io import storage
from steerling_jax.io.weights.safetensors_format import TensorToWrite, read_header, write_file
from tests.worlds.decoders import GOLDEN_DECODERS
from tests.worlds.paths import REPOSITORY
from tests.worlds.ports import lasting_port
from tests.worlds.serving_world import PATIENCE

ADDRESS = "gs://bucket/model"


class Bucket(MemoryFileSystem):
    """Objects in memory that count the bytes which are read of weight files."""

    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.read = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        content = super().cat_file(path, start=start, end=end, **options)
        self.read += len(content) * path.endswith(".safetensors")
        return content


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    Bucket.store.clear()
    made = Bucket(skip_instance_cache=True)
    monkeypatch.setattr(storage, "file_system", lambda address: (made, address.removeprefix("gs:/")))
    return made


def upload(bucket: Bucket, folder: Path) -> None:
    for path in folder.iterdir():
        bucket.pipe_file(f"/bucket/model/{path.name}", path.read_bytes())


def in_shards(name: str, folder: Path) -> Path:
    """A copy of a golden decoder with its weights in two shards and an index."""
    folder.mkdir()
    (folder / "config.json").write_bytes((GOLDEN_DECODERS / name / "config.json").read_bytes())
    stored = read_header(GOLDEN_DECODERS / name / "model.safetensors")
    files = {tensor: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, tensor in enumerate(sorted(stored))}
    for file in set(files.values()):
        names = [tensor for tensor in files if files[tensor] == file]
        tensors = [TensorToWrite(n, stored[n].dtype, stored[n].shape, stored[n].map) for n in names]
        write_file(folder / file, tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_sharded_decoder_is_loaded_without_reading_a_byte_twice(name: str, bucket: Bucket, tmp_path: Path):
    folder = in_shards(name, tmp_path / "model")
    upload(bucket, folder)
    found, expected = sj.load(ADDRESS), sj.load(GOLDEN_DECODERS / name)
    assert found.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert bucket.read <= size


def test_a_steerling_model_is_loaded_with_its_tokenizer_and_concepts(bucket: Bucket):
    local = sj.load()
    assert local.folder is not None
    upload(bucket, local.folder)
    found = sj.load(ADDRESS)
    assert found.concepts.find("thread")[0].name == local.concepts.find("thread")[0].name
    np.testing.assert_array_equal(sj.forward(found, "import").logits, sj.forward(local, "import").logits)


def test_what_is_not_a_model_is_one_sentence(bucket: Bucket, tmp_path: Path):
    def fails(address: str, *words: str) -> None:
        with pytest.raises(sj.UserError) as caught:
            sj.load(address)
        message = str(caught.value)
        assert all(word in message for word in words), message
        assert "\n" not in message

    fails(ADDRESS, "has no config.json")
    fails("gs://bucket/model/x.Q4_1.gguf", "GGUF file in a bucket", "copy it to this machine")
    fails("memory://model", "give a local folder, or an address with gs://")
    folder = in_shards("llama", tmp_path / "model")
    upload(bucket, folder)
    shard = "/bucket/model/model-00002-of-00002.safetensors"
    content = bucket.cat_file(shard)
    bucket.pipe_file(shard, content[:-10])
    fails(ADDRESS, f"{ADDRESS}/model-00002-of-00002.safetensors", "truncated or corrupt")
    bucket.rm_file(shard)
    fails(ADDRESS, "names the shard 'model-00002-of-00002.safetensors', which is not in the folder")
    bucket.pipe_file("/bucket/model/run.json", b"{}")
    fails(ADDRESS, "is a training run", "export")


# Two devices a process; all parameters over all devices, some along rows, some along columns.
PROCESS = """
import sys
import jax
folder, address, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(address, 2, number)
import json, jax.numpy as jnp, numpy as np
from fsspec.implementations.local import LocalFileSystem
import steerling_jax as sj
from steerling_jax.io import storage
from steerling_jax.io.weights.decoder_reader import read_decoder_config
from steerling_jax.models.decoder.parameters import param_shardings
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh, to_host
from pathlib import Path

class Counting(LocalFileSystem):
    read = 0
    def cat_file(self, path, start=None, end=None, **options):
        content = super().cat_file(path, start=start, end=end, **options)
        Counting.read += len(content) * path.endswith(".safetensors")
        return content

files = Counting(skip_instance_cache=True)
storage.file_system = lambda path: (files, path.removeprefix("file://"))
mesh = make_mesh(MeshShape(fsdp=2, tensor=2))
shardings = param_shardings(read_decoder_config(Path(folder)), mesh)
bundle = sj.load("file://" + folder, sharding=mesh)
for leaf, sharding in zip(jax.tree.leaves(bundle.params), jax.tree.leaves(shardings), strict=True):
    assert leaf.sharding == sharding
tokens = np.arange(8).reshape(4, 2) % bundle.config.vocab_size
with jax.set_mesh(mesh):
    ids = jax.make_array_from_callback(tokens.shape, batch_sharding(mesh), lambda index: tokens[index])
    backbone = bundle.backbone
    logits = jax.jit(lambda p, t: backbone.logits(p, backbone.run(p, backbone.embed(p, t)).hidden))(bundle.params, ids)
print(json.dumps({"read": Counting.read, "logits": to_host(logits).tolist()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_two_processes_read_each_half_of_the_weights(name: str, tmp_path: Path):
    folder = in_shards(name, tmp_path / "model")
    address = f"127.0.0.1:{lasting_port()}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROCESS, str(folder), address]
    started = [
        subprocess.Popen(
            [*command, str(number)],
            env=environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=PATIENCE) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    results = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    tokens = np.arange(8).reshape(4, 2) % sj.load(folder).config.vocab_size
    expected = np.asarray(sj.forward(sj.load(folder), tokens).logits)
    stored = [tensors for path in folder.glob("*.safetensors") for tensors in read_header(path).values()]
    weights = sum(tensor.nbytes for tensor in stored)
    # Norms and routers are needed by both processes, and both read the headers.
    headers = sum(path.stat().st_size for path in folder.glob("*.safetensors")) - weights
    whole = sum(tensor.nbytes for tensor in stored if len(tensor.shape) == 1)
    for result in results:
        np.testing.assert_allclose(result["logits"], expected, atol=1e-5 * math.ceil(np.abs(expected).max()))
        assert result["read"] <= headers + whole + weights // 2
