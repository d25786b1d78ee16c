"""Times Hugging Face transformers in a process of its own; started by `open_models.py`.

    python open_models_worker.py FILE.gguf

Reads one JSON request per line and writes one JSON answer per line. {"about": true}: versions. {"dtype": …, "forward":
ids}: seconds of a pass with logits. {"dtype": …, "prompt": ids, "new": n}: seconds and tokens of greedy decoding.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM


def main() -> None:
    path = Path(sys.argv[1])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("about"):
            versions = {"torch": torch.__version__, "transformers": transformers.__version__}
            print(json.dumps({"reference": versions, "threads": torch.get_num_threads()}), flush=True)
            continue
        dtype = request["dtype"]
        if dtype not in models:
            models.clear()
            loaded = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=getattr(torch, dtype)
            )
            models[dtype] = loaded.eval()
        print(json.dumps(answer(models[dtype], request)), flush=True)


def answer(model: torch.nn.Module, request: dict) -> dict:
    """Runs a request."""
    with torch.inference_mode():
        if "forward" in request:
            ids = torch.tensor([request["forward"]])
            begun, processor = time.perf_counter(), time.process_time()
            model(ids, use_cache=False)
            return {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - processor}
        ids, new = torch.tensor([request["prompt"]]), request["new"]
        mask = torch.ones_like(ids)
        begun, processor = time.perf_counter(), time.process_time()
        tokens = model.generate(
            ids, attention_mask=mask, min_new_tokens=new, max_new_tokens=new, do_sample=False, pad_token_id=0
        )
        seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - processor}
        return seconds | {"tokens": tokens[0, ids.shape[1] :].tolist()}


if __name__ == "__main__":
    main()
