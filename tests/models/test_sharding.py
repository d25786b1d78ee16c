"""The sharding table covers every parameter of every family; results on a mesh are one device's; what devices exchange
is written down in golden_collectives.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.models.steerling.published_config import config_from_dict
from steerling_jax.models.steerling.sharding import logical_axes

HERE = Path(__file__).parents[1]
GOLDEN, COLLECTIVES = HERE / "golden", HERE / "golden_collectives.json"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
# Exchanges are the compiler's choice, too: compared where it is the one that the file was made with.
REWRITE = f"If that is meant: REWRITE_COLLECTIVES=1 pytest {Path(__file__).name} writes {COLLECTIVES.name} again."


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_axes_of_its_rank(family: str) -> None:
    config, _, _ = config_from_dict(json.loads((GOLDEN / family / "config.json").read_text()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config)):
        names = [str(key.key) for key in path]
        assert len(logical_axes(names)) == leaf.ndim, (
            f"{'/'.join(names)}: see LOGICAL_AXES in steerling_jax/models/steerling/sharding.py"
        )


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The output of `sharded_runs.py` on eight devices."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", str(HERE / "worlds" / "sharded_runs.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def meshes(found: dict[str, Any]) -> dict[str, Any]:
    """The results on each mesh."""
    return found["meshes"]


@pytest.mark.slow
def test_splash_attention_on_a_mesh_is_the_reference(found: dict[str, Any]) -> None:
    assert found["splash"] < 3e-6


@pytest.mark.slow
def test_a_number_of_positions_that_no_axis_divides(found: dict[str, Any]) -> None:
    assert found["odd rows"] < 1e-5


@pytest.mark.slow
def test_every_mesh_gives_what_one_device_gives(meshes: dict[str, Any]) -> None:
    """Losses and gradients of a training step to 1e-5 of their size; eight texts written together to the token."""
    assert len(meshes) == 10
    for mesh, found in meshes.items():
        name, difference = max(found["differences"].items(), key=lambda item: item[1])
        assert difference < 1e-5, f"{name} differs by {difference:.1e} of its size on data×fsdp×tensor = {mesh}"
        assert found["same texts"], f"other texts on data×fsdp×tensor = {mesh}"


@pytest.mark.slow
def test_devices_exchange_what_they_should(meshes: dict[str, Any]) -> None:
    found = {mesh: {program: here[program] for program in ("train", "decode")} for mesh, here in meshes.items()}
    if os.environ.get("REWRITE_COLLECTIVES"):
        written = {"jax": jax.__version__, "meshes": found}
        COLLECTIVES.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    golden = json.loads(COLLECTIVES.read_text(encoding="utf-8"))
    if golden["jax"] != jax.__version__:
        pytest.skip(f"the collectives of jax {golden['jax']} are written down; this is {jax.__version__}")
    changes = []
    for mesh, programs in golden["meshes"].items():
        for program, wanted in programs.items():
            now = found[mesh][program]
            changes += [
                f"{mesh} {program}: {name} ×{now.get(name, 0)}, was ×{wanted.get(name, 0)}"
                for name in sorted(wanted.keys() | now.keys())
                if wanted.get(name) != now.get(name)
            ]
    assert not changes, "Other exchanges between devices (data×fsdp×tensor):\n" + "\n".join(changes) + "\n" + REWRITE


@pytest.mark.slow
def test_no_concept_table_leaves_a_device(meshes: dict[str, Any]) -> None:
    """Split over all devices by concepts, tables and scores stay; candidates and the rows' features go."""
    for program in ("train", "decode"):
        for name in meshes["1×1×8"][program]:
            sizes = [int(size) for size in name.partition("[")[2].rstrip("]").split(",")]
            assert not {61, 130, 144} & set(sizes), f"{program}: {name} has the size of a concept table"
