"""Runs the published package on random small models and writes what it returns. Needs only torch and `steerling`.

    python run_reference.py FOLDER COUNT SEED

Each FOLDER/NUMBER/ holds config.json, model.safetensors, forward.npz and forward.json, much as the golden cases do, and
likelihood.npz.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import save_file
from steerling.configs.causal_diffusion import CausalDiffusionConfig
from steerling.configs.concept import ConceptConfig
from steerling.models.causal_diffusion import CausalDiffusionLM
from steerling.models.interpretable.interpretable_causal_diffusion import InterpretableCausalDiffusionLM


def draw_config(draw: random.Random) -> tuple[dict, dict | None, int]:
    """Backbone fields, concept fields (None for a bare backbone) and a vocabulary."""
    heads = draw.choice([1, 2, 4])
    width = heads * draw.choice([8, 16])
    backbone = {
        "n_layers": draw.choice([1, 2, 3]),
        "n_head": heads,
        "n_embd": width,
        "block_size": 64,
        "n_kv_heads": draw.choice([None, *(g for g in (1, 2, 4) if heads % g == 0)]),
        "diff_block_size": draw.choice([1, 4, 8, 16]),
        "use_rms_norm": draw.random() < 0.7,
        "norm_eps": draw.choice([1e-5, 1e-3]),
        "norm_order": draw.choice(["pre", "post"]),
        "use_qk_norm": draw.random() < 0.6,
        "use_rope": draw.random() < 0.8,
        "rope_base": draw.choice([10_000.0, 500_000.0]),
        "rope_full_precision": draw.random() < 0.5,
        "mlp_type": draw.choice(["swiglu", "standard"]),
        "activation": draw.choice(["gelu", "relu", "silu"]),
        "mlp_ratio": draw.choice([2, 4]),
        "intermediate_size": draw.choice([None, 24, 40]),
        "use_bias": draw.random() < 0.4,
        "clip_qkv": draw.choice([None, 0.5, 10.0]),
        "weight_sharing": draw.random() < 0.5,
    }
    vocab = draw.choice([50, 97])
    if draw.random() < 0.1:
        return backbone, None, vocab
    topk = draw.choice([None, 1, 4, 7])
    concept = {
        "n_concepts": draw.choice([20, 33, 64]),
        "n_unknown_concepts": draw.choice([40, 77, 96]),
        "concept_dim": width,
        "use_attention_known": draw.random() < 0.3,
        "use_attention_unknown": draw.random() < 0.3,
        "topk_known": topk,
        "topk_known_features": None if topk is None else draw.choice([None, topk, 2 * topk]),
        "use_unknown": draw.random() < 0.85,
        "factorize_unknown": draw.random() < 0.6,
        "factorize_rank": 16,
        "unknown_topk": draw.choice([3, 8, 16]),
        "use_epsilon_correction": draw.random() < 0.6,
        "block_size": draw.choice([16, 30, 4096]),
        "pad_multiple": draw.choice([1, 16]),
        "topk_on_logits": draw.random() < 0.25,
        "apply_topk_to_unknown": draw.random() < 0.85,
    }
    return backbone, concept, vocab


def build(backbone: dict, concept: dict | None, vocab: int, seed: int) -> torch.nn.Module:
    """A float32 model with random weights, norms and biases included."""
    config = CausalDiffusionConfig(interpretable=concept is not None, **backbone)
    model: torch.nn.Module = (
        CausalDiffusionLM(config, vocab)
        if concept is None
        else InterpretableCausalDiffusionLM(config, ConceptConfig(**concept), vocab)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            # Concept logits that differ clearly but stay within ±15, where they would tie.
            scale = 0.7 if "emb" in name else (1.5 if "predictor" in name else 0.7) * parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.2 * noise if is_gain else 0.3 * noise if parameter.ndim == 1 else scale * noise)
    return model.eval()


def save(model: torch.nn.Module, backbone: dict, concept: dict | None, vocab: int, folder: Path) -> None:
    special = {name: vocab - 5 + i for i, name in enumerate(("eos", "pad", "bos", "endofchunk", "mask"))}
    raw = {
        "model_type": "causal_diffusion", "interpretable": concept is not None, **backbone, "vocab_size": vocab,
        **{f"{name}_token_id": number for name, number in special.items()},
    }  # fmt: skip
    if concept is not None:
        raw["concept"] = ConceptConfig(**concept).model_dump()
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if backbone["weight_sharing"]:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("lm_head.weight")}
    save_file(tensors, folder / "model.safetensors")


@torch.no_grad()
def outputs(
    model: torch.nn.Module, concept: dict | None, tokens: torch.Tensor, draw: random.Random
) -> tuple[dict, dict]:
    """What the package returns plainly, under clamps and with an injection."""
    if concept is None:
        return {"logits": model(tokens)}, {}
    logits, out = model(tokens)
    found = {"logits": logits}
    for name, value in vars(out).items():
        if isinstance(value, torch.Tensor) and name != "known_gt_features":
            found[f"out.{name}"] = value
    rows, length = tokens.shape
    positions = torch.tensor([[draw.random() < 0.5 for _ in range(length)] for _ in range(rows)])
    found["positions"] = positions
    known = {draw.randrange(concept["n_concepts"]): draw.random() for _ in range(3)}
    unknown = {draw.randrange(concept["n_unknown_concepts"]): draw.random() for _ in range(2)}
    found["known.logits"], out = model.intervene(tokens, known=known, positions=positions)
    found["known.features"] = out.known_features
    if concept["use_unknown"]:
        found["unknown.logits"], out = model.intervene(tokens, unknown=unknown, positions=positions)
        found["unknown.features"] = out.unk_hat
        found["both.logits"], _ = model.intervene(tokens, known=known, unknown=unknown)
    injection = torch.randn(rows, length, concept["concept_dim"], generator=torch.Generator().manual_seed(1))
    layer, alpha = draw.choice([1, 2]), 0.7
    found["injection"] = injection
    found["injected.logits"], _ = model(
        tokens, position_injection=injection, steering_inject_layer=layer, steering_inject_alpha=alpha
    )
    return found, {"known": known, "unknown": unknown, "inject_layer": layer, "inject_alpha": alpha}


def published_likelihood() -> type:
    """The package's likelihood. It comes with an adapter for lm_eval, of which the likelihood itself uses nothing."""
    stand_ins = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.evaluator", "lm_eval.api")}
    for name, attribute, value in (
        ("instance", "Instance", object),
        ("model", "LM", object),
        ("registry", "register_model", lambda _: lambda c: c),
    ):
        module = stand_ins[f"lm_eval.api.{name}"] = ModuleType(name)
        setattr(module, attribute, value)
    stand_ins["lm_eval"].evaluator = stand_ins["lm_eval.evaluator"]  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    from steerling.evaluation.lm_harness_wrapper import SteerlingLM

    return SteerlingLM


