"""An explanation as a report for the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from steerling_jax.attribution.trace.explanation import ExplainedChunk, Explanation
from steerling_jax.explain.ranking import ConceptShare

_INPUTS = 5  # input tokens shown per chunk, of the prompt and of the text each
_TEXT = 64  # characters shown of a hit's text


def render(explanation: Explanation, count: int) -> RenderableType:
    """A panel per chunk, with `count` concepts of each kind."""
    panels = []
    for number, chunk in enumerate(explanation.chunks, 1):
        parts = [Text(chunk.text.strip("\n"), style="bold"), Text(), _concepts(chunk, explanation, count), _bar(chunk)]
        if chunk.inputs is not None:
            parts.append(_inputs(chunk, explanation))
        if chunk.evidence is not None:
            parts.append(_evidence(chunk))
        title = f"chunk {number} · positions {chunk.start} to {chunk.end - 1}"
        panels.append(Panel(Group(*parts), title=title, title_align="left", border_style="dim"))
    return Group(*panels) if panels else Text("The text is empty: the model ended its turn at once.")


def accuracy_note(explanation: Explanation) -> str:
    """What the shares mean and how accurate the attributions are, in a few sentences."""
    note = (
        "Shares are of the logits of the committed tokens. Net: known, discovered and epsilon (the part that no "
        "concept explains), each as one number per token. A logit and the sum of its parts differ by at most "
        f"{explanation.share_error:.1e}."
    )
    if explanation.inputs is not None:
        note += (
            " Input tokens: logits that they added, by integrated gradients; their sum differs from the change of the "
            f"logit by at most {explanation.completeness_error:.1e} per token."
        )
        if explanation.inputs.unconverged:
            note += f" {explanation.inputs.unconverged}"
    return note


def _concepts(chunk: ExplainedChunk, explanation: Explanation, count: int) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("known concepts", style="green"), Text("discovered concepts", style="cyan"))
    known, discovered = chunk.top("known", count), chunk.top("discovered", count)
    for row in range(max(len(known), len(discovered))):
        shares = (column[row] if row < len(column) else None for column in (known, discovered))
        table.add_row(*(Text() if share is None else _share(share, explanation) for share in shares))
    return table


def _share(entry: ConceptShare, explanation: Explanation) -> Text:
    return Text(f"{100 * entry.contribution:+6.2f} %  {explanation.name(entry.type, entry.concept_id)}")


def _bar(chunk: ExplainedChunk, width: int = 18) -> Text:
    """Net shares of the logits as a coloured bar with percentages."""
    line = Text("\nlogits, net  ")
    parts = list(
        zip(("known", "discovered", "epsilon"), chunk.ranking.net_shares, ("green", "cyan", "red"), strict=True)
    )
    for _, share, colour in parts:
        line.append("█" * round(width * share), style=colour)
    for name, share, colour in parts:
        line.append(f"  {name} {100 * share:.0f} %", style=colour)
    return line


def _inputs(chunk: ExplainedChunk, explanation: Explanation) -> Text:
    """What the prompt and the text before the chunk added to its logits, with their strongest tokens."""
    assert chunk.inputs is not None
    values, prompt = chunk.inputs.attributions, explanation.trace.prompt_length
    lines = []
    for name, start, end in (("prompt", 0, prompt), ("written", prompt, len(values))):
        line = Text(f"{name:<9}{values[start:end].sum():+8.2f}  ")
        for place in np.argsort(-np.abs(values[start:end]), kind="stable")[:_INPUTS].tolist():
            value = values[start + place]
            line.append(f"  {value:+.2f} ", style="green" if value > 0 else "red")
            line.append(explanation.pieces[start + place].strip() or "␣", style="bold")
        lines.append(line)
    return Text("\n").join(lines)


def _evidence(chunk: ExplainedChunk) -> Text:
    """The best hit of each score."""
    assert chunk.evidence is not None
    text = Text()
    for number, score in enumerate(chunk.evidence.thresholds):
        text.append(f"{'' if number == 0 else chr(10)}{score:<15}")
        hits = chunk.evidence.of(score)  # pyright: ignore[reportArgumentType]
        if not hits:
            text.append("nothing close", style="dim")
            continue
        words = " ".join(hits[0].text.split())
        text.append(f"{hits[0].value:.3g}  ")
        text.append(f"{hits[0].name}", style="bold")
        text.append(f" ({hits[0].source})  {words if len(words) <= _TEXT else words[: _TEXT - 1] + '…'}")
    return text
