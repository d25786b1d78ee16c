"""Labelled texts of a file, split into those to find features on and those to test on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.explain.text_classification import split_texts
from steerling_jax.io.storage import matching_files
from steerling_jax.io.text_tables import read_text_table


@dataclass(frozen=True)
class LabelledTexts:
    """texts (N), with the label and the group of each; groups are empty without --group.

    positive: the labels that are the positive class in turn. train, test: numbers of texts. numbers: for FILE and, if
    it is given, --test, which of its texts are used, in the order of `texts`.
    """

    texts: list[str]
    labels: np.ndarray
    groups: np.ndarray
    positive: list[str]
    train: np.ndarray
    test: np.ndarray
    numbers: list[np.ndarray]


def read_labelled_texts(args: argparse.Namespace) -> LabelledTexts:
    """The texts that the options name.

    Raises `UserError` for a file without two classes, and for a group without a text of each class in each part.
    """
    rng = np.random.default_rng(args.seed)
    texts, labels, groups, chosen = _read(args.file, args, rng)
    numbers = [chosen]
    train = test = np.arange(len(texts))
    if args.test is not None:
        more, other_labels, other_groups, chosen = _read(args.test, args, rng)
        numbers.append(chosen)
        test = len(texts) + np.arange(len(more))
        texts, labels, groups = texts + more, labels + other_labels, groups + other_groups
    else:
        kinds = [f"{label}\t{group}" for label, group in zip(labels, groups, strict=True)]
        train, test = split_texts(kinds, args.share, args.seed)
    result = LabelledTexts(texts, np.array(labels), np.array(groups), _positive(args, labels), train, test,
                           numbers)  # fmt: skip
    _check(result, args)
    return result


def _read(
    name: str, args: argparse.Namespace, rng: np.random.Generator
) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """The texts of a file or pattern that are used, their labels and groups, and their numbers among all."""
    others = [args.label_column, *([args.group] if args.group else [])]
    tables = [read_text_table(file, args.text_column, others) for file, _ in matching_files(name)]
    texts = [text for table in tables for text in table.texts]
    labels = [label for table in tables for label in table.columns[args.label_column]]
    groups = [group for table in tables for group in table.columns[args.group]] if args.group else [""] * len(labels)
    chosen = range(len(labels)) if args.limit is None else _limited(labels, groups, args.limit, rng)
    return [texts[i] for i in chosen], [labels[i] for i in chosen], [groups[i] for i in chosen], np.array(chosen)


def _limited(labels: Sequence[str], groups: Sequence[str], limit: int, rng: np.random.Generator) -> list[int]:
    """Numbers of at most `limit` random texts of each label and group, in order."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for i, kind in enumerate(zip(labels, groups, strict=True)):
        kinds.setdefault(kind, []).append(i)
    return sorted(i for members in kinds.values() for i in rng.permutation(members)[:limit].tolist())


def _positive(args: argparse.Namespace, labels: Sequence[str]) -> list[str]:
    names = sorted(set(labels))
    if len(names) < 2:
        raise UserError(
            f"All labels of {args.file} are {names[0]!r}; a classifier needs texts of two classes in the column "
            f"{args.label_column!r}."
        )
    if args.positive is None:
        return names
    if args.positive not in names:
        raise UserError(f"--positive is {args.positive!r}, but the labels of {args.file} are {', '.join(names[:12])}.")
    return [args.positive]


def _check(labelled: LabelledTexts, args: argparse.Namespace) -> None:
    """Raises `UserError` where a part lacks one of the classes, for a positive class in a group."""
    for label in labelled.positive:
        for group in sorted(set(labelled.groups.tolist())):
            for numbers, part in ((labelled.train, "to find features on"), (labelled.test, "to test on")):
                kinds = labelled.labels[numbers[labelled.groups[numbers] == group]] == label
                if kinds.any() and not kinds.all():
                    continue
                where = f" in the group {group!r}" if args.group else ""
                missing = "no text of" if not kinds.any() else "only texts of"
                raise UserError(
                    f"The part {part} has {missing} the class {label!r}{where}; give more labelled texts, or another "
                    "--share."
                )