def likelihoods(scorer: type, model: torch.nn.Module, concept: dict | None, tokens: torch.Tensor, vocab: int) -> dict:
    """One text's likelihood with and without guidance, and which tokens were masked for it."""
    ids = (tokens[0] % (vocab - 5)).tolist()  # no special ids: the package would score a mask that the text holds
    start = len(ids) // 3
    found = {"likelihood.ids": np.asarray(ids), "likelihood.start": np.asarray(start)}
    for name, scale in (("plain", 0.0), ("guided", 1.5)):
        lm, masks = scorer.__new__(scorer), []
        lm.model, lm.is_interpretable, lm.mask_token_id = model, concept is not None, vocab - 1
        lm.mc_num, lm.mc_batch_size, lm.cfg, lm._torch_device = 6, 3, scale, torch.device("cpu")
        draw = lm._forward_process

        def recorded(batch, prompt_len, draw=draw, masks=masks):
            noisy, share = draw(batch, prompt_len)
            masks.append(noisy[:, prompt_len:] == vocab - 1)
            return noisy, share

        lm._forward_process = recorded
        torch.manual_seed(0)
        value, _ = lm._compute_mc_loglikelihood(ids[:start], ids[start:])
        found |= {f"likelihood.{name}": np.asarray(value), f"likelihood.{name}_masks": torch.cat(masks).numpy()}
    return found


def main(folder: Path, count: int, seed: int) -> None:
    scorer = published_likelihood()
    torch.set_num_threads(1)
    for number in range(count):
        draw = random.Random(1000 * seed + number)
        backbone, concept, vocab = draw_config(draw)
        model = build(backbone, concept, vocab, seed + number)
        length = draw.choice([5, 16, 27])
        tokens = torch.tensor([[draw.randrange(vocab) for _ in range(length)] for _ in range(2)])
        place = folder / f"{number:03d}"
        place.mkdir(parents=True)
        save(model, backbone, concept, vocab, place)
        found, settings = outputs(model, concept, tokens, draw)
        np.savez(place / "forward.npz", input_ids=tokens.numpy(), **{k: v.numpy() for k, v in found.items()})
        np.savez(place / "likelihood.npz", **likelihoods(scorer, model, concept, tokens, vocab))
        (place / "forward.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
