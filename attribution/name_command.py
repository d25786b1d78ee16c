"""`steerling name`: names for discovered concepts, chosen in a corpus and scored on held-out documents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from steerling_jax.attribution.naming.name_concepts import Labeller, NamedConcept, NamingSettings
    from steerling_jax.bundle import Bundle
    from steerling_jax.io.corpus.store import CorpusStore

HELP = """\
Name discovered concepts by words that predict where they are active, scored on held-out documents.

The words are chosen on training documents. The score, an AUC, says how well they tell held-out chunks in which the
concept is active from others; concepts below --threshold get no name. The new catalogue goes into the model's folder as
concepts.json, or is given with --catalogue. See docs/guide/naming.md.

examples:
  steerling name --corpus ./corpus --out concepts.json
  steerling name --corpus ./corpus --model runs/dictionary/export --out runs/dictionary/export/concepts.json
  steerling name --corpus ./corpus --out concepts.json --command "my-llm --short" --time-limit 30
  steerling name --corpus ./corpus --out concepts.json --json > names.json
"""

HEAD = "discovered"  # known concepts have names


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    positive = number_in_range(int, 1)
    add_model_option(parser)
    add("--corpus", type=Path, required=True, metavar="FOLDER", help="a corpus store, made with the model's tokenizer")
    add("--out", type=Path, required=True, metavar="FILE", help="write the model's catalogue with the new names here")
    add("--tokens", type=positive, default=200_000, metavar="N", help="training tokens to read (default: %(default)s)")
    add(
        "--heldout-tokens",
        type=positive,
        default=200_000,
        metavar="N",
        help="held-out tokens to score names on (default: %(default)s)",
    )
    add(
        "--threshold",
        type=number_in_range(float, 0.5, 1.0),
        default=0.8,
        metavar="X",
        help="AUC below which a concept has no name (default: %(default)s)",
    )
    add(
        "--examples",
        type=number_in_range(int, 0),
        default=2,
        metavar="N",
        help="beginnings of strongest chunks to list for each concept (default: %(default)s)",
    )
    add(
        "--appearing",
        type=number_in_range(int, 0),
        default=100,
        metavar="N",
        help="held-out texts in whose chunks the share of named concepts is measured (default: %(default)s)",
    )
    add("--command", metavar="PROGRAM", help="a program that reads a description of a concept and prints a name")
    add(
        "--time-limit",
        type=number_in_range(float, 0.1),
        default=60.0,
        metavar="SECONDS",
        help="of --command, for each name (default: %(default)s)",
    )
    add("--seq-len", type=positive, default=256, metavar="N", help="tokens per sequence (default: %(default)s)")
    add("--seed", type=number_in_range(int, 0), default=0, metavar="N", help="default: %(default)s")
    add("--json", action="store_true", help="print all names and figures as JSON")


def run(args: argparse.Namespace) -> None:
    import steerling_jax as sj
    from steerling_jax.attribution.naming.label_command import LabelCommand, make_prompt
    from steerling_jax.attribution.naming.name_concepts import NamingSettings, merged_catalogue, name_concepts
    from steerling_jax.cli.console import note, print_json, stages, stdout
    from steerling_jax.concepts.heads import head_spec
    from steerling_jax.io.atomic import resolve_output
    from steerling_jax.io.catalogue import write_catalogue
    from steerling_jax.io.corpus.store import CorpusStore

    output = resolve_output(args.out)
    command = None
    label: Labeller | None = None
    if args.command is not None:
        if output.is_stream:
            raise UserError("--command needs a file for --out, beside which its answers are kept; give a file's name.")
        output.path.parent.mkdir(parents=True, exist_ok=True)
        command = LabelCommand(args.command, args.time_limit, output.path.with_name(f"{output.path.name}.answers"))
        label = lambda about, *described: command.name(about, make_prompt(*described))  # noqa: E731
    bundle, store = sj.load(args.model), CorpusStore(args.corpus)
    ids = range(head_spec(bundle.config, HEAD).n_concepts)
    settings = NamingSettings(args.tokens, args.heldout_tokens, args.threshold, args.examples, args.seq_len, args.seed)
    with stages() as progress:
        named = name_concepts(bundle, store, HEAD, ids, settings, label=label, progress=progress)
        write_catalogue(args.out, merged_catalogue(bundle.concepts, named))
        appearing = _appearing(bundle, store, HEAD, args.appearing, progress) if args.appearing else None
    if command is not None:
        command.forget()
    report = _report(bundle, store, named, appearing, settings)
    if args.json:
        print_json(report | {"concepts": named})
        return
    stdout().print(table(named))
    for line in sentences(report):
        note(line)


def _appearing(bundle: Bundle, store: CorpusStore, head: str, count: int, progress: Any) -> set[int]:
    """Ids of the concepts that appear in the demo's chunks and in those of the fixed list of held-out texts."""
    import steerling_jax as sj
    from steerling_jax.attribution.demo_command import PROMPT, SEED, TOKENS
    from steerling_jax.explain.naming.appearing import appearing_concepts, document_trace, fixed_texts

    demo = sj.generate(bundle, PROMPT, sj.GenerationConfig(max_new_tokens=TOKENS, seed=SEED))
    ids = appearing_concepts(bundle, [demo.trace], head)
    documents = fixed_texts(store, count)
    for number, document in enumerate(documents, start=1):
        ids |= appearing_concepts(bundle, [document_trace(bundle, store, document)], head)
        progress("held-out texts", number, len(documents))
    return ids


