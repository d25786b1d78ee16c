"""The picture of a steering case: dose and response on the first half of the prompts, all conditions on the second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steerling_jax.infer.steer_eval.case_arms import ArmFigures, CaseSettings
from steerling_jax.infer.steer_eval.feature_cases import SteeringCase
from steerling_jax.io.pictures import open_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONCEPT = "#d55e00"


def plot_case(case: SteeringCase, settings: CaseSettings, path: Path, title: str) -> None:
    """Writes the picture. The same figures give the same bytes."""
    by_feature = [arm for arm in case.tuning if arm.layer is not None]
    by_concept = [arm for arm in case.tuning if arm.layer is None and arm.strength is not None]
    with open_picture(path, 11, 3.4, title) as figure:
        found, damage, arms = figure.subplots(1, 3)
        for ax, panel in ((found, "texts found, by strength"), (damage, "damage, nats a token, by strength")):
            _draw_doses(ax, case, by_feature, by_concept, is_damage=ax is damage)
            ax.set_title(panel, fontsize=8, loc="left")
        found.axhline(case.tuning[0].found.mean, color="black", linewidth=1, label="nothing")
        found.set_ylim(-0.02, 1.02)
        damage.axhline(settings.limit, color="black", linestyle=":", linewidth=1, label="limit")
        # Doses far beyond the limit would hide the curves near it.
        damage.set_ylim(min(0.0, *damage.get_ylim()), max(3 * settings.limit, 0.1))
        damage.legend(frameon=False, fontsize=6)
        _draw_arms(arms, case.arms)


def _draw_doses(
    ax: Axes, case: SteeringCase, by_feature: Sequence[ArmFigures], by_concept: Sequence[ArmFigures], is_damage: bool
) -> None:
    """A curve for each layer's feature, one for the concept, and a ring around the choice."""
    chosen, strength = case.chosen
    curves = [(f"layer {one.layer}: feature {one.feature}", [arm for arm in by_feature if arm.layer == one.layer])
              for one in case.candidates]  # fmt: skip
    for number, (label, points) in enumerate(curves):
        colour = (0.0, 0.25 + 0.5 * number / max(1, len(curves) - 1), 0.7)
        _curve(ax, points, label, colour, is_damage)
        for arm in points:
            if (arm.layer, arm.strength) == (chosen.layer, strength):
                at = arm.damage if is_damage else arm.found.mean
                ax.plot([strength], [at], marker="o", markersize=11, fillstyle="none", color="black")
    if by_concept and case.concept is not None:
        _curve(ax, by_concept, f"concept: {case.concept.name} (logits)", _CONCEPT, is_damage)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("strength")


def _curve(
    ax: Axes, points: Sequence[ArmFigures], label: str, colour: str | tuple[float, float, float], is_damage: bool
) -> None:
    strengths = [float(arm.strength or 0.0) for arm in points]
    values = [arm.damage if is_damage else arm.found.mean for arm in points]
    ax.plot(strengths, values, marker="o", markersize=3, color=colour, linewidth=1, label=label)


def _draw_arms(ax: Axes, arms: Sequence[ArmFigures]) -> None:
    """A bar for each condition with its interval, its damage written beside it."""
    for row, arm in enumerate(arms):
        found = arm.found
        spread = [[found.mean - found.low], [found.high - found.mean]]
        ax.barh(row, found.mean, xerr=spread, color="#0072b2", alpha=0.6, capsize=2)
        ax.text(1.04, row, f"{arm.damage:+.2f} nats", va="center", fontsize=7)
    ax.set_yticks(range(len(arms)), [arm.name for arm in arms])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.3)
    ax.set_title("texts found on the other prompts, 95 %", fontsize=8, loc="left")
