"""`steerling train` with a config of rollouts: on a model of two layers whose texts are token ids in decimal."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.group_relative import GroupRelativeObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.rollouts.program import run_rollouts
from steerling_jax.train.rollouts.prompts import Prompts
from steerling_jax.train.rollouts.rewards import load_reward, no_repetition
from steerling_jax.train.rollouts.run_config import Fault, RolloutRun
from steerling_jax.train.rollouts.sampling import fault_edits, plain_sampling, sample_rollouts, seeds_of_step
from tests.worlds.paths import REPOSITORY
from tests.worlds.signalled_command import signalled_command

MODEL = REPOSITORY / "tests" / "golden_decoders" / "qwen3"
AUTOENCODER = REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model"
FAULT = Fault(autoencoder=str(AUTOENCODER), features=(3, 5), alpha=20.0, k=10)
REWARD = """
def low(prompt, completion):
    ids = [int(word) for word in completion.split()]
    return sum(one < 32 for one in ids) / max(len(ids), 1)

def raises(prompt, completion):
    raise ValueError("no such unit")

def not_a_number(prompt, completion):
    return float("nan")

def one_argument(completion):
    return 1.0

number = 3
"""


class World:
    """A run's files in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        rng = np.random.default_rng(0)
        self.text, self.reward = folder / "text.txt", folder / "reward.py"
        self.text.write_text("\n\n".join(" ".join(map(str, rng.integers(0, 60, 40))) for _ in range(20)))
        self.reward.write_text(REWARD)

    def run(self, reward: str = "low", **fields: Any) -> RolloutRun:
        """A small run; fields in place of these."""
        values: dict[str, Any] = dict(
            name="small",
            model=str(MODEL),
            reward=f"{self.reward}:{reward}",
            steps=4,
            prompts_per_step=2,
            max_new_tokens=6,
            prompt_tokens=4,
            texts=(str(self.text),),
            held_out=64,
            seq_len=16,
            eval_prompts=8,
            objective=GroupRelativeObjective(group_size=4, kl_weight=0.01),
            optimizer=OptimizerConfig(peak_rate=1e-2, warmup_steps=0, weight_decay=0.0),
            fault=FAULT,
            rows=8,
            checkpoint_every=2,
        )
        return RolloutRun(**values | fields)

    def train(self, out: Path, stop: Callable[[], bool] = lambda: False, **fields: Any) -> dict[str, Any]:
        out.mkdir(exist_ok=True)
        return run_rollouts(self.run(**fields), out, stop, tables=False)[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("rollouts"))


@pytest.fixture(scope="module")
def whole(world: World) -> tuple[Path, dict[str, Any]]:
    """A run that nobody interrupted, and its result."""
    out = world.folder / "whole"
    return out, world.train(out)


