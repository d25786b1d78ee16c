"""Autoencoder files of other libraries: what they give, what is written, and what is refused.

`tests/golden_autoencoders/README.md` says where the files come from and states the tolerances.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.io.autoencoders.torch_file import read_torch_file, write_torch_file
from tests.worlds.paths import REPOSITORY

GOLDEN = REPOSITORY / "tests" / "golden_autoencoders"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/expected.npz"))
FORMAT = {
    case: "gemma-scope-2" if case == "gemma_scope_2" else case.split("_")[0] if case.startswith(("saelens", "sparsify"))
    else "dictionary-learning" if case.startswith("dictionary") else case.replace("_", "-")
    for case in CASES
}  # fmt: skip


def load(case: str, folder: Path | None = None, **options) -> sj.Autoencoder:
    return sj.load_autoencoder(folder or GOLDEN / case, k=7 if case == "qwen_scope" else None, **options)


def check(autoencoder: sj.Autoencoder, case: str) -> None:
    expected = np.load(GOLDEN / case / "expected.npz")
    dense = np.asarray(autoencoder.encode(expected["x"], dense=True))
    np.testing.assert_allclose(dense, expected["latents"], atol=2e-5, rtol=0)
    np.testing.assert_array_equal(dense != 0, expected["latents"] != 0)
    values, indices = autoencoder.encode(expected["x"])
    np.testing.assert_allclose(values, np.take_along_axis(dense, np.asarray(indices), axis=1), atol=1e-6)
    reconstruction = expected["reconstruction"]
    np.testing.assert_allclose(
        autoencoder.reconstruct(expected["x"]), reconstruction, atol=2e-5 * np.abs(reconstruction).max(), rtol=0
    )


def test_there_is_a_case_for_each_format():
    assert set(FORMAT.values()) == {"saelens", "sparsify", "dictionary-learning", "gemma-scope", "gemma-scope-2",
                                    "qwen-scope"}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_golden_files(case: str):
    autoencoder = load(case)
    check(autoencoder, case)
    assert autoencoder.format == FORMAT[case]
    assert (autoencoder.layer, autoencoder.width, autoencoder.n_latents) == (3, 24, 192)
    fixed = ("topk" in case and "batchtopk" not in case) or case.startswith("sparsify") or case == "qwen_scope"
    assert (autoencoder.k is not None) == fixed


def test_files_are_found_up_to_four_folders_below(tmp_path: Path):
    case = CASES[0]
    shutil.copytree(GOLDEN / case, tmp_path / "a/b/c/d")
    check(load(case, tmp_path), case)
    shutil.move(tmp_path / "a", tmp_path / "one/more/a")
    with pytest.raises(sj.UserError, match="autoencoder"):
        load(case, tmp_path / "one")


def test_fixed_k_gives_the_published_values_and_indices():
    for case in ("sparsify", "sparsify_groupmax", "sparsify_transcoder"):
        expected = np.load(GOLDEN / case / "expected.npz")
        values, indices = load(case).encode(expected["x"])
        order = np.argsort(-expected["top_acts"], axis=1, kind="stable")
        np.testing.assert_allclose(values, np.take_along_axis(expected["top_acts"], order, axis=1), atol=2e-5)
        active = np.asarray(values) > 0
        published = np.take_along_axis(expected["top_indices"], order, axis=1)
        np.testing.assert_array_equal(np.asarray(indices)[active], published[active])


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case: str, tmp_path: Path):
    """Written in its own format: the same configuration and the same numbers, bit for bit."""
    first = load(case)
    folder = tmp_path / ("layers.3" if "sparsify" in case else "layer_3")
    sj.save_autoencoder(first, folder, format=first.format)
    second = load(case, folder)
    assert (second.layer, second.k, second.weights.settings) == (first.layer, first.k, first.weights.settings)
    assert second.carried == first.carried
    for field in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"):
        np.testing.assert_array_equal(getattr(second.weights, field), getattr(first.weights, field))
    check(second, case)


TOPK = ("qwen_scope", "saelens_topk", "saelens_topk_rescale", "sparsify", "dictionary_learning_topk")
THRESHOLD = (
    "gemma_scope",
    "gemma_scope_2",
    "saelens_jumprelu",
    "saelens_batchtopk",
    "saelens_standard",
    "dictionary_learning_jumprelu",
    "dictionary_learning_batchtopk",
    "dictionary_learning_standard",
)


@pytest.mark.parametrize(
    ("case", "format"),
    [(case, format) for case in TOPK for format in ("qwen-scope", "saelens", "sparsify", "dictionary-learning")]
    + [(case, f) for case in THRESHOLD for f in ("gemma-scope", "gemma-scope-2", "saelens", "dictionary-learning")],
)
def test_conversion(case: str, format: str, tmp_path: Path):
    """In another library's format it computes the same function."""
    folder = tmp_path / ("layers.3" if format == "sparsify" else "layer_3")
    first = load(case)
    sj.save_autoencoder(first, folder, format=format)
    second = sj.load_autoencoder(folder, k=7 if format == "qwen-scope" else None)
    assert (second.format, second.layer) == (format, 3)
    expected = np.load(GOLDEN / case / "expected.npz")
    reconstruction = expected["reconstruction"]
    np.testing.assert_allclose(
        second.reconstruct(expected["x"]), reconstruction, atol=4e-5 * np.abs(reconstruction).max(), rtol=0
    )


