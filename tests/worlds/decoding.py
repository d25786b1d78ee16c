"""One text through the decoder, for tests that look at its events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from steerling_jax.decoding.decoder import Decoder
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.request import Event, Request
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import ResolvedSteering, prepare_steering


def decode(
    params: Params,
    prompt: np.ndarray,
    *,
    config: ModelConfig,
    compute: Compute,
    generation: GenerationConfig,
    seed: int,
    steering: ResolvedSteering | None = None,
    policies: Policies | None = None,
    steps: int | None = None,
    **request: Any,
) -> Iterator[Event]:
    """Continues `prompt` (P,): the decoder's events, at last the `Trace`. request: further fields of a `Request`."""
    plan = prepare_steering(params, steering, config=config, compute=compute)
    decoder = Decoder(params, config=config, compute=compute, rows=1)
    request = {"record_hidden": True, **request}
    decoder.submit(Request(prompt, generation, seed, plan, policies or Policies(), **request))
    while decoder.busy:
        for _, event in decoder.advance(steps):
            yield event
