"""Judges of a steering case: whether a text is like the positive ones, by its words or by the script of its letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from steerling_jax.errors import require
from steerling_jax.evaluation.binary_scores import auc_score
from steerling_jax.evaluation.scripts import letter_scripts
from steerling_jax.evaluation.text_probes import logistic_probe
from steerling_jax.evaluation.words import count_table, vocabulary, words_of

MIXED = 0.1  # of a text's letters: a text with more letters of the script has that language in it


class CaseJudge(NamedTuple):
    """positive: which texts (n,) are like the positive ones, bool. auc: on texts that the judge was not fitted to.

    name: how reports call the judge."""

    positive: Callable[[Sequence[str]], np.ndarray]
    auc: float
    name: str


def word_judge(positive: Sequence[str], negative: Sequence[str]) -> CaseJudge:
    """Logistic regression on word counts; its AUC is that of a fit to every second text, tested on the others."""
    texts = [words_of(text) for text in (*positive, *negative)]
    labels = np.arange(len(texts)) < len(positive)

    def fit(chosen: np.ndarray) -> Callable[[list[list[str]]], np.ndarray]:
        own = [texts[i] for i in np.flatnonzero(chosen)]
        columns = vocabulary(own, least=2)
        scores = logistic_probe(count_table(own, columns), labels[chosen])
        return lambda others: scores(count_table(others, columns))

    even = np.arange(len(texts)) % 2 == 0
    area = auc_score(fit(even)([texts[i] for i in np.flatnonzero(~even)]), labels[~even])
    scores = fit(np.ones(len(texts), bool))
    return CaseJudge(lambda others: scores([words_of(text) for text in others]) > 0, area, "words")


def script_judge(script: str, positive: Sequence[str], negative: Sequence[str]) -> CaseJudge:
    """The share of letters that are of a script, such as "Cyrillic"; above 0.1, a text is positive.

    Raises `UserError` unless most positive texts have the script, as with a misspelled name.
    """
    shares = np.array([script_share(text, script) for text in (*positive, *negative)])
    labels = np.arange(len(shares)) < len(positive)
    require(
        float((shares[labels] > MIXED).mean()) > 0.5,
        f"--script is {script!r}, but most texts of --positive have few letters of it; give their script, as Unicode "
        "names it: Cyrillic, Hangul, Han, Arabic.",
        "script",
    )
    return CaseJudge(
        lambda texts: np.array([script_share(text, script) > MIXED for text in texts]),
        auc_score(shares, labels),
        f"letters of the script {script}",
    )


def script_share(text: str, script: str) -> float:
    """The share of a text's letters that are of a script; 0 without letters."""
    scripts = letter_scripts(text)
    return scripts[script.capitalize()] / max(1, scripts.total())
