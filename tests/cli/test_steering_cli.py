"""`steerling concepts`, and the steering options of `steerling generate`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from steerling_jax.cli.main import main
from tests.worlds.progress_lines import without_progress

GOLDEN = str(Path(__file__).parents[1] / "golden" / "base")
WRITE = ("generate", "--model", GOLDEN, "--prompt-ids", "1 2 3", "--max-new-tokens", "16", "--greedy")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(args)
    output = capsys.readouterr()
    return code, output.out, without_progress(output.err)


def test_concepts_of_the_bundled_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run(capsys, "concepts", "email", "--limit", "1", "--tokens", "3")
    assert (code, out.split()[:5]) == (0, ["id", "name", "group", "description", "promotes"])
    assert "Email and MIME  topic  Messages, headers" in out
    code, out, _ = run(capsys, "concepts", "email", "--limit", "1", "--tokens", "3", "--json")
    (found,) = json.loads(out)
    assert (found["name"], found["head"], len(found["promotes"])) == ("Email and MIME", "known", 3)
    code, out, err = run(capsys, "concepts", "--head", "discovered", "--limit", "2", "--tokens", "1", "--json")
    discovered = json.loads(out)
    assert [one["id"] for one in discovered] == [0, 1]
    assert all(one["name"] and one["head"] == "discovered" for one in discovered)
    code, out, err = run(capsys, "concepts", "group:syntax", "--limit", "2")
    assert "2 of " in err
    assert "--limit shows more" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("sockit",), "similar names are 'Networking'"),
        (("emial",), "similar names are 'Email and MIME'"),
        (("--limit", "0"), "--limit is 0, but it must be a whole number of at least 1"),
        (("--tokens", "-1"), "--tokens is -1, but it must be a whole number of at least 0"),
        (("group:topics",), "There is no group 'topics'"),
        (("100000",), "There is no known concept 100000"),
        (("--catalogue", "none.json"), "none.json"),
    ],
)
def test_concepts_reports_invalid_input_in_one_sentence(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str
):
    code, out, err = run(capsys, "concepts", *args)
    assert (code, out) == (2, "")
    assert words in err


def test_concepts_takes_names_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "names.json").write_text('[{"id": 3, "name": "Gardens", "flags": ["sensitive"]}]')
    args = ("concepts", "--model", GOLDEN, "--catalogue", str(tmp_path / "names.json"))
    assert "Gardens" in run(capsys, *args, "gard")[1]
    assert "[sensitive]" in run(capsys, *args, "#3")[1]
    assert json.loads(run(capsys, *args, "xyzzy", "--json")[1]) == []


def test_generate_tells_the_seed_that_it_drew(capsys: pytest.CaptureFixture[str]):
    args = ("generate", "--model", GOLDEN, "--prompt-ids", "1 2 3", "--max-new-tokens", "20")
    code, text, err = run(capsys, *args)
    assert code == 0
    (seed,) = re.findall(r"^The seed was (\d+); --seed \1 writes the same text again.$", err, re.MULTILINE)
    assert run(capsys, *args, "--seed", seed)[1:] == (text, "")
    assert run(capsys, *args, "--greedy")[2] == ""
    assert json.loads(run(capsys, *args, "--seed", seed, "--json")[1])["generated_tokens"] == len(text.split()) == 20


def test_generate_prints_the_labels_of_its_steering(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "p.toml").write_text("[[rule]]\naction = 'suppress'\nconcept = 9\nstrength = 3\nreason = 'a test'")
    _, plain, _ = run(capsys, *WRITE)
    code, out, err = run(capsys, *WRITE, "--amplify", "4=50", "--policy", str(tmp_path / "p.toml"))
    assert code == 0
    assert out != plain
    assert err.splitlines() == ["amplify concept 4 at 50", "p.toml, rule 1: suppress concept 9 at 3 (a test)"]
    note, label = run(capsys, *WRITE, "--amplify", "4")[2].splitlines()
    assert note.startswith("--amplify 4: without a number, the strength is that of the published 8B models")
    assert label == "amplify concept 4 at 8"
    shown = json.loads(run(capsys, *WRITE, "--amplify", "4=50", "--like-response", "5 9 12", "--json")[1])
    assert shown["steering"][0] == "amplify concept 4 at 50"
    assert shown["steering"][1].startswith("like the response at 8: ")


def test_generate_clamps_under_the_rule_for_epsilon_that_is_given(capsys: pytest.CaptureFixture[str]):
    """Discovered concepts alone can be clamped under 'frozen' only, which is not the default."""
    code, _, err = run(capsys, *WRITE, "--clamp-discovered", "3=2", "--epsilon", "frozen")
    assert (code, err.splitlines()) == (0, ["clamp discovered concept 3 at 2"])
    code, _, err = run(capsys, *WRITE, "--clamp-discovered", "3=2")
    assert code == 2
    assert "epsilon 'frozen'" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--amplify", "gardens"), "have no names; give an id from 0 to 99"),
        (("--amplify", "100"), "the ids are 0 to 99"),
        (("--amplify", "4=lots"), "--amplify '4=lots': the strength is 'lots'"),
        (("--suppress", "4=-2"), "the strength is '-2'"),
        (("--amplify", "4", "--suppress", "4"), "keep one of the two"),
        (("--policy", "none.toml"), "Cannot read the policy none.toml"),
        (("--repetition-penalty", "1.1"), "--greedy and --repetition-penalty contradict each other"),
        (("--like-response", "@none.txt"), "Cannot read the response none.txt"),
    ],
)
def test_generate_reports_invalid_input_in_one_sentence(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str
):
    code, out, err = run(capsys, *WRITE, *args)
    assert (code, out) == (2, "")
    assert words in err
