"""How fast a corpus is prepared, and with how much memory: synthetic text through `steerling prepare`.

    python benchmarks/prepare.py --megabytes 1000 --workers 2 --out prepare.json --picture docs/prepare_memory.svg

The text is words of this Python's language reference at their frequencies, in sentences, paragraphs and documents of
varied length, as JSON lines. The vocabulary is the bundled model's, so that no time goes into making one. Memory is the
sum of the processes' resident sets (pages they share count for each), read every half second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

FILE_BYTES = 100_000_000
EVERY = 0.5  # seconds between two readings of memory


def write_text(folder: Path, size: int, seed: int = 0) -> int:
    """JSON lines of `size` bytes in files of 100 MB; gives the number of documents."""
    from steerling_jax.train.corpus.python_documents import reference_documents

    counts = Counter(word for d in reference_documents() for word in re.findall(r"[\w.]+", d.text))
    words = np.array([word for word, _ in counts.most_common()])
    weight = np.array([count for _, count in counts.most_common()], float)
    cumulative = np.cumsum(weight / weight.sum())
    rng = np.random.default_rng(seed)
    written = documents = file = 0
    while written < size:
        with (folder / f"{file:03}.jsonl").open("w", encoding="utf-8") as lines:
            begun = written
            while written < size and written - begun < FILE_BYTES:
                count = int(min(rng.lognormal(6, 1), 20_000)) + 8  # words: half of the documents have over 400
                text = _prose(words[np.searchsorted(cumulative, rng.random(count))].tolist(), rng)
                written += lines.write(json.dumps({"text": text, "name": f"synthetic {documents}"}) + "\n")
                documents += 1
        file += 1
    return documents


def _prose(words: list[str], rng: np.random.Generator) -> str:
    parts, at = [], 0
    for length in rng.integers(5, 25, len(words) // 5 + 1).tolist():
        sentence = " ".join(words[at : at + length])
        if sentence:
            parts.append(sentence[0].upper() + sentence[1:] + (".\n\n" if length % 7 == 0 else ". "))
        at += length
    return "".join(parts)


def measure(command: list[str], work: Path) -> dict[str, Any]:
    """Runs it; gives wall and processor seconds, the curve of memory and when each stage's files appeared."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    tree = psutil.Process(process.pid)
    curve: list[dict[str, float]] = []
    while process.poll() is None:
        sizes = []
        for one in [tree, *_children(tree)]:
            try:
                sizes.append(one.memory_info().rss)
            except psutil.Error:
                continue
        parts = len(list((work / "parts").glob("*.json"))) if (work / "parts").is_dir() else 0
        curve.append(
            {
                "seconds": round(time.monotonic() - start, 1),
                "megabytes": round(sum(sizes) / 1e6),
                "largest": round(max(sizes, default=0) / 1e6),
                "parts": parts,
            }
        )
        time.sleep(EVERY)
    wall = time.monotonic() - start
    if process.returncode:
        sys.exit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    made = json.loads(process.communicate()[0])
    return {"wall_seconds": wall, "processor_seconds": used, "counts": made["counts"], "curve": curve}


def _children(tree: psutil.Process) -> list[psutil.Process]:
    try:
        return tree.children(recursive=True)
    except psutil.Error:
        return []


def report(found: dict[str, Any]) -> str:
    tokens = sum(split["tokens"] for split in found["counts"].values())
    documents = sum(split["documents"] for split in found["counts"].values())
    curve = found["curve"]
    lines = [
        f"{found['megabytes']} MB, {documents:,} documents, {tokens:,} tokens, {found['workers']} workers on "
        f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}), load {found['load']:.1f} before",
        f"{found['wall_seconds']:.0f} s, {found['processor_seconds']:.0f} s of processor time: "
        f"{tokens / found['processor_seconds']:,.0f} tokens/s a core, {tokens / found['wall_seconds']:,.0f} in all",
        f"memory: at most {max(row['megabytes'] for row in curve):,} MB in all, "
        f"{max(row['largest'] for row in curve):,} MB in one process",
        "", "| seconds | parts done | all, MB | largest process, MB |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for at in np.unique(np.linspace(0, len(curve) - 1, 16).astype(int)):
        row = curve[at]
        lines.append(f"| {row['seconds']:.0f} | {row['parts']} | {row['megabytes']} | {row['largest']} |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    seconds = [row["seconds"] for row in found["curve"]]
    axes.plot(seconds, [row["megabytes"] for row in found["curve"]], label="all processes")
    axes.plot(seconds, [row["largest"] for row in found["curve"]], label="the largest")
    axes.set(xlabel="seconds", ylabel="MB resident", ylim=(0, None), title=f"{found['megabytes']} MB of text")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part-bytes", type=int, default=0)
    parser.add_argument("--runner", help="a Beam runner in place of --workers")
    parser.add_argument("--runner-options", nargs="+", default=[])
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--picture", type=Path, help="where to draw the memory curve")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder, "texts")
        texts.mkdir()
        write_text(texts, args.megabytes * 1_000_000)
        command = [sys.executable, "-m", "steerling_jax.cli.main", "prepare", "--json", "--input", str(texts)]
        command += ["--out", f"{folder}/store", "--tokenizer", "steerling-pydocs", "--part-bytes", str(args.part_bytes)]
        command += ["--runner", args.runner] if args.runner else ["--workers", str(args.workers)]
        command += ["--runner-options", *args.runner_options] if args.runner_options else []
        found = measure(command, Path(folder, "store.work"))
    found |= {"megabytes": args.megabytes, "workers": args.runner or args.workers, "load": load}
    print(report(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
