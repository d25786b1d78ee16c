"""Classifiers by features that the server applies to prompts and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steerling_jax.bundle import Bundle
from steerling_jax.errors import require
from steerling_jax.explain.feature_classifier import FeatureClassifier
from steerling_jax.io.classifier_file import load_classifier
from steerling_jax.models.edits import LayerEdit

OnMatch = Literal["report", "refuse", "suppress"]


@dataclass(frozen=True)
class TextChecks:
    """The classifiers of a server, and what is done where one of them matches.

    on_match: "report" says so in the response. "refuse" answers a prompt with an error, and an output with an empty
    text. "suppress" writes the text with the features of the classifiers that match the prompt taken out of the hidden
    states; outputs are reported.
    """

    bundle: Bundle
    classifiers: tuple[FeatureClassifier, ...]
    on_match: OnMatch

    def matches(self, text: str | Sequence[int]) -> list[dict[str, Any]]:
        """The classifiers that match a text or token ids, as JSON: the label and the features that fire."""
        matches = []
        for classifier in self.classifiers:
            fired = classifier.fired(self.bundle, text)
            if fired:
                features = [{"layer": one.layer, "feature": one.feature} for one in fired]
                matches.append({"label": classifier.label, "features": features})
        return matches

    def edits(self, matches: Sequence[dict[str, Any]]) -> tuple[LayerEdit, ...]:
        """The edits with which a text is written whose prompt has these matches."""
        if self.on_match != "suppress":
            return ()
        labels = {match["label"] for match in matches}
        return tuple(edit for one in self.classifiers if one.label in labels for edit in one.suppression())


def load_checks(bundle: Bundle, files: Sequence[str], on_match: OnMatch) -> TextChecks | None:
    """The classifiers of files; None for no files.

    Raises `UserError` for a classifier that cannot be read or is of another model, for two of one label, and with
    "suppress" for one that no edit of a block can suppress.
    """
    if not files:
        return None
    classifiers = tuple(load_classifier(Path(file), bundle) for file in files)
    labels = [one.label for one in classifiers]
    for label in labels:
        require(labels.count(label) == 1, f"Two classifiers have the label {label!r}; give one of them.")
    if on_match == "suppress":
        for one in classifiers:
            one.suppression()
    return TextChecks(bundle, classifiers, on_match)
