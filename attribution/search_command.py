"""`steerling search`: finds training data that is close to a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.attribution.index.evidence import SCORES
from steerling_jax.cli.arguments import number_in_range

if TYPE_CHECKING:
    from steerling_jax.attribution.index.evidence import Evidence

HELP = """\
Find training data close to a text, in an index made by `steerling index`.

examples:
  steerling search ./index "Return a list of the words in the string" --corpus ./corpus
  steerling search ./index "$(cat answer.txt)" --corpus ./corpus --scores verbatim influence --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="a finished index")
    add("text", metavar="TEXT", help="the text to search for")
    add("--corpus", type=Path, required=True, metavar="CORPUS", help="the corpus store that was indexed")
    add("--model", metavar="MODEL", help="the model that it was indexed with (default: the bundled one)")
    add("--before", default="", metavar="TEXT", help="text before TEXT, which the model reads as context")
    add("--scores", nargs="+", choices=SCORES, default=SCORES, metavar="SCORE", help=f"default: {' '.join(SCORES)}")
    add(
        "--chunk-tokens",
        type=number_in_range(int, 1),
        default=64,
        metavar="N",
        help="tokens per query (default: %(default)s)",
    )
    add("-k", type=int, default=5, metavar="N", help="hits per score (default: %(default)s)")
    add("--json", action="store_true", help="print the evidence as JSON")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import note, print_json, stages
    from steerling_jax.errors import UserError
    from steerling_jax.io.corpus.store import CorpusStore

    corpus = CorpusStore(args.corpus)
    note("Loading JAX and the model …")
    import steerling_jax as sj
    from steerling_jax.attribution.index.reader import open_index
    from steerling_jax.attribution.index.search import find_evidence

    bundle = sj.load(args.model)
    before, text = bundle.tokenizer.encode(args.before), bundle.tokenizer.encode(args.text)
    if not text:
        raise UserError("TEXT is empty; give a text.")
    index = open_index(args.index, corpus, bundle)
    tokens, results = [*before, *text], []
    with stages() as progress:
        for start in range(len(before), len(tokens), args.chunk_tokens):
            progress("searching", start - len(before), len(text))
            end = min(start + args.chunk_tokens, len(tokens))
            evidence = find_evidence(bundle, index, tokens, start, end, args.scores, args.k)
            results.append((bundle.tokenizer.decode(tokens[start:end]), evidence))
    if args.json:
        print_json([_as_dict(text, evidence) for text, evidence in results])
        return
    for text, evidence in results:
        _show(text, evidence)


def _as_dict(text: str, evidence: Evidence) -> dict:
    from steerling_jax.cli.console import plain

    return (
        {"text": text}
        | plain(evidence)
        | {
            "nothing_close": evidence.nothing_close,
            "sources": {score: evidence.sources(score) for score in evidence.thresholds},
        }
    )


def _show(text: str, evidence: Evidence) -> None:
    from rich.table import Table
    from rich.text import Text

    from steerling_jax.cli.console import stdout

    stdout().print(Text(text, style="bold"))
    table = Table("score", "value", "document", "offset", "text", box=None, pad_edge=False)
    for score, threshold in evidence.thresholds.items():
        for hit in evidence.of(score):
            count = f" ×{hit.occurrences}" if (hit.occurrences or 0) > 1 else ""
            value = f"{hit.value:.0f}{count}" if score == "verbatim" else f"{hit.value:.3f}"
            name = Text(f"{hit.name} ({hit.source})")
            table.add_row(score, value, name, str(hit.offset), Text(" ".join(hit.text.split())[:90]))
        if not evidence.of(score):
            best = evidence.best[score]
            table.add_row(score, "–", f"nothing close (threshold {threshold:.3g}, best {best:.3g})", "", "")
    stdout().print(table)
