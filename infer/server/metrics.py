"""Counters for Prometheus, in its text format."""

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
    """What happened since the start: a fixed number of counters."""

    def __init__(self) -> None:
        self.requests = dict.fromkeys(_OUTCOMES, 0)
        self.seconds = 0.0

    def count(self, outcome: str) -> None:
        self.requests[outcome] += 1

    def finished(self, seconds: float) -> None:
        """A request was answered in full, `seconds` after it was admitted."""
        self.count("ok")
        self.seconds += seconds

    @property
    def mean_seconds(self) -> float:
        return self.seconds / max(self.requests["ok"], 1)

    def text(self, engine: Engine) -> str:
        rows: list[tuple[str, str, str, dict[str, float]]] = [
            ("requests_total", "counter", "Requests by outcome.",
             {f'{{outcome="{name}"}}': count for name, count in self.requests.items()}),
            ("request_seconds", "summary", "From admission to the end of the answer, of requests answered in full.",
             {"_sum": self.seconds, "_count": self.requests["ok"]}),
            ("ready", "gauge", "Whether all is compiled that is compiled ahead.", {"": int(engine.ready)}),
            ("compiled_programs", "gauge", "Decoding programs compiled.", {"": sum(compiled_programs().values())}),
            ("queue_length", "gauge", "Requests that wait for a row.", {"": engine.waiting}),
            ("running_rows", "gauge", "Rows of the batch in use.", {"": engine.running}),
            ("generated_tokens_total", "counter", "Tokens committed.", {"": engine.tokens}),
        ]  # fmt: skip
        lines = []
        for name, kind, explained, values in rows:
            lines += [f"# HELP steerling_{name} {explained}", f"# TYPE steerling_{name} {kind}"]
            lines += [f"steerling_{name}{suffix} {value:.10g}" for suffix, value in values.items()]
        return "\n".join([*lines, ""])
