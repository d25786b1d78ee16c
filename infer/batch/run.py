"""A batch: a file of requests to a file of results, resumed where it was interrupted.

A request is `{"id", "prompt" or "prompt_ids", …}` with any of `generation_request.FIELDS`. Results are written in the
order in which texts finish; those that asked for it contain the trace, as docs/design/trace-format.md describes it. A
request that is invalid gets an error in place of a text and does not stop the others; the next run tries it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation, Prompt, stream_many
from steerling_jax.decoding.trace_record import Origin, record_of, to_plain
from steerling_jax.errors import UserError
from steerling_jax.infer.batch.request_file import Id, parse_line, read_lines, request_id, request_prompt
from steerling_jax.infer.batch.result_file import Append, open_results
from steerling_jax.infer.generation_request import FIELDS, GenerationRequest, parse_generation_request
from steerling_jax.io.trace_file import model_origin
from steerling_jax.steering.plan import Resolved

_PREFIX_CACHE_BYTES = 256 << 20


@dataclass
class BatchRun:
    """The files and settings of a batch, and the counts of this run.

    defaults: values of fields that a line does not set. steering: applied to all requests. skipped: requests that had a
    result already; written: results; failed: requests that got an error. report_error: called with each error.
    """

    bundle: Bundle
    source: Path
    target: Path
    defaults: Mapping[str, Any]
    steering: Sequence[Resolved] = ()
    rows: int = 8
    skipped: int = 0
    written: int = 0
    failed: int = 0
    report_error: Callable[[str], None] = lambda message: None

    @cached_property
    def origin(self) -> Origin:
        """The model's description in traces; it takes a pass over the weights, so it is made on first use."""
        return model_origin(self.bundle)

    @property
    def finished(self) -> int:
        """The number of requests that are done, in this run or before."""
        return self.skipped + self.written + self.failed

    def run(self) -> Iterator[int]:
        """Yields `finished` after every result. Raises `UserError` where a file cannot be used."""
        with open_results(self.target) as (finished_ids, append):
            pending: dict[int, tuple[Id, GenerationRequest]] = {}
            # `stream_many` takes prompts from the iterator as rows become free and numbers them in that order:
            # requests are read while others are being decoded, and the file is never in memory as a whole.
            prompts = self._prompts(finished_ids, append, pending)
            results = stream_many(self.bundle, prompts, rows=self.rows, prefix_cache_bytes=_PREFIX_CACHE_BYTES)
            for number, generation in results:
                id, request = pending.pop(number)
                append(self._result(id, request, generation))
                self.written += 1
                yield self.finished

    def _prompts(
        self, finished_ids: set[Id], append: Append, pending: dict[int, tuple[Id, GenerationRequest]]
    ) -> Iterator[Prompt]:
        """Prompts of the requests without a result, entered in `pending`; invalid ones get an error in the results."""
        lines: dict[str, int] = {}
        finished = {str(id) for id in finished_ids}
        number = 0
        for line, text in read_lines(self.source):
            id = None
            try:
                fields = parse_line(text)
                id = request_id(fields, line, lines)
                if str(id) in finished:
                    self.skipped += 1
                    continue
                request = self._parse(fields)
            except UserError as error:
                message = f"{self.source.name}, line {line}: {error}"
                append({"id": id, "line": line, "error": {"message": message}})
                self.failed += 1
                self.report_error(message)
                continue
            pending[number] = id, request
            number += 1
            yield request.prompt

    def _parse(self, fields: dict[str, Any]) -> GenerationRequest:
        name, prompt = request_prompt(fields)
        values = {field: fields[field] for field in FIELDS if fields.get(field) is not None}
        return parse_generation_request(
            {**self.defaults, **values}, prompt, self.bundle, prompt_field=name, steering=self.steering
        )

    def _result(self, id: Id, request: GenerationRequest, generation: Generation) -> dict[str, Any]:
        """One line: the same text and counts as the server's answer to the request."""
        trace = generation.trace
        writer = request.text_writer(self.bundle)
        writer.commit(trace.commits)
        writer.end()
        result = {
            "id": id,
            "text": writer.take(),
            "finish_reason": writer.finish,
            "prompt_tokens": trace.prompt_length,
            "generated_tokens": writer.tokens,
            "seed": generation.seed,
        }
        if request.trace:
            result["trace"] = to_plain(record_of(self.bundle, self.origin, request.prompt, generation))
        return result
