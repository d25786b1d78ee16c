"""Rewards: Python functions of a prompt and its completion, from a user's file or built in."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError, error_summary
from steerling_jax.evaluation.text_metrics import repeated

_GRAM = 4  # words that count as a repetition together
_ENOUGH = 16  # words of a text that is not too short


def no_repetition(prompt: str, completion: str) -> float:
    """1 minus the share of the completion's word 4-grams that occur more than once in it, 0 to 1.

    A text of fewer than 16 words is worth less in proportion: otherwise silence would be the best answer.
    """
    words = completion.split()
    return (1 - (repeated(words, _GRAM) or 0.0)) * min(1.0, len(words) / _ENOUGH)


_BUILT_IN = {"no_repetition": no_repetition}


@dataclass(frozen=True)
class Reward:
    """A loaded reward. name: what it was loaded as. version: the beginning of the SHA-256 of its file."""

    name: str
    function: Callable[[str, str], Any]
    version: str = ""

    def __call__(self, prompt: str, completion: str, number: int) -> float:
        """The reward of a completion of prompt `number`. Raises `UserError`, naming the prompt, where the function
        raises or returns no finite number."""
        try:
            # Standard output is the command's: what a reward prints must not get into its JSON.
            with contextlib.redirect_stdout(sys.stderr):
                value = self.function(prompt, completion)
        except Exception as error:
            raise UserError(
                f"The reward {self.name} raised {type(error).__name__} for prompt {number}: {error_summary(error)}; "
                "correct it and run the same command again."
            ) from error
        try:
            number_value = float(value)
        except (TypeError, ValueError):
            number_value = math.nan
        if not math.isfinite(number_value):
            raise UserError(
                f"The reward {self.name} returned {value!r:.60} for prompt {number}, but it must be a finite number; "
                "correct it and run the same command again."
            )
        return number_value


def load_reward(name: str) -> Reward:
    """The reward of a name: `FILE.py:function`, or one that is built in.

    The file is run once. Raises `UserError` where there is no such file or function, where the file raises, and where
    the function does not take a prompt and a completion.
    """
    if name in _BUILT_IN:
        return Reward(name, _BUILT_IN[name])
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser()
    if not file.endswith(".py") or not attribute:
        raise UserError(f"The reward is {name!r}; give FILE.py:function, or {' or '.join(map(repr, _BUILT_IN))}.")
    try:
        version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UserError(f"Cannot read the reward's file {path}: {error.strerror}; correct its path.") from error
    function = getattr(_run_file(path), attribute, None)
    if not callable(function):
        raise UserError(f"{path} has no function {attribute!r}; name the function that computes the reward.")
    try:
        inspect.signature(function).bind("prompt", "completion")
    except TypeError as error:
        raise UserError(f"The reward {name} must take a prompt and a completion: {error_summary(error)}.") from error
    except ValueError:  # some built-in functions have no signature; the first call shows whether they fit
        pass
    return Reward(name, function, version)


def _run_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"The reward's file {path} raised {type(error).__name__}: {error_summary(error)}; correct it."
        ) from error
    return module