def _report(
    bundle: Bundle,
    store: CorpusStore,
    named: Sequence[NamedConcept],
    appearing: set[int] | None,
    settings: NamingSettings,
) -> dict[str, Any]:
    """Counts of concepts: all, those that could be scored, those with a name; the same of those that appear."""

    def counts(concepts: Sequence[NamedConcept]) -> dict[str, Any]:
        scored = [one.entry.quality for one in concepts if one.entry.quality is not None]
        names = sum(one.entry.is_named for one in concepts)
        return {
            "concepts": len(concepts),
            "scored": len(scored),
            "named": names,
            "share_named": names / len(concepts) if concepts else None,
            "mean_auc": sum(one.auc for one in scored) / len(scored) if scored else None,
            "mean_others": sum(one.others or 0.5 for one in scored) / len(scored) if scored else None,
        }

    report = {"model": bundle.name, "corpus": str(store.folder), "settings": settings, "all": counts(named)}
    if appearing is not None:
        report["appearing"] = counts([one for one in named if one.entry.id in appearing])
    return report


def sentences(report: dict[str, Any]) -> list[str]:
    """The report's figures in words."""
    lines = []
    for key, which in (("all", "all concepts"), ("appearing", "the concepts that appear in the demo and the texts")):
        if (counts := report.get(key)) and counts["concepts"]:
            lines.append(
                f"Of {which}, {counts['concepts']}, {counts['named']} have a name ({100 * counts['share_named']:.0f} %)"
                + (
                    f"; mean AUC of the words {counts['mean_auc']:.2f}, of other concepts' words "
                    f"{counts['mean_others']:.2f}."
                    if counts["scored"]
                    else "."
                )
            )
    return lines


def table(named: Sequence[NamedConcept], rows: int = 40) -> RenderableType:
    """The concepts with the best names."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for title in ("id", "name", "AUC", "others'", "active", "example"):
        shown.add_column(title, justify="right" if title in ("id", "AUC", "others'", "active") else "left")
    best = sorted(named, key=lambda one: -(one.entry.quality.auc if one.entry.quality else 0.0))[:rows]
    for one in best:
        entry, quality = one.entry, one.entry.quality
        figures = ("", "", "") if quality is None else (
            f"{quality.auc:.2f}",
            "" if quality.others is None else f"{quality.others:.2f}",
            f"{quality.active}",
        )  # fmt: skip
        shown.add_row(*map(Text, (str(entry.id), entry.name, *figures, entry.examples[0] if entry.examples else "")))
    return shown
