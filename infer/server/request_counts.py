"""Counts of a server's requests, for its metrics."""

from __future__ import annotations

OUTCOMES = {
    "ok": "answered in full",
    "bad": "a 4xx answer",
    "refused": "a foreign Host or Origin",
    "busy": "the queue was full",
    "stopping": "the server was stopping",
    "left": "the client left before the end",
    "failed": "an error of the server",
}


class RequestCounts:
    """Counters since the start. Their number is fixed, so that memory does not grow with the requests."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.seconds = 0.0

    def count(self, outcome: str) -> None:
        """Counts a request by its outcome."""
        self.counts[outcome] += 1

    def finished(self, seconds: float) -> None:
        """Counts a request that was answered in full, `seconds` after it was admitted."""
        self.count("ok")
        self.seconds += seconds

    @property
    def mean_seconds(self) -> float:
        """The mean duration of the requests answered in full; 0 before the first one."""
        return self.seconds / max(self.counts["ok"], 1)
