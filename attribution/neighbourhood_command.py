"""`steerling neighbourhood`: describes a known or discovered concept by its tokens, texts and near concepts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from steerling_jax.bundle import Bundle
    from steerling_jax.explain.concept_gradients import SourceConcept
    from steerling_jax.explain.neighbourhood import Neighbourhood

HELP = """\
Describe a concept: promoted tokens, chunks of a corpus, near concepts, an automatic name.

The name consists of words that are frequent in the chunks with the highest activations, and is scored on held-out
chunks. The corpus is read once for all concepts of a command.

examples:
  steerling neighbourhood discovered:123 --corpus ./corpus
  steerling neighbourhood "Regular expressions" discovered:7 discovered:8 --corpus ./corpus --tokens 500000
  steerling neighbourhood --all discovered --corpus ./corpus --json > names.json
"""

PANELS = 6  # up to so many concepts are shown in full, more as a table


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    positive = number_in_range(int, 1)
    add("concepts", nargs="*", metavar="CONCEPT", help="discovered:ID, or a known concept's name or #ID, or group:NAME")
    add("--all", choices=("known", "discovered"), help="describe all concepts of a head")
    add_model_option(parser)
    add("--corpus", type=Path, required=True, metavar="FOLDER", help="a corpus store, made with the model's tokenizer")
    add("--tokens", type=positive, metavar="N", help="tokens of the training split to read (default: all)")
    add(
        "--heldout-tokens",
        type=positive,
        default=200_000,
        metavar="N",
        help="held-out tokens to score names on (default: %(default)s)",
    )
    add("--level", type=float, default=0.5, metavar="T", help="share of masked tokens (default: %(default)s)")
    add("--seq-len", type=positive, default=256, metavar="N", help="tokens per sequence (default: %(default)s)")
    add(
        "--strongest",
        type=positive,
        default=50,
        metavar="N",
        help="chunks that a name is made from (default: %(default)s)",
    )
    add("--chunks", type=positive, default=5, metavar="N", help="chunks to show (default: %(default)s)")
    add("--seed", type=number_in_range(int, 0), default=0, metavar="N", help="default: %(default)s")
    add("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> None:
    if bool(args.concepts) == (args.all is not None):
        raise UserError("Give either concepts, as in discovered:123, or --all known or --all discovered.")
    import steerling_jax as sj
    from steerling_jax.cli.console import print_json, stages, stdout
    from steerling_jax.explain.activity import concept_activity
    from steerling_jax.explain.neighbourhood import control_concepts, neighbourhoods
    from steerling_jax.io.corpus.store import CorpusStore

    bundle, store = sj.load(args.model), CorpusStore(args.corpus)
    concepts = find_concepts(bundle, args.concepts, args.all)
    with stages() as progress:
        activity = concept_activity(
            bundle,
            store,
            [*concepts, *control_concepts(concepts, bundle.config)],
            level=args.level,
            strongest=args.strongest,
            seq_len=args.seq_len,
            corpus_tokens=args.tokens,
            heldout_tokens=args.heldout_tokens,
            seed=args.seed,
            progress=progress,
        )
        described = neighbourhoods(
            bundle, store, activity, len(concepts), chunks=args.chunks, seed=args.seed, progress=progress
        )
    if args.json:
        settings = {"level": args.level, "seq_len": args.seq_len, "strongest": args.strongest, "seed": args.seed}
        settings |= {"tokens": activity.tokens, "corpus": str(store.folder)}
        entries = [{"name": one.name, "concept": one} for one in described]
        print_json({"model": bundle.name, "settings": settings, "concepts": entries})
    elif len(described) > PANELS:
        stdout().print(table(described))
    else:
        for one in described:
            stdout().print(panel(one))


def find_concepts(bundle: Bundle, texts: list[str], everything: str | None) -> list[SourceConcept]:
    """The concepts that were requested, each once: `discovered:ID`, `known:NAME`, or as `steerling concepts` names
    them."""
    from steerling_jax.concepts.concept import HEADS
    from steerling_jax.concepts.heads import head_spec
    from steerling_jax.explain.concept_gradients import SourceConcept

    selected: list[SourceConcept] = []
    for head in HEADS:
        if everything == head:
            selected += [SourceConcept(i, head) for i in range(head_spec(bundle.config, head).n_concepts)]
    for text in texts:
        head, name = bundle.concepts.locate(text)
        if head == "feature":
            raise UserError(f"{text!r} is a feature of an autoencoder; give the name or number of a concept.")
        head_spec(bundle.config, head)
        selected += [SourceConcept(i, head) for i in bundle.concepts.resolve(name, head)]
    return list(dict.fromkeys(selected))


def table(concepts: list[Neighbourhood]) -> RenderableType:
    """A table with a row per concept."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for title in ("concept", "name", "AUC", "others'", "mean", "near, by activity", "promotes"):
        rows.add_column(title, justify="right" if title in ("AUC", "others'", "mean") else "left")
    for one in concepts:
        area, others = ("", "") if one.score is None else (f"{one.score.auc.mean:.2f}", _number(one.score.others))
        near = one.near_activity[0][0] if one.near_activity else ""
        promoted = " ".join(piece.strip() for piece in one.promoted[:6])
        cells = (f"{one.head}:{one.concept_id}", one.name, area, others, f"{one.mean_activation:.3f}", near, promoted)
        rows.add_row(*map(Text, cells))
    return rows


def panel(one: Neighbourhood) -> RenderableType:
    """The whole description of one concept."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    lines = [Text(name_sentence(one))]
    lines.append(Text.assemble(("promotes  ", "dim"), " ".join(repr(piece)[1:-1] for piece in one.promoted)))
    for title, near in (("near, by embedding  ", one.near_embedding), ("near, by activity  ", one.near_activity)):
        lines.append(Text.assemble((title, "dim"), ", ".join(f"{name} {value:.2f}" for name, value in near)))
    for chunk in one.strongest:
        about = f" ({', '.join(chunk.labels)})" if chunk.labels else ""
        lines.append(Text(f"\n{chunk.activation:.3f}  {chunk.document}, token {chunk.offset}{about}", style="cyan"))
        lines.append(Text(" ".join(chunk.text.split())))
    title = f"{one.head}:{one.concept_id}  {one.label}"
    return Panel(Group(*lines), title=Text(title), title_align="left", border_style="dim")


def name_sentence(one: Neighbourhood) -> str:
    """The automatic name with its score on held-out chunks."""
    if not one.name:
        return "name: none, no word is more frequent in its strongest chunks"
    if one.score is None:
        return f"name: {one.name} (too rare in the held-out text to be scored)"
    s = one.score
    return (
        f"name: {one.name}  AUC {s.auc.mean:.2f} [{s.auc.low:.2f}, {s.auc.high:.2f}] on {s.chunks} held-out chunks, "
        f"{s.positives} with one of the words; names of {s.names} other concepts: {_number(s.others)}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
