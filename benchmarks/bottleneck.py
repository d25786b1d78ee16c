"""No concepts, the published recipe and a strict bottleneck, trained on the same data with the same FLOPs.

    python benchmarks/bottleneck.py FOLDER --corpus STORE [--sizes 64x3 128x4] [--seeds 0 1] [--runs N]
    python benchmarks/bottleneck.py FOLDER --table          # prints the tables of the runs that are done

STORE is a corpus store of the bundled model. The models are those of `scaling.py`, and the published arm has its
objective; the optimizer is Muon in every arm, as for the bundled model. Every run adds one entry to
FOLDER/results.json; a killed run goes on from its last checkpoint, and runs that are done are not repeated.

Arms, all with the FLOPs of `--tokens-per-weight` tokens for every weight of the bare model, by the model's own count
(`step_flops`):

- bare: no concept module.
- published: the concept module with epsilon, trained with the objective of the scaling study.
- strict: every logit is a sum over known concepts, a dictionary of discovered ones and a constant. Three stages, which
  share the FLOPs as `STAGES` says: the backbone without concepts, the concept heads on the frozen backbone, and both.
- unlabelled: strict, without what ties known concepts to their labels: the labels' loss, and the positions whose token
  the known concepts predict alone. Its distance from bare is the cost of the bottleneck itself, and the distance of
  strict from it that of supervising the known concepts. It has the backbone of strict.

The dictionary is initialised from about 8,192 hidden rows, which is below 1 % of a run and not counted. All models of a
width see the same held-out texts under the same masks, so their differences have narrower intervals than their losses.

Reference machine: two cores of an AMD EPYC; three of the eight runs of width 64 took five minutes of processor time.
Results in docs/results/training.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from environment import environment
from scaling import BARE, BATCH, CONCEPTS, NOISE, RESULTS, SEQ_LEN, Size, run_of, train_run, weights

import steerling_jax as sj
from steerling_jax.attribution.faithfulness.concepts.effects import effect_figures
from steerling_jax.attribution.faithfulness.concepts.equal_mass import equal_mass_figures
from steerling_jax.attribution.faithfulness.concepts.settings import ConceptSettings
from steerling_jax.attribution.faithfulness.partial_results import NOT_STORED
from steerling_jax.evaluation.heldout_figures import batch_sums
from steerling_jax.evaluation.intervals import Estimate, bootstrap
from steerling_jax.io.corpus.heldout import read_heldout
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.json_files import read_json_array, write_json
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import DictionaryConfig
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.progress import no_progress
from steerling_jax.train.evaluation.evaluate import EvaluationConfig, evaluate_full
from steerling_jax.train.run.clock import step_flops
from steerling_jax.train.run.run_config import RunConfig

BATCHED = 4  # held-out sequences that are resampled together for an interval
PUBLISHED, STRICT, UNLABELLED = "published", "strict", "unlabelled"
ARMS = (BARE, PUBLISHED, UNLABELLED, STRICT)
COMPARED = ((PUBLISHED, BARE), (UNLABELLED, BARE), (STRICT, BARE), (STRICT, UNLABELLED))
STAGES = {"backbone": 0.5, "dictionary": 0.1, "both": 0.4}  # shares of the FLOPs
DICTIONARY_TOPK = 32
PEAK_RATE = 8e-3  # of Muon, at width 256 as for the bundled model; at smaller widths it grows with √(256 / width)
EFFECTS = {  # entries of `effects` in results.json: the figures of `effect_figures` with these names, in the pass
    "raw_logit": "share and logit",
    "centred_logit": "centred share and centred logit",
    "centred_log_probability": "centred share and log-probability",
    "model_log_probability": "log-probability share and log-probability",
    "control": "shuffled centred shares and centred logit",
}


def stages_of(size: Size, arm: str, seed: int, store: CorpusStore, tokens_per_weight: float) -> list[RunConfig]:
    """The training runs of an arm, which start from each other by name; together they use the FLOPs of the bare run."""
    bare = _with_muon(run_of(size, BARE, seed, store), size)
    end = f"{seed}-{tokens_per_weight:g}"  # of a run's name
    bare = dataclasses.replace(bare, name=f"{size.width}-{BARE}-{end}")
    budget = tokens_per_weight * sum(weights(bare.model).values()) / (SEQ_LEN * BATCH) * step_flops(bare).total
    if arm == BARE:
        return [_of_length(bare, budget)]
    published = _with_muon(run_of(size, CONCEPTS, seed, store), size)
    if arm == PUBLISHED:
        return [_of_length(dataclasses.replace(published, name=f"{size.width}-{arm}-{end}"), budget)]
    assert published.model.concept is not None
    concept = dataclasses.replace(
        published.model.concept,
        factorize_unknown=False,
        unknown_topk=DICTIONARY_TOPK,
        use_epsilon_correction=False,
        dictionary=DictionaryConfig(),
    )
    model = dataclasses.replace(published.model, concept=concept)
    labels = 0.1 if arm == STRICT else 0.0
    optimizer, rate = bare.optimizer, bare.optimizer.peak_rate
    backbone = dataclasses.replace(
        bare,
        name=f"{size.width}-backbone-{end}",
        # The rate does not fall here, because the third stage goes on.
        optimizer=dataclasses.replace(optimizer, schedule="wsd", decay_fraction=0.0),
    )
    dictionary = dataclasses.replace(
        bare,
        name=f"{size.width}-{arm}-dictionary-{end}",
        model=model,
        start_from=backbone.name,
        objective=DictionaryObjective(noise=NOISE, rows=0.7, concept_weight=labels),
        optimizer=OptimizerConfig(peak_rate=2e-3, weight_decay=0.0, b2=0.99),
    )
    both = dataclasses.replace(
        dictionary,
        name=f"{size.width}-{arm}-{end}",
        start_from=dictionary.name,
        objective=DictionaryObjective(
            noise=NOISE,
            backbone="trained",
            initial="given",
            diffusion=(1.0, 1.0),
            likeness=(0.0, 0.0),
            reconstruction=(0.1, 0.1),
            token_weight="inverse_t",
            concept_weight=labels,
            discovered_dropout=labels,  # 0.1 of the positions, as in configs/strict_pydocs.py
            rows=0.7,
        ),
        optimizer=dataclasses.replace(optimizer, peak_rate=rate / 2),
    )
    return [
        _of_length(run, budget * share)
        for run, share in zip((backbone, dictionary, both), STAGES.values(), strict=True)
    ]


def _with_muon(run: RunConfig, size: Size) -> RunConfig:
    rate = PEAK_RATE * (256 / size.width) ** 0.5
    return dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, kind="muon", peak_rate=rate))


def _of_length(run: RunConfig, flops: float) -> RunConfig:
    """The run with as many steps as use `flops`, and a warm-up of a twentieth of them."""
    steps = max(1, round(flops / step_flops(run).total))
    optimizer = dataclasses.replace(run.optimizer, warmup_steps=steps // 20)
    return dataclasses.replace(run, steps=steps, eval_every=steps, optimizer=optimizer)


def train_stages(runs: Sequence[RunConfig], store: CorpusStore, folder: Path) -> list[dict[str, Any]]:
    """Trains the runs, each from the one before; what each used and its speed."""
    entries = []
    for run in runs:
        before = None if run.start_from is None else str(folder / run.start_from)
        train_run(dataclasses.replace(run, start_from=before), store, folder)
        flops, tokens = run.steps * step_flops(run).total, run.steps * run.tokens_per_step
        entries.append({"name": run.name, "steps": run.steps, "tokens": tokens, "flops": flops})
    return entries


def concept_figures(bundle: sj.Bundle, store: CorpusStore, prompts: int) -> dict[str, Any]:
    """Correlations of shares with effects by head, the most frequent discovered concept, and removals of equal mass."""
    key, settings = jax.random.key(0), ConceptSettings(prompts=prompts, blocks=4)
    found = effect_figures(bundle, store, settings, key, NOT_STORED, no_progress)
    value = {(figure["figure"], figure["of"]): figure["mean"] for figure in found}
    effects = {
        head: {name: value.get(("correlation", f"{of}, in the pass ({head}, tokens)")) for name, of in EFFECTS.items()}
        for head in ("known", "discovered")
    }
    frequent = {of: mean for (figure, of), mean in value.items() if "whose top" in figure}
    held = read_heldout(store, SEQ_LEN, most_tokens=16_384)
    mass = {f"{f['figure']}: {f['of']}": f["mean"] for f in equal_mass_figures(bundle, held, 0, key, no_progress)}
    return {"effects": effects, "most_frequent": frequent, "equal_mass": mass}


def nats_by_batch(bundle: sj.Bundle, store: CorpusStore) -> dict[str, list[float]]:
    """The bound in nats and the tokens of each batch of held-out sequences, under the first of the two masks."""
    held = read_heldout(store, SEQ_LEN)
    sums = list(batch_sums(bundle.params, held, bundle.config, Compute(), size=BATCHED))
    return {"nats": [one["full"] for one in sums], "tokens": [one["tokens"] for one in sums]}


def train_and_measure(
    size: Size, arm: str, seed: int, store: CorpusStore, folder: Path, tokens_per_weight: float
) -> dict[str, Any]:
    """Trains and measures a run; returns its entry of the results, without the figures of its concepts."""
    about = environment()
    stages = train_stages(stages_of(size, arm, seed, store, tokens_per_weight), store, folder)
    bundle = sj.load(folder / stages[-1]["name"] / "export")
    figures = evaluate_full(bundle.params, bundle.config, Compute(), store, EvaluationConfig(SEQ_LEN, baselines=False))
    for detection in figures.get("detection", {}).values():
        del detection["by_concept"]
    return about | {
        "width": size.width, "layers": size.layers, "arm": arm, "seed": seed, "tokens_per_weight": tokens_per_weight,
        "stages": stages, "flops": sum(stage["flops"] for stage in stages), "figures": figures,
        "batches": nats_by_batch(bundle, store),
    }  # fmt: skip


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row for each run."""
    header = (
        "width", "arm", "seed", "bits a byte", "nats a token", "without ε", "concept share",
        "detection AUC", "without known", "without as many discovered", "effect, known", "effect, discovered",
        "log-probability, known", "log-probability, discovered", "most frequent",
    )  # fmt: skip
    rows = [header, ["---"] * len(header)]
    for entry in sorted(entries, key=lambda e: (e["width"], e["tokens_per_weight"], e["seed"], ARMS.index(e["arm"]))):
        figures, effects, mass = entry["figures"], entry.get("effects", {}), entry.get("equal_mass", {})
        more = {name.rpartition(": ")[2]: value for name, value in mass.items() if name.startswith("loss more")}
        correlations = [
            effects.get(head, {}).get(name)
            for name in ("centred_logit", "centred_log_probability")
            for head in ("known", "discovered")
        ]
        auc = next(iter(figures.get("detection", {}).values()), {}).get("auc")
        rows.append(
            [
                entry["width"],
                entry["arm"],
                entry["seed"],
                _cell(figures.get("bits_per_byte"), 3),
                _cell(figures["nats_per_token"], 3),
                _cell(figures.get("cost_epsilon"), 2),
                _cell(figures.get("concept_share"), 2),
                _cell(auc, 3),
                _cell(more.get("known concepts"), 3),
                _cell(more.get("as many discovered concepts"), 3),
                *(_cell(value, 2) for value in correlations),
                _cell(entry.get("most_frequent", {}).get("by centred share"), 2),
            ]
        )
    return _markdown(rows)


