"""The sharding table covers every parameter of every family, and a sharded forward equals the plain one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import pytest

from steerling_jax.config import config_from_dict
from steerling_jax.model import param_shapes
from steerling_jax.sharding import logical_axes

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_axes_of_its_rank(family: str) -> None:
    config, _, _ = config_from_dict(json.loads((GOLDEN / family / "config.json").read_text()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config)):
        names = [str(key.key) for key in path]
        assert len(logical_axes(names)) == leaf.ndim, (
            f"{'/'.join(names)}: see LOGICAL_AXES in steerling_jax/sharding.py"
        )


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import AxisType
import steerling_jax as sj
from steerling_jax.model import forward
from steerling_jax.sharding import param_shardings

bundle = sj.load(sys.argv[1])
tokens = np.random.default_rng(0).integers(0, 290, (2, 32))
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
run = jax.jit(lambda p, t: forward(p, t, config=bundle.config).logits)
plain = run(bundle.params, tokens)
shardings = param_shardings(bundle.config, mesh)
params = jax.device_put(bundle.params, shardings)
kinds = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(params)}
assert len(kinds) > 3, kinds
batch = jax.device_put(tokens, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
print(float(np.abs(np.asarray(plain) - np.asarray(run(params, batch))).max()))
"""


def test_sharded_forward_equals_one_device() -> None:
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(GOLDEN / "base")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    chex.assert_scalar_non_negative(float(done.stdout))
    assert float(done.stdout) < 2e-5, "logits changed under sharding (2, 2, 2): look at the specs in sharding.py"