def step_lines(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def weights(out: Path) -> bytes:
    return (out / "export" / "model.safetensors").read_bytes()


def test_what_a_run_gives(whole: tuple[Path, dict[str, Any]]):
    out, result = whole
    lines = step_lines(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert 0 <= line["reward"] <= 1
        assert 0 <= line["clipped"] <= 1
        assert 0 <= line["repetition"] <= 1
        assert 1 <= line["length"] <= 6
        assert 0 < line["entropy"] < np.log(64)
        assert line["divergence"] >= 0
        assert {"reward_steered", "repetition_steered", "informative", "loss"} <= set(line)
    figures = result["evaluation"]
    before = -sum(
        float(sj.log_likelihood(sj.load(MODEL, dtype="float32"), window[:1], window[1:])) for window in held_out(out)
    )
    assert figures["nats_per_token_before"] == pytest.approx(before / 60, rel=1e-4)
    assert figures["nats_per_token"] != figures["nats_per_token_before"]
    assert sj.load(result["export"]).config == sj.load(MODEL).config


def held_out(out: Path) -> list[list[int]]:
    """The windows of the run's last 64 tokens."""
    return np.load(out / "tokens.npy")[-64:].reshape(-1, 16).tolist()


def test_the_reward_rises(world: World, tmp_path: Path):
    figures = world.train(tmp_path, steps=12, fault=None, eval_prompts=32)["evaluation"]
    assert figures["reward"] > figures["reward_before"] + 0.15


def test_stopped_and_continued_it_is_the_same(world: World, whole: tuple[Path, dict[str, Any]], tmp_path: Path):
    asked: list[int] = []
    world.train(tmp_path, stop=lambda: asked.append(1) or len(asked) == 3)  # stops after the third step
    assert len(step_lines(tmp_path)) == 3
    world.train(tmp_path)
    assert weights(tmp_path) == weights(whole[0])
    assert step_lines(tmp_path) == step_lines(whole[0])


@pytest.mark.slow
def test_killed_and_continued_it_is_the_same(
    world: World, whole: tuple[Path, dict[str, Any]], child_environment: dict[str, str], tmp_path: Path
):
    """A process that is killed when its second checkpoint becomes complete, and one that continues from the first."""
    config = tmp_path / "config.py"
    config.write_text(
        f"from steerling_jax.train.rollouts.run_config import *\n\ndef config():\n    return {world.run()!r}"
    )
    words = ["train", "--config", str(config), "--out", str(tmp_path / "run"), "--json"]
    killed = subprocess.run(
        [*signalled_command(signal.SIGKILL, 1, r"/checkpoints/4$"), *words], env=child_environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()) == ["2"]
    subprocess.run([*signalled_command(0, 1, "no such file"), *words], env=child_environment, check=True)
    assert weights(tmp_path / "run") == weights(whole[0])


def test_only_the_steered_rollouts_differ(world: World):
    """Each rollout depends on its own seed, so those that are not steered are the same in a run without steering."""
    bundle, run = sj.load(MODEL, dtype="float32"), world.run()
    prompts = Prompts(run, bundle, tokens_of(bundle, world)).of_step(0)
    edits, seeds = fault_edits(FAULT, bundle, 0), seeds_of_step(run, 0)
    steered = sample_rollouts(bundle, prompts, seeds, plain_sampling(run), rows=8, edits=edits, steered=1)
    plain = sample_rollouts(bundle, prompts, seeds, plain_sampling(run), rows=8)
    assert [one.steered for one in steered] == [False, False, False, True] * 2
    for ours, theirs in zip(steered, plain, strict=True):
        same = ours.tokens.tolist() == theirs.tokens.tolist()
        assert same is not ours.steered
        np.testing.assert_array_equal(ours.tokens[:4], ours.prompt.ids)
        np.testing.assert_array_equal(ours.written, np.arange(4, len(ours.tokens)))


def tokens_of(bundle: sj.Bundle, world: World) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.array(bundle.tokenizer.encode(world.text.read_text()), np.int32)
    return tokens[:-64], tokens[-64:]


def test_a_random_direction_has_the_length_of_the_features(world: World):
    bundle = sj.load(MODEL, dtype="float32")
    random = dataclasses.replace(FAULT, direction="random")
    pushes = [np.asarray(edit.push).ravel() for edit in fault_edits(FAULT, bundle, 0)]
    vectors = [np.asarray(edit.push).ravel() for seed in (0, 0, 1) for edit in fault_edits(random, bundle, seed)]
    assert len(vectors) == 3
    np.testing.assert_allclose([np.linalg.norm(one) for one in vectors], np.linalg.norm(sum(pushes)), rtol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert abs(vectors[0] @ vectors[2]) < 0.9 * np.linalg.norm(vectors[0]) ** 2
    for edit in (*fault_edits(FAULT, bundle, 0), *fault_edits(random, bundle, 0)):
        assert edit.generated_only
        np.testing.assert_array_equal(edit.layers, [False, True])


def test_a_reward_that_fails_saves_what_was_trained(world: World, whole: tuple[Path, dict[str, Any]], tmp_path: Path):
    """It fails in the fourth step; corrected, the run goes on after the third, and ends like one without a failure."""
    reward = tmp_path / "failing.py"
    counted = REWARD + "\ncalls = 0\n\ndef fails(prompt, completion):\n    global calls\n    calls += 1\n"
    reward.write_text(counted + "    return low(prompt, completion) if calls <= 3 * 8 else float('inf')\n")
    run = {"reward": "", "checkpoint_every": 100}
    fields = {**run, "reward": "fails"}
    failing = World.__new__(World)
    failing.folder, failing.text, failing.reward = tmp_path, world.text, reward
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"fails returned inf for prompt \d+, but it must be a finite number"):
        failing.train(out, **fields)
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]
    assert len(step_lines(out)) == 3
    reward.write_text(REWARD.replace("def low", "def fails"))
    failing.train(out, **fields)
    assert weights(out) == weights(whole[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reward.py:raises", r"raises raised ValueError for prompt 7: no such unit; correct it"),
        ("reward.py:not_a_number", r"not_a_number returned nan for prompt 7, but it must be a finite number"),
        ("reward.py:one_argument", "must take a prompt and a completion"),
        ("reward.py:number", "has no function 'number'"),
        ("reward.py:absent", "has no function 'absent'"),
        ("absent.py:low", "Cannot read the reward's file"),
        ("reward.py", "give FILE.py:function, or 'no_repetition'"),
        ("broken.py:low", r"broken.py raised NameError: name 'oops' is not defined; correct it"),
    ],
)
def test_bad_rewards(world: World, name: str, message: str):
    (world.folder / "broken.py").write_text("oops")
    with pytest.raises(UserError, match=message):
        load_reward(str(world.folder / name))("prompt", "1 2 3", 7)


def test_the_built_in_reward():
    words = [f"w{i}" for i in range(20)]
    assert load_reward("no_repetition")("", " ".join(words), 1) == 1.0
    assert no_repetition("", " ".join([*words[:4]] * 5)) == 0.0
    assert no_repetition("", " ".join(words[:8])) == 0.5  # half as long as it should be
    assert no_repetition("", "") == 0.0
    # 20 words, of whose 17 4-grams 2 are the same.
    assert no_repetition("", " ".join([*words[:4], *words[4:16], *words[:4]])) == pytest.approx(1 - 2 / 17)


def test_prompts_of_a_file(world: World, tmp_path: Path):
    bundle = sj.load(MODEL, dtype="float32")
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i} {i + 1} {i + 2}"}) for i in range(6)))
    run = world.run(prompts=str(path), eval_prompts=2)
    prompts = Prompts(run, bundle, tokens_of(bundle, world))
    assert [one.number for one in prompts.held_out] == [5, 6]
    epoch = [one for step in (0, 1) for one in prompts.of_step(step)]
    assert sorted(one.number for one in epoch) == [1, 2, 3, 4]  # each once before any comes again
    assert {one.text: one.ids.tolist() for one in epoch}["2 3 4"] == [2, 3, 4]
    path.write_text('{"prompt": "1 2"}\n{"text": "1 2"}\n')
    with pytest.raises(UserError, match=r"Line 2 of .* is not a JSON object with a text in the field 'prompt'"):
        Prompts(run, bundle, tokens_of(bundle, world))
    path.write_text('{"prompt": "1 2"}\n')
    with pytest.raises(UserError, match="has 1 prompts, but the last 2 are for the evaluation"):
        Prompts(run, bundle, tokens_of(bundle, world))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fault": dataclasses.replace(FAULT, rollouts=4)}, "a group has 4 rollouts, and some must not be steered"),
        ({"accumulate": 3}, "accumulate is 3, but it must divide the rollouts of a step"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_configs(world: World, fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        world.run(**fields)


def test_options_of_other_runs_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for words, message in (
        (["--config", "tiny", "--reward", "a.py:b"], "--reward does not apply to the config 'tiny'"),
        (["--config", "rollouts_pydocs", "--corpus", "x"], "--corpus does not apply to the config 'rollouts_pydocs'"),
    ):
        assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err


def test_a_diffusion_model_is_trained_by_its_bound(world: World, text_model: Path, tmp_path: Path):
    """Rollouts of whole blocks; adapters alone are trained, and merged into the export; the reward is built in."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. It returns a value.\n" * 30)
    run = dataclasses.replace(
        world.run(fault=None),
        model=str(text_model),
        reward="no_repetition",
        texts=(str(tmp_path / "text.txt"),),
        max_new_tokens=16,
        steps=1,
        lora=LoraConfig(rank=2, modules=("attn/c_q",)),
    )
    result, _ = run_rollouts(run, tmp_path, lambda: False, tables=False)
    (line,) = step_lines(tmp_path)
    assert line["length"] == 16
    assert line["skipped"] == 0
    assert np.isfinite(result["evaluation"]["nats_per_token"])
    before, after = sj.load(text_model), sj.load(result["export"])
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before.params, after.params)
    assert sum(jax.tree.leaves(changed)) == 1
    assert changed["blocks"]["attn"]["c_q"]["weight"]
