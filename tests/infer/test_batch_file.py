"""`steerling generate --input --output`: every line is processed once, also if the process is killed."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.infer.batch.result_file import repair
from tests.worlds.serving_world import PATIENCE, held_command, write_whole

LINES = [
    {"id": f"line {i}", "prompt": "The quick brown"[: 3 + i % 12], "seed": i, "max_tokens": 3 + i % 12}
    for i in range(20)
]


def write(path: Path, lines: list) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(model: Path, source: Path, target: Path, *options: str) -> int:
    line = ["generate", "--model", str(model), "--input", str(source), "--output", str(target), "--rows", "1"]
    return main([*line, *options])


@pytest.fixture(scope="module")
def results(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The results of a run without interruptions."""
    folder = tmp_path_factory.mktemp("batch")
    assert run(text_model, write(folder / "in.jsonl", LINES), folder / "out.jsonl") == 0
    found = {line["id"]: line for line in read(folder / "out.jsonl")}
    assert set(found) == {line["id"] for line in LINES}
    return found


def test_results(results: dict[str, dict]):
    for line in LINES:
        result = results[line["id"]]
        assert set(result) == {"id", "text", "finish_reason", "prompt_tokens", "generated_tokens", "seed"}
        assert (result["generated_tokens"], result["finish_reason"]) == (line["max_tokens"], "length")
        assert result["seed"] == line["seed"]


def start(model: Path, source: Path, target: Path, held: Path, environment: dict[str, str]) -> subprocess.Popen:
    """`run` in a process of its own, with two rows, whose decoder makes one call and then waits for the end of `held`.

    Returns when the call's results are written.
    """
    before = len(read_whole(target)) if target.exists() else 0
    write_whole(held, "1")
    line = [*held_command(held), "generate", "--model", str(model), "--rows", "2"]
    line += ["--input", str(source), "--output", str(target)]
    process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while not target.exists() or len(read_whole(target)) == before:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    return process


def test_killed_again_and_again(text_model: Path, results: dict, tmp_path: Path, child_environment: dict[str, str]):
    """SIGKILL during the run: together, the runs process every line once, with the same texts as a single run."""
    source, target = write(tmp_path / "in.jsonl", LINES), tmp_path / "out.jsonl"
    for _ in range(2):
        with start(text_model, source, target, tmp_path / "held", child_environment) as process:
            process.kill()
        with target.open("a") as file:
            file.write('{"id": "line 3", "te')  # as if it had been killed during a write
    assert 2 <= len(read_whole(target)) < len(LINES)
    assert run(text_model, source, target) == 0
    assert Counter(line["id"] for line in read(target)) == Counter(line["id"] for line in LINES)
    assert {line["id"]: line for line in read(target)} == results
    written = target.read_bytes()
    assert run(text_model, source, target) == 0
    assert target.read_bytes() == written


def test_a_second_run_on_the_same_output_is_refused(text_model: Path, tmp_path: Path, child_environment, capsys):
    folder = tmp_path / "results"
    folder.mkdir()
    source, target = write(tmp_path / "in.jsonl", LINES), folder / "out.jsonl"
    (folder / "link.jsonl").symlink_to(target)
    with start(text_model, source, target, tmp_path / "held", child_environment) as process:
        for path in (target, folder / "link.jsonl"):
            assert run(text_model, source, path) == 2
            assert f"Another process is writing results to {path}" in capsys.readouterr().err
        (tmp_path / "held").unlink()
        assert process.wait(PATIENCE) == 0
    assert Counter(line["id"] for line in read(target)) == Counter(line["id"] for line in LINES)
    assert run(text_model, source, target) == 0  # the lock is released, and its file removed
    assert sorted(path.name for path in folder.iterdir()) == ["link.jsonl", "out.jsonl"]


def test_ids_that_are_finished_are_skipped_as_numbers_and_as_texts(text_model: Path, tmp_path: Path, capsys):
    source = write(tmp_path / "in.jsonl", [{"id": "1", "prompt": "a"}, {"id": 2, "prompt": "a", "max_tokens": 3}])
    target = write(tmp_path / "out.jsonl", [{"id": 1, "text": "b"}])
    assert run(text_model, source, target) == 0
    assert [line["id"] for line in read(target)] == [1, 2]
    assert "1 were there already" in capsys.readouterr().err


