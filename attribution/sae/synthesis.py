"""The loop that asks a generator for texts in which missing features fire, and its controls at the same budget.

Three arms ask the same generator: `targets`, whose prompts describe a missing feature; `other features`, whose prompts
describe random other features; `no feature`, whose prompt describes none. All texts are read by the autoencoder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from steerling_jax.attribution.program import OutputTooLongError, ProgramError, run_program
from steerling_jax.attribution.sae.arms import OTHERS, PLAIN, TARGETS, covered_by, examples
from steerling_jax.attribution.sae.call_log import Call, CallLog
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.explain.features.example_requests import (
    PLAIN_PROMPT,
    FeatureDescription,
    judge,
    next_target,
    normalised,
)
from steerling_jax.explain.text_features import read_text_features
from steerling_jax.progress import Progress


@dataclass(frozen=True)
class GeneratorSettings:
    """command: the words of the generator's command line, in which {call} is replaced by the number of the call.
    seconds, max_bytes: limits of a call. tries: attempts of a call that fails, and unusable outputs in a row, after
    which the run stops. shown: passages of a prompt."""

    command: str
    words: Sequence[str]
    seconds: float
    max_bytes: int
    tries: int
    shown: int


class UnusableOutputError(Exception):
    """An output that is not a text; the message says why."""


def usable_text(output: bytes, prompt: str) -> str:
    """The text that a generator wrote, without the prompt where it repeats that first. Raises `UnusableOutputError`."""
    try:
        text = output.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnusableOutputError(f"not UTF-8 at byte {error.start}") from None
    text = text.replace("\r\n", "\n").strip().removeprefix(prompt.strip()).strip()
    if not text:
        raise UnusableOutputError("empty")
    if any(not character.isprintable() and character not in "\n\t" for character in text if character < " "):
        raise UnusableOutputError("a control character in it")
    return text


class Synthesis:
    """Asks a generator for texts and stores each call in `log`.

    missing: how many texts each missing target needs. known: texts that an example must not repeat, as
    `normalised`. note: prints one line.
    """

    def __init__(
        self,
        bundle: Bundle,
        autoencoder: Autoencoder,
        generator: GeneratorSettings,
        log: CallLog,
        missing: Mapping[int, int],
        known: set[str],
        note: Callable[[str], None],
    ):
        self._bundle, self._autoencoder, self._generator, self._log = bundle, autoencoder, generator, log
        self._missing, self._known, self._note = missing, known, note
        self._unusable = 0  # outputs in a row

    def ask_for_targets(self, descriptions: Mapping[int, FeatureDescription], budget: int, progress: Progress) -> None:
        """Asks for missing targets until each is covered, or `budget` calls are done."""
        calls = self._log.of_arm(TARGETS)
        while len(calls) < budget:
            progress("asking for targets", len(calls), budget)
            requests = Counter(call.feature for call in calls if call.feature is not None)
            feature = next_target(self._missing, covered_by(calls), requests)
            if feature is None:
                break
            said, shown = descriptions[feature], self._generator.shown
            attempt = requests[feature]
            self._call(TARGETS, feature, said.prompt(attempt, shown), said.shown(attempt, shown))
            calls = self._log.of_arm(TARGETS)
            self._log.write_examples(examples(calls, descriptions))
        progress("asking for targets", budget, budget)

    def ask_for_others(self, descriptions: Mapping[int, FeatureDescription], calls: int, progress: Progress) -> None:
        """Asks for each of these features in turn, until `calls` calls are done; for no features, nothing."""
        features = list(descriptions)
        if not features:
            return
        for number in range(len(self._log.of_arm(OTHERS)), calls):
            progress("asking for other features", number, calls)
            feature, attempt = features[number % len(features)], number // len(features)
            said, shown = descriptions[feature], self._generator.shown
            self._call(OTHERS, feature, said.prompt(attempt, shown), said.shown(attempt, shown))
        progress("asking for other features", calls, calls)

    def ask_for_none(self, calls: int, progress: Progress) -> None:
        """Asks for any text, until `calls` calls are done."""
        for number in range(len(self._log.of_arm(PLAIN)), calls):
            progress("asking without a feature", number, calls)
            self._call(PLAIN, None, PLAIN_PROMPT, ())
        progress("asking without a feature", calls, calls)

    def _call(self, arm: str, feature: int | None, prompt: str, shown: Sequence[str]) -> None:
        """Makes the next call of an arm and stores it."""
        earlier = self._log.of_arm(arm)
        number = len(earlier)
        text, fires, problem = "", {}, ""
        try:
            text = usable_text(self._output(prompt, number), prompt)
            fires = self._read(text)
            known = self._known | {normalised(call.text) for call in earlier if call.text}
            # A control's text counts where it covers any missing target: it was not asked for one.
            outcome = judge(text, feature in fires if arm == TARGETS else bool(fires), shown, known)
        except (UnusableOutputError, OutputTooLongError) as error:
            outcome = "unusable"
            problem = str(error).rstrip(".")
        self._log.append(Call(arm, number, feature, outcome, text, fires, problem, self._generator.command))
        self._unusable = self._unusable + 1 if problem else 0
        if problem:
            self._note(f"{arm}, call {number + 1}: the output is unusable ({problem}).")
        if self._unusable >= self._generator.tries:
            raise UserError(
                f"--generator {self._generator.command!r}: the last {self._unusable} outputs are unusable ({problem}); "
                f"correct it and run the same command again, which continues with call {number + 2} of the arm {arm!r}."
            )

    def _output(self, prompt: str, number: int) -> bytes:
        """What the generator writes. Raises `UserError` where it failed in every try; nothing is stored then."""
        own = self._generator
        words = [word.replace("{call}", str(number)) for word in own.words]
        for remaining in range(own.tries - 1, -1, -1):
            try:
                return run_program(words, prompt, seconds=own.seconds, max_bytes=own.max_bytes)
            except OutputTooLongError:
                raise
            except ProgramError as error:
                if not remaining:
                    raise UserError(
                        f"--generator {own.command!r}, call {number + 1}: {str(error).rstrip('.')}; "
                        "all finished calls are stored, and the same command continues."
                    ) from None
        raise AssertionError("tries is at least 1")

    def _read(self, text: str) -> dict[int, float]:
        """The missing targets that fire in a text, with their largest latents."""
        try:
            (read,) = read_text_features(self._bundle, [self._autoencoder], [text])
        except UserError as error:  # a tokenizer without a form of the text
            raise UnusableOutputError(str(error).rstrip(".")) from None
        strongest = read.strongest[[0]].toarray()[0]
        return {feature: float(strongest[feature]) for feature in self._missing if strongest[feature] > 0}
