"""`steerling verify`: computes the figures of a recorded trace again, and says how far they agree."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_model_option, number_in_range
from steerling_jax.errors import require

if TYPE_CHECKING:
    from steerling_jax.attribution.verify.figures import Verification
    from steerling_jax.decoding.trace_record import TraceRecord

HELP = """\
Compute the figures of a recorded trace again, and say how far they agree.

Exits with 0 if all of them agree, and with 1 if one does not.

examples:
  steerling trace "re.split(pattern, string)" --seed 1 --json explained.json
  steerling verify explained.json
  steerling verify explained.json --index INDEX --corpus STORE
  steerling verify record.json --no-inputs
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("record", metavar="RECORD", help="what `trace --json FILE`, `trace --trace` or `generate --trace` wrote")
    add("--id", metavar="ID", help="the line of RECORD to verify, if that is a file of batch results")
    add_model_option(parser)
    add("--index", metavar="FOLDER", help="the index in which the record's evidence was found")
    add("--corpus", metavar="STORE", help="the corpus store of that index")
    add("--no-inputs", action="store_true", help="leave out input attributions, which take the longest")
    add("--no-evidence", action="store_true", help="leave out evidence, which needs the index and the corpus")
    add(
        "--tolerance",
        type=number_in_range(float, 0.0, 1.0),
        metavar="X",
        help="largest accepted difference, as a fraction of the figure's largest value (default: 0.001; 0.03 for "
        "bfloat16)",
    )
    add("--json", action="store_true", help="print the outcome as JSON")


def run(args: argparse.Namespace) -> int:
    require((args.index is None) == (args.corpus is None), "--index and --corpus go together; give both.")
    require(not (args.no_evidence and args.index), "--no-evidence leaves the index unused; leave out one of them.")
    from steerling_jax.cli.console import note, print_json, stages
    from steerling_jax.io.trace_file import package_versions, read_explained_trace

    record, document = read_explained_trace(args.record, args.id)
    note("Loading JAX and the model …")
    import steerling_jax as sj
    from steerling_jax.attribution.trace_command import open_evidence
    from steerling_jax.attribution.verify.verification import has_evidence, verify

    recorded = document is not None and has_evidence(document)
    require(
        not recorded or args.index is not None or args.no_evidence,
        f"{args.record} contains evidence; give --index and --corpus, or leave it out with --no-evidence.",
    )
    require(recorded or args.index is None, f"{args.record} contains no evidence; leave out --index and --corpus.")
    bundle = sj.load(args.model, dtype=record.origin.dtype, matmul_dtype=record.origin.matmul_dtype)
    find_evidence, index = None, None
    if args.index is not None:
        find_evidence, index = open_evidence(args.index, args.corpus, bundle)
    with stages() as progress:
        result = verify(
            bundle,
            record,
            document,
            inputs=not args.no_inputs,
            find_evidence=find_evidence,
            index=index,
            tolerance=args.tolerance,
            where=args.record,
            progress=progress,
        )
    if args.json:
        print_json(_report(result, record, package_versions()))
    else:
        _show(result, record, package_versions())
    return 0 if result.agrees else 1


def _report(result: Verification, record: TraceRecord, versions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "agrees": result.agrees,
        "seed": record.seed,
        "identities": [vars(one) | {"agrees": one.agrees} for one in result.identities],
        "figures": [vars(one) | {"agrees": one.agrees} for one in result.figures],
        "left_out": dict(result.left_out),
        "versions": {"recorded": dict(record.origin.versions), "now": dict(versions)},
    }


def _show(result: Verification, record: TraceRecord, versions: Mapping[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from steerling_jax.cli.console import note, stdout

    identities = Table("made with", "recorded", "now", "", box=None, pad_edge=False)
    for one in result.identities:
        outcome = "not recorded" if one.recorded is None else "agrees" if one.agrees else "differs"
        identities.add_row(one.name, *(Text((value or "–")[:16]) for value in (one.recorded, one.now)), outcome)
    figures = Table("figure", "values", "largest difference", "of", "", box=None, pad_edge=False)
    for one in result.figures:
        outcome = "agrees" if one.agrees else "DIFFERS"
        figures.add_row(one.name, str(one.values), f"{one.difference:.2g}", f"{one.scale:.4g}", outcome)
    for name, reason in result.left_out.items():
        figures.add_row(name, "–", "–", "–", reason)
    stdout().print(identities)
    stdout().print()
    stdout().print(figures)
    for one in result.figures:
        if one.contradictions:
            more = f" (and {len(one.contradictions) - 1} more)" if len(one.contradictions) > 1 else ""
            note(f"{one.name}: {one.contradictions[0]}{more}.")
        elif not one.agrees:
            note(f"{one.name}: the largest difference is at {one.place}.")
    older = [f"{name} {value}" for name, value in record.origin.versions.items() if versions.get(name) != value]
    if older:
        note(f"The record was made with other versions: {', '.join(older)}.")
