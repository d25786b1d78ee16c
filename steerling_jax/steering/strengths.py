"""Default strengths of `amplify` and `suppress`: what a rule without a number means for a model.

A strength that makes one model write about a concept makes another repeat one word, so the defaults belong to the
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Head

# Of the presets of the published package, for models of 8 billion parameters: in logit units for `amplify`, the length
# of the subtracted vector for `suppress`.
PRESET_STRENGTHS: Mapping[str, float] = MappingProxyType({"amplify": 8.0, "suppress": 7.0})


def default_strength(bundle: Bundle, action: str, concept_ids: Sequence[int], head: Head = "known") -> float:
    """The strength of a rule that has none: that of its one concept in the catalogue, else the model's own, else the
    published preset's.

    action: "amplify" or "suppress". concept_ids: of the rule, concepts of `head`.
    """
    measured = measured_strength(bundle, action, concept_ids, head)
    return PRESET_STRENGTHS[action] if measured is None else measured


def measured_strength(bundle: Bundle, action: str, concept_ids: Sequence[int], head: Head = "known") -> float | None:
    """`default_strength`, or None where it would be the published preset's, which destroys the texts of small models.

    A strength of the catalogue (`steerling calibrate`) was measured for one concept alone; for several together, the
    model's own (`Bundle.strengths`) applies.
    """
    own = getattr(bundle.concepts.get(concept_ids[0], head), action) if len(concept_ids) == 1 else None
    return bundle.strengths.get(action) if own is None else own
