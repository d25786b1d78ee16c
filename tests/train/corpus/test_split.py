"""Near-duplicates and the split: clusters, samples, and the share that is held out."""

from __future__ import annotations

from pathlib import Path

from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.split import in_sample, near_duplicates, split_of_key
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare


def words(start: int, count: int) -> str:
    return " ".join(f"word{i}" for i in range(start, start + count))


def test_near_copies_are_one_cluster():
    texts = [words(0, 100), words(5, 95), words(1000, 100), words(1000, 70) + " " + words(2000, 300), "other", "other"]
    assert near_duplicates(texts) == [0, 0, 2, 2, 4, 4]


def test_boilerplate_joins_nothing():
    texts = [words(0, 20) + words(1000 * (i + 1), 25) for i in range(60)]
    assert near_duplicates(texts) == list(range(60))


def test_many_versions_of_one_text_are_one_cluster():
    texts = [words(0, 60) + " " + words(1000 * (i + 1), 10) for i in range(60)]
    others = [words(100_000 + 1000 * i, 60) for i in range(5)]
    assert near_duplicates([*texts[:30], *others, *texts[30:]]) == [0] * 30 + list(range(30, 35)) + [0] * 30


def test_texts_of_one_name_are_one_cluster():
    texts = [words(0, 100), words(1000, 50), words(5, 95), words(2000, 50), words(3000, 50)]
    assert near_duplicates(texts, ["", "x", "x", "y", ""]) == [0, 0, 0, 3, 4]


def test_a_named_cluster_stays_with_its_near_duplicates(tmp_path: Path):
    texts = [f"{words(100 * (i // 2), 60)} end{i}" for i in range(160)]  # pairs; a name joins two of them
    documents = [Document(str(i), "text", text, cluster=f"c{i // 4}" * (i % 2)) for i, text in enumerate(texts)]
    tokenizer = SentencePieceTokenizer(train_sentencepiece([Path(__file__).read_text(encoding="utf-8")] * 5, 400))
    inputs = CorpusInputs(documents=documents, tokenizer=tokenizer)
    made = prepare(tmp_path / "s", inputs, PrepareConfig(heldout_share=0.3))
    sides = {int(document.name): document.split for document in made.documents}
    assert all(len({sides[4 * i + j] for j in range(4)}) == 1 for i in range(40))
    assert 0.1 < list(sides.values()).count("heldout") / 160 < 0.5


def test_no_texts():
    assert near_duplicates([]) == []


def test_the_split_is_by_key():
    sides = [split_of_key(str(i), 0.04) for i in range(2000)]
    assert sides == [split_of_key(str(i), 0.04) for i in range(2000)]
    assert 0.02 < sides.count("heldout") / len(sides) < 0.06


def test_samples_are_nested():
    documents = [Document(str(i), "text", words(i, 10)) for i in range(500)]
    tenth, half = ({d.name for d in documents if in_sample(d, share)} for share in (0.1, 0.5))
    assert tenth < half
    assert 200 < len(half) < 300
