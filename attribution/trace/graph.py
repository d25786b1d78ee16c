"""The attribution graph of one token in Neuronpedia's format: input tokens → concepts → logit.

A graph has three levels: the visible input tokens, the concepts with epsilon as the error node, and the token's logit.
All links are in logits of the token, so that they can be added up:

- concept → logit is the concept's contribution, and epsilon → logit is epsilon. They sum to what the explanation
  splits: the logit minus the mean of all logits, or the raw logit (`Contributions.reference`).
- input → concept is what the input added to the concept's activation, by integrated gradients, times the logits that
  one unit of the activation contributes.
- input → epsilon is what remains of the input's attribution to the same value. So the links that leave an input sum to
  that attribution.

In the graph of a model without concepts the inputs are linked to the logit itself.

Legend: K listed concepts, T canvas positions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from steerling_jax.attribution.trace.document import input_baseline
from steerling_jax.attribution.trace.explanation import Explanation
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Head
from steerling_jax.decoding.text_ids import NO_MASK
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.contributions import Contributions
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.targets import ConceptActivation, TokenAboveMean, TokenLogProbability
from steerling_jax.progress import Progress, no_progress

_LINKS = 32  # links from inputs to one node, the strongest ones
# What concepts and epsilon add up to, by reference.
_SPLIT = {
    "raw": "the token's logit",
    "vocabulary": "the token's logit minus the mean of all tokens' logits",
    "model": "the token's logit minus the mean of all logits under the model's own distribution",
}


class _Concept(NamedTuple):
    id: int
    kind: Head
    activation: float
    contribution: float

    @property
    def logits_per_activation(self) -> float:
        """Logits that one unit of activation contributes."""
        return self.contribution / self.activation if self.activation else 0.0


def graph_position(trace: Trace, position: int | None) -> int:
    """The position, or that of the last commit if None. Raises `UserError` if no token was committed there."""
    committed = [place for _, place, _, _ in trace.flat()]
    if position is not None and position not in committed:
        raise UserError(f"No token was committed at position {position}, so it has no graph; choose another position.")
    return committed[-1] if position is None else position


def make_graph(
    bundle: Bundle, explanation: Explanation, position: int | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """The graph of the token at a canvas position; None for the last committed token, which saw all others.

    Raises `UserError` if no token was committed there.
    """
    trace = explanation.trace
    position = graph_position(trace, position)
    row = next(i for i, one in enumerate(explanation.committed) if one.position == position)
    shares = explanation.shares
    if shares is None or shares.reference == "raw":
        of_logit = explanation.inputs or attribute_inputs(bundle, trace, positions=[position])
    else:
        of_logit = attribute_inputs(bundle, trace, target=TokenAboveMean(shares.reference), positions=[position])
    into_logit = of_logit.attributions[of_logit.target_positions == position][0]
    graph = _GraphBuilder(bundle, explanation, row)
    largest_error = None
    if shares is None:
        graph.add_inputs(graph.target, into_logit)
    else:
        largest_error = _add_concepts(graph, bundle, explanation, shares, row, into_logit, progress)
    probability = attribute_inputs(bundle, trace, target=TokenLogProbability(), positions=[position], nodes=1)
    graph.add_logit(math.exp(float(probability.path_logits[0])))
    return {
        "metadata": _metadata(bundle, explanation, row, largest_error),
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": graph.target, "sg_pos": ""},
        "nodes": list(graph.nodes.values()),
        "links": graph.links,
    }


def _add_concepts(
    graph: _GraphBuilder,
    bundle: Bundle,
    explanation: Explanation,
    shares: Contributions,
    row: int,
    into_logit: np.ndarray,
    progress: Progress,
) -> float:
    """Adds the concepts and epsilon with their links, for the input attributions into_logit (T,); returns the largest
    completeness error of the links into concepts, in logits."""
    trace, position = explanation.trace, explanation.committed[row].position
    concepts = _listed_concepts(shares, row)
    of_concepts = attribute_inputs(
        bundle,
        trace,
        target=[ConceptActivation(one.id, one.kind, "weight") for one in concepts],
        positions=[position] * len(concepts),
        progress=progress,
    )
    # A clamped concept has an activation but no inputs: the clamp replaces it whatever the inputs are.
    clamped = _clamped_concepts(trace, position)
    units = np.asarray(
        [0.0 if (one.kind, one.id) in clamped else one.logits_per_activation for one in concepts], np.float32
    )
    into_concepts = of_concepts.attributions * units[:, None]
    # Epsilon depends on the inputs through the whole network. It gets the remainder, so that nothing is lost.
    into_epsilon = into_logit - into_concepts.sum(axis=0)
    for one, inputs in zip(concepts, into_concepts, strict=True):
        graph.add_source(graph.add_concept(one), one.contribution, inputs)
    graph.add_source(graph.add_epsilon(), float(shares.epsilon[row]), into_epsilon)
    return float(np.abs(of_concepts.completeness_error * units).max(initial=0.0))


def _listed_concepts(shares: Contributions, row: int) -> list[_Concept]:
    listed: list[_Concept] = []
    kinds: tuple[tuple[Head, Any, Any, Any], ...] = (
        ("known", shares.known_ids, shares.known_weights, shares.known_contributions),
        ("discovered", shares.discovered_ids, shares.discovered_weights, shares.discovered_contributions),
    )
    for kind, ids, weights, values in kinds:
        rows = zip(ids[row].tolist(), weights[row].tolist(), values[row].tolist(), strict=True)
        listed += [_Concept(id, kind, weight, value) for id, weight, value in rows if id >= 0]
    return listed


def _clamped_concepts(trace: Trace, position: int) -> set[tuple[Head, int]]:
    """The concepts that steering clamps at a position."""
    clamps = None if trace.plan is None else trace.plan.clamps
    if clamps is None:
        return set()
    offset, (start, end) = position - trace.prompt_length, clamps.offsets or (0, len(trace.tokens))
    by_head: dict[Head, dict[int, float] | None] = {"known": clamps.known, "discovered": clamps.discovered}
    return {(kind, number) for kind, values in by_head.items() for number in values or {} if start <= offset < end}


class _GraphBuilder:
    """Collects nodes and links.

    Neuronpedia lays nodes out by `layer` (vertical) and `ctx_idx` (horizontal). The concept bottleneck follows the
    model's last layer, so concepts are in layer n_layers + 1 and the logit in n_layers + 2; inputs are in layer "E".
    The "feature_type" names are those that the format has for these roles: a concept is drawn as a transcoder feature.
    """

    def __init__(self, bundle: Bundle, explanation: Explanation, row: int):
        step, self.position, self.token, _ = explanation.committed[row]
        self.explanation, self.pieces = explanation, explanation.pieces
        self.snapshot = explanation.trace.snapshot(step)
        self.layer = bundle.config.n_layers + 1
        self.target = f"{self.layer + 1}_{self.token}_{self.position}"
        self.nodes: dict[str, dict[str, Any]] = {}
        self.links: list[dict[str, Any]] = []

    def add_concept(self, one: _Concept) -> str:
        # The published package numbers discovered concepts after the known ones.
        concepts = self.explanation.concepts
        assert concepts is not None
        number = one.id + (concepts.known if one.kind == "discovered" else 0)
        name = f"{self.explanation.name(one.kind, one.id)} ({one.kind})"
        return self._add_node(number, "cross layer transcoder", name, activation=one.activation)

    def add_epsilon(self) -> str:
        label = f"{self.explanation.rest}: what no listed concept explains"
        return self._add_node(-1, "mlp reconstruction error", label)

    def add_logit(self, probability: float) -> None:
        piece = self.pieces[self.position]
        self.nodes[self.target] = {
            "node_id": self.target,
            "feature": self.token,
            "layer": str(self.layer + 1),
            "ctx_idx": self.position,
            "feature_type": "logit",
            "token_prob": probability,
            "is_target_logit": True,
            "jsNodeId": f"L_{self.token}-{self.position}",
            "clerp": f'"{piece}" (p={probability:.3f})',
            "influence": None,
            "activation": None,
        }

    def add_source(self, node: str, weight: float, inputs: np.ndarray) -> None:
        """Links a node to the logit with `weight`, and its strongest inputs, of attributions (T,), to the node."""
        self.links.append({"source": node, "target": self.target, "weight": weight})
        self.add_inputs(node, inputs)

    def add_inputs(self, node: str, inputs: np.ndarray) -> None:
        """Links the strongest inputs, of attributions (T,), to a node."""
        for place in np.argsort(-np.abs(inputs), kind="stable")[:_LINKS].tolist():
            if inputs[place] != 0:
                self.links.append({"source": self._add_input(place), "target": node, "weight": float(inputs[place])})

    def _add_input(self, place: int) -> str:
        token = int(self.snapshot[place])
        name = f"E_{token}_{place}"
        self.nodes[name] = {
            "node_id": name,
            "feature": place,
            "layer": "E",
            "ctx_idx": place,
            "feature_type": "embedding",
            "jsNodeId": f"E_{token}-{place}",
            "clerp": self.pieces[place],
            "influence": None,
            "activation": None,
        }
        return name

    def _add_node(self, feature: int, kind: str, name: str, activation: float | None = None) -> str:
        node = f"{self.layer}_{feature}_{self.position}"
        self.nodes[node] = {
            "node_id": node,
            "feature": feature,
            "layer": str(self.layer),
            "ctx_idx": self.position,
            "feature_type": kind,
            "jsNodeId": f"{self.layer}_{feature}-{self.position}",
            "clerp": name,
            "influence": None,
            "activation": activation,
        }
        return node


def _metadata(bundle: Bundle, explanation: Explanation, row: int, largest_error: float | None) -> dict[str, Any]:
    """The graph's metadata; largest_error: of the links into concepts, in logits, None for a model without concepts."""
    record, shares, trace = explanation.record, explanation.shares, explanation.trace
    step, position, _, logit = explanation.committed[row]
    seed = "given" if record.seed is None else record.seed
    if trace.mask_id == NO_MASK:  # the text up to the token, which has a node at its own place
        pieces = list(explanation.pieces[: position + 1])
    else:
        pieces = [bundle.tokenizer.piece(i) for i in trace.snapshot(step).tolist()]
    links = (
        "Links are in logits: what an input added to the token's logit"
        if shares is None
        else f"Links are in logits: concepts and the error node, epsilon, add up to {_SPLIT[shares.reference]}, and "
        "the links that leave an input, those too weak to be drawn included, to what it added"
    )
    baseline = "a canvas of masks" if input_baseline(explanation) == "masks" else "the mean embedding of all tokens"
    return {
        "slug": f"steerling-{record.origin.fingerprint}-{seed}-{position}",
        "scan": record.origin.name,
        "prompt_tokens": pieces,
        "prompt": record.prompt_text,
        "info": {
            "description": (
                f"The token at position {position}, written in step {step}; the last step is {trace.commits[-1].step}. "
                f"The tokens are the canvas as it was before that step. {links}, by integrated gradients from "
                f"{baseline}."
            ),
            "generator": {"name": "steerling-jax"},
        },
        "generation_settings": {
            "step": step,
            "position": position,
            "logit": float(logit),
            "reference": None if shares is None else shares.reference,
            "reference_logit": None if shares is None else float(shares.target_logits[row] - shares.split_logits[row]),
            "share_error": None if shares is None else float(shares.error[row]),
            "largest_concept_completeness_error": largest_error,
            "guidance": trace.guidance,
        },
        "pruning_settings": {"inputs_per_node": _LINKS},
    }