def test_choosing_among_layers(tmp_path: Path):
    first = load("qwen_scope")
    for layer in (0, 11):
        sj.save_autoencoder(dataclasses.replace(first, layer=layer), tmp_path / str(layer), format="qwen-scope")
        shutil.copy(tmp_path / str(layer) / f"layer{layer}.sae.pt", tmp_path)
    many = tmp_path / "SAE-Res-tiny-W192-L0_7"
    many.mkdir()
    for file in tmp_path.glob("*.pt"):
        file.rename(many / file.name)
    chosen = sj.load_autoencoder(many, layer=11)
    assert (chosen.layer, chosen.k) == (11, 7)
    assert sj.load_autoencoder(many / "layer0.sae.pt").layer == 0
    for options, message in [({}, "several autoencoders .*layer0.sae.pt"), ({"layer": 5}, "no autoencoder .*layer 5")]:
        with pytest.raises(sj.UserError, match=message):
            sj.load_autoencoder(many, **options)


def test_a_hub_id_gives_one_autoencoder_of_a_repository(tmp_path: Path):
    """From the Hub's cache, without a connection; the repository's name says k."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    for repo, case in (("SAE-tiny-W192-L0_7", "qwen_scope"), ("many", "sparsify")):
        folder = tmp_path / f"hub/models--org--{repo}"
        for layer in (3, 11):
            name = "" if case == "qwen_scope" else f"layers.{layer}"
            saved = dataclasses.replace(load(case), layer=layer)
            format = case.replace("_", "-")
            sj.save_autoencoder(saved, tmp_path / "one" / str(layer) / name, format=format)
            shutil.copytree(tmp_path / "one" / str(layer), folder / "snapshots" / revision, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "one")
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text(revision)
    code = """
import steerling_jax as sj
for path, options in [
    ("org/SAE-tiny-W192-L0_7", {"layer": 11}),
    ("org/SAE-tiny-W192-L0_7/layer3.sae.pt", {}),
    ("org/many", {"layer": 3}),
    ("org/many/layers.11", {}),
    ("org/many/layers.11/sae.safetensors", {}),
    ("org/many", {}),
    ("org/many/layers.4", {}),
    ("org/none", {}),
]:
    try:
        one = sj.load_autoencoder(path, **options)
        print(one.format, one.layer, one.k)
    except sj.UserError as error:
        print(error)
