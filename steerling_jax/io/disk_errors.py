"""Recognises errors caused by the disk (full, read-only, no permission), whichever library raised them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from steerling_jax.errors import UserError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def disk_error_reason(error: BaseException) -> str | None:
    """The operating system's description of the disk error behind `error`, in lower case; None if there is none.

    Follows the chain of causes, since Orbax wraps the errors of its writer threads. TensorStore reports disk errors as
    `ValueError`, so for those the description is searched for in the message.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno).lower()
        for code in _DISK_ERRORS:
            if os.strerror(code) in str(cause):
                return os.strerror(code).lower()
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def report_disk_errors(failure: str) -> Iterator[None]:
    """Converts disk errors, in Python or inside Orbax and TensorStore, into a `UserError` that begins with `failure`.

    Other exceptions pass unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = disk_error_reason(error)
        if reason is None:
            raise
        raise UserError(
            f"{failure}: {reason}; free some space or choose another location, then run the same command again."
        ) from error
