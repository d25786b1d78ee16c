"""The prompts of rollouts: windows of texts, or the lines of a file; some are held out for the evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError, require
from steerling_jax.train.data.epoch_order import epoch_order
from steerling_jax.train.rollouts.run_config import RolloutRun

_ORDER = 0  # a random stream of the run; `sampling.py` has others


class Prompt(NamedTuple):
    """number: from 1, of the line or window. ids (P,) int32. text: as the reward gets it."""

    number: int
    ids: np.ndarray
    text: str


class Prompts:
    """The prompts of a run, and those of its evaluation.

    tokens: (training, held-out), each (n,) int32, of the run's texts. Raises `UserError` for a file that cannot be
    read, has too few prompts, or one that does not fit in the model's context with a completion.
    """

    def __init__(self, run: RolloutRun, bundle: Bundle, tokens: tuple[np.ndarray, np.ndarray]):
        self._run = run
        self.training: Sequence[Prompt]
        if run.prompts is None:
            windows, held_out = (_Windows(part, run.prompt_tokens, bundle) for part in tokens)
            places = np.linspace(0, len(held_out) - 1, min(run.eval_prompts, len(held_out))).astype(int)
            self.training, self.held_out = windows, [held_out[int(place)] for place in places]
            self.longest = run.prompt_tokens
        else:
            every = _read_prompts(Path(run.prompts), bundle)
            require(
                len(every) > run.eval_prompts,
                f"{run.prompts} has {len(every)} prompts, but the last {run.eval_prompts} are for the evaluation; add "
                "prompts, or lower eval_prompts.",
            )
            self.training, self.held_out = every[: -run.eval_prompts], every[-run.eval_prompts :]
            self.longest = max(len(prompt.ids) for prompt in every)
        room = GenerationConfig(max_new_tokens=run.max_new_tokens).canvas_length(bundle.config)
        require(
            self.longest + room <= bundle.config.context_length,
            f"The longest prompt has {self.longest} tokens and a completion {room}, but the model's context is "
            f"{bundle.config.context_length}; shorten the prompts, or lower max_new_tokens.",
        )
        self.length = self.longest + room  # positions of the longest rollout

    def of_step(self, step: int) -> list[Prompt]:
        """The prompts of a step, counted from 0: a function of the run's seed and the step's number."""
        count = self._run.prompts_per_step
        order = epoch_order([self._run.seed, _ORDER], step * count, count, len(self.training))
        return [self.training[int(place)] for place in order]


class _Windows(Sequence[Prompt]):
    """Windows of `size` of the tokens (n,), decoded when they are needed."""

    def __init__(self, tokens: np.ndarray, size: int, bundle: Bundle):
        self._rows = np.asarray(tokens[: len(tokens) // size * size], np.int32).reshape(-1, size)
        self._bundle = bundle
        require(
            len(self._rows) > 0,
            f"A part of the texts has {len(tokens)} tokens, but a prompt has {size}; add texts, raise held_out, or "
            "lower prompt_tokens.",
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        ids = self._rows[place]
        return Prompt(int(place) + 1, ids, self._bundle.tokenizer.decode(ids.tolist()))


def _read_prompts(path: Path, bundle: Bundle) -> list[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the prompts {path}: {error}; give a text file in UTF-8.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text = _prompt_of(line, path, number) if path.suffix in (".jsonl", ".ndjson") else line
        prompts.append(Prompt(number, encode(bundle, text, f"prompt {number} of {path}"), text))
    return prompts


def _prompt_of(line: str, path: Path, number: int) -> str:
    try:
        value = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, str):
        raise UserError(f"Line {number} of {path} is not a JSON object with a text in the field 'prompt'; correct it.")
    return value
