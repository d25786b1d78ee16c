"""Telling a full or forbidden disk from other failures: libraries report it each in their own way."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from steerling_jax.errors import UserError

_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def disk_trouble(error: BaseException) -> str | None:
    """The disk's own words for why `error` happened, if it was the disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return os.strerror(seen.errno).lower()
        for code in _TROUBLE:
            if os.strerror(code) in str(seen):  # so TensorStore tells of it
                return os.strerror(code).lower()
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turns what a full or forbidden disk raises, in Python or inside Orbax and TensorStore, into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_trouble(error)
        if reason is None:
            raise
        raise UserError(
            f"{what}: {reason}; free some space or choose another place, then run the same command again."
        ) from error
