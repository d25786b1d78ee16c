"""Published weights on devices: transfer, shardings, peak memory, a full disk."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from steerling_jax.io.weights.published_layout import find_tensors
from steerling_jax.io.weights.published_reader import load_shard, read_published
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.io.weights.safetensors_format import read_header
from steerling_jax.models.steerling.model import param_shapes
from tests.worlds.published_models import BARE, child, filled, same_tensors


def test_staged_transfer_gives_the_same_values(tmp_path: Path):
    write_published(tmp_path / "m", BARE, filled(BARE))
    tensors = find_tensors(tmp_path / "m")
    layers = [tensors[f"blocks.{i}.mlp.c_fc.weight"] for i in range(2)]
    bounds = (slice(0, 2), slice(8, 40), slice(16, 64))
    for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
        direct, staged = (
            load_shard(layers, True, bounds, dtype, jax.devices()[0], staged=staged) for staged in (False, True)
        )
        assert direct.dtype == staged.dtype == dtype
        np.testing.assert_array_equal(np.asarray(direct), np.asarray(staged))


def test_parameters_may_be_donated(tmp_path: Path):
    write_published(tmp_path / "m", BARE, filled(BARE))
    _, params, _ = read_published(tmp_path / "m")
    expected = jax.tree.map(lambda leaf: np.array(leaf) + 1, params)
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    jax.tree.map(np.testing.assert_array_equal, step(params), expected)


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.io.weights.published_writer import write_published
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
specs = {"c_fc": P(None, "b", "a"), "c_q": P(None, "a", "b"), "c_kv": P(None, None, "b")}
specs |= {"c_proj": P("b", None, "a"), "tok_emb": P(("a", "b"))}
place = lambda path: NamedSharding(mesh, specs.get(path[-2], P()))
_, plain, _ = read_published(FOLDER)
_, sharded, _ = read_published(FOLDER, sharding=place)
_, as_tree, _ = read_published(FOLDER, sharding=jax.tree.map(lambda leaf: leaf.sharding, sharded))
for path, leaf in jax.tree_util.tree_leaves_with_path(sharded):
    assert leaf.sharding == place([key.key for key in path]), path
jax.tree.map(np.testing.assert_array_equal, plain, sharded)
jax.tree.map(np.testing.assert_array_equal, plain, as_tree)
config, _, _ = read_published(FOLDER)
write_published(OUT, config, sharded)
"""


def test_shardings(tmp_path: Path):
    write_published(tmp_path / "m", BARE, filled(BARE), max_shard_bytes=40_000)
    names = f"FOLDER, OUT = {str(tmp_path / 'm')!r}, {str(tmp_path / 'out')!r}\n"
    child(names + SHARDED, JAX_NUM_CPU_DEVICES="4")
    assert same_tensors(tmp_path / "m", tmp_path / "out")


PEAK = """
import jax, re
from pathlib import Path
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.io.weights.published_writer import write_published
jax.device_put(0.0).block_until_ready()
status = lambda key: 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
_, params, _ = read_published(FOLDER, dtype=DTYPE)
print(status("VmHWM") - before - sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak memory counter")
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_peak_memory_of_reading(tmp_path: Path, dtype: str | None):
    """Reading needs little memory beyond the parameters: far less than the largest file. 200 MB in three files."""
    config = dataclasses.replace(BARE, n_layers=4, n_embd=1024, n_head=8, intermediate_size=2048, vocab_size=16384)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), param_shapes(config))
    assert 190e6 < sum(leaf.nbytes for leaf in jax.tree.leaves(params)) < 220e6
    write_published(tmp_path / "m", config, params, max_shard_bytes=72_000_000)
    shards = list((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) == 3
    over = int(child(f"FOLDER, DTYPE = {str(tmp_path / 'm')!r}, {dtype!r}\n" + PEAK))
    largest = max(path.stat().st_size for path in shards)
    print(f"{over / 1e6:.1f} MB beyond the parameters; largest shard {largest / 1e6:.1f} MB")
    assert over < 0.5 * largest
    assert all(read_header(path) for path in shards)


def test_full_disk_while_writing(tmp_path: Path):
    code = f"""
import resource, jax, numpy as np
from pathlib import Path
from steerling_jax.errors import UserError
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.io.weights.published_writer import write_published
config, params, _ = read_published({str(tmp_path / "m")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_published({str(tmp_path / "out")!r}, config, params)
except UserError as error:
    print(error)
"""
    write_published(tmp_path / "m", BARE, filled(BARE))
    assert "Cannot write" in child(code)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
