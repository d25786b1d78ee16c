"""The attribution graph of one token in Neuronpedia's format: input tokens → concepts → logit.

A graph has three levels: the visible input tokens, the concepts with epsilon as the error node, and the token's logit.
All links are in logits of the token, so that they can be added up:

- concept → logit is the concept's contribution, and epsilon → logit is epsilon. They sum to what the explanation
  splits: the logit minus the mean of all logits, or the raw logit (`Contributions.reference`).
- input → concept is what the input added to the concept's activation, by integrated gradients, times the logits that
  one unit of the activation contributes.
- input → epsilon is what remains of the input's attribution to the same value. So the links that leave an input sum to
  that attribution.

Legend: K listed concepts, T canvas positions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from steerling_jax.attribution.trace.explanation import Explanation
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Head
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
    shares, trace = explanation.shares, explanation.trace
    position = graph_position(trace, position)
    row = int(np.flatnonzero(shares.positions == position)[0])
    concepts = _listed_concepts(shares, row)
    of_concepts = attribute_inputs(
        bundle,
        trace,
        target=[ConceptActivation(one.id, one.kind, "weight") for one in concepts],
        positions=[position] * len(concepts),
        progress=progress,
    )
    if shares.reference == "raw":
        of_logit = explanation.inputs or attribute_inputs(bundle, trace, positions=[position])
    else:
        of_logit = attribute_inputs(bundle, trace, target=TokenAboveMean(shares.reference), positions=[position])
    into_logit = of_logit.attributions[of_logit.target_positions == position][0]
    # A clamped concept has an activation but no inputs: the clamp replaces it whatever the inputs are.
    clamped = _clamped_concepts(trace, position)
    units = np.asarray(
        [0.0 if (one.kind, one.id) in clamped else one.logits_per_activation for one in concepts], np.float32
    )
    into_concepts = of_concepts.attributions * units[:, None]
    # Epsilon depends on the inputs through the whole network. It gets the remainder, so that nothing is lost.
    into_epsilon = into_logit - into_concepts.sum(axis=0)
    probability = attribute_inputs(bundle, trace, target=TokenLogProbability(), positions=[position], nodes=1)
    graph = _GraphBuilder(bundle, explanation, row)
    for one, inputs in zip(concepts, into_concepts, strict=True):
        graph.add_source(graph.add_concept(one), one.contribution, inputs)
    graph.add_source(graph.add_epsilon(), float(shares.epsilon[row]), into_epsilon)
    graph.add_logit(math.exp(float(probability.path_logits[0])))
    return {
        "metadata": _metadata(bundle, explanation, row, of_concepts.completeness_error * units),
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": graph.target, "sg_pos": ""},
        "nodes": list(graph.nodes.values()),
        "links": graph.links,
    }


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
        shares = explanation.shares
        self.explanation, self.pieces = explanation, explanation.pieces
        self.position, self.token = int(shares.positions[row]), int(shares.token_ids[row])
        self.snapshot = explanation.trace.snapshot(int(shares.steps[row]))
        self.layer = bundle.config.n_layers + 1
        self.target = f"{self.layer + 1}_{self.token}_{self.position}"
        self.nodes: dict[str, dict[str, Any]] = {}
        self.links: list[dict[str, Any]] = []

    def add_concept(self, one: _Concept) -> str:
        # The published package numbers discovered concepts after the known ones.
        number = one.id + (self.explanation.concepts.known if one.kind == "discovered" else 0)
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


def _metadata(bundle: Bundle, explanation: Explanation, row: int, errors: np.ndarray) -> dict[str, Any]:
    """The graph's metadata; errors (K,) are the completeness errors of the links into concepts, in logits."""
    record, shares, trace = explanation.record, explanation.shares, explanation.trace
    step, position = int(shares.steps[row]), int(shares.positions[row])
    seed = "given" if record.seed is None else record.seed
    pieces = [bundle.tokenizer.piece(i) for i in trace.snapshot(step).tolist()]
    return {
        "slug": f"steerling-{record.origin.fingerprint}-{seed}-{position}",
        "scan": record.origin.name,
        "prompt_tokens": pieces,
        "prompt": record.prompt_text,
        "info": {
            "description": (
                f"The token at position {position}, written in step {step}; the last step is {trace.commits[-1].step}. "
                "The tokens are the canvas as it was before that step. Links are in logits: concepts and the error "
                f"node, epsilon, add up to {_SPLIT[shares.reference]}, and the links that leave an input, those too "
                "weak to be drawn included, to what it added, by integrated gradients from a canvas of masks."
            ),
            "generator": {"name": "steerling-jax"},
        },
        "generation_settings": {
            "step": step,
            "position": position,
            "logit": float(shares.target_logits[row]),
            "reference": shares.reference,
            "reference_logit": float(shares.target_logits[row] - shares.split_logits[row]),
            "share_error": float(shares.error[row]),
            "largest_concept_completeness_error": float(np.abs(errors).max(initial=0.0)),
            "guidance": trace.guidance,
        },
        "pruning_settings": {"inputs_per_node": _LINKS},
    }
