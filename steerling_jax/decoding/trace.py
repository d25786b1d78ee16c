"""The record of one generation: what was committed, when, in which state. Attribution and pictures all read this."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from steerling_jax.decoding.request_edits import check_edits
from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.decoding.text_ids import TextIds
from steerling_jax.errors import require
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps
from steerling_jax.steering.plan import SteeringPlan
from steerling_jax.tokenizer import Tokenizer


class Commit(NamedTuple):
    """The tokens committed in one step, most confident first. target_logits are raw: before suppression, penalty and
    bans."""

    step: int
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    target_logits: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class Trace(Tabular):
    """One row's generation.

    prompt: ids (P,) int32. tokens: the final canvas, prompt first, (P + canvas length,) int32.
    hidden: hidden rows (n, D) float32 of the committed positions, in the order of `flat()`, from the very pass that
    committed them; None when they were not recorded. mask_id: the id of a still-empty position. plan: how it was
    steered. guidance: its cfg_scale. passes: how often the layers ran to write it, the prompt's own not counted. edits:
    changes to the outputs of layers in every pass. edit_labels: of those that are steering by features.
    pieces: the text of each canvas position's token, as committed; None where no tokenizer was at hand. Prints as a
    table of the commits; `to_dataframe` gives all of them.
    """

    prompt: np.ndarray
    tokens: np.ndarray
    commits: tuple[Commit, ...]
    mask_id: int
    hidden: np.ndarray | None = None
    plan: SteeringPlan | None = None
    guidance: float = 0.0
    passes: int = 0
    pieces: tuple[str, ...] | None = None
    edits: tuple[LayerEdit, ...] = ()
    edit_labels: tuple[str, ...] = ()

    @property
    def steering(self) -> tuple[str, ...]:
        """Labels of the steerings that were active."""
        return (*(self.plan.labels if self.plan else ()), *self.edit_labels)

    @property
    def clamps(self) -> RowClamps | None:
        """The clamps that were active, as the heads take them."""
        return self.plan.clamps.rows() if self.plan is not None and self.plan.clamps is not None else None

    @property
    def prompt_length(self) -> int:
        return len(self.prompt)

    def check(self, config: ModelConfig | DecoderConfig) -> None:
        """Raises `UserError` if this model cannot have written the trace, or if the trace contradicts itself."""
        other = "is of another model: "
        P, T, flat = self.prompt_length, len(self.tokens), list(self.flat())
        ids = np.concatenate([self.prompt, self.tokens, np.asarray([token for _, _, token, _ in flat], np.int32)])
        mask, width, vocabulary = TextIds.of(config).mask, config.width, config.vocab_size
        require(self.mask_id == mask, f"The trace {other}its mask id is {self.mask_id}, and the model's is {mask}.")
        require(
            not len(ids) or 0 <= ids.min() <= ids.max() < vocabulary,
            f"The trace {other}it holds ids that are not in the vocabulary of {vocabulary}.",
        )
        context = config.context_length
        require(context >= T, f"The trace {other}its canvas of {T} is longer than {context}.")
        check_edits(self.edits, config)
        widths = {} if self.plan is None else {"steering": self.plan.width}
        if self.hidden is not None:
            widths["hidden rows"] = np.shape(self.hidden)[-1]
        for name, found in widths.items():
            require(found == width, f"The trace {other}its {name} have the width {found}, and the model has {width}.")
        require(
            self.hidden is None or len(self.hidden) == len(flat),
            "The trace has not one hidden row for each commit; write it again.",
        )
        where = [position for _, position, *_ in flat]
        require(
            len(set(where)) == len(where) and all(P <= position < T for position in where),
            f"The trace's commits are not single positions from {P} to {T - 1}; write it again.",
        )

    @property
    def committed(self) -> np.ndarray:
        """The canvas (T,) with every token as it was committed, also where an end of turn overwrote it in `tokens`."""
        canvas = self.tokens.copy()
        for _, position, token, _ in self.flat():
            canvas[position] = token
        return canvas

    def with_pieces(self, tokenizer: Tokenizer) -> Trace:
        """The same trace with the texts of its tokens."""
        if self.pieces is not None:
            return self
        return dataclasses.replace(self, pieces=tuple(map(tokenizer.piece, self.committed.tolist())))

    def table(self) -> Table:
        """A row for each committed token, in the order of commitment."""
        rows = list(self.flat())
        positions = [position for _, position, *_ in rows]
        steered = f"; steering: {', '.join(self.steering)}" if self.steering else ""
        committed = f"{counted(len(positions), 'token')} committed in {counted(len(self.commits), 'step')}"
        title = f"Trace: {committed} after a prompt of {self.prompt_length}{steered}"
        columns: dict[str, list] = {
            "step": [step for step, *_ in rows],
            "position": positions,
            "token_id": [token for _, _, token, _ in rows],
        }
        if self.pieces is not None:
            columns["token"] = [self.pieces[position] for position in positions]
        return Table(title, columns | {"logit": [logit for *_, logit in rows]})

    def flat(self) -> Iterator[tuple[int, int, int, float]]:
        """(step, position, token id, target logit) of every committed token, in order."""
        for commit in self.commits:
            for position, token, logit in zip(commit.positions, commit.token_ids, commit.target_logits, strict=True):
                yield commit.step, position, token, logit

    def snapshot(self, step: int) -> np.ndarray:
        """The canvas (P + canvas length,) before the commits of `step`."""
        canvas = np.full(len(self.tokens), self.mask_id, np.int32)
        canvas[: self.prompt_length] = self.prompt
        for earlier, position, token, _ in self.flat():
            if earlier < step:
                canvas[position] = token
        return canvas

    def injected(self, step: int, n_layers: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The injections after each layer in the pass of `step`, at masked positions and at the prompt's: two (L,
        D)."""
        if self.plan is None:
            nothing = np.zeros((n_layers, width), np.float32)
            return nothing, nothing
        written = sum(len(commit.positions) for commit in self.commits if commit.step < step)
        return self.plan.tables(written, n_layers)
