"""A trace with all that is needed to explain it later, and its plain form, which files and batch results hold.

docs/design/trace-format.md describes the form field by field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation, Prompt, effective_config
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import UserError, require
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.features import FeatureSteering
from steerling_jax.steering.plan import Resolved, SteeringPlan, prepare_steering
from steerling_jax.steering.resolve import configs_of, resolve_steering

FORMAT, VERSION = "steerling-trace", 2


@dataclass(frozen=True)
class Origin:
    """Which model a trace is of. fingerprint: see `models.steerling.fingerprint`. dtype, matmul_dtype: what it computed
    in. corpus: of its training texts, where known: `documents`, how many, and `documents_sha256`, the hash of the
    sorted hashes of their texts. catalogue: the fingerprint of its concepts' names, where it has concepts. versions: of
    the packages that computed the trace; empty in records of earlier versions."""

    name: str
    fingerprint: str
    tokenizer_sha256: str
    dtype: str = "float32"
    matmul_dtype: str | None = None
    corpus: Mapping[str, Any] | None = None
    catalogue: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TraceRecord:
    """A trace, how it came about, and its texts.

    trace: read from a file it has neither plan nor hidden rows; `restore` makes the plan again. text: what was written.
    generation: None for a text that was not generated here. seed: the one that was used. policies: field of `Policies`
    to what was given there, for people to read: attribution does not need it. index: the fingerprint of the
    training-data index that its explanation searched, if one did.
    """

    trace: Trace
    origin: Origin
    prompt_text: str
    text: str
    generation: GenerationConfig | None = None
    seed: int | None = None
    steering: tuple[Resolved, ...] = ()
    policies: Mapping[str, str] = field(default_factory=dict)
    index: str | None = None


def origin_of(
    bundle: Bundle, corpus: Mapping[str, Any] | None = None, versions: Mapping[str, str] | None = None
) -> Origin:
    """The origin of what this model writes; `io.trace_file.model_origin` knows the corpus and the versions, too."""
    compute = bundle.compute
    concepts = isinstance(bundle.config, ModelConfig) and bundle.config.concept is not None
    return Origin(
        bundle.name,
        fingerprint(bundle.params, bundle.config),
        bundle.tokenizer.sha256,
        compute.dtype,
        compute.matmul_dtype,
        corpus,
        bundle.concepts.fingerprint if concepts else None,
        versions or {},
    )


def record_of(bundle: Bundle, origin: Origin, prompt: Prompt, generation: Generation) -> TraceRecord:
    """The record of a generation, one of `generate`, `stream`, `generate_many` or `stream_many`.

    Raises `UserError` for steering given as a plan, from which no configuration can be read.
    """
    if isinstance(prompt.steering, SteeringPlan):
        raise UserError("A trace of text steered by a SteeringPlan cannot be recorded; give SteeringConfigs.")
    require(not prompt.edits, "A trace of text written with layer edits cannot be recorded; leave out the edits.")
    steering = resolve_steering(bundle, prompt.steering)
    given = {} if prompt.policies is None else vars(prompt.policies)
    policies = {name: repr(value) for name, value in given.items() if value is not None}
    prompt_text = bundle.tokenizer.decode(generation.trace.prompt.tolist())
    config = effective_config(bundle, prompt.config, generation.trace.prompt_length)
    return TraceRecord(
        generation.trace, origin, prompt_text, generation.text, config, generation.seed, steering, policies
    )


def to_plain(record: TraceRecord) -> dict[str, Any]:
    """The record in JSON's own types. Raises `UserError` for a logit that is no finite number."""
    trace, origin = record.trace, record.origin
    configs, features = _by_kind(record)
    for _, position, _, logit in trace.flat():
        require(
            math.isfinite(logit),
            f"The logit of the token at position {position} is {logit}: the weights of {origin.name!r} are damaged.",
        )
    return {
        "format": FORMAT,
        # A program that knows version 1 only would explain the text without its features, so they need a version.
        "version": VERSION if features else 1,
        "model": {name: getattr(origin, name) for name in _MODEL},
        "corpus": None if origin.corpus is None else dict(origin.corpus),
        "catalogue": origin.catalogue,
        "index": record.index,
        "versions": dict(origin.versions),
        "prompt_text": record.prompt_text,
        "text": record.text,
        "generation": None if record.generation is None else _plain(record.generation),
        "policies": dict(record.policies),
        "seed": record.seed,
        "steering": [one.describe() for one in record.steering],
        "steering_configs": [_plain(one) for one in configs],
        **({"steering_features": [_plain(one) for one in features]} if features else {}),
        "mask_id": int(trace.mask_id),
        "passes": trace.passes,
        "prompt": trace.prompt.tolist(),
        "tokens": trace.tokens.tolist(),
        "commits": [
            commit._asdict() | {name: list(getattr(commit, name)) for name in _LISTS} for commit in trace.commits
        ],
    }


