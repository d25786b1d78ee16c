"""`steerling trace`: explains a text, generated now or given, by concepts, input tokens and training data."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerling_jax.cli.arguments import add_reference_option, number_in_range
from steerling_jax.cli.autoencoder_options import add_autoencoders_option, load_autoencoders, with_autoencoders
from steerling_jax.cli.generation_options import (
    add_generation_options,
    check_generation_options,
    generate_with_progress,
    make_prompt,
    note_seed,
    prompt_text_or_ids,
    read_standard_input,
)
from steerling_jax.cli.steering_options import add_steering_options, parse_steering_options
from steerling_jax.errors import require

if TYPE_CHECKING:
    from steerling_jax.attribution.trace.explanation import EvidenceSearch, Explanation
    from steerling_jax.bundle import Bundle
    from steerling_jax.decoding.trace_record import TraceRecord
    from steerling_jax.steering.rules import Rule

HELP = """\
Explain a text chunk by chunk: the concepts, prompt tokens and training data behind it.

examples:
  steerling trace "Return True if the file" --max-new-tokens 32 --seed 0
  steerling trace "Return True if the file" --max-new-tokens 32 --seed 0 --html page.html --trace record.json
  steerling trace "The river" --model MODEL --autoencoders ./layers.3 ./layers.7 --html page.html
  steerling trace --from record.json --parquet tables --graph graph.json
  steerling trace "re.split(pattern, string)" --continuation "Split the string by the pattern."
  steerling trace "Return the" --max-new-tokens 32 --seed 4 --amplify Files --index INDEX --corpus STORE
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_generation_options(parser)
    add = parser.add_argument_group("text to explain, instead of a generated one").add_argument
    add("--from", dest="source", metavar="FILE", help="a trace that `generate --trace` or --trace wrote; without TEXT")
    add("--id", metavar="ID", help="the line of --from to explain, if that is a file of batch results")
    add("--continuation", metavar="TEXT", help="a given text after TEXT, read from left to right; @FILE reads a file")
    add = parser.add_argument_group("explanation").add_argument
    add(
        "--concepts",
        type=number_in_range(int, 1),
        default=5,
        metavar="N",
        help="concepts of each kind to show (default: %(default)s)",
    )
    add_reference_option(add)
    add_autoencoders_option(add, with_k=False)
    add("--no-inputs", action="store_true", help="skip attribution to input tokens, which takes the longest")
    add("--no-considered", action="store_true", help="leave out of --html and --json what each step chose from")
    add("--index", metavar="FOLDER", help="also search the training data, in an index of `steerling index`")
    add("--corpus", metavar="STORE", help="the corpus store of that index")
    add = parser.add_argument_group("files").add_argument
    add("--trace", metavar="FILE", help="write the trace, to explain it again without generation")
    add("--html", metavar="FILE", help="write an interactive page, which works offline")
    add("--json", metavar="FILE", help="write the whole explanation; - prints it instead of the report")
    add("--parquet", metavar="FOLDER", help="write tables, one row per fact")
    add("--graph", metavar="FILE", help="write the attribution graph of one token, for Neuronpedia")
    add("--token", type=int, metavar="POSITION", help="token of the graph (default: the last committed token)")
    add_steering_options(parser)


def run(args: argparse.Namespace) -> None:
    _check(args)
    rules = parse_steering_options(args)  # raises errors in the options before the model is loaded
    from steerling_jax.cli.console import note, stages, stdout
    from steerling_jax.io.trace_file import read_trace

    record = None if args.source is None else read_trace(args.source, args.id)
    note("Loading JAX and the model …")
    import steerling_jax as sj
    from steerling_jax.attribution.trace.explanation import explain
    from steerling_jax.attribution.trace.graph import graph_position
    from steerling_jax.attribution.trace.parts import complete_document
    from steerling_jax.attribution.trace.terminal import accuracy_note, render

    autoencoders = load_autoencoders(args)
    bundle = with_autoencoders(sj.load(args.model), autoencoders)
    find_evidence, index = None, None
    if args.index is not None:
        find_evidence, index = open_evidence(args.index, args.corpus, bundle)
    if record is None:
        record = _given(args, bundle) if args.continuation is not None else _generated(args, bundle, rules)
    record = dataclasses.replace(record, index=index or record.index)
    graph_position(record.trace, args.token)  # raises before the explanation, which takes long
    source = "The trace" if args.source is None else args.source
    with stages() as progress:
        explanation = explain(
            bundle,
            record,
            inputs=not args.no_inputs,
            reference=args.reference,
            find_evidence=find_evidence,
            autoencoders=autoencoders,
            progress=progress,
            source=source,
        )
        document = None
        if args.json is not None or args.html is not None:
            steps = not args.no_considered
            document = complete_document(bundle, explanation, args.concepts, steps=steps, progress=progress)
        outputs = list(_outputs(args, bundle, explanation, document, progress))
    _write_all(outputs)
    if args.json == "-":
        from steerling_jax.cli.console import print_json

        print_json(document)
        return
    from rich.text import Text

    for label in explanation.trace.steering:
        note(label)
    stdout().print(Text(record.prompt_text, style="dim"))
    stdout().print(render(explanation, args.concepts))
    if accuracy := accuracy_note(explanation):
        note(accuracy)


