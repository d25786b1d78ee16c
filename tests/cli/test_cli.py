"""The command line, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from steerling_jax.cli import console, main
from steerling_jax.cli.arguments import number_in_range
from steerling_jax.errors import UserError

COMMANDS = sorted(point.name for point in entry_points(group=main.GROUP))
IN_GROUPS = [
    [name, one] for name in COMMANDS for one in getattr(main.load_command(name, main.commands()), "SUBCOMMANDS", ())
]


def steerling(*args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "steerling_jax.cli.main", *args]
    return subprocess.run(line, capture_output=True, text=True, timeout=600)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


def test_script_is_installed():
    script = Path(sys.executable).with_name("steerling")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, f"steerling-jax {version('steerling-jax')}")


def test_help_lists_every_command():
    done = steerling("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name in main.SUMMARIES:
        assert f"  {name} " in done.stdout
    assert steerling().stdout == done.stdout


@pytest.mark.parametrize(
    "args",
    [["--help"], *([name, "--help"] for name in COMMANDS), *([*words, "--help"] for words in IN_GROUPS)],
    ids=" ".join,
)
def test_help_is_quick_and_imports_nothing_heavy(args: list[str]):
    heavy = ["jax", "jaxlib", "flax", "numpy", "orbax", "grain", "tensorstore", "rich"]
    done = python(
        "import sys\n"
        "from steerling_jax.cli.main import main\n"
        f"code = main({args!r})\n"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])\n"
        "sys.exit(code)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_entry_points_are_the_commands_listed():
    assert set(COMMANDS) == set(main.SUMMARIES)


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_and_examples_of_a_command(name: str):
    module = main.load_command(name, main.commands())
    assert module.HELP.strip().splitlines()[0] == main.SUMMARIES[name]
    assert f"steerling {name}" in steerling(name, "--help").stdout.split("examples:")[-1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gennerate"], "did you mean `steerling generate`?"),
        (["xyzzy"], "`steerling --help` lists the commands"),
        (["--bogus"], "--bogus"),
        (["generate", "x", "--max-tokens", "5"], "--max-tokens 5; did you mean --max-new-tokens?"),
        (["trace", "x", "--sede=5"], "--sede=5; did you mean --seed?"),
        (["export", "only-one"], "see `steerling export --help`"),
        (["export", "a", "b", "--max-shard-size", "lots"], "'lots' is not a size"),
        (["import", "a", "b", "--dtype", "int3"], "int3"),
        (["import", "no-such-folder", "b"], "no-such-folder"),
        (["export", "no-such-folder", "b"], "no-such-folder"),
        (["info", "no-such-folder/model"], "no-such-folder/model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = steerling(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def stand_in(run: str) -> str:
    """Code that runs the command line with one command, whose `run` has this body."""
    return (
        "import sys, types\n"
        "from steerling_jax.cli import main\n"
        "from steerling_jax.errors import UserError\n"
        f"def run(args):\n    {run}\n"
        "module = types.SimpleNamespace(HELP='Stand in.', configure=lambda parser: None, run=run)\n"
        "main.load_command = lambda name, found: module\n"
        "sys.exit(main.main(['stand-in']))"
    )


@pytest.mark.parametrize(
    ("run", "code", "stderr"),
    [
        ("pass", 0, ""),
        ("return 3", 3, ""),
        ("raise UserError('a.txt is\\nempty.')", 2, "error: a.txt is empty.\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_exit_codes(run: str, code: int, stderr: str):
    done = python(stand_in(run))
    assert (done.returncode, done.stderr) == (code, stderr)


def in_encoding(encoding: str, *args: str) -> subprocess.CompletedProcess[str]:
    """The command line with standard streams in an encoding, which also decodes what they write."""
    line = [sys.executable, "-m", "steerling_jax.cli.main", *args]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    return subprocess.run(line, capture_output=True, encoding=encoding, env=environment, timeout=600)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "euc-kr"])
def test_output_never_fails_for_a_character(encoding: str):
    for args in ([], ["trace", "--help"], ["generate", "--help"], ["prepare", "--help"]):
        assert in_encoding(encoding, *args, *["--help"][len(args) :]).returncode == 0
    done = in_encoding(encoding, "demo", "한국어 “é” ▁ →", "--max-new-tokens", "16", "--seed", "1")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert ("한" if encoding == "euc-kr" else "\\ud55c") in done.stdout
    done = in_encoding(encoding, "한", "…")
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no command ")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_streams_that_the_shell_closed(closed: str):
    for code, args in ((0, "--help"), (2, "nothing")):
        line = f'"{sys.executable}" -m steerling_jax.cli.main {args} {closed}'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=600)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_text_and_json_survive_every_encoding():
    printed = (
        "from steerling_jax.cli.console import print_json; "
        "print('é한\\U0001f600\\udcff'); print_json(['é한\\U0001f600'])"
    )
    for encoding in ("ascii", "latin-1", "utf-8"):
        line = [sys.executable, "-c", stand_in(printed)]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(line, capture_output=True, encoding=encoding, env=environment, timeout=600)
        assert done.returncode == 0, done.stderr
        text, *rest = done.stdout.splitlines()
        assert text == "é한\U0001f600\udcff".encode(encoding, "backslashreplace").decode(encoding)
        assert json.loads("".join(rest)) == ["é한\U0001f600"]


@pytest.mark.parametrize("words", [("--", "-x"), ("--seed", "1", "--", "--help"), ("--", "-- x")], ids=" ".join)
def test_two_dashes_end_the_options(words: tuple[str, ...]):
    parser = main.command_parser("generate", main.load_command("generate", main.commands()))
    text = parser.parse_command(words).text
    assert (text, type(text)) == (words[-1], str)
    with pytest.raises(UserError, match="unrecognized arguments: --greedy"):
        parser.parse_command([*words, "--greedy"])


def test_two_dashes_before_paths_and_lists():
    export = main.command_parser("export", main.load_command("export", main.commands()))
    args = export.parse_command(["here", "--", "-there"])
    assert (args.checkpoint, args.folder) == ("here", Path("-there"))
    near = main.command_parser("neighbourhood", main.load_command("neighbourhood", main.commands()))
    assert near.parse_command(["--corpus", "c", "--", "-1", "b"]).concepts == ["-1", "b"]


def test_generate_continues_a_text_that_begins_with_a_dash():
    done = steerling("generate", "--max-new-tokens", "16", "--seed", "1", "--json", "--", "-x")
    assert (done.returncode, json.loads(done.stdout)["generated_tokens"]) == (0, 16), done.stderr


def test_interrupt_by_signal():
    # A shell that runs the tests in the background makes them ignore interrupts, and the child inherits that.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    line = [sys.executable, "-c", stand_in(listen + "print('ready', flush=True); import time; time.sleep(600)")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == "interrupted\n"
        assert child.wait(600) == 130


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["in the buffer", "while printing"])
def test_reader_that_left(size: int):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-c", stand_in(f"print('x' * {size})")]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=600)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_positional_after_options():
    module = main.load_command("info", main.commands())
    args = main.command_parser("info", module).parse_command(["--json", "small"])
    assert (args.model, args.json) == ("small", True)


@pytest.mark.parametrize(("text", "count"), [("100", 100), ("5GB", 5 * 10**9), ("1.5KiB", 1536), ("3mb", 3 * 10**6)])
def test_sizes(text: str, count: int):
    args = main.command_parser("export", main.load_command("export", main.commands())).parse_args(
        ["a", "b", "--max-shard-size", text]
    )
    assert args.max_shard_size == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "--limit is 0, but it must be a whole number of at least 1; see `steerling concepts --help`."),
        ("1.5", "--limit is '1.5', but it must be a whole number of at least 1; see `steerling concepts --help`."),
    ],
)
def test_numbers_out_of_range_are_reported_in_one_sentence(text: str, message: str):
    parser = main.command_parser("concepts", main.load_command("concepts", main.commands()))
    with pytest.raises(UserError) as raised:
        parser.parse_args(["--limit", text])
    assert str(raised.value) == message


@pytest.mark.parametrize(("text", "valid"), [("0", True), ("0.25", True), ("1", True), ("1.01", False), ("nan", False)])
def test_ranges_include_their_ends(text: str, valid: bool):
    parse = number_in_range(float, 0.0, 1.0)
    if valid:
        assert parse(text) == float(text)
    else:
        with pytest.raises(ArgumentTypeError, match=f"is {text}, but it must be a number from 0 to 1"):
            parse(text)


def test_parser_raises_sentences():
    with pytest.raises(UserError, match="unrecognized arguments: --nothing; see `steerling info --help`"):
        main.command_parser("info", main.load_command("info", main.commands())).parse_args(["--nothing"])


def test_json_is_plain():
    import jax.numpy as jnp
    import numpy as np

    value = {"a": np.arange(2), 3: (np.float32(1.5), float("nan")), "p": Path("x"), "j": jnp.ones((1, 1)), "n": None}
    assert console.plain(value) == {"a": [0, 1], "3": [1.5, None], "p": "x", "j": [[1.0]], "n": None}
