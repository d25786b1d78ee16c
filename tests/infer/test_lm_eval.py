"""The adapter for the lm-evaluation-harness, with a small model and tasks of ours (tests/lm_eval_tasks)."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest

import steerling_jax as sj
from steerling_jax.bundle import special_ids
from steerling_jax.cli.main import main
from steerling_jax.io.tokenizers.byte_table import ByteTable
from steerling_jax.models.steerling import model

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

import datasets.config
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from steerling_jax.infer import lm_eval_command
from steerling_jax.infer.lm_eval.adapter import PUBLISHED, SteerlingLM, cut, rolling_windows

REPOSITORY = Path(__file__).parents[2]
TASKS = REPOSITORY / "tests" / "lm_eval_tasks"
COLOURS = [json.loads(line) for line in (TASKS / "colours.jsonl").read_text().splitlines()]


class Bytes(ByteTable):
    """A byte is an id."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    config = sj.ModelConfig(
        n_layers=1,
        n_head=2,
        n_kv_heads=1,
        n_embd=32,
        block_size=128,
        diff_block_size=8,
        vocab_size=261,
        mask_token_id=260,
        endofchunk_token_id=259,
        bos_token_id=258,
        pad_token_id=257,
        eos_token_id=256,
        concept=None,
        interpretable=False,
    )
    special = special_ids(config)
    tokenizer = Bytes([bytes([i]) for i in range(256)], special, config.vocab_size, "0" * 64)
    params = jax.tree.map(lambda leaf: 3 * leaf, model.init_params(config, jax.random.key(0)))
    return sj.Bundle(config, params, tokenizer, name="small")