def read_whole(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_an_invalid_line_does_not_stop_the_others(
    text_model: Path, results: dict, tmp_path: Path, capsys: pytest.CaptureFixture
):
    bad = [
        ("nonsense\n", "line 2: this is not JSON"), ("[1]\n", "line 3: this is JSON, but not an object"),
        ({"id": "x", "prompt": "a", "promt": 1}, 'line 4: there is no field "promt"; did you mean prompt?'),
        ({"id": "x", "prompt": "a", "prompt_ids": [1]}, "line 5: Give prompt, a text, or prompt_ids"),
        ({"id": "y", "prompt": "a", "max_tokens": 999}, "line 6: prompt has 1 tokens and the text 1008"),
        ({"id": "z", "prompt": 5}, "line 7: prompt is 5"), ({"id": True, "prompt": "a"}, "line 8: id is true"),
        ({"id": "line 0", "prompt": "a"}, 'line 9: id "line 0" is also that of line 1'),
        ({"id": "q", "prompt": "a", "steering": {"amplify": {"Nothing": 1}}}, "line 10:"),
        ({"id": "w", "prompt": "a", "seed": -1}, "line 11: seed is -1"), ({"prompt": "a"}, "line 12: id is missing"),
        ({"id": None, "prompt": "a"}, "line 13: id is null"), ({"id": 7, "prompt": 1}, "line 14: prompt is 1"),
        ({"id": "7", "prompt": "a"}, 'line 15: id "7" is also that of line 14'),
    ]  # fmt: skip
    lines = [LINES[0], *(line for line, _ in bad), "\n", LINES[1], LINES[2] | {"id": 2}]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert run(text_model, source, target) == 1
    printed = capsys.readouterr().err.splitlines()
    assert f"3 texts written to {target}; 0 were there already; 14 errors." in printed
    found = read(target)
    errors = {line["line"]: line for line in found if "error" in line}
    assert sorted(errors) == list(range(2, 16))
    for number, (_, words) in enumerate(bad, start=2):
        assert f"in.jsonl, {words}" in errors[number]["error"]["message"]
        assert errors[number]["error"]["message"] in printed
    assert {line["id"]: line for line in found if "text" in line} == {
        "line 0": results["line 0"], "line 1": results["line 1"], 2: results["line 2"] | {"id": 2}
    }  # fmt: skip
    lines[6] = LINES[3]  # a corrected line is processed by the next run
    assert run(text_model, write(source, lines), target) == 1
    found = read(target)
    assert sum("error" in line for line in found) == 13
    assert next(line for line in found if line["id"] == "line 3") == results["line 3"]


def test_clamps_that_contradict_each_other_fail_their_own_line(text_model: Path, tmp_path: Path):
    """Also if they contradict those of the command line. Names are looked up in the catalogue of the command line."""
    (tmp_path / "names.json").write_text('[{"id": 1, "name": "Gardens"}]')
    steerings = [
        {"clamp": {"Gardens": 1, "#1": 0}}, {"clamp": {"Gardens": 1}, "clamp_at": [0, 4]},
        {"clamp": {"Gardens": 1}, "epsilon": "frozen"}, {"clamp": {"2": 0}}, {"clamp": {"Gardens": 1}}, {},
    ]  # fmt: skip
    lines: list = [{"id": i, "prompt": "a", "max_tokens": 4, "steering": one} for i, one in enumerate(steerings)]
    lines.append(f'{{"id": 6, "prompt": "a", "max_tokens": {"9" * 4300}}}\n')
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert run(text_model, source, target, "--clamp", "#2=1", "--catalogue", str(tmp_path / "names.json")) == 1
    found = {line["id"]: line for line in read(target)}
    assert [i for i, line in sorted(found.items()) if "text" in line] == [4, 5]
    words = ["clamps concept 1, as another", *["at different positions or with different epsilon"] * 2,
             "clamps concept 2, as another"]  # fmt: skip
    for i, word in enumerate(words):
        assert word in found[i]["error"]["message"]
    assert "thousands of digits" in found[6]["error"]["message"]


def test_settings_of_the_command_line_are_defaults(text_model: Path, results: dict, tmp_path: Path):
    given = {"stop": results["line 8"]["text"][2:4], "trace": True}
    lines = [{"id": 1, "prompt": LINES[8]["prompt"]}, {"id": 2, "prompt": LINES[8]["prompt"], "seed": 9},
             {"id": 3, "prompt": LINES[8]["prompt"]} | given]  # fmt: skip
    target = tmp_path / "deep" / "out.jsonl"
    options = ["--seed", "8", "--max-new-tokens", "11", "--amplify", "Email=0"]
    assert run(text_model, write(tmp_path / "in.jsonl", lines), target, *options) == 0
    found = {line["id"]: line for line in read(target)}
    assert found[1]["text"] == results["line 8"]["text"]
    assert found[2]["seed"] == 9
    assert found[2]["text"] != found[1]["text"]
    assert (found[3]["text"], found[3]["finish_reason"]) == (found[1]["text"].split(given["stop"])[0], "stop")
    commits = found[3]["trace"]["commits"]
    assert {position for commit in commits for position in commit["positions"]} >= {found[3]["prompt_tokens"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"id": 1, "tex\n{"id": 2, "text": ""}\n', "line 1 is not a result"),
        ('{"a": 1}\n', "line 1 is not a result"),
        ('{"id": 1, "text": ""}\nnotes\n', "line 2 is not a result"),
    ],
)
def test_another_file_is_not_overwritten(tmp_path: Path, content: str, words: str):
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        repair(path)
    assert path.read_text() == content


def test_repair_removes_what_has_to_be_done_again(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    path.write_text(
        '{"id": 1, "text": "é"}\n{"id": 2, "line": 4, "error": {}}\n{"id": "1", "text": ""}\n{"id": 3, "text": ""}'
    )
    assert repair(path) == {1, "1"}
    assert path.read_text() == '{"id": 1, "text": "é"}\n{"id": "1", "text": ""}\n'


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input", "in.jsonl"], "both --input and --output"),
        (["--output", "out.jsonl"], "both --input and --output"),
        (["--input", "in.jsonl", "--output", "in.jsonl"], "are both in.jsonl"),
        (["text", "--input", "in.jsonl", "--output", "out.jsonl"], "TEXT cannot be combined with --input"),
        (["--stop", "a", "--input", "in.jsonl", "--output", "out.jsonl"], "--stop cannot be combined with --input"),
        (["--input", "nothing.jsonl", "--output", "out.jsonl"], "Cannot read nothing.jsonl"),
        (
            ["--input", "in.jsonl", "--output", "out.jsonl", "--rows", "0"],
            "--rows is 0, but it must be a whole number",
        ),
        (["--input", "/dev/null", "--output", "out.jsonl"], "must be a regular file"),
        (["--input", "in.jsonl", "--output", "out.jsonl", "--json"], "--json is for one text"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", LINES)
    assert main(["generate", *options]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
