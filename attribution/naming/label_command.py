"""Names from a program of the user's, such as a client of a language model.

The program is started once for each concept. It reads a prompt on standard input and prints a name on the first line of
its standard output. Answers are kept in a file beside the catalogue until that is written, so that a run that was
interrupted does not ask for them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steerling_jax.attribution.program import ProgramError, run_program, split_command
from steerling_jax.errors import UserError
from steerling_jax.io.text_files import load_json

MAX_NAME = 80  # characters
_MAX_ANSWER = 1 << 20  # bytes

_PROMPT = """\
A language model has a concept without a name. Below are words that are frequent where the concept is active, tokens
that it makes more likely, and texts in which it is strongest. Answer with one line: a name of one to five words. Use
words that occur in such texts and rarely in others; your name is scored by how well its words tell these texts from
others.

Words: {words}
Tokens: {tokens}

{texts}
Name:
"""


def make_prompt(words: Sequence[str], tokens: Sequence[str], texts: Sequence[str]) -> str:
    """What the program reads about one concept."""
    numbered = "".join(f"Text {number}:\n{text.strip()}\n\n" for number, text in enumerate(texts, start=1))
    return _PROMPT.format(words=", ".join(words) or "none", tokens=" ".join(tokens), texts=numbered)


@dataclass
class LabelCommand:
    """Runs `command` with a limit of `seconds` for each prompt; `kept` is the file of the answers so far.

    Raises `UserError` where the command cannot be parsed, and from `name` where it cannot be run, fails, takes longer
    than the limit, or prints no usable name.
    """

    command: str
    seconds: float
    kept: Path
    _answers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._words = split_command("--command", self.command)
        self._answers = {}
        if self.kept.is_file():
            for line in self.kept.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that a killed run left unfinished
                    entry = load_json(line)
                    self._answers[entry["prompt"]] = entry["name"]

    def name(self, concept: str, prompt: str) -> str:
        """The name for the concept that `concept` describes in errors."""
        key = hashlib.sha256(f"{self.command}\0{prompt}".encode()).hexdigest()
        if key not in self._answers:
            self._answers[key] = self._run(concept, prompt)
            try:
                with self.kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"prompt": key, "concept": concept, "name": self._answers[key]}) + "\n")
            except OSError as error:
                raise UserError(f"Cannot write {self.kept}: {error.strerror}; choose another --out.") from error
        return self._answers[key]

    def forget(self) -> None:
        """Removes the file of answers, once the catalogue is written."""
        self.kept.unlink(missing_ok=True)

    def _run(self, concept: str, prompt: str) -> str:
        where = f"--command {self.command!r}, {concept}"
        try:
            answer = run_program(self._words, prompt, seconds=self.seconds, max_bytes=_MAX_ANSWER)
        except ProgramError as error:
            raise UserError(f"{where}: {error}") from None
        lines = answer.decode(errors="replace").strip().splitlines()
        name = " ".join(lines[0].split()) if lines else ""
        if not name or len(name) > MAX_NAME or not name.isprintable() or "\ufffd" in name:
            problem = "printed nothing" if not name else f"printed {name[: MAX_NAME + 1]!r}, which is not a name"
            raise UserError(f"{where}: {problem}; it must print a name of at most {MAX_NAME} characters as one line.")
        return name