@pytest.fixture
def harness(bundle, monkeypatch, tmp_path):
    """The harness with our tasks alone, nothing read from or written to the user's folders."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr(sj, "load", lambda *_, **__: bundle)


def requests(kind: Any, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def test_the_command_runs_tasks_of_every_kind(harness, bundle, capsys):
    names = ["steerling_choices", "steerling_writing", "steerling_rolling"]
    options = ["--include-path", str(TASKS), "--samples", "4", "--cfg-scale", "0.5", "--json"]
    assert main(["lm-eval", "--tasks", ",".join(names), *options]) == 0
    output = json.loads(capsys.readouterr().out)
    found = {name: output["tasks"][name]["results"][name] for name in names}
    assert output["tasks"]["steerling_choices"]["settings"]["samples"] == 4

    score = partial(sj.log_likelihood, bundle, samples=4, cfg_scale=0.5)
    right = 0
    for colour in COLOURS:
        scores = [score(colour["question"], f" {choice}") for choice in colour["choices"]]
        right += scores.index(max(scores)) == colour["answer"]
    assert found["steerling_choices"]["acc,none"] == pytest.approx(right / 3)

    nats = sum(score("", colour["question"]) for colour in COLOURS)
    size = sum(len(colour["question"]) for colour in COLOURS)
    assert found["steerling_rolling"]["bits_per_byte,none"] == pytest.approx(-nats / size / math.log(2), rel=1e-4)
    assert found["steerling_writing"]["exact_match,none"] == 0


def test_the_command_prints_a_table(harness, capsys):
    arguments = ["lm-eval", "--tasks", "steerling_choices", "--include-path", str(TASKS), "--limit", "1"]
    assert main([*arguments, "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "steerling_choices: 1 samples, guidance 0\n" in out
    assert "|acc_norm|" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "steerling_choises"], "has no task 'steerling_choises'"),
        (["--tasks", ","], "--tasks is empty"),
        (["--tasks", "steerling_choices", "--limit", "0"], "--limit is 0, but it must be a whole number of at least 1"),
        (["--tasks", "steerling_choices", "--samples", "0"], "samples is 0"),
        (["--tasks", "steerling_choices", "--max-length", "4"], "more than the model's context of 4"),
        (["--tasks", "steerling_choices", "--max-length", "129"], "max_length is 129"),
        (["--tasks", "steerling_writing", "--max-length", "16"], "leaves no room for a prompt"),
        (["--tasks", "steerling_choices", "--include-path", "no-such-folder"], "no-such-folder"),
    ],
)
def test_invalid_options_are_reported_in_one_sentence(harness, capsys, arguments, words):
    assert main(["lm-eval", "--include-path", str(TASKS), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_without_the_harness(monkeypatch, capsys):
    monkeypatch.setattr(lm_eval_command.importlib.util, "find_spec", lambda _: None)
    assert main(["lm-eval", "--tasks", "piqa"]) == 2
    assert "pip install 'steerling-jax[lm-eval]'" in capsys.readouterr().err


def test_documents_that_are_not_there(harness, capsys, tmp_path):
    text = (TASKS / "choices.yaml").read_text()
    (tmp_path / "lost.yaml").write_text(text.replace("colours.jsonl", "nowhere.jsonl").replace("_choices", "_lost"))
    assert main(["lm-eval", "--tasks", "steerling_lost", "--include-path", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: The documents of the task 'steerling_lost' cannot be read: ")
    assert "nowhere.jsonl" in error


def test_texts_are_what_generate_writes(bundle):
    """Up to the stop text or max_gen_toks; each with a seed of its own."""
    lm = SteerlingLM(bundle, seed=3, batch_size=2)
    options = {"until": ["a", "xyz"], "max_gen_toks": 11}
    found = lm.generate_until(requests("generate_until", *((c["question"], options) for c in COLOURS), ("", options)))
    for number, text in enumerate(found):
        prompt = COLOURS[number]["question"] if number < 3 else [bundle.config.bos_token_id]
        settings = sj.GenerationConfig(max_new_tokens=11, seed=3 + number, stop_tokens=(ord("a"),))
        assert text == cut(sj.generate(bundle, prompt, settings).text, ["a"])


def test_the_tasks_own_temperature(bundle):
    lm = SteerlingLM(bundle, sampling="task")
    greedy, warm = lm.generate_until(
        requests(
            "generate_until",
            ("Snow", {"until": "\n\n", "max_gen_toks": 8, "do_sample": False, "temperature": 0.7}),
            ("Snow", {"until": "\n\n", "max_gen_toks": 8, "do_sample": True, "temperature": 0.7}),
        )
    )
    plain = {"max_new_tokens": 8, "use_entropy_sampling": False, "repetition_penalty": 1.0, "top_p": 1.0}
    assert greedy == sj.generate(bundle, "Snow", sj.GenerationConfig(temperature=0.0, seed=0, **plain)).text.rstrip()
    assert warm == sj.generate(bundle, "Snow", sj.GenerationConfig(temperature=0.7, seed=1, **plain)).text.rstrip()


def test_long_contexts_lose_their_beginning(bundle):
    lm = SteerlingLM(bundle, samples=2, max_length=20, cfg_scale=1.5)
    [(score, greedy)] = lm.loglikelihood(requests("loglikelihood", ("x" * 90 + "It is ", "red")))
    expected = sj.log_likelihood(bundle, "x" * 11 + "It is", " red", samples=2, cfg_scale=1.5)
    assert score == pytest.approx(expected, rel=1e-5)
    assert greedy is False


def test_typography_is_read_as_ascii(bundle):
    lm = SteerlingLM(bundle, samples=2)
    fancy, plain = lm.loglikelihood(requests("loglikelihood", ("“It’s", " so…”"), ("\"It's", ' so..."')))
    assert fancy == pytest.approx(plain)


def test_windows_score_each_token_once():
    for length in (0, 5, 16, 17, 30, 100):
        ids = list(range(length))
        windows = list(rolling_windows(ids, 16))
        assert [i for _, scored in windows for i in scored] == ids
        for context, scored in windows:
            assert len(context) + len(scored) <= 16
            assert not scored or context == ids[scored[0] - len(context) : scored[0]]
        assert all(len(context) >= 8 for context, _ in windows[1:])


def test_long_texts_are_scored_in_windows(bundle):
    text = "abcdefghijklmnopqrstuvwxyz"
    lm = SteerlingLM(bundle, samples=3, max_length=16)
    [found] = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    score = partial(sj.log_likelihood, bundle, samples=3)
    ids = list(text.encode())
    expected = score([], ids[:16]) + score(ids[8:16], ids[16:24]) + score(ids[10:24], ids[24:])
    assert found == pytest.approx(expected, rel=1e-5)


def test_cut():
    assert cut("one two three", ["three", "two"]) == "one"
    assert cut("one two ", ["twos"]) == "one two"
    assert cut("one\n", []) == "one"


def test_it_is_registered_and_has_the_published_settings():
    assert get_model("steerling") is SteerlingLM
    assert set(PUBLISHED) == {"hellaswag", "arc_challenge", "winogrande", "piqa", "mmlu", "gsm8k"}
    assert PUBLISHED["winogrande"].cfg_scale == 1.5
