"""Which token ids of a canvas become text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.config import ModelConfig

NO_MASK = -1  # the mask id of models that write token by token: no position is ever masked


@dataclass(frozen=True)
class TextIds:
    """mask: the id of a position that is still empty. dropped: ids that are no text. ends: ids that end the text, and
    are no part of it."""

    mask: int
    dropped: frozenset[int]
    ends: frozenset[int]

    @classmethod
    def of(cls, config: ModelConfig | DecoderConfig) -> TextIds:
        """Those of a model."""
        if not isinstance(config, ModelConfig):
            return cls(NO_MASK, frozenset(), frozenset(config.eos_token_ids))
        ends = frozenset() if config.eot_id is None else frozenset([config.eot_id])
        return cls(config.mask_token_id, frozenset([config.eos_token_id]), ends)


def text_ids(
    canvas: Sequence[int] | np.ndarray, config: ModelConfig | DecoderConfig, stop_tokens: Sequence[int] = ()
) -> list[int]:
    """Ids that become text: cut at the first id that ends it, without masks and ids that are no text."""
    ids, text = TextIds.of(config), []
    for i in map(int, canvas):
        if i == ids.mask or i in ids.dropped:
            continue
        if i in stop_tokens or i in ids.ends:
            break
        text.append(i)
    return text
