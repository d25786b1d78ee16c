"""Effect of response steering on generated text, beside no steering and steering with random concepts.

    python benchmarks/response_steering.py

The responses are the descriptions of twelve concepts of the bundled model, spread over its catalogue. Each steers the
continuation of six prompts about other subjects. Prints, for each strength: the mean activation in the generated text
of the concept that is strongest in the response (a mean over all texts, ± its standard error over responses), and the
share of distinct tokens, which falls when a text repeats itself. The control has the same strengths and weights on
concepts drawn at random. Activations are read from the model's own concept head, so the figures show whether steering
reaches that head, not whether a reader notices it.

Takes three minutes on one core; the figures do not depend on the machine. Results in docs/results/steering.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import numpy as np

import steerling_jax as sj
from steerling_jax.decoding.generation import Prompt, stream_many
from steerling_jax.steering.response import mean_activations, response_steering

PROMPTS = (
    "This module provides a class that",
    "Return the value of the",
    "For example, the following code",
    "Changed in version 3.8: the argument is now",
    "The function is called when",
    "Note that this method does not",
)
NEW_TOKENS = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--responses", type=int, default=12)
    parser.add_argument("--strengths", default="4,8,16,32")
    args = parser.parse_args()
    bundle = sj.load(args.model)
    described = [entry for entry in bundle.concepts.concepts if entry.head == "known" and entry.description]
    responses = [described[i].description for i in np.linspace(0, len(described) - 1, args.responses).astype(int)]
    titles = ("strength", "response", "random concepts", "distinct, response", "distinct, random")
    print("|", " | ".join(titles), "|")
    print("| --- " * len(titles) + "|")
    print_row(bundle, responses, "nothing", 0.0)
    for strength in map(float, args.strengths.split(",")):
        print_row(bundle, responses, f"{strength:g}", strength)


def print_row(bundle: sj.Bundle, responses: list[str], title: str, strength: float) -> None:
    """Generates with the responses and with random concepts, and prints a row of the table."""
    cells = []
    for control in (False, True):
        requests = list(prompts(bundle, responses, strength, control))
        figures = np.zeros((len(requests), 2))
        for number, result in stream_many(bundle, [prompt for prompt, _ in requests]):
            ids = result.tokens[result.trace.prompt_length :]
            ids = ids[~np.isin(ids, [bundle.config.mask_token_id, bundle.config.eos_token_id])]
            activation = mean_activations(bundle, ids.tolist())[requests[number][1]]
            figures[number] = activation, len(set(ids.tolist())) / len(ids)
        means = figures[:, 0].reshape(len(responses), -1).mean(axis=1)
        error = means.std(ddof=1) / np.sqrt(len(means))
        cells.append((f"{means.mean():.3f} ± {error:.3f}", f"{figures[:, 1].mean():.2f}"))
    (ours, our_share), (random, random_share) = cells
    print("|", " | ".join((title, ours, random, our_share, random_share)), "|", flush=True)


def prompts(bundle: sj.Bundle, responses: list[str], strength: float, control: bool) -> Iterator[tuple[Prompt, int]]:
    """Pairs of a steered prompt and the concept whose activation is measured."""
    random = np.random.default_rng(0)
    assert bundle.config.concept is not None
    for response in responses:
        steering = response_steering(bundle, response, strength)
        concept = steering.concept_ids[0]
        if control:
            drawn = random.choice(bundle.config.concept.n_concepts, len(steering.concept_ids), replace=False)
            steering = dataclasses.replace(steering, concept_ids=tuple(drawn.tolist()))
        for seed, text in enumerate(PROMPTS):
            yield Prompt(text, sj.GenerationConfig(max_new_tokens=NEW_TOKENS, seed=seed), steering), concept


if __name__ == "__main__":
    main()
