"""Settings of the concepts part."""

from __future__ import annotations

from dataclasses import dataclass

from steerling_jax.errors import require


@dataclass(frozen=True)
class ConceptSettings:
    """What is measured, and on how much text.

    Attributes:
        seed: Of the prompts, the generation, the masks and the control figures.
        prompts: Held-out documents whose openings are continued; effects are observed in the continuations.
        prompt_tokens: Tokens of an opening.
        blocks: Diffusion blocks of a continuation.
        level: Share of masked tokens for detection.
        seq_len: Tokens per held-out sequence.
        most_tokens: Upper bound of the held-out tokens; None for all.
    """

    seed: int = 0
    prompts: int = 16
    prompt_tokens: int = 16
    blocks: int = 4
    level: float = 0.5
    seq_len: int = 256
    most_tokens: int | None = None

    def __post_init__(self) -> None:
        require(
            0 < self.level <= 1,
            f"level is {self.level:g}, but the share of masked tokens must be above 0 and at most 1.",
        )
