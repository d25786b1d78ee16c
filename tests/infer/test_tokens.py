"""Batch files, traces and the lm-eval adapter with an autoregressive model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.decoding.trace_record import restore
from steerling_jax.io.tokenizers.byte_table import ByteTable
from steerling_jax.io.trace_file import read_trace
from tests.worlds.decoders import GOLDEN_DECODERS

LLAMA = GOLDEN_DECODERS / "llama"


def test_a_batch_has_the_texts_of_generate_and_their_traces(tmp_path: Path):
    lines = [
        {"id": 1, "prompt_ids": [5, 6, 7], "max_tokens": 6, "temperature": 0.0},
        {"id": 2, "prompt": "5 6 7 8", "max_tokens": 5, "seed": 3, "top_k": 9, "trace": True},
        {"id": 3, "prompt_ids": [5], "steps": 2},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["generate", "--model", str(LLAMA), "--input", str(source), "--output", str(target), "--rows", "2"]
    assert main(arguments) == 1  # one line is an error
    results = {line["id"]: line for line in map(json.loads, target.read_text().splitlines())}
    bundle = sj.load(LLAMA)
    greedy = sj.generate(bundle, [5, 6, 7], sj.GenerationConfig(max_new_tokens=6, temperature=0.0))
    drawn = sj.generate(bundle, [5, 6, 7, 8], sj.GenerationConfig(max_new_tokens=5, seed=3, top_k=9))
    assert (results[1]["text"], results[1]["finish_reason"]) == (greedy.text, "length")
    assert results[2]["text"] == drawn.text
    assert "steps is 2, but it has a meaning for diffusion models only" in results[3]["error"]["message"]
    assert results[2]["trace"]["generation"]["use_entropy_sampling"] is False
    (tmp_path / "trace.json").write_text(json.dumps(results[2]["trace"]))
    record = read_trace(tmp_path / "trace.json")
    trace = restore(record, bundle)
    np.testing.assert_array_equal(trace.tokens, drawn.tokens)
    assert trace.commits == drawn.trace.commits
    assert record.generation is not None
    again = sj.generate(bundle, trace.prompt.tolist(), dataclasses.replace(record.generation, seed=record.seed))
    np.testing.assert_array_equal(again.tokens, drawn.tokens)


class Letters(ByteTable):
    """A letter is an id; a text begins with id 1."""

    prefix = (1,)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 64 for letter in text if 65 <= ord(letter) < 128]


@pytest.fixture(scope="module")
def letters() -> sj.Bundle:
    bundle = sj.load(LLAMA)
    pieces: list[bytes | None] = [None, None, *(bytes([i + 64]) for i in range(2, 64))]
    tokenizer = Letters(pieces, bundle.tokenizer.special, 64, "0" * 64)
    return dataclasses.replace(bundle, tokenizer=tokenizer, config=dataclasses.replace(bundle.config, bos_token_id=1))


def test_lm_eval_scores_exactly_and_writes_greedily(letters):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from lm_eval.api.instance import Instance

    from steerling_jax.infer.lm_eval.adapter import SteerlingLM

    lm = SteerlingLM(letters, batch_size=2, max_gen_toks=6)
    greedy = sj.generate(letters, "hello", sj.GenerationConfig(max_new_tokens=6, temperature=0.0))
    pairs = [("hello", greedy.text), ("hello", "zz"), ("", "word")]
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    for pair, (value, _) in zip(pairs, found):
        assert value == pytest.approx(sj.log_likelihood(letters, *pair), abs=1e-4)
    assert [is_greedy for _, is_greedy in found] == [True, False, False]
    [text] = lm.generate_until([Instance("generate_until", {}, ("hello", {"until": ["\n"]}), 0)])
    assert text == greedy.text.rstrip()