"""
    cache = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, env={**os.environ, **cache})
    *found, several, missing, nowhere = done.stdout.splitlines()
    k = load("sparsify").k
    assert found == [
        "qwen-scope 11 7", "qwen-scope 3 7", f"sparsify 3 {k}", f"sparsify 11 {k}", f"sparsify 11 {k}"
    ], done.stderr  # fmt: skip
    assert "holds several autoencoders (layers.11/sae.safetensors, layers.3/sae.safetensors)" in several
    assert missing.startswith("org/many/layers.4 holds no autoencoder that is known")
    assert "cannot be reached" in nowhere


def edited(case: str, folder: Path, **changes) -> Path:
    """A copy of a golden folder whose configuration has other values; None removes one."""
    shutil.copytree(GOLDEN / case, folder, dirs_exist_ok=True)
    (path,) = [p for name in ("cfg.json", "config.json") for p in folder.rglob(name)]
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("saelens_topk", {"architecture": "gated"}, "'gated' is not supported"),
        ("saelens_topk", {"normalize_activations": "expected_average_only_in"}, "'expected_average_only_in'"),
        ("saelens_topk", {"reshape_activations": "hook_z"}, "'hook_z' is not supported"),
        ("saelens_topk", {"metadata": {"hook_name": "blocks.3.hook_mlp_out"}}, "'blocks.3.hook_mlp_out'"),
        ("saelens_topk", {"metadata": {"hook_name": "blocks.0.hook_resid_pre"}}, "'blocks.0.hook_resid_pre'"),
        ("saelens_topk", {"k": None}, "give k"),
        ("saelens_topk", {"k": 193}, "between 1 and 192"),
        ("saelens_topk", {"architecture": "jumprelu"}, "no tensor 'threshold'"),
        ("saelens_jumprelu", {"architecture": "standard"}, "tensor 'threshold', which its format does not have"),
        ("sparsify", {"activation": "relu"}, "'relu' is not supported"),
        ("sparsify", {"num_latents": 100}, "100 latents, but encoder.weight has 192"),
        ("sparsify_groupmax", {"k": 7}, "7 equal groups"),
        ("sparsify_transcoder", {"skip_connection": False}, "tensor 'W_skip'"),
        ("dictionary_learning_topk", {"trainer": {"dict_class": "GatedAutoEncoder"}}, "'GatedAutoEncoder'"),
        ("gemma_scope_2", {"architecture": "top_k"}, "'top_k'"),
        ("gemma_scope_2", {"hf_hook_point_out": "model.layers.3.mlp.output"}, "transcoder"),
        ("gemma_scope_2", {"affine_connection": True}, "affine"),
    ],
)
def test_kinds_that_are_not_supported_are_named(case: str, changes: dict, message: str, tmp_path: Path):
    with pytest.raises(sj.UserError, match=message):
        sj.load_autoencoder(edited(case, tmp_path / case, **changes))


def test_the_output_before_a_block_is_that_of_the_one_before(tmp_path: Path):
    folder = edited("saelens_topk", tmp_path / "pre", metadata={"hook_name": "blocks.3.hook_resid_pre"})
    assert sj.load_autoencoder(folder).layer == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sj.load_autoencoder(GOLDEN / "qwen_scope"), "give k"),
        (lambda: sj.load_autoencoder(GOLDEN / "qwen_scope", k=0), "at least 1"),
        (lambda: sj.load_autoencoder(GOLDEN / "gemma_scope", k=7), "takes no k"),
        (lambda: sj.load_autoencoder(GOLDEN / "saelens_topk", layer=4), "cfg.json says 3"),
        (lambda: sj.load_autoencoder(GOLDEN / "nothing"), "no file or folder"),
        (lambda: sj.load_autoencoder(GOLDEN / "sparsify", format="saelens"), "no autoencoder of the format saelens"),
        (lambda: sj.load_autoencoder(GOLDEN / "sparsify", format="torch"), "no format 'torch'"),
        (lambda: sj.load_autoencoder(GOLDEN / "README.md"), "give format="),
    ],
)
def test_refusals_of_arguments(call, message: str):
    with pytest.raises(sj.UserError, match=message):
        call()


def test_what_a_format_cannot_express(tmp_path: Path):
    cases = [("sparsify_groupmax", "saelens", "group-max"), ("saelens_jumprelu", "sparsify", "threshold"),
             ("saelens_topk", "gemma-scope", "fixed number"), ("saelens_topk_layernorm", "sparsify", "normalisation"),
             ("sparsify_transcoder", "qwen-scope", "skip connection")]  # fmt: skip
    for case, format, message in cases:
        with pytest.raises(sj.UserError, match=message):
            sj.save_autoencoder(load(case), tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("b_enc"), "no tensor 'b_enc'"),
        (lambda t: t.update(other=np.zeros(3, np.float32)), "tensor 'other', which its format does not have"),
        (lambda t: t.update(b_enc=np.zeros(5, np.float32)), r"b_enc has the shape \(5,\), but \(192,\)"),
        (lambda t: t.update(W_enc=np.zeros(5, np.float32)), "two axes"),
        (lambda t: t.update(b_enc=np.full(192, np.nan, np.float32)), "b_enc contains NaN"),
        (lambda t: t.update(b_enc=np.zeros(192, np.int64)), "int64"),
    ],
)
def test_damaged_tensors(change, message: str, tmp_path: Path):
    tensors = read_torch_file(GOLDEN / "qwen_scope" / "layer3.sae.pt")
    change(tensors)
    write_torch_file(tmp_path / "layer3.sae.pt", tensors)
    with pytest.raises(sj.UserError, match=message):
        sj.load_autoencoder(tmp_path / "layer3.sae.pt", k=7)


class Runs:
    """Pickled, it asks for a call of `os.system`."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def rewritten(path: Path, **entries: bytes) -> Path:
    """A copy of a golden file at `path` with other entries, `data` for the description."""
    with zipfile.ZipFile(GOLDEN / "qwen_scope" / "layer3.sae.pt") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, entries.get(name.split("/")[-1].removesuffix(".pkl"), source.read(name)))
    return path


