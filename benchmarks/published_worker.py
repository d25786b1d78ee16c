"""Times the published PyTorch package in a process of its own; started by `decode.py` and `input_attribution.py`.

    python published_worker.py FOLDER

Runs under a Python that has the package and loads the model in FOLDER. Reads one JSON request per line and writes one
JSON answer per line. {"prompt": [ids], "max_new_tokens": n} generates: {"seconds": s, "tokens": [ids]}. With "commits"
([[position, id, logit], …], all of a generation, in order), "explain" (indices of some of them) and "nodes" it
attributes these commits to the inputs: {"seconds": s, "cpu_seconds": s, "sums": [each target's sum of attributions]}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from steerling.attribution.input_attribution import FaithfulOutputToInputAttributor
from steerling.attribution.trace import CommitRecord, DiffusionTrace
from steerling.configs.causal_diffusion import CausalDiffusionConfig
from steerling.configs.concept import ConceptConfig
from steerling.configs.generation import GenerationConfig
from steerling.inference.causal_diffusion import SteerlingGenerator
from steerling.models.interpretable.interpretable_causal_diffusion import InterpretableCausalDiffusionLM


class IdsOnlyTokenizer:
    """Replaces the published tokenizer, which downloads a vocabulary; decoding needs only the special ids."""

    eot_id = None

    def __init__(self, raw: dict):
        self.mask_token_id, self.eos_token_id = raw["mask_token_id"], raw["eos_token_id"]
        self.pad_token_id, self.vocab_size = raw["pad_token_id"], raw["vocab_size"]

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return " ".join(str(int(i)) for i in ids)


def load(folder: Path) -> SteerlingGenerator:
    """The model of a published folder in float32 on the CPU."""
    raw = json.loads((folder / "config.json").read_text())
    fields = CausalDiffusionConfig.model_fields
    config = CausalDiffusionConfig.model_validate({k: v for k, v in raw.items() if k in fields})
    concept = ConceptConfig.model_validate(raw["concept"])
    model = InterpretableCausalDiffusionLM(config=config, concept_config=concept, vocab_size=raw["vocab_size"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)  # the tied head is not in the file
    model.transformer._restore_weight_tying()
    return SteerlingGenerator(model.float(), IdsOnlyTokenizer(raw), config, is_interpretable=True, device="cpu")


def attribute(generator: SteerlingGenerator, request: dict) -> dict:
    groups = [
        CommitRecord(order, order, torch.tensor([position]), torch.tensor([token]), torch.tensor([logit]))
        for order, (position, token, logit) in enumerate(request["commits"])
    ]
    prompt = torch.tensor(request["prompt"])
    trace = DiffusionTrace(
        prompt,
        len(prompt),
        len(prompt) + request["max_new_tokens"],
        generator.mask_token_id,
        generator.eos_token_id,
        torch.device("cpu"),
        groups,
    )
    object.__setattr__(trace, "groups", [groups[i] for i in request["explain"]])  # snapshots were made from all of them
    attributor = FaithfulOutputToInputAttributor.from_generator(generator)
    begin, cpu = time.perf_counter(), time.process_time()
    result = attributor.attribute_from_trace(trace, n_steps=request["nodes"])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "sums": result.attributions.sum(dim=1).tolist()}


def main() -> None:
    generator = load(Path(sys.argv[1]))
    print(json.dumps({"threads": torch.get_num_threads(), "version": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "explain" in request:
            print(json.dumps(attribute(generator, request)), flush=True)
            continue
        settings = GenerationConfig(
            max_new_tokens=request["max_new_tokens"],
            steps=request.get("steps"),
            temperature=0.0,
            use_entropy_sampling=False,
            repetition_penalty=1.0,
            seed=0,
        )
        begin = time.perf_counter()
        out = generator.generate_full(torch.tensor([request["prompt"]]), settings)
        print(json.dumps({"seconds": time.perf_counter() - begin, "tokens": out.tokens.tolist()}), flush=True)


if __name__ == "__main__":
    main()
