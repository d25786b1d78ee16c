"""What a data set covers of some target features, as figures and for JSON.

Legend: J targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerling_jax.attribution.sae.targets import Target
from steerling_jax.evaluation.target_coverage import TargetCoverage
from steerling_jax.explain.features.example_requests import FeatureDescription


@dataclass(frozen=True)
class Cover:
    """targets, and what is said of each, (J); coverage: by the data set; least: texts of which a target needs to fire
    in to be covered."""

    targets: Sequence[Target]
    descriptions: Sequence[FeatureDescription]
    coverage: TargetCoverage
    least: int

    @property
    def missing(self) -> dict[int, int]:
        """How many texts each target that is not covered needs, in the order of the targets."""
        return {
            target.feature: int(number)
            for target, number in zip(self.targets, self.coverage.missing, strict=True)
            if number
        }

    def description(self, feature: int) -> FeatureDescription:
        """What is said of a target."""
        return next(d for t, d in zip(self.targets, self.descriptions, strict=True) if t.feature == feature)


def as_json(cover: Cover) -> dict[str, Any]:
    """The figures for JSON."""
    coverage = cover.coverage
    return {
        "texts": coverage.samples,
        "least": cover.least,
        "covered": int(coverage.covered.sum()),
        "missed": int((~coverage.covered).sum()),
        "targets": [
            {
                "feature": target.feature,
                "name": said.name or None,
                "promoted": said.promoted,
                "score": target.score,
                "texts": texts,
                "share": texts / coverage.samples,
                "largest": largest,
                "covered": covered,
            }
            for target, said, texts, largest, covered in zip(
                cover.targets,
                cover.descriptions,
                coverage.texts.tolist(),
                coverage.largest.tolist(),
                coverage.covered.tolist(),
                strict=True,
            )
        ],
        "all_features": {"fired": coverage.fired, "features": coverage.features},
    }
