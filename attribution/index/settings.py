"""Settings of an index, and the description by which an index is matched to its model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from steerling_jax.attribution.index.passages import Masking
from steerling_jax.attribution.index.projection import Projection
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError, require
from steerling_jax.io.corpus.store import SPLITS, CorpusStore
from steerling_jax.io.index import IndexFolder
from steerling_jax.models.steerling.fingerprint import fingerprint

# Masking of a query for its gradient. The gradient should answer what led to this text after its context, so most of
# the text stays visible; more draws make up for the few tokens that each of them masks.
QUERY_MASKING = Masking(level=0.25, draws=8)
_SIDE = 64  # of projected gradients that are computed on request


@dataclass(frozen=True)
class IndexSettings:
    """Settings that an index is built with. They are written to `index.json` under these names.

    Attributes:
        context: Tokens of its document before a chunk that the model reads with it.
        masking: Noise of chunks and queries for signatures and hidden rows.
        unit_tokens: Upper bound of the tokens of a unit; a longer document is a unit by itself.
        splits: Splits of the corpus that are indexed.
        gradient_side: Store every chunk's projected gradient of this side (`Projection`) and compare all of them with a
            query. 0: compute gradients on request, for candidates of the other scores only.
        nulls: Random texts that a threshold is estimated from.
        verbatim: Verbatim search alone, without the model's signatures and hidden rows, which take nearly all the time.
        influence: Also search by influence, whose threshold takes minutes.
    """

    context: int = 64
    masking: Masking = field(default_factory=Masking)
    unit_tokens: int = 1 << 19
    splits: tuple[str, ...] = ("train",)
    gradient_side: int = 0
    nulls: int = 100
    verbatim: bool = False
    influence: bool = True

    def __post_init__(self) -> None:
        require(self.context >= 0, f"context is {self.context}, but it must not be negative.")
        require(self.unit_tokens >= 1, f"unit_tokens is {self.unit_tokens}, but it must be at least 1.")
        require(self.gradient_side >= 0, f"gradient_side is {self.gradient_side}, but it must not be negative.")
        without_gradients = self.verbatim or not self.influence
        require(not (without_gradients and self.gradient_side), "An index without influence has no gradients.")
        require(self.nulls >= 10, f"nulls is {self.nulls}, but a threshold needs at least 10.")
        unknown = [split for split in self.splits if split not in SPLITS]
        require(not unknown and bool(self.splits), f"splits is {self.splits!r}: give some of {', '.join(SPLITS)}.")

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> IndexSettings:
        """The settings in `index.json`."""
        return cls(**saved | {"masking": Masking(**saved["masking"]), "splits": tuple(saved["splits"])})

    @property
    def projection(self) -> Projection:
        """Projection of gradients. Gradients that are not stored can be longer and so more precise."""
        return Projection(self.gradient_side or _SIDE)

    @property
    def gradient_masking(self) -> Masking:
        """Noise of a chunk for its gradient: twice the draws, because a gradient varies more with the masks than a
        signature does."""
        return replace(self.masking, draws=2 * self.masking.draws)


def index_description(corpus: CorpusStore, bundle: Bundle, settings: IndexSettings) -> dict[str, Any]:
    """The contents of `index.json`: an index belongs to one checkpoint, one vocabulary and one set of settings."""
    saved = asdict(settings)
    for name, default in (("verbatim", False), ("influence", True)):
        if saved[name] == default:  # as in indexes of versions without this setting
            del saved[name]
    return {
        "fingerprint": fingerprint(bundle.params, bundle.config),
        "tokenizer_sha256": corpus.manifest["tokenizer_sha256"],
        "settings": saved | {"splits": list(settings.splits)},
    }


def check_model(index: IndexFolder, bundle: Bundle) -> None:
    """Raises `UserError` unless the index was made with this checkpoint."""
    if index.metadata["fingerprint"] != fingerprint(bundle.params, bundle.config):
        raise UserError(
            f"The index {index.folder} was made with another checkpoint than {bundle.name}: give that checkpoint with "
            "--model, or make another index for this one."
        )
