"""What the concept module costs in loss, taken apart: one model of the scaling study, trained with parts of its
objective left out.

    python benchmarks/concept_cost.py FOLDER --corpus STORE [--width 48] [--seeds 1]

STORE as for `scaling.py`, in whose way every run is trained and measured. Printed is the held-out likelihood bound in
nats a token, what removing parts costs, and the concepts' net share of the logits. The model without concepts has as
many FLOPs.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from scaling import BARE, CONCEPTS, SIZES, measured, run_of

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.objectives.pretraining import ObjectiveConfig

NO_DROPOUT = {"epsilon_dropout": (0.0, 0.0)}  # concepts are dropped at those positions only
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
            found, _ = measured(run, store, args.folder, probes=False)
            cells = [f"{found[key]:.3f}" if key in found else "" for key in FIGURES]
            print(f"| {name} | {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
