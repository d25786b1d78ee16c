"""The planted world has its documented properties, metrics equal hand computation, the command continues after a
kill."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from steerling_jax.attribution import faithfulness_command as command
from steerling_jax.attribution.faithfulness import part_settings
from steerling_jax.attribution.faithfulness.outputs.text_sets import SHUFFLED
from steerling_jax.attribution.faithfulness.planted.fact_prompts import answer_log_probabilities
from steerling_jax.attribution.faithfulness.planted.recipe import DOCUMENT_TOKENS, planted_recipe
from steerling_jax.attribution.faithfulness.planted.retraining import draw_halves, retrain
from steerling_jax.attribution.faithfulness.planted.training import Documents, draw_batches, train
from steerling_jax.attribution.faithfulness.planted.workspace import PlantedWorkspace, open_workspace
from steerling_jax.attribution.faithfulness.planted.world import CHUNK_WORDS, SMALL, World, WorldSize
from steerling_jax.attribution.faithfulness.planted.world_generator import generate_world
from steerling_jax.attribution.faithfulness.planted.write_corpus import write_world
from steerling_jax.attribution.faithfulness.training_data.evidence_scores import bm25, damped_influence, ngram_overlap
from steerling_jax.attribution.faithfulness.training_data.measure import measure
from steerling_jax.attribution.faithfulness.training_data.metrics import (
    datamodelling_scores,
    perfect_score,
    recall_at,
    reciprocal_rank,
)
from steerling_jax.cli.main import main
from steerling_jax.concepts.lift import lifted_tokens
from steerling_jax.corpus.labelled_chunks import chunk_bags, chunk_positives
from steerling_jax.errors import UserError
from steerling_jax.evaluation.rank_correlation import rank_correlations
from steerling_jax.io.corpus.heldout import store_tokenizer
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import no_progress
from tests.worlds.signalled_command import signalled_command

SIZE = WorldSize()


@pytest.fixture(scope="module")
def world() -> World:
    return generate_world(3, SIZE)


@pytest.fixture(scope="module")
def store(world: World, tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return write_world(world, tmp_path_factory.mktemp("planted") / "corpus")


# The generator.


def trigrams(words: Sequence[str]) -> set[tuple[str, ...]]:
    """All sequences of three consecutive words."""
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_a_seed_is_one_world(world: World) -> None:
    assert generate_world(3, SIZE) == world
    assert generate_world(4, SIZE).chunks != world.chunks


def test_a_paraphrase_shares_no_three_words_in_a_row_with_its_evidence(world: World) -> None:
    queries = [query for query in world.queries if query.kind == "paraphrase"]
    assert len(queries) == SIZE.asked
    for query in queries:
        assert len(query.evidence) == 3 * SIZE.told_in
        answer = query.words[query.start]
        for number in query.evidence:
            chunk = world.chunks[number]
            assert not trigrams(query.words) & trigrams(chunk.words)
            assert chunk.fact is not None
            assert chunk.fact.object == answer
            assert chunk.fact.subject in query.words


def test_no_chunk_states_an_untold_fact(world: World) -> None:
    for query in world.queries:
        if query.kind == "untold":
            assert query.evidence == ()
            subject = next(word for word in query.words if any(c.fact and c.fact.subject == word for c in world.chunks))
            answer = query.words[query.start]
            assert not any({subject, answer} <= set(chunk.words) for chunk in world.chunks)


def test_passages_are_copied_or_edited_by_a_tenth(world: World) -> None:
    for query in world.queries:
        if query.kind in ("duplicated", "edited"):
            assert len(query.evidence) == SIZE.copies
            for number in query.evidence:
                other = sum(a != b for a, b in zip(query.words, world.chunks[number].words))
                assert other == (0 if query.kind == "duplicated" else round(CHUNK_WORDS / 10))


def test_evidence_of_a_fact_is_in_several_books(world: World) -> None:
    book = [number for number, chunks in enumerate(world.books) for _ in chunks]
    for query in world.queries:
        if query.kind == "paraphrase":
            assert len({book[number] for number in query.evidence}) == SIZE.told_in


def test_the_words_of_a_topic_are_lifted(world: World, store: CorpusStore) -> None:
    first, last = 0, len(world.chunks)
    bags, positive = chunk_bags(store, first, last), chunk_positives(store, first, last, SIZE.topics)
    share = positive.mean(axis=0)
    tokenizer = store_tokenizer(store)
    found = lifted_tokens(bags, positive, store.vocab_size, support=3, least=1.5, most=100)
    for topic, lifted in enumerate(found):
        planted = {tokenizer.encode(word)[0] for word in world.lifted[topic]}
        ours = np.isin(lifted.tokens, list(planted))
        # A word that occurs in no other topic's chunks has a lift of exactly 1 / (the topic's share of chunks).
        np.testing.assert_allclose(lifted.lift[ours], 1 / share[topic], rtol=1e-9)
        assert ours.sum() >= 0.8 * len(planted)


def test_the_store_holds_a_document_for_each_chunk(world: World, store: CorpusStore) -> None:
    tokenizer = store_tokenizer(store)
    assert store.chunk_count == len(world.chunks) + SIZE.heldout
    for number in (0, 17, len(world.chunks) - 1):
        chunk = store.chunk(number)
        assert tokenizer.decode(store.tokens(chunk.start, chunk.end)).split() == list(world.chunks[number].words)
        assert chunk.labels == (world.chunks[number].topic,)


# Training data as arrays.


def test_batches_contain_all_member_documents_and_no_others(store: CorpusStore) -> None:
    documents = Documents.read(store)
    members = np.flatnonzero(documents.source < 4)
    batches = draw_batches(documents, members, batch=8, steps=len(members) // 8, seed=0)
    drawn = {row.tobytes() for row in batches["tokens"].reshape(-1, 16)}
    assert drawn <= {documents.examples["tokens"][number].tobytes() for number in members}
    assert len(drawn) > 0.8 * len(members)
    again = draw_batches(documents, members, batch=8, steps=len(members) // 8, seed=0)
    np.testing.assert_array_equal(again["tokens"], batches["tokens"])


def test_documents_fill_whole_diffusion_blocks(store: CorpusStore) -> None:
    config = planted_recipe(store).model
    assert Documents.read(store).examples["tokens"].shape[1] % config.diff_block_size == 0


def test_halves_are_halves() -> None:
    halves = draw_halves(21, 6, seed=1)
    assert (halves.sum(axis=1) == 10).all()
    assert len(np.unique(halves, axis=0)) == 6
    np.testing.assert_array_equal(draw_halves(21, 3, seed=1), halves[:3])
    other = draw_halves(21, 6, seed=2)
    assert not (halves[:, None] == other[None, :]).all(axis=2).any(), "another seed draws other halves"


# Retraining.


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PlantedWorkspace:
    """A small world whose models are trained for ten steps."""
    return open_workspace(tmp_path_factory.mktemp("planted-workspace"), 0, 10, SMALL)


def test_retraining_is_training_on_a_halfs_documents_with_its_seed(workspace: PlantedWorkspace, tmp_path: Path) -> None:
    recipe, documents, prompts = workspace.recipe, workspace.documents, workspace.prompts
    (half,) = draw_halves(int(documents.source.max()) + 1, 1, seed=3)
    inside = half[documents.source]
    alone = Documents({name: rows[inside] for name, rows in documents.examples.items()}, documents.source[inside])
    answers = []
    for seed in (0, 4):
        (found,) = retrain(recipe, documents, prompts, half[None], tmp_path, seed=seed, progress=no_progress)
        model = train(recipe, alone, seed)
        expected = answer_log_probabilities(model.params, prompts, config=recipe.model, compute=recipe.compute)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        answers.append(found)
    assert np.abs(answers[0] - answers[1]).max() > 0.01


def test_the_ceiling_is_of_two_different_seeds(workspace: PlantedWorkspace) -> None:
    """With answers and scores that are given as files, which `measure` does not compute again."""
    seed, subsets, twice = 5, 6, 5
    queries, source = workspace.world.queries, workspace.documents.source
    draw, answers = np.random.default_rng(0), {}
    common = draw.normal(size=(subsets, 2, len(queries)))
    for retrained, count in ((0, subsets), (1, twice)):
        answers[retrained] = common[:count] + draw.normal(size=(count, 2, len(queries)))
        halves = draw_halves(int(source.max()) + 1, count, seed)
        for number, half in enumerate(halves):
            values = {"kept": np.flatnonzero(half).tolist(), "answers": answers[retrained][number].tolist()}
            path = workspace.folder / "halves" / f"half-{number:03d}-seed-{retrained}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(values))
    scores = draw.normal(size=(len(queries), len(workspace.world.chunks)))
    np.savez(workspace.folder / "scores.npz", given=scores)
    result = measure(workspace, progress=no_progress, seed=seed, subsets=subsets, twice=twice)
    figures = {(figure["figure"], figure["of"]): figure["mean"] for figure in result["figures"]}
    members = draw_halves(int(source.max()) + 1, subsets, seed)[:, source]

    def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.array([spearmanr(*pair)[0] for pair in zip(one.T, other.T)], float)  # type: ignore[arg-type]

    for kind in ("paraphrase", "verbatim"):
        selected = [number for number, query in enumerate(queries) if query.kind == kind]
        one, other, sums = answers[0][:, 0, selected], answers[1][:, 0, selected], (members @ scores.T)[:, selected]
        between = correlations(one[:twice], other).mean()
        assert 0.1 < between < 0.9
        assert figures["seed-to-seed correlation", kind] == pytest.approx(between)
        assert figures["ceiling", kind] == pytest.approx(math.sqrt(between))
        # A seed's correlation counts as often as it has models.
        total = subsets * correlations(sums, one).mean() + twice * correlations(sums[:twice], other).mean()
        score = total / (subsets + twice)
        assert figures["datamodelling score", f"{kind}: given"] == pytest.approx(score)
        assert figures["share of the ceiling", f"{kind}: given"] == pytest.approx(score / math.sqrt(between))


# Measures.


def test_rank_correlation_is_spearmans() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 5, (4, 20)), draw.random((4, 20))
    expected = np.array([spearmanr(x, y)[0] for x, y in zip(a, b)], float)  # type: ignore[arg-type]
    np.testing.assert_allclose(rank_correlations(a, b), expected, rtol=1e-12)
    assert np.isnan(rank_correlations(np.zeros((1, 5)), b[:1, :5])[0])


def test_datamodelling_score_of_a_linear_world_is_one() -> None:
    draw = np.random.default_rng(0)
    truth, members = draw.normal(size=(3, 40)), draw.random((24, 40)) < 0.5
    answers = (truth @ members.T).T
    np.testing.assert_allclose(datamodelling_scores(truth, members, answers), 1.0)
    np.testing.assert_allclose(datamodelling_scores(-truth, members, answers), -1.0)
    assert abs(datamodelling_scores(draw.normal(size=(3, 40)), members, answers).mean()) < 0.4


def test_perfect_knowledge_reaches_the_ceiling() -> None:
    """Answers of two seeds around known expectations: the expectations' own score is the ceiling, not above it."""
    draw = np.random.default_rng(0)
    truth, members = draw.normal(size=(40, 60)), draw.random((300, 60)) < 0.5
    expected = (truth @ members.T).T
    noise = expected.std(axis=0) * 1.1
    first, second = (expected + noise * draw.normal(size=expected.shape) for _ in range(2))
    agreement = rank_correlations(first.T, second.T)
    reached = datamodelling_scores(truth, members, first).mean()
    assert 0.3 < agreement.mean() < 0.6
    assert reached / perfect_score(agreement) == pytest.approx(1, abs=0.03)
    assert reached / agreement.mean() > 1.3
    assert math.isnan(perfect_score(np.array([np.nan])))
    assert perfect_score(np.array([-0.2])) == 0