def differences(entries: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the nats a token between arms, for each size: the mean of the seeds that have both arms.

    Intervals (95 %) are over held-out texts, for the given seeds; the last column has the seeds one by one.
    """
    rows = [("width", "tokens a weight", "nats a token more", "seeds", "mean (95 %)", "each seed"), ["---"] * 6]
    of = {(e["width"], e["tokens_per_weight"], e["arm"], e["seed"]): e["batches"] for e in entries}
    for width, tokens in sorted({key[:2] for key in of}):
        for more, less in COMPARED:
            seeds = sorted(s for *size, arm, s in of if size == [width, tokens] and arm == more)
            pairs = [
                (of[width, tokens, more, s], of[width, tokens, less, s])
                for s in seeds
                if (width, tokens, less, s) in of
            ]
            if not pairs:
                continue
            found = bootstrap(_difference(pairs), len(pairs[0][0]["tokens"]), jax.random.key(0))
            each = ", ".join(_cell(_difference([pair])(np.arange(found.values)), 3) for pair in pairs)
            rows.append((width, tokens, f"{more} over {less}", len(pairs), _interval(found), each))
    return _markdown(rows)


def _difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Callable[[np.ndarray], float]:
    """The mean difference in nats a token over pairs of models, as a function of the batches that are drawn."""
    nats = np.mean([np.subtract(a["nats"], b["nats"]) for a, b in pairs], axis=0)
    tokens = np.array(pairs[0][0]["tokens"])
    return lambda batches: float(np.sum(nats[batches]) / np.sum(tokens[batches]))


def _interval(found: Estimate) -> str:
    return f"{found.mean:.3f} ({found.low:.3f}–{found.high:.3f})".replace("-", "−")


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def planned(sizes: Sequence[Size], arms: Sequence[str] = ARMS) -> Iterator[tuple[Size, str, int]]:
    """All runs in order of priority: the first seed of every size, with each of the arms, before the second."""
    for seeds in itertools.zip_longest(*(size.seeds for size in sizes)):
        for size, seed in zip(sizes, seeds, strict=True):
            if seed is not None:
                yield from ((size, arm, seed) for arm in arms)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--corpus", type=Path, metavar="STORE", help="needed, except with --table")
    parser.add_argument("--sizes", nargs="+", default=["64x3", "128x4"], metavar="WIDTHxLAYERS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    parser.add_argument("--tokens-per-weight", type=float, default=2.0, metavar="X", help="default: %(default)s")
    parser.add_argument(
        "--prompts",
        type=int,
        default=16,
        metavar="N",
        help="texts for the effects of concepts, 0: do not measure these (default: %(default)s)",
    )
    parser.add_argument("--runs", type=int, metavar="N", help="end after N runs (default: all)")
    parser.add_argument("--table", action="store_true", help="print the results and train nothing")
    args = parser.parse_args(arguments)
    file = args.folder / RESULTS
    results = read_json_array(file) if file.exists() else []
    if args.table:
        print(differences(results), table(results), sep="\n\n")
        return
    if args.corpus is None:
        parser.error("--corpus is needed to train")
    args.folder.mkdir(parents=True, exist_ok=True)
    store, tokens = CorpusStore(args.corpus), args.tokens_per_weight
    pairs = [tuple(map(int, text.split("x"))) for text in args.sizes]
    sizes = [Size(width, layers, tuple(args.seeds)) for width, layers in pairs]
    done = {(e["width"], e["arm"], e["seed"], e["tokens_per_weight"]) for e in results}
    missing = [run for run in planned(sizes, args.arms) if (run[0].width, *run[1:], tokens) not in done]
    for number, (size, arm, seed) in enumerate(missing[: args.runs], 1):
        begin = time.perf_counter()
        results.append(train_and_measure(size, arm, seed, store, args.folder, tokens))
        write_json(file, results)
        nats, seconds = results[-1]["figures"]["nats_per_token"], time.perf_counter() - begin
        line = (
            f"run {number} of {len(missing)}: width {size.width}, {arm}, seed {seed}: {nats:.3f} nats, {seconds:.0f} s"
        )
        print(line, file=sys.stderr, flush=True)
    # Last, because the losses are the main result and these figures take as long as a short run.
    for entry in results if args.prompts and args.runs is None else []:
        if entry["arm"] != BARE and "effects" not in entry:
            bundle = sj.load(args.folder / entry["stages"][-1]["name"] / "export")
            entry |= concept_figures(bundle, store, args.prompts)
            write_json(file, results)
    print(differences(results), table(results), sep="\n\n")


if __name__ == "__main__":
    main()
