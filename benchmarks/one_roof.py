"""Built-in concepts and features of an autoencoder in the same model: the figures of docs/results/one-roof.md.

    steerling prepare --out CORPUS --tokenizer steerling-pydocs
    python benchmarks/one_roof.py FOLDER --corpus CORPUS
    python -m benchmarks.one_roof_report

FOLDER gets what is large: the autoencoders (`steerling train --config sae_pydocs`), and the activations of the chunks
that were read. The figures are in docs/results/one-roof.json, each part as soon as it is measured; a call measures the
parts that are missing there, or those of --parts again. Seed 0.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from one_roof_reading import load, load_positions, read_chunks, save
from one_roof_removal import removal
from one_roof_scores import Reading, detection, names, word_table
from one_roof_steering import steering
from results_file import rounded, write_parts

import steerling_jax as sj
from steerling_jax.corpus.labelled_chunks import bags_of
from steerling_jax.explain.chunk_texts import ChunkTexts
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.autoencoders.load import load_autoencoders
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.json_files import read_json_object

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "one-roof.json"
MODEL = "steerling-pydocs"
TOKENS = 200_000  # of a split that are read at most
BEFORE = """\
import dataclasses

from steerling_jax.configs import sae_pydocs


def config():
    return dataclasses.replace(sae_pydocs.config(), name="sae_before", model={model!r}, layers=(3,))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--before", help="the model before concepts were built in: runs/pydocs_diffusion/export")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS))
    args = parser.parse_args()
    stored = read_json_object(RESULTS) if RESULTS.is_file() else {}
    for part in args.parts or [name for name in PARTS if name not in stored]:
        if part == "before" and args.before is None:
            continue
        began, processor = time.time(), processor_seconds()
        figures = PARTS[part](args)
        figures["processor_seconds"] = round(processor_seconds() - processor)
        figures |= {"seconds": round(time.time() - began), "environment": environment()}
        stored = (read_json_object(RESULTS) if RESULTS.is_file() else {}) | {part: rounded(figures)}
        write_parts(RESULTS, stored)


def processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usages)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Trains the autoencoders; their figures on the texts that they did not see."""
    return train_autoencoders("sae_pydocs", args.folder / "sae_pydocs")


def train_autoencoders(config: str, run: Path) -> dict[str, Any]:
    line = [sys.executable, "-m", "steerling_jax.cli.main", "train", "--config", config, "--out", str(run)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {"evaluation": next(one for one in reversed(lines) if one["kind"] == "evaluation")}


def detect(args: argparse.Namespace) -> dict[str, Any]:
    """The AUC of concepts, features and controls for the labels of held-out chunks."""
    both, store = readings(args), CorpusStore(args.corpus)
    train, held = (word_table(bags_of(store, one.chunks).tokens, store.vocab_size) for one in both)
    return detection(*both, (train, held))


def name(args: argparse.Namespace) -> dict[str, Any]:
    """How well words predict where concepts and features are active."""
    train, held = readings(args)
    texts = ChunkTexts(sj.load(MODEL), CorpusStore(args.corpus))
    of_train, of_held = ([texts.text(number) for number in one.chunks.tolist()] for one in (train, held))
    given = [entry["name"] for entry in sorted(CorpusStore(args.corpus).concepts, key=lambda entry: entry["id"])]
    return names((of_train, of_held), train, held, given)


def remove(args: argparse.Namespace) -> dict[str, Any]:
    """What removing each label's concepts and feature costs, at positions with the label and at others."""
    bundle, found = sj.load(MODEL), read_json_object(RESULTS)["detect"]
    readings(args)
    positions = load_positions(args.folder / "after-heldout.npz")
    last = bundle.backbone.n_layers - 1
    (autoencoder,) = load_autoencoders(args.folder / "sae_pydocs" / "export", layers=[last])
    held = readings(args)[1]
    figures = []
    for place, label in enumerate(found["labels"]):
        labelled = np.isin(positions.chunks, held.chunks[held.positive[:, label]])
        chosen = (label, found["chosen"]["discovered"][place], found["chosen"][f"features {last}"][place])
        figures.append(removal(bundle, autoencoder, positions.rows, positions.tokens, labelled, chosen, label))
    return {"labels": found["labels"], "costs": figures}


def steer(args: argparse.Namespace) -> dict[str, Any]:
    """The share of texts with the concept by built-in concepts, features, prompts and controls."""
    return steering(sj.load(MODEL), CorpusStore(args.corpus), readings(args)[0], read_json_object(RESULTS)["detect"],
                    args.folder / "sae_pydocs" / "export")  # fmt: skip


def show(stage: str, done: int, total: int) -> None:
    print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)


def before(args: argparse.Namespace) -> dict[str, Any]:
    """Detection in the model before concepts were built in, with an autoencoder of its own, of the last block."""
    config, run = args.folder / "sae_before.py", args.folder / "sae_before"
    with atomic_path(config) as path:
        path.write_text(BEFORE.format(model=str(Path(args.before).resolve())), encoding="utf-8")
    trained = train_autoencoders(str(config), run)
    return trained | detection(*read_both(args, args.before, run / "export", "before"))


def readings(args: argparse.Namespace) -> tuple[Reading, Reading]:
    """The chunks of both splits, as the bundled model reads them."""
    return read_both(args, MODEL, args.folder / "sae_pydocs" / "export", "after")


def read_both(args: argparse.Namespace, model: str, autoencoders: Path, name: str) -> tuple[Reading, Reading]:
    """The chunks of both splits, read once and stored in the folder under `name`."""
    paths = [args.folder / f"{name}-{split}.npz" for split in ("train", "heldout")]
    for path, split in zip(paths, ("train", "heldout"), strict=True):
        if path.is_file():
            continue
        bundle, store = sj.load(model), CorpusStore(args.corpus)
        store.check_tokenizer(bundle.tokenizer.sha256)
        reading, positions = read_chunks(
            bundle, load_autoencoders(autoencoders), store, split, TOKENS, len(store.concepts),
            progress=show,
        )  # fmt: skip
        save(path, reading, positions if name == "after" and split == "heldout" else None)
    first, second = map(load, paths)
    return first, second


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "train": train,
    "detect": detect,
    "names": name,
    "remove": remove,
    "steer": steer,
    "before": before,
}

if __name__ == "__main__":
    main()
