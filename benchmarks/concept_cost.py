"""The cost in loss of the parts of the concept objective: one model of the scaling study, trained without each part.

    python benchmarks/concept_cost.py FOLDER --corpus STORE [--width 48] [--seeds 1]

STORE is the corpus store of `scaling.py`, which also defines how a run is trained and measured; checkpoints go to
FOLDER. Prints a table with the held-out likelihood bound in nats per token, the nats that removing epsilon, known or
discovered concepts adds, and the concepts' net share of the true tokens' logits. The model without concepts trains for
the same number of FLOPs.

Reference machine: two cores of an Intel Xeon, some minutes per run; results in docs/results/scaling.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from scaling import BARE, CONCEPTS, SIZES, measured, run_of

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.objectives.pretraining import ObjectiveConfig

NO_DROPOUT = {"epsilon_dropout": (0.0, 0.0)}  # known and discovered features are dropped only where epsilon is
NO_LOSSES = {"concept_weight": 0.0, "residual_weight": 0.0, "independence_weight": 0.0}
VARIANTS = {
    "as in the study": {},
    "epsilon is never dropped": NO_DROPOUT,
    "no losses of the concepts": NO_LOSSES,
    "neither": {**NO_DROPOUT, **NO_LOSSES},
}
FIGURES = ("nats_per_token", "cost_epsilon", "cost_known", "cost_discovered", "concept_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--corpus", type=Path, required=True, metavar="STORE")
    parser.add_argument("--width", type=int, default=48, choices=[size.width for size in SIZES])
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    store = CorpusStore(args.corpus)
    (size,) = (size for size in SIZES if size.width == args.width)
    print("| objective | seed | nats a token | without ε | without known | without discovered | net share |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for seed in range(args.seeds):
        for number, (name, changes) in enumerate([("no concepts", None), *VARIANTS.items()]):
            run = run_of(size, BARE if changes is None else CONCEPTS, seed, store)
            if changes:
                assert isinstance(run.objective, ObjectiveConfig)
                objective = dataclasses.replace(run.objective, **changes)
                run = dataclasses.replace(run, name=f"{run.name}-{number}", objective=objective)
            figures, _ = measured(run, store, args.folder, probes=False)
            cells = [f"{figures[key]:.3f}" if key in figures else "" for key in FIGURES]
            print(f"| {name} | {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
