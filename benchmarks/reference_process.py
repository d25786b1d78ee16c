"""A reference program in a process of its own, with another Python: JSON requests and answers, one a line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


class ReferenceProcess:
    """A process that runs `script`, a file beside this one, with the interpreter `python`."""

    def __init__(self, python: str, script: str, *arguments: str):
        line = [python, str(Path(__file__).with_name(script)), *arguments]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("The reference ended; its message is above.")
        return json.loads(line)

    def __enter__(self) -> ReferenceProcess:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