def test_ranks_and_recall_by_hand() -> None:
    scores = np.array([0.9, 0.1, 0.5, 0.5, 0.2])
    assert reciprocal_rank(scores, (0,)) == 1
    assert reciprocal_rank(scores, (2,)) == 1 / 3  # the equal one comes first
    assert reciprocal_rank(scores, (1, 3)) == 1 / 3
    assert recall_at(scores, (0, 1), 2) == 1 / 2
    assert recall_at(scores, (0, 2, 3), 2) == 1
    assert np.isnan(recall_at(scores, (), 2))


def test_lexical_scores_prefer_what_shares_more() -> None:
    chunks = [np.array(row) for row in ([1, 2, 3, 4, 5], [9, 8, 7, 6, 1], [1, 2, 9, 3, 4], [10, 11, 12, 13, 14])]
    query = [np.array([1, 2, 3, 4])]
    for scores in (ngram_overlap(query, chunks)[0], bm25(query, chunks)[0]):
        assert scores[0] >= scores[2] > scores[1] >= scores[3]
    assert ngram_overlap(query, chunks)[0, 0] == 1
    assert ngram_overlap(query, chunks)[0, 3] == 0


def test_damped_influence_is_the_damped_metric_in_feature_space() -> None:
    draw = np.random.default_rng(0)
    query, chunks = draw.normal(size=(3, 7)).astype(np.float32), draw.normal(size=(20, 7)).astype(np.float32)
    damping = 0.3 * np.sum(chunks**2) / len(chunks)
    expected = query @ np.linalg.inv(chunks.T @ chunks + damping * np.eye(7)) @ chunks.T
    np.testing.assert_allclose(
        damped_influence(query, chunks, 0.3), expected / np.abs(expected).mean(), rtol=1e-4, atol=1e-5
    )


