"""`steerling prepare`: documents to a corpus store."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerling_jax.io.tokenizer import Tokenizer

    from .prepare import Progress

HELP = """\
Make a corpus store from documents: tokens, chunks, concept labels.

examples:
  steerling prepare --out ./corpus
  steerling prepare --out ./my-corpus --input ./my-texts --vocab-size 8192
  steerling prepare --out ./my-corpus --input ./my-texts --tokenizer ./small-model
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("corpus"), metavar="FOLDER", help="default: corpus")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FOLDER",
        help="a folder of .txt and .jsonl files (default: the documentation that this Python carries)",
    )
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="token ids (default: %(default)s)")
    parser.add_argument("--tokenizer", metavar="MODEL", help="a model whose vocabulary to use, in place of making one")
    parser.add_argument("--chunk-tokens", type=int, default=64, metavar="N", help="longest (default: %(default)s)")
    parser.add_argument(
        "--heldout-share", type=float, default=0.04, metavar="X", help="of the documents (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> None:
    from steerling_jax.cli.console import note, print_json
    from steerling_jax.errors import UserError

    if args.out.exists():
        raise UserError(f"{args.out} is there already: choose another --out, or remove it.")
    if args.chunk_tokens < 1:
        raise UserError(f"--chunk-tokens is {args.chunk_tokens}, but it must be at least 1.")
    if not 0 <= args.heldout_share < 1:
        raise UserError(f"--heldout-share is {args.heldout_share}, but it must be from 0 to below 1.")
    from .documents import python_documents
    from .folder_documents import folder_documents
    from .prepare import prepare

    documents = list(python_documents() if args.input is None else folder_documents(args.input))
    tokenizer = None if args.tokenizer is None else _tokenizer(args.tokenizer)
    with shown() as tell:
        store = prepare(
            args.out, documents=documents, vocab_size=args.vocab_size, chunk_tokens=args.chunk_tokens, seed=args.seed,
            tokenizer=tokenizer, heldout_share=args.heldout_share, progress=tell,
        )  # fmt: skip
    counts = store.manifest["counts"]
    if args.json:
        print_json({"folder": args.out, "vocab_size": store.vocab_size, "counts": counts})
        return
    for split, count in counts.items():
        note(f"{split}: {count['documents']:,} documents, {count['chunks']:,} chunks, {count['tokens']:,} tokens")
    note(f"The corpus is in {args.out}.")


def _tokenizer(model: str) -> Tokenizer:
    """The vocabulary of a model, with the special ids that its config names."""
    from steerling_jax.api import special_ids
    from steerling_jax.errors import UserError
    from steerling_jax.io.checkpoint import read_run_info
    from steerling_jax.io.hub import resolve
    from steerling_jax.io.published_layout import read_config
    from steerling_jax.io.tokenizer import IdsOnlyTokenizer, load_tokenizer

    folder = resolve(model)
    config = read_run_info(folder).config if (folder / "run.json").is_file() else read_config(folder)[0]
    tokenizer = load_tokenizer(folder, special_ids(config), config.vocab_size)
    if isinstance(tokenizer, IdsOnlyTokenizer):
        raise UserError(f"{folder} has no vocabulary: put tokenizer.model or a .tiktoken file into it.")
    return tokenizer


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """A progress display for `prepare`."""
    from steerling_jax.cli.console import progress

    with progress(unit="documents") as bar:
        tasks: dict[str, Any] = {}

        def tell(news: Progress) -> None:
            if news.stage not in tasks:
                tasks[news.stage] = bar.add_task(news.stage, total=news.total or None)
            bar.update(tasks[news.stage], completed=news.done, total=news.total or None)

        yield tell
