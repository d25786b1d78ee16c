"""The page of autoencoders' results shows the figures of its JSON files."""

from __future__ import annotations

import json
import re

from benchmarks import attach_report
from steerling_jax.train.autoencoders.run_config import AutoencoderRun
from steerling_jax.train.run.config_files import load_any_config
from tests.worlds.paths import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"
PAGE = (RESULTS / "autoencoders.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_of_bottlenecks():
    points = json.loads((RESULTS / "attach.json").read_text(encoding="utf-8"))["points"]
    table = attach_report.table(points)
    assert table in PAGE
    assert len(re.findall(r"\d\.\d\d\d ±", table)) == len(points)


def test_the_page_has_the_ratios_of_training_and_encoding():
    figures = json.loads((RESULTS / "autoencoders.json").read_text(encoding="utf-8"))
    for arm in ("training", "training_tenth_dead"):
        ours, theirs = (figures[arm][side]["tokens_per_second"] for side in ("ours", "sparsify"))
        row = f"| {ours:,.0f} | {theirs:,.0f}"
        for clock in ("seconds", "cpu_seconds"):
            ratio = figures[arm]["ratio"][clock]
            low, high = ratio["quartiles"]
            row += f" | {ratio['median']:.2f} ({low:.2f}–{high:.2f})"
        assert row in PAGE
    encoding = figures["encoding"]
    said = f"{encoding['ratio_to_sparsify']['seconds']['median']:.1f} times as fast as sparsify"
    assert said in PAGE
    assert f"{encoding['share_of_product']['seconds']['median']:.2f} of the speed" in PAGE
    assert {round(size) for size in figures["temporaries_MB"].values()} == {69}


def test_the_page_has_the_figures_of_the_middle_layer_and_the_config_is_its_first_row():
    rows = json.loads((RESULTS / "autoencoders.json").read_text(encoding="utf-8"))["middle_layer"]
    for row in rows:
        shares = (row[name] for name in ("recovered_against_zero", "recovered_against_mean", "dead"))
        figures = [f"{row['unexplained']:.3f}", f"{row['unexplained_in_training']:.3f}"]
        figures += [f"{share:.1%}".replace("%", " %") for share in shares]
        line = f"| {row['start']} | {row['rate']} | {row['steps']} of {row['batch_rows']:,} | {row['decay']} | "
        assert line + " | ".join(figures) in PAGE
    run, first = load_any_config("sae_smollm2"), rows[0]
    assert isinstance(run, AutoencoderRun)
    recipe = run.recipe
    assert (recipe.steps, recipe.batch_rows, recipe.decay) == (first["steps"], first["batch_rows"], first["decay"])
    assert (recipe.learning_rate, run.from_rows) == (float(first["rate"]), first["start"] != "random directions")


def test_a_power_law_is_found_and_extrapolated():
    def points(costs: dict[int, float]) -> list[dict]:
        rest = {"features": 8, "rows": 9, "steps": 1, "kl_steps": 2, "processor_seconds": 1.0}
        rest |= {"cost_standard_error": 0.0, "divergence_nats": 0.0, "agreement": 1.0, "dead": 0.0}
        return [{"k": k, "cost_nats": cost, **rest} for k, cost in costs.items()]

    # 0.8 · k^(−1/2): 0.4 at 4, 0.2 at 16, and 0.1 at 64
    table = attach_report.table(points({16: 0.2, 4: 0.4}))
    assert "k (features 8, rows 9, steps 1, kl_steps 2): cost ∝ k^−0.50, 0.1 nats at 64" in table
    assert table.index("| 4 |") < table.index("| 16 |")
