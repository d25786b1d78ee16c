"""How often the body of a `while` instruction runs."""

from __future__ import annotations

import re

from steerling_jax.train.aot.hlo.parser import Computation, Instruction, Module

_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def trip_count(loop: Instruction, computation: Computation, module: Module) -> int | None:
    """The number of iterations of `loop`, which is in `computation`; None where it depends on data.

    XLA records the number of most loops (`known_trip_count`). Otherwise it follows from the condition `i < n`, where
    the initial i and n are constants, and from the constant that the body adds to i.
    """
    if known := _TRIP_COUNT.search(loop.attributes):
        return int(known.group(1))
    condition = module.computations[loop.called("condition")[0]]
    compare, names = condition.root, condition.root.operands
    if compare.opcode == "fusion":
        # The comparison may be in a fusion: look up its operands, parameters of the fusion, outside of it.
        fused = module.computations[compare.called("calls")[0]]
        outside = {parameter.name: names[number] for number, parameter in fused.parameters.items()}
        compare, names = fused.root, tuple(outside.get(name, name) for name in fused.root.operands)
        condition = Computation(condition.name, condition.instructions + fused.instructions)
    if compare.opcode != "compare" or compare.attribute("direction") != "LT":
        return None
    start, limit = (_initial_value(name, condition, loop, computation) for name in names)
    step = _increment(condition.by_name[names[0]], module.computations[loop.called("body")[0]])
    if start is None or limit is None or step is None:
        return None
    return max(0, -((start - limit) // step))  # rounded up


def _initial_value(name: str, condition: Computation, loop: Instruction, computation: Computation) -> int | None:
    """The integer that operand `name` of the condition has before the first iteration, where it is a constant."""
    value = condition.by_name[name]
    if value.opcode == "get-tuple-element":  # a part of the carry, whose initial value is the loop's operand
        carry = computation.by_name[loop.operands[0]]
        if carry.opcode != "tuple":
            return None
        value = computation.by_name[carry.operands[int(value.attribute("index") or 0)]]
    while value.opcode in ("copy", "bitcast"):
        value = computation.by_name.get(value.operands[0], condition.root)
    return _constant(value)


def _increment(counter: Instruction, body: Computation) -> int | None:
    """By how much one iteration raises the counter: 1, or more where the compiler unrolled the loop."""
    if counter.opcode != "get-tuple-element" or body.root.opcode != "tuple":
        return None
    after = body.by_name[body.root.operands[int(counter.attribute("index") or 0)]]
    steps = [_constant(body.by_name[name]) for name in after.operands] if after.opcode == "add" else []
    return next((step for step in steps if step), 1)


def _constant(value: Instruction) -> int | None:
    is_number = value.opcode == "constant" and value.argument.lstrip("-").isdigit()
    return int(value.argument) if is_number else None
