"""Where the texts of `feature_texts.py` are from: files, packages, and the library of this Python."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import yaml

from steerling_jax.train.corpus.python_documents import python_documents

SHORTEST, LONGEST = 60, 400  # characters
CATEGORIES = ("stem", "humanities", "social_sciences", "other")


def gsm8k(path: Path) -> list[str]:
    return [json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()]


def wikitext(path: Path) -> list[str]:
    """The beginnings of paragraphs."""
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith(" ="):
            texts.append(beginning(line))
    return texts


def beginning(line: str) -> str:
    """A paragraph up to the end of a sentence, without the marks of the tokenised file."""
    text = re.sub(r" @(.)@ ", r"\1", line.strip().replace("<unk>", "unknown"))
    text = re.sub(r" ([.,;:!?)'])", r"\1", text).replace("( ", "(")
    return text[: text[:LONGEST].rfind(".") + 1]


def python_texts() -> tuple[list[str], list[str]]:
    """Docstrings without their heading, and the beginnings of functions and classes without theirs."""
    prose, code = [], []
    for document in python_documents():
        if document.source in ("docstring", "code"):
            text = python_text(document.source, document.text)
            (prose if document.source == "docstring" else code).append(text)
    return prose, code


def python_text(source: str, text: str) -> str:
    """A docstring without its heading, or code without docstrings."""
    plain = text.partition("\n\n")[2] if source == "docstring" else re.sub(r'"""(.|\n)*?"""', "", text)
    return plain[:LONGEST]


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


def wikitext_articles(path: Path) -> dict[str, list[str]]:
    """The texts of `wikitext` by the title of their article."""
    articles: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if title := re.fullmatch(r" = ([^=]+) = ", line):
            lines = articles.setdefault(title[1].strip(), [])
        elif line.strip() and not line.startswith(" ="):
            lines.append(beginning(line))
    return articles


def python_modules(source: str) -> dict[str, list[str]]:
    """The texts of `python_texts` of one kind, "docstring" or "code", by their top module."""
    modules: dict[str, list[str]] = {}
    for document in python_documents():
        if document.source == source:
            modules.setdefault(document.module.partition(".")[0], []).append(python_text(source, document.text))
    return modules


def sentences(texts: Iterable[str]) -> list[str]:
    """The sentences of texts in prose, each on one line."""
    parts = (part for text in texts for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\n", text))
    return [" ".join(part.split()) for part in parts if re.match(r"[A-Z]", part)]


def write_lines(path: Path, texts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def write_table(path: Path, texts: dict[str, list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "text"])
        writer.writerows([name, text] for name, one in texts.items() for text in one)
