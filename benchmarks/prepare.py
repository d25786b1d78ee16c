"""Speed and memory of `steerling prepare` on synthetic text.

    python benchmarks/prepare.py --megabytes 1000 --workers 2 --picture docs/results/prepare_memory.svg

The text consists of words of this Python's language reference at their frequencies, in sentences, paragraphs and
documents of varying length, as JSON lines. The vocabulary is the bundled model's, so no time goes into training one.
Figures: tokens per second of wall-clock and of processor time, and the memory over time, which should not grow with the
corpus. Memory is the sum of the processes' resident sets, read every half second; shared pages count once per process.

Reference machine: two cores of an Intel Xeon, 23 GB; results in docs/results/corpus.md.
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
INTERVAL = 0.5  # seconds between two readings of memory


def write_text(folder: Path, size: int, seed: int = 0) -> int:
    """Writes JSON lines of `size` bytes in files of 100 MB; returns the number of documents."""
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
                count = int(min(rng.lognormal(6, 1), 20_000)) + 8  # words; the median is about 400
                text = _prose(words[np.searchsorted(cumulative, rng.random(count))].tolist(), rng)
                written += lines.write(json.dumps({"text": text, "name": f"synthetic {documents}"}) + "\n")
                documents += 1
        file += 1
    return documents


def _prose(words: list[str], rng: np.random.Generator) -> str:
    """The words as sentences of 5 to 24 words, with a paragraph break after some of them."""
    parts, at = [], 0
    for length in rng.integers(5, 25, len(words) // 5 + 1).tolist():
        sentence = " ".join(words[at : at + length])
        if sentence:
            parts.append(sentence[0].upper() + sentence[1:] + (".\n\n" if length % 7 == 0 else ". "))
        at += length
    return "".join(parts)


def measure(command: list[str], work: Path) -> dict[str, Any]:
    """Runs the command; returns its wall-clock and processor seconds, its counts, and the memory over time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    tree = psutil.Process(process.pid)
    curve: list[dict[str, float]] = []
    while process.poll() is None:
        sizes = []
        for each in [tree, *_children(tree)]:
            try:
                sizes.append(each.memory_info().rss)
            except psutil.Error:  # the process ended between the listing and the reading
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
        time.sleep(INTERVAL)
    wall = time.monotonic() - start
    if process.returncode:
        sys.exit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = json.loads(process.communicate()[0])
    return {"wall_seconds": wall, "processor_seconds": used, "counts": result["counts"], "curve": curve}


def _children(tree: psutil.Process) -> list[psutil.Process]:
    """The processes that the command has started; none once it has ended."""
    try:
        return tree.children(recursive=True)
    except psutil.Error:
        return []


def report(figures: dict[str, Any]) -> str:
    """The figures as text, with a table of 16 points of the memory curve."""
    tokens = sum(split["tokens"] for split in figures["counts"].values())
    documents = sum(split["documents"] for split in figures["counts"].values())
    curve = figures["curve"]
    lines = [
        f"{figures['megabytes']} MB, {documents:,} documents, {tokens:,} tokens, {figures['workers']} workers on "
        f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}), load {figures['load']:.1f} before",
        f"{figures['wall_seconds']:.0f} s, {figures['processor_seconds']:.0f} s of processor time: "
        f"{tokens / figures['processor_seconds']:,.0f} tokens/s a core, {tokens / figures['wall_seconds']:,.0f} in all",
        f"memory: at most {max(row['megabytes'] for row in curve):,} MB in all, "
        f"{max(row['largest'] for row in curve):,} MB in one process",
        "", "| seconds | parts done | all, MB | largest process, MB |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for at in np.unique(np.linspace(0, len(curve) - 1, 16).astype(int)):
        row = curve[at]
        lines.append(f"| {row['seconds']:.0f} | {row['parts']} | {row['megabytes']} | {row['largest']} |")
    return "\n".join(lines)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draws memory over time as an SVG file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    seconds = [row["seconds"] for row in figures["curve"]]
    axes.plot(seconds, [row["megabytes"] for row in figures["curve"]], label="all processes")
    axes.plot(seconds, [row["largest"] for row in figures["curve"]], label="the largest")
    axes.set(xlabel="seconds", ylabel="MB resident", ylim=(0, None), title=f"{figures['megabytes']} MB of text")
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
        figures = measure(command, Path(folder, "store.work"))
    figures |= {"megabytes": args.megabytes, "workers": args.runner or args.workers, "load": load}
    print(report(figures))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1))
    if args.picture:
        draw(figures, args.picture)


if __name__ == "__main__":
    main()
