"""Exclusive locks on files, which the kernel releases however the process ends."""

from __future__ import annotations

import fcntl
from typing import IO

from steerling_jax.errors import UserError


def lock_file(file: IO[str], place: str, option: str, busy: str) -> None:
    """Locks an open file for this process until it is closed.

    Raises `UserError` with the sentence `busy` if another process holds the lock, and one that names `place` and
    `option` if the file system cannot lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(busy) from None
    except OSError as error:
        raise UserError(
            f"{place} cannot be locked ({error.strerror}), so two runs could write there: mount its disk with locks "
            f"(NFS: lockd; Lustre: flock), or choose another place with {option}."
        ) from None
