"""Compiles what explains a text while nobody waits for it: the programs' first use takes seconds.

With a full cache of compiled programs it is still half a second for each of them, in which JAX traces the program and
finds it in the cache. The text is a case of the gallery; a model that did not write it compiles when the first text is
explained. Texts of other lengths share its programs, see `models.batching`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from steerling_jax.attribution.explorer import panels
from steerling_jax.attribution.explorer.explaining import Explaining
from steerling_jax.attribution.explorer.gallery import read_case
from steerling_jax.attribution.explorer.jobs import JobKey, Rank
from steerling_jax.attribution.explorer.texts import Model
from steerling_jax.attribution.trace.parts import considered_part
from steerling_jax.decoding.trace_record import from_plain, restore
from steerling_jax.progress import Progress

log = logging.getLogger(__name__)
_CASE = "email"  # with a short prompt and as many tokens as the page asks for


def compile_explanations(model: Model, explaining: Explaining) -> None:
    """Adds a job for each kind of explanation, the likeliest first, to be done while nobody asks for anything."""
    case = read_case(_CASE)
    if case is None or case["document"]["trace"]["model"]["fingerprint"] != model.origin.fingerprint:
        return
    bundle, record = model.bundle, from_plain(case["document"]["trace"], "The case")
    positions = sorted(position for commit in record.trace.commits for position in commit.positions)

    def trace_of(work: Callable[..., Any], *arguments: Any) -> Callable[[Progress], Any]:
        return lambda progress: work(bundle, restore(record, bundle), *arguments, progress)

    works: dict[str, Callable[[Progress], Any]] = {
        "concepts": lambda progress: panels.text_document(bundle, model.autoencoders, record, progress),
        "step": trace_of(considered_part, record.generation, record.trace.commits[-1].step),
        # Canvases are cut behind the diffusion block of the token, so an early one and a late one have two programs.
        "early inputs": trace_of(panels.token_inputs, positions[:1]),
        "late inputs": trace_of(panels.token_inputs, positions[-1:]),
        "steps": trace_of(considered_part, record.generation, None),
        "cost": lambda progress: panels.cost_panel(bundle, record, progress),
    }
    for name, work in works.items():
        explaining.run("warm-up", JobKey("", f"warm-up of {name}"), Rank.WARM_UP, work, _report)


def _report(result: Any) -> None:
    if isinstance(result, Exception):
        log.error("Compiling an explanation failed.", exc_info=result)
