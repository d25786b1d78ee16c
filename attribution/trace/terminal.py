"""An explanation as a report for the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from steerling_jax.attribution.index.evidence import Evidence, Score
from steerling_jax.attribution.trace.explanation import ExplainedChunk, Explanation
from steerling_jax.attribution.trace.features import strongest_features
from steerling_jax.explain.contributions import Contributions
from steerling_jax.explain.features.contribution_table import FeatureContributions
from steerling_jax.explain.features.text_activations import TextActivations
from steerling_jax.explain.ranking import ChunkRanking, ConceptShare

_INPUTS = 5  # input tokens shown per chunk, of the prompt and of the text each
_BAR = 14  # characters of the longest bar, on either side
_TEXT = 64  # characters shown of a hit's text
# What the parts add up to, by reference.
_SPLIT = {
    "raw": "Each logit",
    "vocabulary": "Each logit, minus the mean of all tokens' logits,",
    "model": "Each log-probability, minus its mean under the model's own distribution,",
}


def render(explanation: Explanation, count: int) -> RenderableType:
    """A panel per chunk, with `count` concepts of each kind."""
    panels = []
    # One scale for the bars of all chunks, so that equal lengths are equal shares.
    rankings = [chunk.ranking for chunk in explanation.chunks if chunk.ranking is not None]
    sizes = [share for ranking in rankings for share in (*ranking.raised_shares, *ranking.lowered_shares)]
    scale = max([1e-8, *sizes])
    for number, chunk in enumerate(explanation.chunks, 1):
        parts: list[RenderableType] = [Text(chunk.text.strip("\n"), style="bold"), Text()]
        if chunk.ranking is not None:
            parts += [_concepts(chunk, explanation, count), _bars(chunk.ranking, scale, explanation.rest)]
        if explanation.features.parts is not None:
            parts.append(_features(explanation.features.parts, chunk, count))
        parts += [_activations(one, chunk, count) for one in explanation.features.activations]
        if chunk.inputs is not None:
            parts.append(_inputs(chunk, explanation))
        if chunk.evidence is not None:
            parts.append(_evidence(chunk))
        title = f"chunk {number} · positions {chunk.start} to {chunk.end - 1}"
        panels.append(Panel(Group(*parts), title=title, title_align="left", border_style="dim"))
    return Group(*panels) if panels else Text("The text is empty: the model ended its turn at once.")


def accuracy_note(explanation: Explanation) -> str:
    """What the shares mean and how accurate the attributions are, in a few sentences."""
    notes: list[str] = []
    if explanation.shares is not None:
        notes.append(_shares_note(explanation.shares, explanation.strict))
    if explanation.inputs is not None:
        notes.append(
            "Input tokens: logits that they added, by integrated gradients; their sum differs from the change of the "
            f"logit by at most {explanation.completeness_error:.1e} per token."
        )
        if explanation.inputs.unconverged:
            notes.append(explanation.inputs.unconverged)
    if (parts := explanation.features.parts) is not None and explanation.features.source is not None:
        notes.append(_features_note(parts, explanation.features.source.layer is None))
    return " ".join(notes)


def _shares_note(shares: Contributions, strict: bool) -> str:
    beside = "" if shares.reference == "model" else " The second column has the shares of the log-probability."
    rest = "a constant" if strict else "epsilon, which no concept explains"
    return (
        f"{_SPLIT[shares.reference]} is a sum of parts: known concepts, discovered concepts and {rest}. A "
        "share is a part relative to the sum of the sizes of all parts of its token, averaged over the chunk: the bars "
        "of a chunk together are 100 %, green ones raise the token above the others, red ones lower it, and a "
        f"concept's share is the sum of its parts with their signs.{beside} The split values and the sums of their "
        f"parts differ by at most {shares.largest_error:.1e}."
    )


def _features_note(parts: FeatureContributions, exact: bool) -> str:
    split = "its logit" if parts.reference == "raw" else "its logit, minus the mean under the model's own distribution"
    rest = "a bias" if exact else "a bias and a residual, with the scale of the final norm frozen"
    return (
        f"Features: parts of {split}; with the other features, {rest}, they add up to within "
        f"{float(parts.error.max(initial=0.0)):.1e}."
    )


def _concepts(chunk: ExplainedChunk, explanation: Explanation, count: int) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    assert chunk.ranking is not None
    both = chunk.ranking.reference != "model"  # otherwise the shares are those of the log-probability already
    above = Text("   share   log-p  " if both else "   share  ")
    table.add_row(*(Text.assemble(above, (f"{kind} concepts", "bold")) for kind in ("known", "discovered")))
    known, discovered = chunk.top("known", count), chunk.top("discovered", count)
    for row in range(max(len(known), len(discovered))):
        shares = (column[row] if row < len(column) else None for column in (known, discovered))
        table.add_row(*(Text() if share is None else _share(share, chunk, explanation, both) for share in shares))
    return table


def _share(entry: ConceptShare, chunk: ExplainedChunk, explanation: Explanation, both: bool) -> Text:
    """A concept's share and, if `both`, its share of the log-probability, then its name."""
    values = [entry.contribution]
    if both:
        assert chunk.ranking is not None
        values.append(chunk.ranking.log_probability_shares[entry.type, entry.concept_id])
    numbers = [Text(f"{_percent(value):>8}", style=_colour(value)) for value in values]
    return Text.assemble(*numbers, f"  {explanation.name(entry.type, entry.concept_id)}")