def description() -> bytes:
    with zipfile.ZipFile(GOLDEN / "qwen_scope" / "layer3.sae.pt") as source:
        return source.read("layer3.sae/data.pkl")


def replaced(old: bytes, new: bytes) -> bytes:
    text = description()
    assert old in text
    return text.replace(old, new, 1)


HOSTILE = {
    "code": (pickle.dumps({"W_enc": Runs()}), "asks for '(posix|nt|os).system'"),
    "code by another protocol": (pickle.dumps(Runs(), protocol=0), "asks for"),
    "builtins": (b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", "asks for '(__builtin__|builtins).eval'"),
    "an attribute of an allowed name": (
        b"\x80\x04\x8c\x05torch\x8c\x0bload_module\x93.",
        "asks for 'torch.load_module'",
    ),
    "a stride of 0": (replaced(b"K\x00K\xc0K\x18\x86", b"K\x00J\x00\x00\x00\x7fK\x18\x86"), "outside its storage"),
    "beyond the end": (replaced(b"K\x00K\xc0K\x18\x86", b"K\x01K\xc0K\x18\x86"), "outside its storage"),
    "a negative offset": (replaced(b"K\x00K\xc0K\x18\x86", b"J\xff\xff\xff\xffK\xc0K\x18\x86"), "outside its storage"),
    "a storage too large": (replaced(b"M\x00\x12t", b"J\x00\x00\x00\x7ft"), "a storage that it does not hold"),
    "a storage elsewhere": (replaced(b"X\x01\x00\x00\x000q", b"X\x0b\x00\x00\x00../../etc/xq"), "storage"),
    "not a dict": (pickle.dumps([1, 2]), "holds a list"),
    "not a tensor": (pickle.dumps({"W_enc": 3}), "'W_enc', which is not a tensor"),
    "no pickle": (b"hello", "damaged description"),
    "cut off": (description()[:100], "damaged description"),
    "huge": (pickle.dumps({"x": "y" * (1 << 21)}), "more than"),
    "changed after the check": (replaced(b"Rq\x0d", b"Rq\x0d}X\x06\x00\x00\x00offsetK\x07sb"), "cannot be changed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    path = rewritten(tmp_path / "layer3.sae.pt", data=content)
    with pytest.raises(sj.UserError, match=message):
        sj.load_autoencoder(path, k=7)
    assert not (tmp_path / "ran").exists()


def test_other_damage_to_torch_files(tmp_path: Path):
    whole = (GOLDEN / "qwen_scope" / "layer3.sae.pt").read_bytes()
    path = tmp_path / "layer3.sae.pt"
    for content, message in [(b"", "zip format"), (b"\x80\x02l", "zip format"), (whole[:-100], "zip format")]:
        path.write_bytes(content)
        with pytest.raises(sj.UserError, match=message):
            sj.load_autoencoder(path, k=7)
    rewritten(path, byteorder=b"big")
    with pytest.raises(sj.UserError, match="big-endian"):
        sj.load_autoencoder(path, k=7)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("layer3.sae/data.pkl", description())
    with pytest.raises(sj.UserError, match="compressed"):
        sj.load_autoencoder(path, k=7)


def test_a_torch_file_is_written_as_torch_reads_it(tmp_path: Path):
    """Python's own unpickler, told of torch's names, finds the tensors in what is written."""
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "k": np.asarray(7, np.int32)}
    write_torch_file(tmp_path / "x.pt", tensors)
    found = read_torch_file(tmp_path / "x.pt")
    assert set(found) == {"a", "k"}
    np.testing.assert_array_equal(found["a"], tensors["a"])
    assert (found["k"].shape, found["k"].item()) == ((), 7)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        content = (tmp_path / "x.pt").read_bytes()
        for entry in archive.infolist():
            name, extra = struct.unpack("<HH", content[entry.header_offset + 26 : entry.header_offset + 30])
            assert (entry.header_offset + 30 + name + extra) % 64 == 0
        loaded = _Plain(io.BytesIO(archive.read("x/data.pkl"))).load()
    assert loaded["a"] == (("storage", "FloatStorage", "0", "cpu", 6), 0, (2, 3), (3, 1), False, {})


class _Plain(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str):
        if global_name == "_rebuild_tensor_v2":
            return lambda *arguments: tuple(arguments)
        return dict if global_name == "OrderedDict" else global_name

    def persistent_load(self, pid):
        return pid
