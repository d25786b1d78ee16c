"""Times EleutherAI's sparsify in a process of its own; started by `autoencoders.py`.

Reads one JSON request per line and writes one JSON answer per line:

- {"about": true}: versions and threads.
- {"start": FILE.npz, "k", "rates", "aux_weight", "dead_after"}: a coder and its optimizer. The file has the weights,
  the rows since each latent was last kept (`silent`), and the rows of training (steps, N, D).
- {"step": i}: seconds of a step, as sparsify's trainer does it, and the unexplained variance before it.
- {"variance_of": FILE.npy}: the unexplained variance of these rows.
- {"encode": {"width", "latents", "rows", "k"}}: seconds of encoding random rows with random weights.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels are for CUDA
_printed, sys.stdout = sys.stdout, sys.stderr  # sparsify prints a line when it is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sparsify.config import SparseCoderConfig  # noqa: E402
from sparsify.sparse_coder import SparseCoder  # noqa: E402


class Training:
    """The part of sparsify's `Trainer` that follows the capture of activations, with Adam."""

    def __init__(self, request: dict[str, Any]):
        data = np.load(request["start"])
        self.rows = torch.from_numpy(data["rows"])
        config = SparseCoderConfig(num_latents=len(data["b_enc"]), k=request["k"])
        self.coder = SparseCoder(self.rows.shape[-1], config, device="cpu", dtype=torch.float32)
        coder = self.coder
        targets = [coder.encoder.weight, coder.W_dec, coder.encoder.bias, coder.b_dec]
        with torch.no_grad():
            for target, name in zip(targets, ("encoder", "decoder", "b_enc", "b_dec")):
                target.copy_(torch.from_numpy(data[name]))
        self.optimizer = torch.optim.Adam(coder.parameters())
        self.silent = torch.from_numpy(data["silent"])
        self.rates, self.aux_weight, self.dead_after = request["rates"], request["aux_weight"], request["dead_after"]

    def step(self, number: int) -> dict[str, float]:
        x = self.rows[number]

        def work() -> float:
            self.coder.set_decoder_norm_to_unit_norm()
            dead = self.silent >= self.dead_after
            output = self.coder(x, dead_mask=dead)
            (output.fvu + self.aux_weight * output.auxk_loss).backward()
            self.coder.remove_gradient_parallel_to_decoder_directions()
            self.optimizer.param_groups[0]["lr"] = self.rates[number]
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.silent += len(x)
            self.silent[output.latent_indices.flatten()] = 0
            return float(output.fvu.detach())

        return timed(work)

    def variance(self, path: str) -> dict[str, float]:
        with torch.no_grad():
            return {"unexplained": float(self.coder(torch.from_numpy(np.load(path))).fvu)}


def timed(work: Callable[[], float]) -> dict[str, float]:
    begun, processor = time.perf_counter(), time.process_time()
    value = work()
    return {
        "seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - processor, "unexplained": value
    }  # fmt: skip


def encoding(width: int, latents: int, rows: int, k: int) -> Callable[[], float]:
    """A function that encodes random rows with random weights."""
    config = SparseCoderConfig(num_latents=latents, k=k)
    coder = SparseCoder(width, config, device="cpu", dtype=torch.float32, decoder=False)
    x = torch.randn(rows, width)
    return lambda: float(coder.encode(x).top_acts[0, 0])


def main() -> None:
    training: Training | None = None
    encode: Callable[[], float] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "about" in request:
            answer: dict[str, Any] = {"sparsify": version("eai-sparsify"), "torch": torch.__version__,
                                      "threads": torch.get_num_threads()}  # fmt: skip
        elif "start" in request:
            training, encode = Training(request), None
            answer = {"latents": training.coder.num_latents}
        elif "step" in request:
            answer = training.step(request["step"])
        elif "variance_of" in request:
            answer = training.variance(request["variance_of"])
        else:
            if encode is None:
                training, encode = None, encoding(**request["encode"])
            with torch.no_grad():
                answer = timed(encode)
        print(json.dumps(answer), file=_printed, flush=True)


if __name__ == "__main__":
    main()
