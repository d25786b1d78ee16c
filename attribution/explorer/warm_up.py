"""Compiles what explains a text while nobody waits for it: the programs' first use takes seconds.

The text is the gallery's first case, whose explanation the page shows at the start; a model that did not write it
compiles when the first text is explained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from steerling_jax.attribution.explorer import panels
from steerling_jax.attribution.explorer.explaining import Explaining
from steerling_jax.attribution.explorer.gallery import descriptions, read_case
from steerling_jax.attribution.explorer.jobs import JobKey, Rank
from steerling_jax.attribution.explorer.texts import Model
from steerling_jax.attribution.trace.parts import considered_part
from steerling_jax.decoding.trace_record import from_plain, restore
from steerling_jax.progress import Progress

log = logging.getLogger(__name__)


def compile_explanations(model: Model, explaining: Explaining) -> None:
    """Adds a job for each kind of explanation, behind all that anybody asks for."""
    case = read_case(descriptions()[0]["name"]) if descriptions() else None
    if case is None or case["document"]["trace"]["model"]["fingerprint"] != model.origin.fingerprint:
        return
    bundle, record = model.bundle, from_plain(case["document"]["trace"], "The case")
    last = record.trace.commits[-1]

    def trace_of(work: Callable[..., Any], *arguments: Any) -> Callable[[Progress], Any]:
        return lambda progress: work(bundle, restore(record, bundle), *arguments, progress)

    works: dict[str, Callable[[Progress], Any]] = {
        "concepts": lambda progress: panels.text_document(bundle, model.autoencoders, record, progress),
        "step": trace_of(considered_part, record.generation, last.step),
        "steps": trace_of(considered_part, record.generation, None),
        "inputs": trace_of(panels.token_inputs, list(last.positions)[:1]),
        "cost": lambda progress: panels.cost_panel(bundle, record, progress),
    }
    for name, work in works.items():
        explaining.run("warm-up", JobKey("", f"warm-up of {name}"), Rank.EXPORT, work, _report)


def _report(result: Any) -> None:
    if isinstance(result, Exception):
        log.error("Compiling an explanation failed.", exc_info=result)
