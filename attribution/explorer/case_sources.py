"""Writes the documents that the gallery's training data is searched in, with their license.

They are the documents about threads, queues and futures of the bundled model's training corpus, 245 of 12,375, so that
an index of them takes a minute. With CORPUS, the store of `steerling train --config pydocs`:

    python -m steerling_jax.attribution.explorer.case_sources CORPUS FOLDER
    steerling prepare --out FOLDER/corpus --source FOLDER/threads.toml --tokenizer steerling-pydocs --heldout-share 0
    steerling index FOLDER/corpus FOLDER/index --scores quick
    make cases CASES="given paraphrase" INDEX=FOLDER/index CORPUS=FOLDER/corpus
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.loading import load

_BEGINNINGS = ("threading", "_thread", "queue", "sched", "concurrent")
_SOURCES = {"docstring": "prose", "code": "code"}  # name and kind of a source
_DESCRIPTION = """\
[[source]]
name = "{name}"
description = "Documents about threads, queues and futures in Python 3.11.7's standard library ({name})"
license = "PSF-2.0"
kind = "{kind}"
files = "{name}.jsonl"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the documents about threads of a corpus store.")
    parser.add_argument("corpus", metavar="CORPUS")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    tokenizer, store = load().tokenizer, CorpusStore(args.corpus)
    boundary = store.special.endofchunk_id
    args.folder.mkdir(parents=True, exist_ok=True)
    for source in _SOURCES:
        lines = []
        for record in store.documents:
            about_threads = record.name.startswith(_BEGINNINGS) or "thread" in record.name
            if record.source == source and record.split == "train" and about_threads:
                ids = store.tokens(record.start, record.end).tolist()
                text = tokenizer.decode([token for token in ids if token != boundary])
                lines.append(json.dumps({"name": record.name, "text": text}) + "\n")
        (args.folder / f"{source}.jsonl").write_text("".join(lines), encoding="utf-8")
    described = (_DESCRIPTION.format(name=name, kind=kind) for name, kind in _SOURCES.items())
    (args.folder / "threads.toml").write_text("\n".join(described), encoding="utf-8")


if __name__ == "__main__":
    main()
