"""The published layout to our parameters and back: names, bytes, dtypes, shards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from steerling_jax.errors import UserError
from steerling_jax.io.weights.published_layout import INDEX, SINGLE, expected_tensors, read_config
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.steerling.model import param_shapes
from tests.worlds.published_models import BARE, filled, same_tensors

FAMILIES = sorted(path.parent.name for path in (Path(__file__).parents[1] / "golden").glob("*/config.json"))


def test_all_thirteen_families_are_here():
    assert len(FAMILIES) == 13


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model(golden: Path, family: str):
    config, params, _ = read_published(golden / family)
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, param_shapes(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_the_safetensors_package(golden: Path, family: str):
    config, params, _ = read_published(golden / family)
    theirs = load_file(golden / family / SINGLE)
    for expected in expected_tensors(config):
        rows = []
        for piece in expected.pieces:
            leaf = params
            for key in piece.path:
                leaf = leaf[key]
            value = np.asarray(leaf) if expected.layer is None else np.asarray(leaf)[expected.layer]
            assert value.shape == piece.shape
            rows.append(value.reshape(-1, *expected.shape[1:]))
        np.testing.assert_array_equal(np.concatenate(rows), theirs[expected.name])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["package", "hub"])
def test_import_and_export_give_identical_bytes(golden: Path, tmp_path: Path, family: str, layout):
    config, params, extras = read_published(golden / family)
    write_published(tmp_path / "out", config, params, layout=layout, carried=extras.carried)
    assert same_tensors(golden / family, tmp_path / "out")
    again, written_layout, carried = read_config(tmp_path / "out")
    assert written_layout == layout
    # The Hub's layout expresses `instruct` by `eot_id` alone.
    assert dataclasses.replace(again, instruct=config.instruct) == config
    assert carried == (extras.carried if layout == "hub" else {})
    if layout == extras.layout:
        assert json.loads((tmp_path / "out/config.json").read_text()).items() >= _raw_config(golden / family).items()


def _raw_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_written_files_are_read_by_the_safetensors_package(tmp_path: Path):
    write_published(tmp_path / "m", BARE, filled(BARE))
    assert load_file(tmp_path / "m" / SINGLE)["blocks.1.attn.c_attn.weight"].shape == (128, 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_types(tmp_path: Path, dtype: str):
    params = filled(BARE)
    write_published(tmp_path / "a", BARE, params, dtype=dtype)
    _, kept, extras = read_published(tmp_path / "a")
    assert extras.dtype == dtype
    for mine, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(params)):
        np.testing.assert_array_equal(np.asarray(mine), theirs.astype(jnp.dtype(dtype)))
    write_published(tmp_path / "b", BARE, kept)
    assert same_tensors(tmp_path / "a", tmp_path / "b")
    _, low, _ = read_published(tmp_path / "a", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}


def test_mixed_types_come_back(tmp_path: Path):
    params = filled(BARE, dtype="bfloat16")
    params["blocks"]["ln_1"]["weight"] = params["blocks"]["ln_1"]["weight"].astype(np.float32)
    write_published(tmp_path / "a", BARE, params)
    _, kept, extras = read_published(tmp_path / "a")
    write_published(tmp_path / "b", BARE, kept)
    assert extras.dtype == "mixed"
    assert same_tensors(tmp_path / "a", tmp_path / "b")


def test_layers_of_different_types_need_one_named(tmp_path: Path):
    write_published(tmp_path / "m", BARE, filled(BARE))
    tensors = load_file(tmp_path / "m" / SINGLE)
    tensors["blocks.1.ln_1.weight"] = tensors["blocks.1.ln_1.weight"].astype(np.float16)
    save_file(tensors, tmp_path / "m" / SINGLE)
    with pytest.raises(UserError, match=r"blocks\.ln_1\.weight differ in type"):
        read_published(tmp_path / "m")
    _, params, _ = read_published(tmp_path / "m", dtype="float32")
    assert params["blocks"]["ln_1"]["weight"].dtype == jnp.float32


def test_not_a_number_is_no_error(tmp_path: Path):
    params = filled(BARE)
    params["tok_emb"]["weight"][0, :3] = np.nan, np.inf, 3e38
    write_published(tmp_path / "m", BARE, params)
    _, low, _ = read_published(tmp_path / "m", dtype="bfloat16")
    row = np.asarray(low["tok_emb"]["weight"][0, :3]).astype(np.float32)
    assert np.isnan(row[0])
    assert np.isinf(row[1])


def test_shards(tmp_path: Path):
    params = filled(BARE)
    write_published(tmp_path / "one", BARE, params)
    write_published(tmp_path / "many", BARE, params, max_shard_bytes=40_000)
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert names[0] == "config.json"
    assert names[-1] == INDEX
    assert len(names) > 4
    shards = [tmp_path / "many" / name for name in names if name.endswith(".safetensors")]
    assert all(path.stat().st_size < 44_000 for path in shards)
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert same_tensors(tmp_path / "one", tmp_path / "many")
    _, again, _ = read_published(tmp_path / "many")
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("same", [True, False])
def test_tied_head_must_be_the_embedding(golden: Path, tmp_path: Path, same: bool):
    tensors = load_file(golden / "base" / SINGLE)
    head = tensors["transformer.tok_emb.weight"].copy()
    head[0, 0] += 0 if same else 1
    save_file({**tensors, "transformer.lm_head.weight": head}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text((golden / "base/config.json").read_text())
    if same:
        assert "lm_head" not in read_published(tmp_path)[1]
    else:
        with pytest.raises(UserError, match=r"transformer\.lm_head\.weight"):
            read_published(tmp_path)


def test_an_existing_folder_is_replaced_as_a_whole(tmp_path: Path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/old").write_text("old")
    (tmp_path / "card.md").write_text("card")
    write_published(tmp_path / "m", BARE, filled(BARE), files=[tmp_path / "card.md"])
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"config.json", SINGLE, "card.md"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.md", "m"]


def test_parameters_of_another_config_are_refused(tmp_path: Path):
    other = dataclasses.replace(BARE, intermediate_size=48)
    with pytest.raises(UserError, match=r"blocks\.mlp\.c_fc\.weight"):
        write_published(tmp_path / "m", other, filled(BARE))
    assert list(tmp_path.iterdir()) == []