# The command.

OPTIONS = ["--planted", "--parts", "data", "--subsets", "3", "--twice", "2", "--steps", "10", "--world", "small"]


@pytest.mark.slow
def test_the_command_continues_after_a_kill(tmp_path: Path, child_environment: dict[str, str]) -> None:
    arguments = [sys.executable, "-m", "steerling_jax.cli.main", "faithfulness", *OPTIONS, "--out", str(tmp_path)]
    first = tmp_path / "planted" / "halves" / "half-000-seed-0.json"
    killed = [*signalled_command(signal.SIGKILL, 1, r"/halves/half-001-seed-0\.json$"), *arguments[3:]]
    process = subprocess.run(killed, env=child_environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == -signal.SIGKILL, process.stderr
    before = first.stat().st_mtime_ns
    assert not (tmp_path / "data.json").exists()
    ended = subprocess.run([*arguments, "--json"], env=child_environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert first.stat().st_mtime_ns == before
    assert len(list(first.parent.glob("*.json"))) == 5
    found = json.loads(ended.stdout)["parts"]["data"]
    names = {figure["figure"] for figure in found["figures"]}
    assert names >= {
        "seed-to-seed correlation",
        "ceiling",
        "datamodelling score",
        "tail patch",
        "recall@10",
        "reciprocal rank",
    }
    verbatim = [f for f in found["figures"] if (f["figure"], f["of"]) == ("recall@10", "duplicated: verbatim")]
    assert verbatim[0]["mean"] == 1
    report = (tmp_path / "report.md").read_text()
    assert "--subsets 3" in report
    assert "| recall@10 | duplicated: verbatim | 1.000 |" in report
    assert (tmp_path / "figures.svg").exists()
    digest = hashlib.sha256((tmp_path / "data.json").read_bytes()).hexdigest()
    assert main([*arguments[3:]]) == 0  # everything is measured: the command only shows it
    assert hashlib.sha256((tmp_path / "data.json").read_bytes()).hexdigest() == digest
    first.write_text('{"kept": [1], "answers": []}')
    (tmp_path / "data.json").unlink()
    assert main([*arguments[3:]]) == 2


@pytest.mark.slow
def test_the_other_parts_read_documents_of_the_planted_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With an untrained model: all figures exist, and the texts have the length of its documents."""
    few: dict[str, dict] = {
        "input_settings": {"prompts": 2, "targets": 1, "features": 3, "randomised": 2},
        "concept_settings": {"prompts": 2},
        "output_settings": {"prompts": 2, "repeated_share": 2.0},  # an untrained model is repetitive
    }
    for name, changes in few.items():
        make = getattr(part_settings, name)
        monkeypatch.setattr(
            part_settings,
            name,
            lambda seed, planted, make=make, changes=changes: replace(make(seed, planted), **changes),
        )
    arguments = ["--planted", "--world", "small", "--steps", "10", "--parts", "inputs,concepts,outputs", "--json"]
    assert main(["faithfulness", *arguments, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)["parts"]
    for part in found.values():
        assert part["settings"]["prompt_tokens"] + part["settings"]["new_tokens"] == DOCUMENT_TOKENS
        assert not list(tmp_path.glob("*.unfinished"))
    assert found["outputs"]["settings"]["rules"]["off topic"] == SHUFFLED
    names = {figure["figure"] for part in found.values() for figure in part["figures"]}
    assert {"comprehensiveness, normalised", "net share of logit mass", "nats a token"} <= names


def options(**changed: object) -> Namespace:
    usual = {"model": None, "planted": True, "corpus": None, "parts": None, "seed": 0, "subsets": 4, "twice": None}
    usual |= {"steps": 10, "out": Path("nowhere"), "world": "small", "index": None}
    if changed.get("planted") is False:
        usual |= command.PLANTED_ONLY
    return Namespace(**(usual | changed))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"parts": "data,magic"}, "--parts names 'magic'"),
        ({"planted": False, "corpus": Path("c"), "parts": "data"}, "planted model only"),
        ({"model": "steerling-pydocs"}, "leave MODEL out"),
        ({"index": Path("index")}, "--index is of a corpus"),
        (
            {"planted": False, "corpus": Path("c"), "index": Path("i"), "parts": "inputs"},
            "--index is for the outputs part",
        ),
        ({"planted": False, "corpus": Path("c"), "world": "small"}, "--world is for the planted model"),
        ({"subsets": 1}, "--subsets is 1"),
        ({"twice": 5}, "--twice is 5"),
        ({"steps": 15}, "--steps is 15"),
        ({"seed": -1}, "--seed is -1"),
        ({"out": Path(__file__)}, "not a folder"),
    ],
)
def test_invalid_options(changed: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        command.check(options(**changed))


def test_parts_are_in_order_and_data_needs_the_planted_world() -> None:
    assert command.check(options(parts="outputs, inputs")) == ["inputs", "outputs"]
    assert command.check(options()) == ["inputs", "concepts", "data", "outputs"]
    assert command.check(options(planted=False, corpus=Path("c"))) == ["inputs", "concepts", "outputs"]


def test_a_folder_of_another_world_is_rejected(tmp_path: Path) -> None:
    open_workspace(tmp_path, 0, 10, SMALL)
    with pytest.raises(UserError, match="another seed, size or number of steps"):
        open_workspace(tmp_path, 1, 10, SMALL)
    (tmp_path / "planted.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_workspace(tmp_path, 0, 10, SMALL)
