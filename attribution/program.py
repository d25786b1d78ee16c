"""Programs of the user's that read a prompt on standard input and write an answer on standard output."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence

from steerling_jax.errors import UserError

_SHOWN_ERROR = 200  # characters of what a failed program wrote to standard error
_BLOCK = 65536


class ProgramError(Exception):
    """A program that could not be run, failed, or took too long; the message says so and what to do."""


class OutputTooLongError(ProgramError):
    """A program that wrote more than it may."""


def split_command(option: str, command: str) -> list[str]:
    """The words of a command line, which is run without a shell. Raises `UserError` that names the option."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"{option} is {command!r}, which cannot be parsed ({error}); check its quotes.") from None
    if not words:
        raise UserError(f"{option} is empty; give a program.")
    return words


def run_program(words: Sequence[str], prompt: str, *, seconds: float, max_bytes: int) -> bytes:
    """What the program writes on standard output, at most `max_bytes`, within `seconds`.

    The program and all processes that it started are killed at the limit, and where this process is interrupted.
    Raises `ProgramError`.
    """
    # The prompt is a file and not a pipe, so that a program that does not read it cannot block this process.
    with tempfile.TemporaryFile() as source:
        source.write(prompt.encode("utf-8", errors="replace"))
        source.seek(0)
        try:
            process = subprocess.Popen(
                list(words), stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL in a word
            reason = error.strerror if isinstance(error, OSError) else error
            raise ProgramError(f"cannot be started ({reason}); give the program's whole path.") from None
        with process:
            try:
                return _output(process, time.monotonic() + seconds, seconds, max_bytes)
            finally:
                # Its own session is its own process group, so what it started is killed, too. Once it has been waited
                # for, its number may be that of another group.
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)


def _output(process: subprocess.Popen[bytes], deadline: float, seconds: float, max_bytes: int) -> bytes:
    assert process.stdout is not None
    assert process.stderr is not None
    written, errors = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, buffer in ((process.stdout, written), (process.stderr, errors)):
            selector.register(stream, selectors.EVENT_READ, buffer)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _too_slow(seconds)
            for key, _ in ready:
                block = os.read(key.fd, _BLOCK)
                if not block:
                    selector.unregister(key.fileobj)
                key.data.extend(block)
            if len(written) > max_bytes:
                raise OutputTooLongError(f"wrote more than {max_bytes} bytes; it must write one short answer.")
            del errors[:-_BLOCK]  # the end says why a program failed
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _too_slow(seconds) from None
    if code:
        said = " ".join(errors.decode(errors="replace").split())[-_SHOWN_ERROR:]
        raise ProgramError(f"exited with code {code}{f' ({said})' if said else ''}; correct it.")
    return bytes(written)


def _too_slow(seconds: float) -> ProgramError:
    return ProgramError(f"no answer within {seconds:g} seconds; raise --time-limit.")
