"""What removing known concepts costs, beside removing as many discovered ones of equal mass."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.faithfulness.figures import ratio_figure
from steerling_jax.bundle import Bundle
from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.evaluation.equal_mass import equal_mass_sums
from steerling_jax.progress import Progress


def equal_mass_figures(
    bundle: Bundle, held: HeldOut, seed: int, key: jax.Array, progress: Progress
) -> list[dict[str, Any]]:
    """The increase of the loss and the removed mass, with units of sequences; empty without discovered concepts."""
    if not bundle.concepts.discovered:
        return []
    base, pad = jax.random.key(seed), -held.tokens.shape[1] % bundle.config.diff_block_size
    sums = []
    for number, (tokens, valid, _, _) in enumerate(held.batches(1)):
        tokens, valid = (np.pad(a, ((0, 0), (0, pad))) for a in (tokens, valid))
        found = equal_mass_sums(
            bundle.params,
            tokens,
            valid,
            jax.random.fold_in(base, number),
            config=bundle.config,
            compute=bundle.compute,
        )
        sums.append(jax.device_get(found))
        progress("concepts: equal mass", number + 1, len(held.tokens))
    column = {name: np.array([s[name] for s in sums], np.float64) for name in sums[0]}
    names = {"known": "known concepts", "discovered": "as many discovered concepts"}
    rows = []
    for kind, name in names.items():
        more = column[f"without_{kind}"] - column["full"]
        rows.append(ratio_figure("loss more, nats a token, equal mass removed", name, more, column["tokens"], key))
    for kind, name in names.items():
        mass = column[f"mass_{kind}"]
        rows.append(ratio_figure("mass removed at a position, logits", name, mass, column["masked"], key))
    return rows
