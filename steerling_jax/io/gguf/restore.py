"""What the conversion to GGUF changed in the values of tensors, changed back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from steerling_jax.io.gguf.tensors import GgufTensor


def restored(architecture: str, config: Mapping[str, Any], name: str, tensor: GgufTensor) -> GgufTensor:
    """A tensor with its published values and shape; name: its published one, config: fields as in `config.json`."""
    module, last = name.split(".")[-2:]
    if architecture == "llama" and module in ("q_proj", "k_proj"):
        heads = config["num_attention_heads" if module == "q_proj" else "num_key_value_heads"]
        return tensor.converted(partial(_halves, heads=heads))
    # Gemma and Qwen3.5 multiply by 1 + weight, and files hold the sum; the norm inside of DeltaNet is a plain one.
    if architecture.startswith(("gemma", "qwen35")) and "norm" in module and ".linear_attn." not in name:
        return tensor.converted(lambda weight: (weight.astype(np.float32) - 1).astype(weight.dtype))
    if module == "shared_expert_gate":
        return tensor.converted(lambda row: row.reshape(1, -1), (1, tensor.shape[-1]))
    if ".linear_attn." in name:
        return _delta_net(config, last if module == "linear_attn" else module, tensor)
    return tensor


def _delta_net(config: Mapping[str, Any], part: str, tensor: GgufTensor) -> GgufTensor:
    """A tensor of a DeltaNet layer.

    Value heads are published in groups, one group for each key head. In GGUF the first heads of all groups come first,
    then the second ones and so on, so that keys are repeated as a whole (llama.cpp, `_reorder_v_heads`).
    """
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    size = config["linear_value_head_dim"]
    before = 2 * keys * config["linear_key_head_dim"]  # rows of queries and keys, which keep their order
    order = partial(_grouped, groups=keys, each=values // keys)
    if part == "A_log":  # stored as the rate −e^A
        return tensor.converted(lambda a: np.log(-order(a.astype(np.float32), size=1)))
    if part in ("dt_bias", "in_proj_a", "in_proj_b"):
        return tensor.converted(partial(order, size=1))
    if part == "in_proj_z":
        return tensor.converted(partial(order, size=size))
    if part == "out_proj":  # its columns are value heads
        return tensor.converted(lambda weight: order(weight.T, size=size).T)
    if part == "in_proj_qkv":
        return tensor.converted(lambda rows: np.concatenate([rows[:before], order(rows[before:], size=size)]))
    if part == "conv1d":
        channels, taps = tensor.shape[0], tensor.shape[-1]
        return tensor.converted(
            lambda rows: np.concatenate([rows[:before], order(rows[before:], size=size)]).reshape(channels, 1, taps),
            (channels, 1, taps),
        )
    return tensor


def _grouped(rows: np.ndarray, *, groups: int, each: int, size: int) -> np.ndarray:
    """Rows of value heads (each · groups · size, …) in the published order, (groups · each · size, …)."""
    return rows.reshape(each, groups, size, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _halves(rows: np.ndarray, *, heads: int) -> np.ndarray:
    """Rows of a head as RoPE in halves needs them; in the file the two of a rotation are next to each other."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
