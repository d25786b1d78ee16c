"""An autoregressive request in progress on the host: its tokens, commits and trace."""

from __future__ import annotations

import numpy as np

from steerling_jax.decoding.request import BlockDone, Committed, Event, Request
from steerling_jax.decoding.request_edits import check_edits
from steerling_jax.decoding.text_ids import NO_MASK
from steerling_jax.decoding.token_loop import TokenRecord
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import require
from steerling_jax.models.decoder.config import DecoderConfig


class TokenState:
    """A request in progress: what the host knows of it between calls of the loop."""

    def __init__(self, ticket: int, request: Request, config: DecoderConfig):
        self.ticket, self.request = ticket, request
        self.generation = request.generation.plain(config.context_length, len(request.prompt))
        ends = (*config.eos_token_ids, *(self.generation.stop_tokens or ()))
        self.policies = request.policies.completed_for_tokens(self.generation, ends)
        self.tokens = [int(i) for i in request.prompt]
        self.commits: list[Commit] = []
        self.hidden: list[np.ndarray] = []
        self.reported = 0  # commits that events have reported

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def total(self) -> int:
        """Positions of prompt and text at most."""
        return self.prompt_length + self.generation.max_new_tokens

    def add(self, record: TokenRecord, count: int) -> None:
        """Adds `count` tokens of a record, of this row and on the host."""
        for token, logit in zip(record.token[:count].tolist(), record.logit[:count].tolist(), strict=True):
            self.commits.append(Commit(len(self.commits), (len(self.tokens),), (token,), (logit,)))
            self.tokens.append(token)
        if record.hidden is not None:
            self.hidden.append(np.asarray(record.hidden[:count], np.float32))

    def events(self, ended: bool, partial: bool) -> list[Event]:
        """What happened since the last call. partial: also report tokens of a text that goes on."""
        canvas, fresh = np.asarray(self.tokens, np.int32), tuple(self.commits[self.reported :])
        events: list[Event] = []
        if partial and fresh:
            self.reported = len(self.commits)
            events.append(Committed(fresh, canvas))
        if ended:
            events += [BlockDone(1, 1, tuple(self.commits), canvas), self._trace(canvas)]
        return events

    def _trace(self, tokens: np.ndarray) -> Trace:
        return Trace(
            np.asarray(self.request.prompt, np.int32),
            tokens,
            tuple(self.commits),
            NO_MASK,
            np.concatenate(self.hidden) if self.request.record_hidden else None,
            passes=len(self.commits),
            edits=self.request.edits,
            edit_labels=self.request.edit_labels,
        )


def check_token_request(request: Request, config: DecoderConfig) -> None:
    """Raises `UserError` if an autoregressive model cannot write the request."""
    for given, what in (
        (request.steering is not None, "steering with concepts needs a model with concepts; give edits="),
        (request.drafts != 1, "drafts are for diffusion models; leave them out"),
        (request.policies.order is not None, "an order of positions is for diffusion models; leave it out"),
        (request.policies.schedule is not None, "a schedule of positions is for diffusion models; leave it out"),
    ):
        require(not given, f"This model writes token by token: {what}.")
    check_edits(request.edits, config)
    generation = request.generation.plain(config.context_length, len(request.prompt))
    generation.check(config, [int(i) for i in request.prompt])