_LARGEST = float(np.finfo(np.float32).max)
_MODEL = ("name", "fingerprint", "tokenizer_sha256", "dtype", "matmul_dtype")
_LISTS = ("positions", "token_ids", "target_logits")


def _plain(config: Any) -> dict[str, Any]:
    """A dataclass's fields, with text keys and lists, as JSON has them."""
    plain = {}
    values = dataclasses.asdict(config)
    values.pop("given", None)  # which fields a caller set; a record has all of them
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = {str(key): number for key, number in value.items()}
        elif isinstance(value, tuple):
            value = [_python(one) for one in value]
        plain[name] = _python(value)
    return plain


def _python(value: Any) -> Any:
    """NumPy's numbers as Python's, which JSON knows."""
    return value.item() if isinstance(value, np.generic) else value


def from_plain(value: Any, where: str) -> TraceRecord:
    """The record in `value`, as `to_plain` wrote it; `where` is what errors name.

    Raises `UserError` where it is no trace, of a newer version, incomplete, or contradicts itself.
    """
    if not isinstance(value, Mapping) or value.get("format") != FORMAT:
        raise UserError(f"{where} is no trace; give a file that `steerling generate --trace` wrote.")
    version = value.get("version")
    if type(version) is int and version > VERSION:
        raise UserError(f"{where} is a trace of version {version}, and this program reads up to {VERSION}; update it.")
    known = type(version) is int and 1 <= version <= VERSION
    require(known, f"{where} has the version {version!r}, but these exist: 1 to {VERSION}; make it again.")
    try:
        steering = tuple(_config(SteeringConfig, one) for one in value["steering_configs"])
        steering += tuple(_config(FeatureSteering, one) for one in value.get("steering_features", ()))
        generation = None if value["generation"] is None else _config(GenerationConfig, value["generation"])
        seed = value["seed"]
        trace = Trace(
            _ids("prompt", value["prompt"]),
            _ids("tokens", value["tokens"]),
            tuple(map(_commit, value["commits"])),
            _whole("mask_id", value["mask_id"]),
            guidance=0.0 if generation is None else generation.cfg_scale,
            passes=_whole("passes", value["passes"]),
        )
        _check_commits(trace)
        record = TraceRecord(
            trace,
            Origin(
                **value["model"],
                corpus=value["corpus"],
                # Records of earlier versions do not have these.
                catalogue=_optional_text("catalogue", value.get("catalogue")),
                versions={str(name): _text(str(name), one) for name, one in value.get("versions", {}).items()},
            ),
            _text("prompt_text", value["prompt_text"]),
            _text("text", value["text"]),
            generation,
            None if seed is None else _whole("seed", seed),
            steering,
            dict(value["policies"]),
            _optional_text("index", value.get("index")),
        )
    except KeyError as error:
        raise UserError(f"{where} has no field {error}: it is no whole trace; make it again.") from None
    except UserError as error:
        raise UserError(f"{where} cannot be a trace: {error}") from None
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"{where} cannot be a trace: a field has a wrong type ({error}); make it again.") from None
    return record


