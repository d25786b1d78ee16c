"""Settings of the outputs part."""

from __future__ import annotations

from dataclasses import dataclass

from steerling_jax.errors import require


@dataclass(frozen=True)
class OutputSettings:
    """Which texts are generated and how they are selected.

    Attributes:
        seed: Of the prompts and the generation.
        prompts: Texts of each set, before the selection rules.
        prompt_tokens: Tokens of an opening.
        blocks: Diffusion blocks of a continuation.
        everyday: Off-topic openings are sentences about everyday matters; otherwise the corpus's tokens in random
            order.
        repeated_share: Share of repeated 3-grams from which a text counts as repetitive.
        senseless_quantile: A senseless text is less likely than this share of the good texts.
    """

    seed: int = 0
    prompts: int = 24
    prompt_tokens: int = 10
    blocks: int = 4
    everyday: bool = True
    repeated_share: float = 0.3
    senseless_quantile: float = 0.95

    def __post_init__(self) -> None:
        require(self.prompts >= 2, f"prompts is {self.prompts}, but it must be at least 2.")
