"""The child process that renders a chat template; started by `chat_template`, and imports nothing of this package.

Reads {"template": text, "seconds": limit, "variables": {…}, "conversations": [messages, …]} from standard input; writes
{"texts": […]}, or {"rejected": …} for a conversation that the template refuses, or {"error": …}.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MEMORY = 1 << 30  # bytes of address space; Python and Jinja take 50 MB of it
_LONGEST = 1 << 24  # characters of a rendered text


class Rejected(Exception):
    """What a template raises for a conversation that the model does not support."""


class GenerationTag(Extension):
    """The tag `generation`, with which some templates mark the assistant's text for training; it adds nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tag and its end."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def limit_resources(seconds: float) -> None:
    """Limits memory and processor time, so that this process ends even if its parent is gone."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system, or a lower limit holds already
        import resource

        cpu = math.ceil(seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def render(template: str, variables: dict[str, Any], conversations: list[Any]) -> list[str]:
    """The rendered texts of conversations, in an environment with what published templates use."""
    # Published templates are written for these whitespace settings and for the tags `break` and `continue`.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _reject
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    program, texts, length = environment.from_string(template), [], 0
    for messages in conversations:
        parts = []
        for part in program.generate({**variables, "messages": messages}):
            length += len(part)
            if length > _LONGEST:
                raise ValueError(f"it writes more than {_LONGEST} characters")
            parts.append(part)
        texts.append("".join(parts))
    return texts


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON as published templates expect it; Jinja's own filter escapes characters of HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _reject(message: str) -> None:
    raise Rejected(message)


def main() -> None:
    """Renders the request on standard input."""
    request = json.loads(sys.stdin.buffer.read())
    limit_resources(request["seconds"])
    try:
        answer: dict[str, Any] = {"texts": render(request["template"], request["variables"], request["conversations"])}
    except Rejected as error:
        answer = {"rejected": str(error)[:500].strip().rstrip(".")}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}".removesuffix(": ")[:500]}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
