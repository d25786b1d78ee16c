"""Metrics in Prometheus' text format."""

from __future__ import annotations

from steerling_jax.decoding.decoder import compiled_programs
from steerling_jax.infer.server.engine import Engine

_OUTCOMES = {
    "ok": "answered in full",
    "bad": "a 4xx answer",
    "refused": "a foreign Host or Origin",
    "busy": "the queue was full",
    "stopping": "the server was stopping",
    "left": "the client left before the end",
    "failed": "an error of the server",
}


class Metrics:
    """Counters since the start. Their number is fixed, so that memory does not grow with the requests."""

    def __init__(self) -> None:
        self.requests = dict.fromkeys(_OUTCOMES, 0)
        self.seconds = 0.0

    def count(self, outcome: str) -> None:
        """Counts a request by its outcome."""
        self.requests[outcome] += 1

    def finished(self, seconds: float) -> None:
        """Counts a request that was answered in full, `seconds` after it was admitted."""
        self.count("ok")
        self.seconds += seconds

    @property
    def mean_seconds(self) -> float:
        """The mean duration of the requests answered in full; 0 before the first one."""
        return self.seconds / max(self.requests["ok"], 1)

    def text(self, engine: Engine) -> str:
        """The response of `/metrics`."""
        outcomes: dict[str, float] = {f'{{outcome="{name}"}}': count for name, count in self.requests.items()}
        duration: dict[str, float] = {"_sum": self.seconds, "_count": self.requests["ok"]}
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