def _bars(ranking: ChunkRanking, scale: float, rest: str) -> Text:
    """For each kind, what lowers the logits to the left and what raises them to the right; a full bar is `scale`."""
    lines = Text(f"\n{'all parts':<10}{'lowering':>{10 + _BAR}}│raising\n", style="bold")
    rows = zip(("known", "discovered", rest), ranking.lowered_shares, ranking.raised_shares, strict=True)
    for number, (name, lowered, raised) in enumerate(rows):
        left, right = (round(_BAR * share / scale) for share in (lowered, raised))
        lines.append(f"{'' if number == 0 else chr(10)}{name:<10}", style="not bold")
        lines.append(f"{_percent(-lowered):>9} {'█' * left:>{_BAR}}", style=f"not bold {_colour(-1)}")
        lines.append("│", style="not bold")
        lines.append(f"{'█' * right:<{_BAR}} {_percent(raised)}", style=f"not bold {_colour(1)}")
    return lines


def _percent(share: float) -> str:
    """With its sign, which 0 lacks."""
    text = f"{100 * share:+.1f} %"
    return text[1:] if text[1:] == "0.0 %" else text


def _colour(value: float) -> str:
    """One meaning each, throughout the report: what raises a logit is green, what lowers it red."""
    return "green" if value > 0 else "red"


def _inputs(chunk: ExplainedChunk, explanation: Explanation) -> Text:
    """What the prompt and the text before the chunk added to its logits, with their strongest tokens."""
    assert chunk.inputs is not None
    values, prompt = chunk.inputs.attributions, explanation.trace.prompt_length
    lines = []
    for name, start, end in (("prompt", 0, prompt), ("written", prompt, len(values))):
        line = Text(f"{name:<9}{values[start:end].sum():+8.2f}  ")
        for place in np.argsort(-np.abs(values[start:end]), kind="stable")[:_INPUTS].tolist():
            value = float(values[start + place])
            line.append(f"  {value:+.2f} ", style=_colour(value))
            line.append(explanation.pieces[start + place].strip() or "␣", style="bold")
        lines.append(line)
    return Text("\n").join(lines)


def _features(parts: FeatureContributions, chunk: ExplainedChunk, count: int) -> Text:
    """The features with the largest parts of the chunk's logits, with the tokens that they promote."""
    lines = [Text("features", style="bold")]
    for feature, total in strongest_features(parts, list(range(max(1, chunk.start), chunk.end)), count):
        words = " ".join(word.strip() for word in parts.promoted.get(feature, ()))
        lines.append(Text.assemble((f"{total:+8.2f}", _colour(total)), f"  #{feature} {words}"))
    return Text("\n").join(lines)


def _nothing_close(evidence: Evidence, score: Score) -> str:
    """The threshold of a score without hits, and the best value below it."""
    best = f", best {evidence.best[score]:.3g}" if score in evidence.best else ""
    return f"nothing close (threshold {evidence.thresholds[score]:.3g}{best})"


def _activations(active: TextActivations, chunk: ExplainedChunk, count: int) -> Text:
    """The features of a block that are most active in the chunk."""
    autoencoder = active.autoencoder
    named = {one.id: one.name for one in autoencoder.features if one.is_named}
    lines = [Text(f"most active in block {autoencoder.layer}, which are no parts of logits", style="bold")]
    for feature, value in active.strongest(chunk.start, chunk.end, count):
        lines.append(Text(f"{value:8.2f}  #{feature} {named.get(feature, '')}".rstrip()))
    return Text("\n").join(lines)


def _evidence(chunk: ExplainedChunk) -> Text:
    """The best hit of each score."""
    assert chunk.evidence is not None
    text = Text()
    for number, score in enumerate(chunk.evidence.thresholds):
        text.append(f"{'' if number == 0 else chr(10)}{score:<15}")
        hits = chunk.evidence.of(score)
        if not hits:
            text.append(_nothing_close(chunk.evidence, score), style="dim")
            continue
        words = " ".join(hits[0].text.split())
        text.append(f"{hits[0].value:.3g}  ")
        text.append(f"{hits[0].name}", style="bold")
        text.append(f" ({hits[0].source})  {words if len(words) <= _TEXT else words[: _TEXT - 1] + '…'}")
    return text