def check(record: TraceRecord, bundle: Bundle, where: str = "The trace") -> None:
    """Raises `UserError` unless `record` is of this very model and its canvas is what its commits wrote."""
    mine = fingerprint(bundle.params, bundle.config)
    if record.origin.fingerprint != mine:
        raise UserError(
            f"{where} is of the model {record.origin.name!r} ({record.origin.fingerprint}), not of {bundle.name!r} "
            f"({mine}); give that model with --model."
        )
    config, trace = bundle.config, record.trace
    try:
        trace.check(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    wrong = np.flatnonzero(_written(trace, config) != trace.tokens)
    if wrong.size:
        raise UserError(f"{where} contradicts itself: its commits do not write what stands at position {wrong[0]}.")


def restore(record: TraceRecord, bundle: Bundle, where: str = "The trace") -> Trace:
    """The checked trace with the plan that steered it, made again from its configurations."""
    check(record, bundle, where)
    trace = record.trace.with_pieces(bundle.tokenizer)
    configs, features = _by_kind(record)
    if features and not trace.edits:
        for one in features:
            one.check(bundle.config)
        edits, labels = tuple(one.edit() for one in features), tuple(one.describe() for one in features)
        trace = dataclasses.replace(trace, edits=edits, edit_labels=labels)
    if trace.plan is not None or not isinstance(bundle.config, ModelConfig):
        return trace
    # Records of earlier versions can name a layer that the model lacks. Such an injection did nothing; by now it is an
    # error in a request.
    L = bundle.config.n_layers
    steering = [dataclasses.replace(one, mai_lm_target=0.0) if one.first_layer(L) > L else one for one in configs]
    plan = prepare_steering(bundle.params, steering, config=bundle.config, compute=bundle.compute)
    return dataclasses.replace(trace, plan=plan)


def _by_kind(record: TraceRecord) -> tuple[list[SteeringConfig], list[FeatureSteering]]:
    """The steering of a record by concepts, and by features."""
    features = [one for one in record.steering if isinstance(one, FeatureSteering)]
    return configs_of(record.steering), features


def _written(trace: Trace, config: ModelConfig | DecoderConfig) -> np.ndarray:
    """The canvas that the commits make; what follows an end of turn is overwritten."""
    canvas = np.full(len(trace.tokens), trace.mask_id, np.int32)
    canvas[: trace.prompt_length] = trace.prompt
    for _, position, token, _ in trace.flat():
        canvas[position] = token
    if not isinstance(config, ModelConfig):
        return canvas
    turns = trace.prompt_length + np.flatnonzero(canvas[trace.prompt_length :] == config.eot_id)
    # In a text that was not generated, what follows a turn's end may be kept.
    if turns.size and (trace.tokens[turns[0] + 1 :] == config.eos_token_id).all():
        canvas[turns[0] + 1 :] = config.eos_token_id
    return canvas


def _check_commits(trace: Trace) -> None:
    P, T = trace.prompt_length, len(trace.tokens)
    require(P > 0, "its prompt is empty.")
    require(P < T and trace.tokens[:P].tolist() == trace.prompt.tolist(), "its tokens do not begin with its prompt.")
    require(len(trace.commits) > 0, "it has no commits, an empty generation, which leaves nothing to explain.")
    last = -1
    for commit in trace.commits:
        require(commit.step > last, f"step {commit.step} comes after step {last}.")
        last = commit.step
        sizes = {len(getattr(commit, name)) for name in _LISTS}
        require(len(sizes) == 1 and sizes != {0}, f"step {commit.step} has lists of different lengths, or empty ones.")


def _commit(value: Mapping[str, Any]) -> Commit:
    logits = tuple(value["target_logits"])
    require(
        all(isinstance(x, float | int) and abs(x) <= _LARGEST for x in logits),
        f"a target logit of step {value['step']} is no finite number.",
    )
    positions, tokens = (tuple(_whole(name, x) for x in value[name]) for name in ("positions", "token_ids"))
    return Commit(_whole("step", value["step"]), positions, tokens, tuple(map(float, logits)))


def _config(kind: Any, value: Mapping[str, Any]) -> Any:
    names = {one.name for one in dataclasses.fields(kind)}
    for name in value:
        require(name in names, f"{name!r} is not a field of {kind.__name__}.")
    return kind(**{name: tuple(x) if isinstance(x, list) else x for name, x in value.items()})


def _whole(name: str, value: Any) -> int:
    require(type(value) is int, f"{name} is {value!r}, but it must be a whole number.")
    require(abs(value) < 1 << 63 if name == "seed" else abs(value) < 1 << 31, f"{name} is {value}, which is too large.")
    return value


def _text(name: str, value: Any) -> str:
    require(isinstance(value, str), f"{name} is {value!r}, but it must be a text.")
    return value


def _optional_text(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _ids(name: str, values: Sequence[Any]) -> np.ndarray:
    require(all(0 <= _whole(name, value) < 2**31 for value in values), f"{name} holds an id that cannot be.")
    return np.asarray(values, np.int32).reshape(-1)