def _check(args: argparse.Namespace) -> None:
    check_generation_options(args)
    read_standard_input(args)
    both = args.autoencoders is not None and args.autoencoder is not None
    require(not both, "--autoencoders can be named in steering too; leave out --autoencoder.")
    require(args.id is None or args.source is not None, "--id selects a line of --from; give both.")
    require(args.token is None or args.graph is not None, "--token selects the token of --graph; give both.")
    require((args.index is None) == (args.corpus is None), "--index and --corpus go together; give both.")
    given = _given_options(args)
    if args.source is not None:
        extra = [*given, *(["--continuation"] if args.continuation is not None else [])]
        require(not extra, f"--from explains an existing trace; leave out {', '.join(extra)}.")
    elif args.continuation is not None:
        extra = [name for name in given if name not in ("TEXT", "--prompt-ids")]
        require(not extra, f"--continuation explains a given text; leave out {', '.join(extra)}.")
    if args.source is None:
        prompt_text_or_ids(args)
    _check_outputs(args)


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises `UserError` if an output cannot be written, if two outputs have one path, if one is inside the tables'
    folder, or if one is the input."""
    from steerling_jax.io.atomic import resolve_output

    outputs = (args.trace, args.html, args.json, args.parquet, args.graph)
    names = [name for name in outputs if name not in (None, "-")]
    targets = [resolve_output(name, folder=name is args.parquet) for name in names]
    paths = [target.path for target in targets]
    files = [target.path for target in targets if not target.is_stream]  # /dev/null may be given twice
    twice = sorted({name for name, path in zip(names, paths, strict=True) if files.count(path) > 1})
    require(not twice, f"Several outputs have the path {', '.join(twice)}; give each its own.")
    if args.source is not None:
        same = [name for name, path in zip(names, paths, strict=True) if path == Path(args.source).resolve()]
        require(not same, f"--from and an output are both {args.source}; write the output to another file.")
    require(
        args.parquet is None or not any(Path(args.parquet).resolve() in path.parents for path in paths),
        f"{args.parquet} is replaced by a folder with only the tables; write the other outputs elsewhere.",
    )
    if args.parquet is not None:
        from steerling_jax.attribution.trace.tables import check_folder, check_parquet

        check_parquet()
        check_folder(Path(args.parquet))


def _given_options(args: argparse.Namespace) -> list[str]:
    """Names of the generation and steering options that differ from their defaults."""
    plain = argparse.ArgumentParser(add_help=False)
    add_generation_options(plain)
    add_steering_options(plain)
    names = {action.dest: (action.option_strings or [action.metavar])[0] for action in plain._actions}
    defaults = vars(plain.parse_args([])) | {"model": args.model}
    return [str(names[name]) for name, default in defaults.items() if getattr(args, name) != default]


def _generated(args: argparse.Namespace, bundle: Bundle, rules: tuple[Rule, ...]) -> TraceRecord:
    from steerling_jax.decoding.trace_record import record_of
    from steerling_jax.io.trace_file import model_origin

    prompt = make_prompt(args, bundle, rules)
    result = generate_with_progress(bundle, prompt, drafts=args.drafts, record_hidden=True)
    note_seed(args, result.seed)
    return record_of(bundle, model_origin(bundle), prompt, result)


def _given(args: argparse.Namespace, bundle: Bundle) -> TraceRecord:
    from steerling_jax.decoding.trace_record import TraceRecord
    from steerling_jax.explain.given_text import given_trace
    from steerling_jax.io.text_files import read_text
    from steerling_jax.io.trace_file import model_origin

    after = args.continuation
    if after.startswith("@"):
        after = read_text(Path(after[1:]), "continuation")
    trace = given_trace(bundle, prompt_text_or_ids(args), after)
    decode = bundle.tokenizer.decode
    prompt, text = (decode(ids.tolist()) for ids in (trace.prompt, trace.tokens[trace.prompt_length :]))
    return TraceRecord(trace, model_origin(bundle), prompt, text)


def open_evidence(folder: str, corpus: str, bundle: Bundle) -> tuple[EvidenceSearch, str]:
    """The search in an index, and the index's fingerprint."""
    from steerling_jax.attribution.index.reader import open_index
    from steerling_jax.attribution.index.search import find_evidence
    from steerling_jax.io.corpus.store import CorpusStore

    index = open_index(folder, CorpusStore(corpus), bundle)
    return lambda tokens, start, end: find_evidence(bundle, index, tokens[:end], start, end), index.folder.fingerprint


Output = tuple[Path, bool, Callable[[Path], Any]]  # path, whether it is a folder, function that writes it


def _outputs(
    args: argparse.Namespace, bundle: Bundle, explanation: Explanation, document: Any, progress: Any
) -> Iterator[Output]:
    """The outputs that were requested. They are computed before any is written, since computing one can fail."""
    from steerling_jax.io.trace_file import trace_text

    def of_text(name: str, text: str) -> Output:
        # A text may contain a lone surrogate, which UTF-8 cannot encode; JSON can escape it as \udXXX.
        return Path(name), False, lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace")

    if args.trace is not None:
        yield of_text(args.trace, trace_text(explanation.record))
    if args.json not in (None, "-"):
        yield of_text(args.json, _json(document))
    if args.html is not None:
        from steerling_jax.attribution.explorer.page import make_page

        yield of_text(args.html, make_page(document))
    if args.parquet is not None:
        from steerling_jax.attribution.trace.tables import make_tables, write_tables

        tables = make_tables(explanation)
        yield Path(args.parquet), True, lambda path: write_tables(path, tables, explanation)
    if args.graph is not None:
        from steerling_jax.attribution.trace.graph import make_graph

        yield of_text(args.graph, _json(make_graph(bundle, explanation, args.token, progress)))


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _write_all(outputs: list[Output]) -> None:
    """Writes all outputs, or none if one cannot be written: the files appear when all are complete."""
    from steerling_jax.io.atomic import atomic_path

    with contextlib.ExitStack() as stack:
        for target, folder, writer in outputs:
            writer(stack.enter_context(atomic_path(target, folder=folder)))
