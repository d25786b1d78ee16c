"""Checking files that users contribute, before anything is prepared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.examples import hashed_words, learn
from steerling_jax.train.corpus.inputs import source_files
from steerling_jax.train.corpus.label_table import check_table, read_table_settings, table_concepts
from steerling_jax.train.corpus.ontology import BUNDLED, ConceptDefinition, check_examples, is_bundled, read_concepts
from steerling_jax.train.corpus.sources import TextSource, read_sources, toml_files, toml_tables


def check_files(paths: Sequence[str | Path]) -> list[dict[str, str]]:
    """What was found in TOML files or folders of them, a row each: file, kind, name, found. Raises `UserError` for the
    first thing that is wrong. Names of concepts must not be those of the bundled ones."""
    rows: list[dict[str, str]] = []
    files = toml_files(paths)
    described = [file for file in files if toml_tables(file, "concept")]
    concepts = read_concepts(described if any(map(is_bundled, files)) else [BUNDLED, *described])
    check_examples(concepts)
    by_name = {concept.name: concept for concept in concepts}
    for file in files:
        before = len(rows)
        for table in toml_tables(file, "concept"):
            concept = by_name[table["name"]]
            rows.append(_row(file, "concept", concept.name, _how(concept)))
        for source in read_sources(file) if toml_tables(file, "source") else []:
            found = source_files(source)
            size = sum(one.size for one in found) / 1e6
            rows.append(_row(file, "source", source.name, f"{len(found)} files, {size:,.1f} MB, {source.license}"))
        for table in read_table_settings(file) if toml_tables(file, "labels") else []:
            check_table(table)
            found = source_files(TextSource(table.files))
            rows.append(_row(file, "labels", table.name, f"{len(found)} files, {len(table_concepts(table))} concepts"))
        if len(rows) == before:
            raise UserError(f"{file} has no [[concept]], [[source]] or [[labels]]: add what it is to describe.")
    return rows


def _row(file: Path, kind: str, name: str, found: str) -> dict[str, str]:
    return {"file": str(file), "kind": kind, "name": name, "found": found}


def _how(concept: ConceptDefinition) -> str:
    if concept.has_rules:
        rules = [f"{len(concept.modules)} modules"] * bool(concept.modules)
        rules += [f"{len(concept.words)} words"] * bool(concept.words) + ["a pattern"] * bool(concept.pattern)
        tried = len(concept.examples) + len(concept.counterexamples)
        return f"by rule ({', '.join(rules)}), " + (f"right for {tried} examples" if tried else "without examples")
    if not concept.counterexamples:
        return f"learned from {len(concept.examples)} examples; counterexamples would show how well"
    right, tried = _left_out(concept)
    return f"learned from {len(concept.examples)} examples; each left out in turn, {right} of {tried} are told right"


def _left_out(concept: ConceptDefinition) -> tuple[int, int]:
    """How many of the examples and counterexamples are told right by what is learned from the others."""
    texts = [*concept.examples, *concept.counterexamples]
    kinds = np.array([True] * len(concept.examples) + [False] * len(concept.counterexamples))
    right = 0
    for out in range(len(texts)):
        kept = {kind: tuple(t for i, t in enumerate(texts) if i != out and kinds[i] == kind) for kind in (True, False)}
        left = replace(concept, examples=kept[True], counterexamples=kept[False])
        learned = learn([left], ["", "."], hashed_words)
        right += bool((learned.scores([texts[out]])[0, 0] > 0) == kinds[out])
    return right, len(texts)
