"""Metrics in Prometheus' text format."""

from __future__ import annotations

from steerling_jax.decoding.decoder import compiled_programs
from steerling_jax.infer.server.engine import Engine
from steerling_jax.infer.server.request_counts import RequestCounts


def metrics_text(requests: RequestCounts, engine: Engine) -> str:
    """The response of `/metrics`."""
    outcomes: dict[str, float] = {f'{{outcome="{name}"}}': count for name, count in requests.counts.items()}
    duration: dict[str, float] = {"_sum": requests.seconds, "_count": requests.counts["ok"]}
    rows: list[tuple[str, str, str, dict[str, float]]] = [
        ("requests_total", "counter", "Requests by outcome.", outcomes),
        ("request_seconds", "summary", "Duration of the requests answered in full, from admission.", duration),
        ("ready", "gauge", "Whether the warm-up has finished.", {"": int(engine.ready)}),
        ("compiled_programs", "gauge", "Decoding programs compiled.", {"": sum(compiled_programs().values())}),
        ("queue_length", "gauge", "Requests waiting for a row.", {"": engine.waiting}),
        ("running_rows", "gauge", "Rows of the batch in use.", {"": engine.running}),
        ("generated_tokens_total", "counter", "Tokens committed.", {"": engine.tokens}),
    ]
    lines = []
    for name, kind, description, values in rows:
        lines += [f"# HELP steerling_{name} {description}", f"# TYPE steerling_{name} {kind}"]
        lines += [f"steerling_{name}{suffix} {value:.10g}" for suffix, value in values.items()]
    return "\n".join([*lines, ""])
