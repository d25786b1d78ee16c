"""Default strengths of `amplify` and `suppress`: what a rule without a number means for a model.

A strength that makes one model write about a concept makes another repeat one word, so the defaults belong to the
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from steerling_jax.bundle import Bundle

# Of the presets of the published package, for models of 8 billion parameters: in logit units for `amplify`, the length
# of the subtracted vector for `suppress`.
PRESET_STRENGTHS: Mapping[str, float] = MappingProxyType({"amplify": 8.0, "suppress": 7.0})


def default_strength(bundle: Bundle, action: str, concept_ids: Sequence[int]) -> float:
    """The strength of a rule that has none: the model's own (`Bundle.strengths`), else the published preset's.

    action: "amplify" or "suppress". concept_ids: of the rule.
    """
    # A strength that was calibrated for these very concepts belongs in front of the model's, here: `concept_ids` are
    # the concepts to look up in `bundle.concepts`.
    del concept_ids
    return bundle.strengths.get(action, PRESET_STRENGTHS[action])
