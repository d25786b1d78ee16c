"""Settings of the inputs part."""

from __future__ import annotations

from dataclasses import dataclass

from steerling_jax.errors import require


@dataclass(frozen=True)
class InputSettings:
    """What is explained, and how.

    Attributes:
        seed: Of the prompts, the generation and the perturbations.
        prompts: Held-out documents whose openings are continued.
        prompt_tokens: Tokens of an opening.
        blocks: Diffusion blocks of a continuation.
        targets: Tokens explained per prompt.
        features: Groups into which the visible tokens are divided. A target takes 2^features forward passes.
        randomised: Prompts that are also explained with randomised weights.
    """

    seed: int = 0
    prompts: int = 24
    prompt_tokens: int = 16
    blocks: int = 2
    targets: int = 3
    features: int = 8
    randomised: int = 8

    def __post_init__(self) -> None:
        require(self.prompts >= 2, f"prompts is {self.prompts}, but it must be at least 2.")
        require(self.targets >= 1, f"targets is {self.targets}, but it must be at least 1.")
        require(2 <= self.features <= 12, f"features is {self.features}, but it must be from 2 to 12.")
