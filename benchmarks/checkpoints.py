"""Time of saving and restoring a training checkpoint: the pause of the loop, the write, the digests, the restore.

    python benchmarks/checkpoints.py [--mib 512] [--folder /tmp]

The state is of random numbers (parameters and two moments), which do not compress. `pause` is how long the training
loop waits. `whole_save` includes writing and digests in the background, on a core that training would use too.
`of_which_digests` is one computation of the digests alone. The restore has the digests checked before it.

Reference machine: two cores of an Intel Xeon; results in docs/results/training.md. Prints JSON, medians over --rounds.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from steerling_jax.io.checkpoints.digests import find_damage, write_digests
from steerling_jax.io.checkpoints.training import TrainingCheckpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="size of the state")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shape = (args.mib * 2**20 // (3 * 4 * 1024), 1024)
    keys = jax.random.split(jax.random.key(0), 3)
    state = {name: jax.random.normal(key, shape) for name, key in zip(("params", "mu", "nu"), keys)}
    state = jax.block_until_ready(state)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, TrainingCheckpoints(folder, keep=1) as checkpoints:
        for step in range(1, args.rounds + 1):
            marks = [time.perf_counter()]

            def mark(marks: list[float] = marks) -> None:
                marks.append(time.perf_counter())

            checkpoints.save(step, state, {})
            mark()
            checkpoints.wait()
            mark()
            write_digests(checkpoints.folder / str(step))  # a second time, to measure it alone
            mark()
            find_damage(checkpoints.folder / str(step))
            mark()
            restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
            jax.block_until_ready(restored.state if restored else None)
            mark()
            pause, rest, *others = (after - before for before, after in itertools.pairwise(marks))
            rows.append((pause, pause + rest, *others))
    names = ("pause", "whole_save", "of_which_digests", "check_before_restoring", "restore_with_check")
    seconds = {name: round(statistics.median(column), 3) for name, column in zip(names, zip(*rows))}
    print(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
                "mib": args.mib,
                "seconds": seconds,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
