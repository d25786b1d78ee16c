"""Checks the TOML files that users write, without preparing a corpus: `steerling prepare --check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.train.corpus.input_files import left_out_files, source_files
from steerling_jax.train.corpus.label_table import check_table, read_table_settings, table_concepts
from steerling_jax.train.corpus.learned_labels import hashed_words, learn
from steerling_jax.train.corpus.ontology import BUNDLED, ConceptDefinition, is_bundled, read_concepts
from steerling_jax.train.corpus.rules import check_examples
from steerling_jax.train.corpus.sources import TextSource, read_sources
from steerling_jax.train.corpus.toml_files import toml_files, toml_tables


def check_files(paths: Sequence[str | Path]) -> list[dict[str, str]]:
    """A row for each concept, source and table of labels in TOML files or folders: file, kind, name, found.

    `found` describes what the files contain. Raises `UserError` for the first error. Concepts may not have the names of
    bundled ones.
    """
    files = toml_files(paths)
    with_concepts = [file for file in files if toml_tables(file, "concept")]
    concepts = read_concepts(with_concepts if any(map(is_bundled, files)) else [BUNDLED, *with_concepts])
    check_examples(concepts)
    by_name = {concept.name: concept for concept in concepts}
    rows: list[dict[str, str]] = []
    for file in files:
        described = list(_described(file, by_name))
        if not described:
            raise UserError(f"{file} has no [[concept]], [[source]] or [[labels]]: add what it is to describe.")
        rows += [{"file": str(file), "kind": kind, "name": name, "found": found} for kind, name, found in described]
    return rows


def _described(file: Path, concepts: Mapping[str, ConceptDefinition]) -> Iterator[tuple[str, str, str]]:
    """(kind, name, found) of each table in a TOML file."""
    for table in toml_tables(file, "concept"):
        concept = concepts[table["name"]]
        yield "concept", concept.name, _concept_summary(concept)
    for source in read_sources(file) if toml_tables(file, "source") else []:
        inputs = source_files(source)
        size = sum(one.size for one in inputs) / 1e6
        left_out = len(left_out_files([source]))
        others = f"; {left_out} others are left out" if left_out else ""
        yield "source", source.name, f"{len(inputs)} files, {size:,.1f} MB, {source.license}{others}"
    for table in read_table_settings(file) if toml_tables(file, "labels") else []:
        check_table(table)
        inputs = source_files(TextSource(table.files))
        yield "labels", table.name, f"{len(inputs)} files, {len(table_concepts(table))} concepts"


def _concept_summary(concept: ConceptDefinition) -> str:
    if concept.has_rules:
        rules = [f"{len(concept.modules)} modules"] * bool(concept.modules)
        rules += [f"{len(concept.words)} words"] * bool(concept.words) + ["a pattern"] * bool(concept.pattern)
        tested = len(concept.examples) + len(concept.counterexamples)
        return f"by rule ({', '.join(rules)}), " + (f"right for {tested} examples" if tested else "without examples")
    if not concept.counterexamples:
        return f"learned from {len(concept.examples)} examples; add counterexamples to measure how well"
    right, tested = _leave_one_out(concept)
    return f"learned from {len(concept.examples)} examples; leaving out each in turn, {right} of {tested} are right"


def _leave_one_out(concept: ConceptDefinition) -> tuple[int, int]:
    """Number of examples and counterexamples that a classifier learned from the others labels correctly, and of all."""
    texts = [*concept.examples, *concept.counterexamples]
    is_example = np.array([True] * len(concept.examples) + [False] * len(concept.counterexamples))
    right = 0
    for out in range(len(texts)):
        others = {
            kind: tuple(text for i, text in enumerate(texts) if i != out and is_example[i] == kind)
            for kind in (True, False)
        }
        reduced = replace(concept, examples=others[True], counterexamples=others[False])
        learned = learn([reduced], ["", "."], hashed_words)
        right += bool((learned.scores([texts[out]])[0, 0] > 0) == is_example[out])
    return right, len(texts)
