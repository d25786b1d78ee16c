"""The names of tensors in GGUF files, and the published ones; the `gguf` package has the same tables in reverse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.tensors import GgufTensor

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma has norms before and after the attention and the MLP.
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MOE_LAYER = _LAYER | {"ffn_gate_inp": "mlp.gate"}
_QWEN35_LAYER = {name: part for name, part in _LAYER.items() if name != "ffn_norm"} | {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_QWEN35_MOE_LAYER = _QWEN35_LAYER | {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
# Complete names, since the published ones have no `weight` or `bias` at their end.
_QWEN35_PARAMETERS = {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"}
# The experts of a layer are one tensor (experts, out, in) in GGUF, or one with the rows of gate and up after each
# other; the published names number them.
_EXPERTS = {
    "ffn_gate_exps": ("gate_proj",),
    "ffn_up_exps": ("up_proj",),
    "ffn_down_exps": ("down_proj",),
    "ffn_gate_up_exps": ("gate_proj", "up_proj"),
}
_LAYERS = {
    "llama": _LAYER,
    "qwen3": _LAYER,
    "qwen3moe": _MOE_LAYER,
    "qwen35": _QWEN35_LAYER,
    "qwen35moe": _QWEN35_MOE_LAYER,
    "gemma2": _GEMMA_LAYER,
    "gemma3": _GEMMA_LAYER,
}
ARCHITECTURES = tuple(_LAYERS)


def published_tensors(
    architecture: str, layers: int, name: str, tensor: GgufTensor, path: Path
) -> dict[str, GgufTensor]:
    """The tensors of a model with so many layers that one of a file holds, by their published names.

    Nothing for those of further layers, which predict several tokens at once. Raises `UserError` for an unknown name.
    """
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    module, _, kind = name.rpartition(".")
    if match is None:
        if module in _TOP:
            return {f"{_TOP[module]}.{kind}": tensor}
    elif int(match[1]) >= layers and architecture.startswith("qwen35"):
        return {}
    else:
        layer = f"model.layers.{int(match[1])}"
        if architecture.startswith("qwen35") and match[2] in _QWEN35_PARAMETERS:
            return {f"{layer}.{_QWEN35_PARAMETERS[match[2]]}": tensor}
        part = match[2].rpartition(".")[0]
        if part in _LAYERS[architecture]:
            return {f"{layer}.{_LAYERS[architecture][part]}.{kind}": tensor}
        if architecture.endswith("moe") and part in _EXPERTS and len(tensor.shape) == 3:
            return dict(_experts(f"{layer}.mlp.experts", _EXPERTS[part], kind, tensor))
    raise UserError(f"{path}: tensor {name!r} is unknown in a model of the architecture {architecture!r}.")


def _experts(
    module: str, projections: tuple[str, ...], kind: str, tensor: GgufTensor
) -> Iterator[tuple[str, GgufTensor]]:
    """The names and tensors of single experts in one of a layer."""
    for expert in range(tensor.shape[0]):
        rows = tensor.row(expert)
        size = rows.shape[0] // len(projections)
        for number, projection in enumerate(projections):
            yield f"{module}.{expert}.{projection}.{kind}", rows.rows(number * size, size)
